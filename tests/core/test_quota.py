"""How many prompts of each source a batch gets: exact sums, exact expectations, nothing beyond floor and ceiling."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spo_verl.core import SpoArgumentError, quota_counts, quota_limits

from .helpers import property_test

SHARES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)
SIZES = st.integers(0, 5000)


class Fixed(np.random.Generator):
    """A generator whose uniform number is chosen by the test."""

    def __init__(self, u):
        super().__init__(np.random.PCG64(0))
        self.u = u

    def random(self, *_, **__):
        return self.u


def exact(shares, size):
    """share * size of each source, worked out from the decimals as which the shares print."""
    parts = [Fraction(str(share)) for share in shares]
    return [size * part / sum(parts) for part in parts]


@property_test
@given(SHARES, SIZES, st.integers(0, 999))
@example([0.1, 0.9], 10, 0)
def test_counts_add_up_and_are_floor_or_ceiling(shares, size, seed):
    counts = quota_counts(shares, size, np.random.default_rng(seed))
    assert counts.dtype == np.int64
    assert counts.sum() == size
    fewest, most = quota_limits(shares, size)
    for count, low, high, mean in zip(counts, fewest, most, exact(shares, size), strict=True):
        assert (low, high) == (math.floor(mean), math.ceil(mean))
        assert low <= count <= high


@property_test
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 300))
def test_the_expectation_is_exact(parts, size):
    # Every point at which a count changes is a multiple of 1 / sum(parts), so that many equally spaced numbers
    # stand for all numbers in [0, 1).
    total = sum(parts)
    counts = [quota_counts(parts, size, Fixed((k + 0.5) / total)) for k in range(total)]
    assert (np.sum(counts, axis=0) == np.array(parts) * size).all()


def test_by_hand():
    # 0.5, 0.3, 0.2 of 4 are 2, 1.2 and 0.8: the ends of the stretches are 2, 3.2 and 4.
    def counts(u):
        return quota_counts([0.5, 0.3, 0.2], 4, Fixed(u)).tolist()

    assert counts(0.0) == counts(0.79) == [2, 1, 1]
    assert counts(0.81) == counts(1 - 2**-53) == [2, 2, 0]


@pytest.mark.parametrize("u", [0.0, 2**-53, 0.5, 1 - 2**-53])
@pytest.mark.parametrize(
    ("shares", "size", "expected"),
    [
        ([0.1, 0.9], 10, [1, 9]),
        ([0.1] * 10, 30, [3] * 10),  # in binary 0.1 * 3 is not 0.3, and ten of them are not 1
        ([0.1, 0.2, 0.7], 2048 * 10, [2048, 4096, 14336]),
        ([1 / 3, 1 / 3, 1 / 3], 6, [2, 2, 2]),
        ([3, 1], 2048, [1536, 512]),
        ([5.0], 7, [7]),
    ],
)
def test_whole_counts_leave_nothing_to_chance(shares, size, expected, u):
    assert quota_counts(shares, size, Fixed(u)).tolist() == expected


def test_a_source_smaller_than_a_slot_comes_now_and_then():
    rng = np.random.default_rng(4)
    counts = np.array([quota_counts([1, 15], 4, rng) for _ in range(4000)])
    # A quarter of a slot: 1000 of 4000 batches, standard deviation sqrt(4000 * 3/16) = 27.
    assert set(counts[:, 0]) == {0, 1}
    assert abs(counts[:, 0].sum() - 1000) < 3 * 27


def test_only_proportions_count():
    for seed in range(50):
        for shares in ([0.375, 0.125], [3, 1], [75, 25]):
            twin = np.random.default_rng(seed)
            assert quota_counts(shares, 11, twin).tolist() == quota_counts([6, 2], 11, Fixed(twin_u(seed))).tolist()


def twin_u(seed):
    return np.random.default_rng(seed).random()


@pytest.mark.parametrize(("shares", "size"), [([1, 2], 5), ([1, 1], 2), ([1.0], 9), ([1, 2, 3], 0)])
def test_one_random_number_whatever_is_asked(shares, size):
    rng = np.random.default_rng(9)
    twin = copy.deepcopy(rng)
    quota_counts(shares, size, rng)
    twin.random()
    assert rng.bit_generator.state == twin.bit_generator.state


@pytest.mark.parametrize(
    ("shares", "size", "message"),
    [
        ([], 3, "share_Q.shape"),
        ([[1.0]], 3, "share_Q.shape"),
        ([1.0, 0.0], 3, r"share_Q\[1\] = 0.0"),
        ([-1.0], 3, r"share_Q\[0\]"),
        ([np.nan, 1.0], 3, r"share_Q\[0\]"),
        ([1.0, np.inf], 3, r"share_Q\[1\]"),
        (["much"], 3, "share_Q cannot be read as numbers"),
        ([1.0], -1, "size = -1"),
        ([1.0], 2.0, "size = 2.0"),
        ([1.0], True, "size = True"),
    ],
)
def test_refusals(shares, size, message):
    for call in (quota_limits, lambda *given: quota_counts(*given, np.random.default_rng(0))):
        with pytest.raises(SpoArgumentError, match=message):
            call(shares, size)


def test_the_generator_must_be_one():
    with pytest.raises(SpoArgumentError, match="rng is a int"):
        quota_counts([1.0], 1, 3)
