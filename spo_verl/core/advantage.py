"""Normalising raw advantages over a batch, per trajectory (SPO) or per generated token (SPO++)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spo_verl.core._checks import (
    ArrayOrTensor,
    FloatArray,
    as_float64,
    like_input,
    require,
    require_number,
    require_same_shape,
)
from spo_verl.errors import SpoArgumentError

Measure = Literal["trajectory", "token"]


def normalize_advantages(
    advantage_B: ArrayOrTensor,
    token_count_B: Any = None,
    *,
    measure: Measure = "trajectory",
    eps: float = 1e-8,
) -> ArrayOrTensor:
    """A~ = (A - mean) / (std + eps) over the whole batch; one row is one trajectory.

    - ``measure="trajectory"`` (https://arxiv.org/abs/2509.13232, eq. 9): every trajectory weighs the same;
      the std is the unbiased one, sqrt(sum (A - mean)^2 / (B - 1)).
    - ``measure="token"`` (https://arxiv.org/abs/2608.24870, eq. 6): with L_i generated tokens in trajectory
      i, mean = sum(L A) / sum(L) and std = sqrt(sum(L (A - mean)^2) / (sum(L) - 1)). A token-mean loss then
      has no residual centre: sum(L A~) = 0.

    Args:
        advantage_B: (B,) raw advantages, reward minus the value from before the observation (eq. 8); finite.
            Numpy or torch.
        token_count_B: (B,) L, the generated tokens that the loss will see, whole numbers >= 0. Needed for
            "token". Rows with 0 (padding) take no part under either measure and get 0.
        measure: what a row weighs.
        eps: added to the std, >= 0.

    Returns:
        (B,) in the library, device and floating precision of ``advantage_B`` (float64 for integers); computed
        in float64. All 0 where there is no spread to measure: a single row, or equal advantages.

    Raises:
        SpoArgumentError: an advantage is NaN or infinite, token counts are missing for "token", are not whole
            numbers >= 0 or differ in shape, or measure or eps is not allowed.
    """
    if measure not in ("trajectory", "token"):
        raise SpoArgumentError(f"measure = {measure!r}, but it must be 'trajectory' or 'token'")
    require_number(0.0 <= eps < np.inf, "eps", eps, "it must be a finite number >= 0")
    raw_B = as_float64("advantage_B", advantage_B)
    require_number(raw_B.ndim == 1, "advantage_B.shape", raw_B.shape, "it must be (B,), one per trajectory")
    require(np.isfinite(raw_B), "advantage_B", raw_B, "advantages must be finite")
    weight_B = _row_weights(raw_B, token_count_B, measure)
    normalized: ArrayOrTensor = like_input(_whiten(raw_B, weight_B, eps), advantage_B)
    return normalized


def _row_weights(raw_B: FloatArray, token_count_B: npt.ArrayLike | None, measure: Measure) -> FloatArray:
    if token_count_B is None:
        if measure == "token":
            raise SpoArgumentError("token_count_B is missing, but measure='token' weighs each row by it")
        return np.ones_like(raw_B)
    count_B = as_float64("token_count_B", token_count_B)
    require_same_shape(advantage_B=raw_B, token_count_B=count_B)
    whole_B = np.isfinite(count_B) & (count_B >= 0) & (count_B == np.floor(count_B))
    require(whole_B, "token_count_B", count_B, "it must be a whole number >= 0")
    return count_B if measure == "token" else (count_B > 0).astype(np.float64)


def _whiten(raw_B: FloatArray, weight_B: FloatArray, eps: float) -> FloatArray:
    """Centre and scale by the weighted mean and the weighted unbiased std; rows of weight 0 become 0."""
    live_B = weight_B > 0
    # Compared, not computed: the rounding of a mean must not turn equal advantages into a tiny signal.
    if not live_B.any() or np.ptp(raw_B[live_B]) == 0.0:
        return np.zeros_like(raw_B)
    total = weight_B.sum()
    centred_B = raw_B - (weight_B * raw_B).sum() / total
    scale = np.sqrt((weight_B * centred_B**2).sum() / (total - 1.0)) + eps
    if scale == 0.0:  # eps = 0, and differences so small that their squares underflow
        return np.zeros_like(raw_B)
    return np.where(live_B, centred_B / scale, 0.0)
