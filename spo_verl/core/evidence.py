"""Beta evidence per prompt: where it starts, what it says, and how one policy version's outcomes change it.

The state of a prompt is the pair (alpha, beta) of a Beta distribution over its success probability under the
current policy (Single-stream Policy Optimization, https://arxiv.org/abs/2509.13232).

| symbol | name here | meaning |
|---|---|---|
| alpha, beta | ``alpha_P``, ``beta_P`` | discounted successes and failures, >= 0 |
| v | ``value`` | estimated success probability, in [0, 1] |
| N_eff | ``effective_sample_size`` | discounted number of outcomes |
| N_0 | ``1 / (1 - rho_min)`` | mass that the initial estimate is worth |
| rho | ``rho_B`` | retention: what is kept of the old evidence, in (0, 1] |

Order within a step: an outcome is scored against the value from *before* it was added (eq. 8). Nothing here
holds state; every function returns new arrays and leaves its arguments as they were.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from spo_verl.core._checks import (
    FloatArray,
    as_float64,
    require,
    require_number,
    require_same_shape,
)
from spo_verl.errors import SpoArgumentError, SpoRewardError

Prior = Literal["jeffreys", "none"]

UNTRIED_EVIDENCE = 0.5
"""alpha and beta of a prompt without a single trial: the Jeffreys prior Beta(1/2, 1/2) on its own."""


def initial_evidence(
    successes_P: npt.ArrayLike,
    trials_P: npt.ArrayLike,
    *,
    rho_min: float = 0.875,
    prior: Prior = "jeffreys",
) -> tuple[FloatArray, FloatArray]:
    """Evidence from offline trials with the initial policy (Algorithm 2, eq. 6).

    With s successes in n trials and N_0 = 1 / (1 - rho_min):

    - ``prior="jeffreys"``: alpha = N_0 (s + 1/2) / (n + 1), beta = N_0 (n - s + 1/2) / (n + 1);
    - ``prior="none"``: alpha = N_0 s / n, beta = N_0 (1 - s / n), which is eq. 6 as printed. The value of a
      prompt that was always or never solved is then exactly 1 or 0.

    Args:
        successes_P: (P,) sum of the rewards in [0, 1] of each prompt's trials, in [0, trials]; may be a
            fraction.
        trials_P: (P,) number of trials, a whole number >= 0. Slots with 0 get (0.5, 0.5) under either prior.
        rho_min: smallest retention, in [0, 1); sets the mass, 8 outcomes by default.

    Returns:
        (alpha_P, beta_P), float64; they sum to N_0 where there were trials and to 1 elsewhere.

    Raises:
        SpoRewardError: successes are negative, more than the trials, or NaN.
        SpoArgumentError: trials are not whole numbers >= 0, shapes differ, or a setting is out of its range.
    """
    if prior not in ("jeffreys", "none"):
        raise SpoArgumentError(f"prior = {prior!r}, but it must be 'jeffreys' or 'none'")
    require_number(0.0 <= rho_min < 1.0, "rho_min", rho_min, "it must lie in [0, 1)")
    success_P, trial_P = as_float64("successes_P", successes_P), as_float64("trials_P", trials_P)
    require_same_shape(successes_P=success_P, trials_P=trial_P)
    whole_P = np.isfinite(trial_P) & (trial_P >= 0) & (trial_P == np.floor(trial_P))
    require(whole_P, "trials_P", trial_P, "it must be a whole number >= 0")
    require(
        (success_P >= 0) & (success_P <= trial_P),
        "successes_P",
        success_P,
        "it must lie between 0 and the trials of its prompt: map rewards to [0, 1] before summing them",
        SpoRewardError,
    )
    mass = 1.0 / (1.0 - rho_min)
    pseudo = 0.5 if prior == "jeffreys" else 0.0
    tried_P = trial_P > 0
    outcome_P = np.where(tried_P, trial_P, 1.0) + 2.0 * pseudo
    alpha_P = mass * (success_P + pseudo) / outcome_P
    beta_P = mass * (trial_P - success_P + pseudo) / outcome_P
    return np.where(tried_P, alpha_P, UNTRIED_EVIDENCE), np.where(tried_P, beta_P, UNTRIED_EVIDENCE)


def effective_sample_size(alpha: npt.ArrayLike, beta: npt.ArrayLike) -> FloatArray:
    """N_eff = alpha + beta, the discounted number of outcomes; any shape, both the same, finite and >= 0.

    The text of eq. 7 also writes ``+ 1``; the incremental form of the update is exact without it.

    Raises:
        SpoArgumentError: evidence is negative, infinite or NaN, or shapes differ.
    """
    alpha, beta = _checked_evidence(alpha, beta)
    return alpha + beta


def value(alpha: npt.ArrayLike, beta: npt.ArrayLike) -> FloatArray:
    """v = alpha / (alpha + beta) (eq. 5), the baseline, in [0, 1]; any shape, both the same.

    It is 0.5 where alpha + beta is 0: evidence that was discounted so often that it underflowed says nothing.

    Raises:
        SpoArgumentError: evidence is negative, infinite or NaN, or shapes differ.
    """
    alpha, beta = _checked_evidence(alpha, beta)
    mass = alpha + beta
    return np.divide(alpha, mass, out=np.full_like(mass, 0.5), where=mass > 0)


def update_evidence(
    alpha_B: npt.ArrayLike,
    beta_B: npt.ArrayLike,
    reward_sum_B: npt.ArrayLike,
    rho_B: npt.ArrayLike,
    *,
    count: npt.ArrayLike = 1,
) -> tuple[FloatArray, FloatArray]:
    """Discount once, then add the outcomes of one policy version (eq. 5).

    alpha' = rho alpha + reward_sum, beta' = rho beta + (count - reward_sum). For count = 1 this equals
    v' = v + eta (r - v) with eta = 1 / (rho N_eff + 1) (eq. 7). Several outcomes of one prompt under one
    policy version are one call with their sum: discounting per outcome would forget evidence that is still
    current.

    Args:
        alpha_B, beta_B: (B,) evidence before, finite and >= 0.
        reward_sum_B: (B,) sum of the prompt's rewards, each in [0, 1]; in [0, count].
        rho_B: (B,) or a scalar, retention in (0, 1].
        count: (B,) or a scalar, number of outcomes, a whole number >= 0.

    Returns:
        New (alpha_B, beta_B), float64. The arguments are not changed.

    Raises:
        SpoRewardError: a reward sum is outside [0, count] or NaN.
        SpoArgumentError: evidence is negative or not finite, rho is outside (0, 1], count is not a whole
            number >= 0, or shapes differ.
    """
    alpha_B, beta_B = _checked_evidence(alpha_B, beta_B)
    reward_B = as_float64("reward_sum_B", reward_sum_B)
    rho_B = _row_or_scalar("rho_B", rho_B, alpha_B.shape)
    count_B = _row_or_scalar("count", count, alpha_B.shape)
    require_same_shape(alpha_B=alpha_B, reward_sum_B=reward_B)
    require((rho_B > 0) & (rho_B <= 1), "rho_B", rho_B, "retention must lie in (0, 1]")
    whole_B = np.isfinite(count_B) & (count_B >= 0) & (count_B == np.floor(count_B))
    require(whole_B, "count", count_B, "it must be a whole number >= 0")
    require(
        (reward_B >= 0) & (reward_B <= count_B),
        "reward_sum_B",
        reward_B,
        "it must lie between 0 and the count of its prompt: map rewards to [0, 1] before summing them",
        SpoRewardError,
    )
    return rho_B * alpha_B + reward_B, rho_B * beta_B + (count_B - reward_B)


def degenerate_probability(value: npt.ArrayLike, group_size: int = 8) -> FloatArray:
    """Z_G(p) = p^G + (1 - p)^G (below eq. 12): how likely a group of G independent responses agree in reward.

    Such a group gives a group-relative method no signal; averaged over a batch it is the share of samples
    that such a method would have lost at these values. Shape as ``value``, which must lie in [0, 1];
    group_size >= 1.

    Raises:
        SpoArgumentError: a value is outside [0, 1] or NaN, or group_size is below 1.
    """
    p = as_float64("value", value)
    require((p >= 0) & (p <= 1), "value", p, "it must lie in [0, 1]")
    require_number(group_size >= 1, "group_size", group_size, "it must be at least 1")
    return np.asarray(p**group_size + (1.0 - p) ** group_size)


def _checked_evidence(alpha: npt.ArrayLike, beta: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    alpha, beta = as_float64("alpha", alpha), as_float64("beta", beta)
    require_same_shape(alpha=alpha, beta=beta)
    for name, array in (("alpha", alpha), ("beta", beta)):
        require(np.isfinite(array) & (array >= 0), name, array, "evidence must be finite and >= 0")
    return alpha, beta


def _row_or_scalar(name: str, given: npt.ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    """One element per row: a scalar holds for all rows, any other shape must match."""
    array = as_float64(name, given)
    if array.ndim > 0 and array.shape != shape:
        raise SpoArgumentError(
            f"{name} has shape {array.shape}, but the evidence has {shape}; pass a scalar or {shape}"
        )
    return np.broadcast_to(array, shape)
