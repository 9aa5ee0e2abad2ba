"""The draws against enumerated successive sampling, and proof that this comparison tells samplers apart.

Seeds are fixed: a correct sampler passes always, so the bound needs no slack for repetition.
"""

import numpy as np
import pytest

from spo_verl.core import WeightIndex, draw
from spo_verl.core import sampling as sampling_module

from .helpers import inclusion_probabilities, inclusion_z_scores, ordered_p_value

pytestmark = pytest.mark.long

REPEATS = 10_000
CASES = [([1.0, 2.0, 3.0, 4.0, 10.0], 3), ([0.05, 0.55, 0.45, 0.05, 0.3], 2), ([5.0, 0.0, 1.0, 2.0], 3)]
ACCEPTED = 0.01
REJECTED = 1e-6


def test_the_enumeration_by_hand():
    # Weights 1, 2, 3, two of them. P(0, 1) = 1/6 * 2/5 = 1/15, P(0, 2) = 1/6 * 3/5 = 1/10,
    # P(1, 0) = 1/3 * 1/4 = 1/12, P(2, 0) = 1/2 * 1/3 = 1/6; in all 1/15 + 1/10 + 1/12 + 1/6 = 25/60.
    assert inclusion_probabilities([1.0, 2.0, 3.0], 2)[0] == pytest.approx(25 / 60, rel=1e-12)


def race(weights, size, rng):
    return lambda: draw(weights, size, rng)[0]


def index(weights, size, rng):
    table = WeightIndex(weights, block=2)
    return lambda: table.draw(size, rng)[0]


def updated_index(weights, size, rng):
    table = WeightIndex(np.full(len(weights), 7.0), block=2)
    table.update(np.arange(len(weights)), weights)
    return lambda: table.draw(size, rng)[0]


SAMPLERS = pytest.mark.parametrize("sampler", [race, index, updated_index])


@SAMPLERS
@pytest.mark.parametrize(("weights", "size"), CASES)
def test_ordered_outcomes(sampler, weights, size):
    draw_one = sampler(weights, size, np.random.default_rng(2))
    assert ordered_p_value(draw_one, weights, size, REPEATS) > ACCEPTED


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_ordered_outcomes_where_the_race_takes_over(monkeypatch, rounds):
    monkeypatch.setattr(sampling_module, "REJECTION_ROUNDS", rounds)
    monkeypatch.setattr(sampling_module, "SPARE_CANDIDATES", 0)
    weights, size = CASES[0]
    draw_one = index(weights, size, np.random.default_rng(3))
    assert ordered_p_value(draw_one, weights, size, REPEATS) > ACCEPTED


@SAMPLERS
def test_inclusion_frequencies(sampler):
    weights, size = CASES[0]
    z = inclusion_z_scores(sampler(weights, size, np.random.default_rng(5)), weights, size, REPEATS)
    assert np.abs(z).max() < 3.0


def test_draws_from_a_larger_table_agree():
    # Too many outcomes to enumerate: the mean number of heavy slots in a draw, by either way of drawing.
    rng = np.random.default_rng(6)
    weights = np.repeat([0.05, 0.3, 0.55], 100)
    table = WeightIndex(weights)
    heavy = np.array(
        [
            [np.count_nonzero(slots >= 200) for slots in (draw(weights, 90, rng)[0], table.draw(90, rng)[0])]
            for _ in range(4000)
        ]
    )
    difference = heavy[:, 0] - heavy[:, 1]
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference))
    # With replacement 90 * 0.55 / 0.9 = 55 of the slots drawn would be heavy; here the heavy ones run short.
    assert 45 < heavy.mean() < 52


def wrong_samplers():
    def products(weights, size, rng):
        """Start over at every repeat: outcomes get the product of their weights."""

        def draw_one():
            while True:
                slots = draw(weights, size, rng, replace=True)[0]
                if len(set(slots.tolist())) == size:
                    return slots

        return draw_one

    def bernoulli(weights, size, rng):
        """Independent inclusions with the right expected size, kept if the size is right, in random order."""
        chance = np.minimum(inclusion_probabilities(weights, size), 1.0)

        def draw_one():
            while True:
                slots = np.flatnonzero(rng.random(len(weights)) < chance)
                if slots.size == size:
                    return rng.permutation(slots)

        return draw_one

    def sorted_slots(weights, size, rng):
        return lambda: np.sort(draw(weights, size, rng)[0])

    def largest_first(weights, size, rng):
        return lambda: draw(weights, size, rng)[0][::-1]

    def uniform_clocks(weights, size, rng):
        return lambda: np.argsort(rng.random(len(weights)) / weights)[:size]

    def squared_weights(weights, size, rng):
        return race(np.square(weights), size, rng)

    def first_weights_for_ever(weights, size, rng):
        """One draw by weight, the others uniform among what is left."""

        def draw_one():
            first = draw(weights, 1, rng)[0]
            rest = np.setdiff1d(np.arange(len(weights)), first)
            return np.concatenate([first, rng.permutation(rest)[: size - 1]])

        return draw_one

    return [
        products,
        bernoulli,
        sorted_slots,
        largest_first,
        uniform_clocks,
        squared_weights,
        first_weights_for_ever,
    ]


@pytest.mark.parametrize("sampler", wrong_samplers())
def test_the_comparison_rejects_other_samplers(sampler):
    weights, size = CASES[0]
    draw_one = sampler(weights, size, np.random.default_rng(4))
    assert ordered_p_value(draw_one, weights, size, REPEATS) < REJECTED
