"""One rule for every reward: what is a number, what is within rounding of its bound, and what an error says."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from spo_verl.config import RewardConfig
from spo_verl.data.unit_reward import number, unit_reward
from spo_verl.errors import SpoRewardError

BOUND = st.floats(-1e30, 1e30, allow_subnormal=False)


def mapped(raw: object, low: float = 0.0, high: float = 1.0) -> float:
    return unit_reward(raw, RewardConfig(low=low, high=high), "prompt 3", "score")


@given(low=BOUND, high=BOUND, share=st.floats(0, 1))
def test_what_float32_makes_of_a_reward_in_the_range_is_in_the_range(low, high, share):
    assume(low < high)
    reward = min(max(low + share * (high - low), low), high)
    stored = float(np.float32(reward))
    found = mapped(stored, low, high)
    assert 0.0 <= found <= 1.0
    exact = (Fraction(reward) - Fraction(low)) / (Fraction(high) - Fraction(low))
    rounding = abs(Fraction(stored) - Fraction(reward)) / (Fraction(high) - Fraction(low))
    assert abs(Fraction(found) - exact) <= rounding + Fraction(1, 10**12)


@given(low=BOUND, high=BOUND, beyond=st.floats(1e-5, 1e3))
def test_what_is_further_out_than_rounding_is_refused(low, high, beyond):
    assume(low < high)
    step = max(beyond * max(high - low, abs(low), abs(high)), 2.0**-146)
    assume(math.isfinite(step))
    for outside in (low - step, high + step):
        with pytest.raises(SpoRewardError, match="outside the declared range"):
            mapped(outside, low, high)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1.1), (-0.1, 1), (0, 0.3), (0, 1.2), (-0.2, 1), (0, 0.7), (-1, 1), (-3.3, -1.1), (0, 1e-30)]
)
def test_both_bounds_come_back_from_float32_as_exactly_0_and_1_or_inside(low, high):
    stored = torch.tensor([low, high], dtype=torch.float32)
    assert mapped(float(stored[0]), low, high) == pytest.approx(0.0, abs=3e-7)
    assert mapped(float(stored[1]), low, high) == pytest.approx(1.0, abs=3e-7)
    assert mapped(low, low, high) == 0.0
    assert mapped(high, low, high) == 1.0


@given(parts=st.integers(1, 400))
def test_a_sum_of_equal_parts_of_the_whole_is_the_whole(parts):
    assert mapped(sum([1 / parts] * parts)) == pytest.approx(1.0, abs=1e-12)
    assert mapped(1 - sum([1 / parts] * parts)) == pytest.approx(0.0, abs=1e-12)
    in_float32 = torch.full((parts,), 1 / parts, dtype=torch.float32).sum()
    assert mapped(in_float32) == pytest.approx(1.0, abs=2e-6)


@pytest.mark.parametrize("reward", [1.0001, -0.0001, 1 + 1e-5, -1e-5, 2, math.inf, -math.inf, math.nan, 10**400])
def test_the_tolerance_is_no_gift(reward):
    with pytest.raises(SpoRewardError) as refusal:
        mapped(reward)
    for part in ("prompt 3", "score", "outside the declared range", "spo.reward.low=0.0", "spo.reward.high=1.0"):
        assert part in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_a_narrow_range_far_from_zero_is_judged_by_what_float32_can_hold():
    low, high = 1000.0, 1000.001
    assert mapped(float(np.float32(high)), low, high) == pytest.approx(1.0, abs=0.1)
    with pytest.raises(SpoRewardError):
        mapped(1000.0015, low, high)
    with pytest.raises(SpoRewardError):
        mapped(999.9995, low, high)


def test_a_range_wider_than_float64_has_a_middle():
    assert mapped(0.0, -1.7e308, 1.7e308) == 0.5
    assert mapped(1.7e308, -1.7e308, 1.7e308) == 1.0
    with pytest.raises(SpoRewardError):
        mapped(10**400, -1.7e308, 1.7e308)


@pytest.mark.parametrize(
    "raw",
    [1, 1.0, True, np.True_, np.float32(1), np.float16(1), np.int64(1), np.uint8(1), np.array(1.0), np.array([1]),
     np.array([[True]]), torch.tensor(1.0), torch.tensor([1]), torch.tensor([True]),
     torch.tensor(1, dtype=torch.bfloat16), Fraction(1)],
)  # fmt: skip
def test_what_is_a_number(raw):
    assert number(raw) == 1.0
    assert mapped(raw) == 1.0


@pytest.mark.parametrize(
    "raw",
    [{"right": 1}, {}, [1.0], [], (1,), "right", "1", "", b"1", {1}, 1j, Decimal(1), object(), np.array([1.0, 0.0]),
     np.array([]), np.array("1"), np.array({"a": 1}), np.datetime64(1, "ns"), np.timedelta64(1), np.complex64(1),
     torch.tensor([1.0, 0.0]), torch.tensor([]), torch.tensor(1j), lambda: 1.0, float, ["x" * 10_000]],
)  # fmt: skip
def test_what_is_none(raw):
    assert number(raw) is None
    with pytest.raises(SpoRewardError, match=r"prompt 3 has score = .*, a \w+, and a reward is one number") as refusal:
        mapped(raw)
    assert "spo.reward.key" in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_nothing_is_missing():
    with pytest.raises(SpoRewardError, match="prompt 3 has no score"):
        mapped(None)
