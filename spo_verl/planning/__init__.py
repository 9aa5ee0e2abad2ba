"""What a run will need, from its configuration alone: tokens, memory, floating-point operations.

Formulae are in :mod:`~spo_verl.planning.formulas`; ``docs/planning.md`` says what they were compared with.
"""
