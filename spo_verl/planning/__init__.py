"""What a run will need, from its configuration alone: tokens, memory, floating-point operations.

The formulae are in :mod:`~spo_verl.planning.formulas`; what they were compared with is in ``docs/planning.md``.
"""
