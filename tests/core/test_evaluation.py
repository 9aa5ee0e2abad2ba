"""avg@k, pass@k and maj@k against hand-worked cases and enumerated subsets; intervals against their definition."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.core import (
    SpoArgumentError,
    average_at_k,
    bootstrap_difference,
    bootstrap_interval,
    majority_at_k,
    pass_at_k,
)
from tests.core.helpers import property_test


def enumerated_pass(n, c, k):
    right = [1] * c + [0] * (n - c)
    subsets = list(itertools.combinations(right, k))
    return sum(any(subset) for subset in subsets) / len(subsets)


def naive_majority(answers, correct):
    """The expected correctness of a uniformly chosen modal answer, one loop at a time."""
    counts = Counter(answer for answer in answers if answer)
    if not counts:
        return 0.0
    modal = [answer for answer, count in counts.items() if count == max(counts.values())]
    right = dict(zip(answers, correct, strict=True))
    return sum(right[answer] for answer in modal) / len(modal)


def test_average():
    assert average_at_k([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).tolist() == [0.5, 0.0, 1.0]
    assert average_at_k([[0.25, 0.75]]).tolist() == [0.5]


@pytest.mark.parametrize("wrong", [[1, 0], [[]], [[1.5]], [[-1]], [[float("nan")]]])
def test_average_refuses(wrong):
    with pytest.raises(SpoArgumentError):
        average_at_k(wrong)


def test_pass_by_hand():
    # n = 4, c = 1: one of C(4, 2) = 6 pairs in two holds the right one: 3 of 6
    assert pass_at_k([4], [1], 2).tolist() == [0.5]
    assert pass_at_k([32, 32, 32], [0, 1, 32], 1).tolist() == [0.0, 1 / 32, 1.0]
    assert pass_at_k([32, 32, 32], [0, 1, 31], 32).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_is_the_share_of_subsets_with_a_right_one(n):
    for k in range(1, n + 1):
        found = pass_at_k(np.full(n + 1, n), np.arange(n + 1), k)
        np.testing.assert_allclose(found, [enumerated_pass(n, c, k) for c in range(n + 1)], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(10_000, 3, 5000), (10_000, 1, 1), (4096, 4000, 96), (4096, 4000, 97)])
def test_pass_is_stable_where_binomials_overflow(n, c, k):
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k([n], [c], k)[0] == pytest.approx(float(exact), rel=1e-9)


def test_pass_has_no_bias_where_one_minus_a_power_has():
    """The mean over all outcomes of n Bernoulli draws is 1 - (1 - p)^k exactly."""
    n, p, k = 6, 0.3, 3
    weight = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    found = pass_at_k(np.full(n + 1, n), np.arange(n + 1), k)
    assert np.dot(weight, found) == pytest.approx(1 - (1 - p) ** k, rel=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "k"), [([4], [5], 1), ([4], [-1], 1), ([4], [1], 5), ([4], [1], 0), ([4], [1.5], 1), ([4, 4], [1], 1),
                      ([4], [1], 1.0), ([4], [1], True), ([4.5], [1], 1), ([4], [float("nan")], 1)]
)  # fmt: skip
def test_pass_refuses(n, c, k):
    with pytest.raises(SpoArgumentError):
        pass_at_k(n, c, k)


def test_majority_by_hand():
    rows = [
        ["7", "7", "8", "9"],  # 7 wins
        ["7", "8", "8", ""],  # 8 wins
        ["7", "7", "8", "8"],  # a tie of a right and a wrong answer
        ["7", "8", "9", ""],  # a tie of three
        ["", "", "", "7"],  # missing answers never win
        ["", "", "", ""],
    ]
    correct = [[float(answer == "7") for answer in row] for row in rows]
    assert majority_at_k(rows, correct, 4) == pytest.approx([1.0, 0.0, 0.5, 1 / 3, 1.0, 0.0])


def test_majority_does_not_know_an_order():
    row = ["3", "1", "2", "1", "3", ""]
    correct = {"3": 1.0, "1": 0.0, "2": 0.0, "": 0.0}
    found = {
        float(majority_at_k([order], [[correct[answer] for answer in order]], 6)[0])
        for order in itertools.permutations(row)
    }
    assert found == {0.5}


def test_majority_where_equal_answers_were_graded_unlike():
    assert majority_at_k([["5", "5", "5", "6"]], [[1, 0, 0, 0]], 4) == pytest.approx([1 / 3])


@property_test
@given(st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=1, max_size=9))
def test_majority_of_all_is_the_naive_one(answers):
    correct = [float(answer in ("a", "b")) for answer in answers]
    assert majority_at_k([answers], [correct], len(answers))[0] == pytest.approx(naive_majority(answers, correct))


def test_majority_of_subsets_approaches_the_enumerated_mean():
    rows = [["a", "a", "a", "b", "b", "c", ""], ["b", "b", "a", "a", "", "", "c"]]
    correct = [[float(answer == "a") for answer in row] for row in rows]
    for k in (1, 2, 3, 5, 6):
        subsets = list(itertools.combinations(range(7), k))
        expected = [
            np.mean([naive_majority([row[i] for i in s], [graded[i] for i in s]) for s in subsets])
            for row, graded in zip(rows, correct, strict=True)
        ]
        found = majority_at_k(rows, correct, k, subsets=20_000, seed=3)
        np.testing.assert_allclose(found, expected, atol=5 * 0.5 / math.sqrt(20_000))


def test_majority_is_seeded_for_each_prompt():
    row = ["a", "b", "c", "a", "b", "a"]
    correct = [[float(answer == "a") for answer in row]] * 3
    first = majority_at_k([row] * 3, correct, 3, subsets=50, seed=1)
    assert first.tolist() == majority_at_k([row] * 3, correct, 3, subsets=50, seed=1).tolist()
    assert first.tolist() != majority_at_k([row] * 3, correct, 3, subsets=50, seed=2).tolist()
    assert len(set(first)) > 1  # the prompts do not share their subsets
    assert first[:2].tolist() == majority_at_k([row] * 2, correct[:2], 3, subsets=50, seed=1).tolist()


@pytest.mark.parametrize(
    ("answers", "correct", "k", "more"),
    [
        ([["a"]], [[1, 0]], 1, {}),
        ([["a", "b"]], [[1, 0], [0, 0]], 1, {}),
        ([["a", "b"]], [[1, 0]], 3, {}),
        ([["a", "b"]], [[1, 0]], 0, {}),
        ([["a", "b"]], [[1, 0]], 1, {"subsets": 0}),
        ([["a", "b"]], [[1, 0]], 1, {"seed": -1}),
        ([["a", "b"]], [[2, 0]], 1, {}),
    ],
)
def test_majority_refuses(answers, correct, k, more):
    with pytest.raises(SpoArgumentError):
        majority_at_k(answers, correct, k, **more)


def test_interval_of_two_prompts_by_hand():
    """Two prompts with 0 and 1: the resampled means are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    found = bootstrap_interval([0.0, 1.0], level=0.95)
    assert (found.mean, found.low, found.high, found.prompts) == (0.5, 0.0, 1.0, 2)
    narrow = bootstrap_interval([0.0, 1.0], level=0.4)
    assert (narrow.low, narrow.high, narrow.level) == (0.5, 0.5, 0.4)


def test_interval_has_the_width_of_a_normal_one_for_many_prompts():
    value_P = np.random.default_rng(0).random(900)
    found = bootstrap_interval(value_P, level=0.9, resamples=20_000)
    half = 1.6449 * value_P.std() / 30
    assert found.mean == pytest.approx(value_P.mean())
    assert found.low == pytest.approx(value_P.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(value_P.mean() + half, abs=0.05 * half)


def test_interval_is_seeded_and_a_single_prompt_has_none():
    value_P = np.random.default_rng(1).random(30)
    assert bootstrap_interval(value_P, seed=5) == bootstrap_interval(value_P, seed=5)
    assert bootstrap_interval(value_P, seed=5) != bootstrap_interval(value_P, seed=6)
    single = bootstrap_interval([0.25])
    assert (single.low, single.mean, single.high) == (0.25, 0.25, 0.25)


def test_intervals_cover_what_they_promise():
    """Of 300 samples of 40 prompts about 90 % of the 90 % intervals hold the true mean 0.3."""
    rng = np.random.default_rng(2)
    hits = 0
    for number in range(300):
        found = bootstrap_interval(rng.beta(3, 7, size=40), level=0.9, resamples=500, seed=number)
        hits += found.low <= 0.3 <= found.high
    assert 0.84 <= hits / 300 <= 0.95


def test_a_difference_is_paired():
    rng = np.random.default_rng(3)
    hard_P = rng.random(200)
    better_P = np.clip(hard_P + 0.05, 0, 1)
    found = bootstrap_difference(better_P, hard_P)
    assert found.mean == pytest.approx((better_P - hard_P).mean())
    assert 0.03 < found.low <= found.mean <= found.high < 0.06
    assert bootstrap_difference(hard_P, better_P).mean == -found.mean


def test_benchmarks_weigh_the_same_and_are_resampled_apart():
    """Two benchmarks that are constant in themselves leave nothing to chance, whatever their sizes."""
    value_P, stratum_P = [1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"]
    found = bootstrap_interval(value_P, stratum_P)
    assert (found.mean, found.low, found.high, found.prompts) == (0.5, 0.5, 0.5, 4)
    assert bootstrap_interval(value_P).low < 0.25 == bootstrap_interval(value_P).mean
    assert bootstrap_difference(value_P, [0.0] * 4, stratum_P).low == 0.5
    with pytest.raises(SpoArgumentError):
        bootstrap_interval(value_P, ["a"])


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ([], {}),
        ([[0.5]], {}),
        ([math.nan], {}),
        ([0.5], {"level": 1.0}),
        ([0.5], {"resamples": 0}),
        ([0.5], {"seed": -1}),
    ],
)
def test_interval_refuses(values, more):
    with pytest.raises(SpoArgumentError):
        bootstrap_interval(values, **more)
    with pytest.raises(SpoArgumentError):
        bootstrap_difference(values, [0.5, 0.5], **more)
