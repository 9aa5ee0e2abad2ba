"""Draws that leave out what is taken: successive sampling on the other slots, and nothing else about them changes."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.core import SpoArgumentError, WeightIndex, draw
from spo_verl.core import sampling as sampling_module

from .helpers import inclusion_probabilities, ordered_p_value, property_test

REPEATS = 10_000
WEIGHTS = np.array([1.0, 7.0, 2.0, 3.0, 0.0, 4.0, 10.0])
TAKEN = [1, 5]
FREE = np.array([0, 2, 3, 4, 6])
# All of them but the 0, from which three must come: the outcomes are those of the four positive weights 1, 2, 3, 10.


def place_of(slots):
    """Positions among the free slots; a taken one would not be found."""
    return [FREE.tolist().index(slot) for slot in slots]


def race(rng):
    return lambda: place_of(draw(WEIGHTS, 3, rng, taken=TAKEN)[0])


def index(rng):
    table = WeightIndex(WEIGHTS, block=2)
    return lambda: place_of(table.draw(3, rng, taken=TAKEN)[0])


@pytest.mark.parametrize("sampler", [race, index])
def test_successive_sampling_on_the_complement(sampler):
    assert ordered_p_value(sampler(np.random.default_rng(2)), WEIGHTS[FREE], 3, REPEATS) > 0.01


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_where_the_race_takes_over(monkeypatch, rounds):
    monkeypatch.setattr(sampling_module, "REJECTION_ROUNDS", rounds)
    monkeypatch.setattr(sampling_module, "SPARE_CANDIDATES", 0)
    assert ordered_p_value(index(np.random.default_rng(3)), WEIGHTS[FREE], 3, REPEATS) > 0.01


def test_the_comparison_rejects_draws_that_ignore_what_is_taken():
    # Draw with the taken slots and leave them out afterwards, which is right, but of a fixed number of candidates:
    # batches with few free slots among them are thrown away, which favours the heavy ones.
    rng = np.random.default_rng(4)

    def favoured():
        while True:
            slots = draw(WEIGHTS, 4, rng)[0]
            free = [slot for slot in slots if slot not in TAKEN]
            if len(free) >= 3:
                return place_of(free[:3])

    assert ordered_p_value(favoured, WEIGHTS[FREE], 3, REPEATS) < 1e-6


def test_heavy_slots_that_are_taken_do_not_starve_the_others():
    # Nearly all weight is in flight: the shares of what is left are still right to the last digit.
    weights = np.concatenate([np.full(70, 1e12), np.array([1.0, 2.0, 5.0])])
    table, taken = WeightIndex(weights), np.arange(70)
    rng = np.random.default_rng(5)
    count = np.zeros(3)
    for _ in range(4000):
        slot, share = table.draw(1, rng, taken=taken)
        count[slot - 70] += 1
        np.testing.assert_allclose(share, weights[slot] / 8.0, rtol=1e-15)
    expected = 4000 * inclusion_probabilities([1.0, 2.0, 5.0], 1)
    assert (np.abs(count - expected) / np.sqrt(expected * (1 - expected / 4000))).max() < 3


@property_test
@given(st.integers(0, 999), st.sampled_from([1, 3, 64]))
def test_each_free_slot_once_and_shares_of_the_free_weight(seed, block):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 80))
    weights = rng.random(size) * (rng.random(size) < 0.8) * 10.0 ** rng.integers(-9, 9, size)
    taken = rng.permutation(size)[: rng.integers(0, size + 1)]
    free = np.setdiff1d(np.arange(size), taken)
    total = weights[free].sum()
    for one in (
        WeightIndex(weights, block=block).draw(free.size, rng, taken=taken),
        draw(weights, free.size, rng, taken=taken),
    ):
        slot, share = one
        assert sorted(slot.tolist()) == free.tolist()
        expected = weights[slot] / total if total > 0 else np.full(free.size, 1 / max(free.size, 1))
        np.testing.assert_allclose(share, expected, rtol=1e-12)
        positive = weights[slot] > 0
        assert (np.diff(positive.astype(int)) <= 0).all()  # weightless slots come last


@property_test
@given(st.integers(0, 999))
def test_with_nothing_taken_every_random_number_is_what_it_was(seed):
    rng = np.random.default_rng(seed)
    weights = rng.random(40)
    table = WeightIndex(weights, block=7)
    for taken in ((), [], np.empty(0, dtype=np.int64)):
        for function in (table.draw, lambda size, rng, **given: draw(weights, size, rng, **given)):
            one, other = copy.deepcopy(rng), copy.deepcopy(rng)
            for got, expected in zip(function(9, one, taken=taken), function(9, other), strict=True):
                np.testing.assert_array_equal(got, expected)
            assert one.bit_generator.state == other.bit_generator.state


def test_the_weights_stay():
    table = WeightIndex([1.0, 2.0, 3.0])
    table.draw(1, np.random.default_rng(0), taken=[2, 1])
    assert (table.weight_P.tolist(), table.total) == ([1.0, 2.0, 3.0], 6.0)


def test_the_order_in_which_they_are_named_means_nothing():
    table = WeightIndex(np.arange(1.0, 50.0))
    draws = [table.draw(9, np.random.default_rng(1), taken=taken)[0].tolist() for taken in ([3, 40, 7], [40, 7, 3])]
    assert draws[0] == draws[1]


def test_with_replacement_from_the_complement():
    slot, share = draw(WEIGHTS, 1000, np.random.default_rng(6), replace=True, taken=TAKEN)
    assert set(slot.tolist()) == {0, 2, 3, 6}
    np.testing.assert_allclose(share, WEIGHTS[slot] / 16.0, rtol=1e-15)


@pytest.mark.parametrize(
    ("size", "taken", "message"),
    [
        (2, [0, 1], "2 slots are wanted, but there are 1"),
        (1, [0, 1, 2], "1 slots are wanted, but there are 0"),
        (1, [3], r"taken\[0\] = 3, but there are 3 slots"),
        (1, [-1], "taken"),
        (1, [1, 1], "names a slot twice"),
        (1, [0.5], "integers"),
    ],
)
def test_impossible_requests_are_refused(size, taken, message):
    rng = np.random.default_rng(0)
    state = copy.deepcopy(rng.bit_generator.state)
    for call in (WeightIndex([1.0, 1.0, 1.0]).draw, lambda *args, **given: draw([1.0, 1.0, 1.0], *args, **given)):
        with pytest.raises(SpoArgumentError, match=message):
            call(size, rng, taken=taken)
    assert rng.bit_generator.state == state
