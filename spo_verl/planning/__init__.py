"""What a run will need, from its configuration alone: tokens, memory, floating-point operations.

Formulae are in :mod:`~spo_verl.planning.formulas` and in
``docs/planning.md``, which also has what was measured next to them.
"""
