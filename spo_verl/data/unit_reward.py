"""One reward, as a reward function, verl or a file states it: checked against its declared range, mapped to [0, 1]."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from spo_verl.config import RewardConfig
from spo_verl.errors import SpoRewardError

STORAGE = 2.0**-23
"""verl stores scores as float32: 1.1 comes back as 1.1000000238. Relative to the bound, twice the largest rounding."""
SPACING = 2.0**-149
"""Distance between neighbours among the smallest float32; below about 1e-38 rounding is no longer relative."""
ARITHMETIC = 1e-6
"""Sums of parts miss their total: twenty times 0.05 is above 1. Relative to the width of the range."""
_NUMERIC_KINDS = "biuf"


def number(raw: Any) -> float | None:
    """The number that ``raw`` is; None where it is not a number.

    Numbers are bool, int, float and their like, scalars of numpy, and arrays or tensors of one element. An integer
    beyond the range of float64 is infinite.
    """
    if hasattr(raw, "dtype") and hasattr(raw, "item"):
        if math.prod(raw.shape) != 1 or getattr(raw.dtype, "kind", "f") not in _NUMERIC_KINDS:
            return None
        raw = raw.item()
    real = isinstance(raw, Real)
    if not real:
        return None
    try:
        return float(raw)
    except OverflowError:
        return math.inf if raw > 0 else -math.inf


def unit_reward(raw: Any, reward: RewardConfig, where: str, name: str) -> float:
    """Map one reward from its declared range to [0, 1].

    A reward beyond a bound by no more than rounding (:data:`STORAGE` times the bound, :data:`SPACING`, and
    :data:`ARITHMETIC` times the width of the range) counts as the bound.

    Args:
        raw: the reward.
        reward: the range, ``low`` and ``high``.
        where: whose reward this is, for the error.
        name: what it was read from, for the error.

    Raises:
        SpoRewardError: it is missing, not one number, NaN, or outside the range; says which, and how to correct it.
    """
    another = "or choose another with spo.reward.key (--reward-key; null takes the score)"
    if raw is None:
        raise SpoRewardError(f"{where} has no {name}; return it from the reward function's dictionary, {another}.")
    found = number(raw)
    if found is None:
        raise SpoRewardError(
            f"{where} has {name} = {_short(raw)}, a {type(raw).__name__}, and a reward is one number; return a number "
            f"there, {another}."
        )
    # Halved where the width of the range is no float64.
    scale = 0.5 if math.isinf(reward.high - reward.low) else 1.0
    low, high, value = reward.low * scale, reward.high * scale, found * scale
    width = high - low
    if not low - _slack(low, width) <= value <= high + _slack(high, width):
        raise SpoRewardError(
            f"{where} has {name} = {_short(raw)}, outside the declared range [spo.reward.low={reward.low}, "
            f"spo.reward.high={reward.high}]; declare the range of your reward (--reward-low, --reward-high), "
            f"{another}, e.g. acc where the score is shaped."
        )
    return min(max((value - low) / width, 0.0), 1.0)


def _slack(bound: float, width: float) -> float:
    return STORAGE * abs(bound) + SPACING + ARITHMETIC * width


def _short(raw: Any) -> str:
    try:
        text = " ".join(repr(raw).split())
    except ValueError:  # an integer of more digits than Python prints
        return f"an integer of {raw.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:77]}..."
