"""The maths of SPO: pure functions on numpy arrays (torch tensors where the trainer has them).

Importing this package imports neither torch nor any trainer. Functions check their arguments first, return
new arrays, and hold no state; ``WeightIndex`` says what it keeps, and ``Interval`` is a plain result. Errors
are ``SpoArgumentError`` and ``SpoRewardError``, both also ``ValueError``.
"""

from spo_verl.core.advantage import normalize_advantages
from spo_verl.core.calibration import calibrated_value, calibration_features, fit_calibration, read_calibrated
from spo_verl.core.divergence import divergence
from spo_verl.core.evaluation import (
    Interval,
    average_at_k,
    bootstrap_difference,
    bootstrap_interval,
    majority_at_k,
    pass_at_k,
)
from spo_verl.core.event_time import decay, evidence_at, fold_events, value_at
from spo_verl.core.evidence import (
    degenerate_probability,
    effective_sample_size,
    initial_evidence,
    update_evidence,
    value,
)
from spo_verl.core.forgetting import retention
from spo_verl.core.sampling import WeightIndex, draw, quota_counts, quota_limits, sampling_weights, value_weights
from spo_verl.errors import SpoArgumentError

__all__ = [
    "Interval",
    "SpoArgumentError",
    "WeightIndex",
    "average_at_k",
    "bootstrap_difference",
    "bootstrap_interval",
    "calibrated_value",
    "calibration_features",
    "decay",
    "degenerate_probability",
    "divergence",
    "draw",
    "effective_sample_size",
    "evidence_at",
    "fit_calibration",
    "fold_events",
    "initial_evidence",
    "majority_at_k",
    "normalize_advantages",
    "pass_at_k",
    "quota_counts",
    "quota_limits",
    "read_calibrated",
    "retention",
    "sampling_weights",
    "update_evidence",
    "value",
    "value_at",
    "value_weights",
]
