"""Evidence in event time: every outcome decays from the policy version that generated it (SPO++).

A *policy event* is a published policy version; versions count from 0, the initial policy. With R_i the outcomes
of a prompt, k_i the versions that generated them, alpha_0 its initial evidence and z the version at which the prompt
entered, what is known at version q is (https://arxiv.org/abs/2608.24870, eq. 3)

    alpha_q = rho^(q - z) alpha_0 + sum_i rho^(q - k_i) R_i
    beta_q  = rho^(q - z) beta_0  + sum_i rho^(q - k_i) (1 - R_i)

whatever the order in which the outcomes were received. The sum is not kept at q, where after a few hundred
versions without a visit it would underflow (0.875^400 = 6e-24), but at the prompt's own newest event:

| symbol | name here | meaning |
|---|---|---|
| n | ``newest_P`` | the largest of z and the k_i |
| alpha_n, beta_n | ``alpha_P``, ``beta_P`` | evidence at n; its mass is that of the initial evidence, or at least 1 |
| m | ``floor`` | prior mass that never decays, added when read as (m/2, m/2); 0 leaves eq. 3 as printed |

Reading at q >= n multiplies both by rho^(q - n). The value is their ratio and is read without multiplying, so it
never underflows. With a floor, a prompt that was not visited for long returns to 1/2, Beta(m/2, m/2) being
all that is left of it: the next outcome then moves the value by about 1 / (m + 1) and not all the way.

A version q < n (a stale reader) sees the evidence at n: nothing is ever weighed up. Everything is float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spo_verl.core._checks import FloatArray, IntArray, as_float64, require, require_number, require_same_shape
from spo_verl.core.evidence import effective_sample_size, value
from spo_verl.errors import SpoArgumentError, SpoRewardError


def decay(versions: npt.ArrayLike, rho: float) -> FloatArray:
    """rho^versions, what is left of evidence after so many policy versions; 1 where they are negative.

    Args:
        versions: any shape, whole numbers.
        rho: retention per version, in (0, 1].

    Returns:
        float64 in [0, 1], 0 only where the power is below the smallest float64.

    Raises:
        SpoArgumentError: rho is outside (0, 1], or versions are not whole numbers.
    """
    _check_rho(rho)
    elapsed = _whole("versions", versions)
    return np.asarray(np.power(float(rho), np.maximum(elapsed, 0).astype(np.float64)))


def fold_events(
    alpha_P: npt.ArrayLike,
    beta_P: npt.ArrayLike,
    newest_P: npt.ArrayLike,
    position_B: npt.ArrayLike,
    version_B: npt.ArrayLike,
    reward_B: npt.ArrayLike,
    *,
    rho: float,
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Add outcomes to evidence, each with the weight of its own version (eq. 3); any order, any number, late or not.

    With n' = max(n, k of the prompt's outcomes): alpha' = rho^(n' - n) alpha + sum rho^(n' - k) R, and beta' the
    same with 1 - R. Outcomes that come one by one, in any order, give the same evidence up to rounding.

    Args:
        alpha_P, beta_P: (P,) evidence at ``newest_P``, finite and >= 0.
        newest_P: (P,) whole numbers >= 0.
        position_B: (B,) the prompt of each outcome, in [0, P); may repeat.
        version_B: (B,) policy version that generated it, whole number >= 0.
        reward_B: (B,) in [0, 1].
        rho: retention per version, in (0, 1].

    Returns:
        New (alpha_P, beta_P, newest_P); prompts without an outcome are as they were.

    Raises:
        SpoRewardError: a reward is outside [0, 1] or NaN.
        SpoArgumentError: evidence is negative or not finite, a version or position is impossible, rho is outside
            (0, 1], or shapes differ.
    """
    _check_rho(rho)
    alpha_P, beta_P, newest_P = _checked_columns(alpha_P, beta_P, newest_P)
    position_B, version_B = _whole("position_B", position_B), _whole("version_B", version_B)
    reward_B = as_float64("reward_B", reward_B)
    require_same_shape(position_B=position_B, version_B=version_B, reward_B=reward_B)
    require_number(position_B.ndim == 1, "position_B.shape", position_B.shape, "it must be (B,), one per outcome")
    rows = alpha_P.size
    require((position_B >= 0) & (position_B < rows), "position_B", position_B, f"there are {rows} prompts")
    require(version_B >= 0, "version_B", version_B, "policy versions count from 0")
    require(
        (reward_B >= 0) & (reward_B <= 1), "reward_B", reward_B, "it must be mapped to [0, 1] first", SpoRewardError
    )
    latest_P = newest_P.copy()
    np.maximum.at(latest_P, position_B, version_B)
    kept_P = decay(latest_P - newest_P, rho)
    weight_B = decay(latest_P[position_B] - version_B, rho)
    success_P = np.bincount(position_B, weights=weight_B * reward_B, minlength=rows)
    failure_P = np.bincount(position_B, weights=weight_B * (1.0 - reward_B), minlength=rows)
    return kept_P * alpha_P + success_P, kept_P * beta_P + failure_P, latest_P


def evidence_at(
    alpha_P: npt.ArrayLike,
    beta_P: npt.ArrayLike,
    newest_P: npt.ArrayLike,
    version: npt.ArrayLike,
    *,
    rho: float,
    floor: float = 0.0,
) -> tuple[FloatArray, FloatArray]:
    """(alpha_q, beta_q) as read at policy version q: rho^(q - n) (alpha, beta) + (floor / 2, floor / 2).

    Their sum is N_eff at q. It may underflow to ``floor``; for the value take ``value_at``.

    Args:
        alpha_P, beta_P, newest_P: as for ``fold_events``.
        version: q, one for all or (P,), whole numbers >= 0.
        rho: retention per version, in (0, 1].
        floor: prior mass m that does not decay, finite and >= 0.

    Raises:
        SpoArgumentError: as for ``fold_events``, or the floor is negative or not finite.
    """
    kept_P = _kept(alpha_P, beta_P, newest_P, version, rho)
    _check_floor(floor)
    alpha_P, beta_P = as_float64("alpha", alpha_P), as_float64("beta", beta_P)
    return kept_P * alpha_P + floor / 2.0, kept_P * beta_P + floor / 2.0


def value_at(
    alpha_P: npt.ArrayLike,
    beta_P: npt.ArrayLike,
    newest_P: npt.ArrayLike,
    version: npt.ArrayLike,
    *,
    rho: float,
    floor: float = 0.0,
) -> FloatArray:
    """v_q = alpha_q / (alpha_q + beta_q) at policy version q, in [0, 1] (eq. 3); arguments as for ``evidence_at``.

    Without a floor both decay alike and the ratio is that at the newest event: it is taken there, and holds however
    far q is away.
    """
    if floor == 0.0:
        _kept(alpha_P, beta_P, newest_P, version, rho)  # the checks
        return value(alpha_P, beta_P)
    return value(*evidence_at(alpha_P, beta_P, newest_P, version, rho=rho, floor=floor))


def _kept(
    alpha_P: npt.ArrayLike, beta_P: npt.ArrayLike, newest_P: npt.ArrayLike, version: npt.ArrayLike, rho: float
) -> FloatArray:
    """rho^(q - n) of each prompt, after the checks."""
    _, _, newest_P = _checked_columns(alpha_P, beta_P, newest_P)
    read_P = _whole("version", version)
    if read_P.ndim > 0:
        require_same_shape(newest_P=newest_P, version=read_P)
    require(read_P >= 0, "version", read_P, "policy versions count from 0")
    return decay(read_P - newest_P, rho)


def _checked_columns(
    alpha_P: npt.ArrayLike, beta_P: npt.ArrayLike, newest_P: npt.ArrayLike
) -> tuple[FloatArray, FloatArray, IntArray]:
    effective_sample_size(alpha_P, beta_P)  # refuses what is no evidence
    alpha_P, beta_P = as_float64("alpha", alpha_P), as_float64("beta", beta_P)
    newest_P = _whole("newest_P", newest_P)
    require_same_shape(alpha=alpha_P, newest_P=newest_P)
    require(newest_P >= 0, "newest_P", newest_P, "policy versions count from 0")
    return alpha_P, beta_P, newest_P


def _whole(name: str, given: npt.ArrayLike) -> IntArray:
    array = np.asarray(given)
    if array.size == 0:
        array = array.astype(np.int64)  # an empty list has no integer type of its own
    if not np.issubdtype(array.dtype, np.integer):
        raise SpoArgumentError(f"{name} has type {array.dtype}; pass integers")
    largest = np.iinfo(np.int64).max
    if array.dtype.kind == "u":
        require(array <= largest, name, array, f"it must be at most {largest}")
    return array.astype(np.int64)


def _check_rho(rho: float) -> None:
    require_number(0.0 < rho <= 1.0, "rho", rho, "retention must lie in (0, 1]")


def _check_floor(floor: float) -> None:
    require_number(0.0 <= floor < np.inf, "floor", floor, "it must be a finite number >= 0")
