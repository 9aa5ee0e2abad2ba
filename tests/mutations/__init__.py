"""Seeded mistakes in ``spo_verl.core``, each of which the tests of the maths must catch.

``python -m tests.mutations`` runs them all and prints a table; ``catalogue`` lists them.
"""
