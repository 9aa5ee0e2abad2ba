"""How much of a prompt's evidence is kept when the policy has moved away from the one that produced it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spo_verl.core._checks import FloatArray, as_float64, require, require_number


def retention(
    divergence_B: npt.ArrayLike,
    *,
    half_life: float = 0.06,
    rho_min: float = 0.875,
    rho_max: float = 0.96,
) -> FloatArray:
    """rho = 2^(-D / D_half), clipped to [rho_min, rho_max] (https://arxiv.org/abs/2509.13232, Algorithm 1).

    With constant retention rho, evidence settles at a mass of 1 / (1 - rho): the bounds are memory windows
    of 8 and 25 outcomes by default. A prompt without a stored response has D = 0 and hence keeps rho_max.

    Args:
        divergence_B: (B,) mean absolute log-probability difference per token, in nats, >= 0. Infinite is
            allowed (a token that became impossible) and gives rho_min.
        half_life: divergence at which half the evidence would be kept, were it not for the bounds; nats, > 0.
        rho_min, rho_max: bounds, 0 < rho_min <= rho_max <= 1.

    Returns:
        rho_B: (B,) float64 in [rho_min, rho_max]; falls as the divergence grows.

    Raises:
        SpoArgumentError: a divergence is negative or NaN, or a setting is out of its range.
    """
    require_number(0.0 < half_life < np.inf, "half_life", half_life, "it must be a finite number > 0")
    require_number(0.0 < rho_min <= 1.0, "rho_min", rho_min, "it must lie in (0, 1]")
    require_number(rho_min <= rho_max <= 1.0, "rho_max", rho_max, f"it must lie in [rho_min, 1] = [{rho_min}, 1]")
    divergence = as_float64("divergence_B", divergence_B)
    require(divergence >= 0, "divergence_B", divergence, "a divergence must be a number >= 0")
    with np.errstate(over="ignore"):  # a quotient beyond all floats is as good as an infinite divergence
        return np.asarray(np.clip(np.exp2(-divergence / half_life), rho_min, rho_max))
