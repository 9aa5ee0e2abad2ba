"""Deliberately naive loops, enumerations and statistics to hold the vectorised maths against.

Nothing here may import from ``spo_verl``: a shared helper would share its mistakes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import settings
from scipy import stats

property_test = settings(deadline=None, derandomize=True)
"""Seeded examples and no time limit per example, so that a busy machine or a lucky seed decides nothing."""


class NaivePrompt:
    """Evidence of one prompt, one outcome at a time, in plain Python floats."""

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta

    def value(self) -> float:
        return self.alpha / (self.alpha + self.beta)

    def weight(self, gamma: float, epsilon: float) -> float:
        v = self.value()
        return math.sqrt(v * (1 - v)) / max(self.alpha + self.beta, 1.0) ** gamma + epsilon

    def observe(self, reward: float, divergence: float) -> None:
        rho = min(max(math.pow(2.0, -divergence / 0.06), 0.875), 0.96)
        self.alpha = rho * self.alpha + reward
        self.beta = rho * self.beta + (1 - reward)


def naive_race(weights: Sequence[float], size: int, rng: np.random.Generator) -> list[int]:
    """One exponential clock per slot, read one by one; the first ``size`` to ring."""
    times = []
    for slot, weight in enumerate(weights):
        times.append((rng.standard_exponential() / weight, slot))
    return [slot for _, slot in sorted(times)[:size]]


def naive_rejection(weights: Sequence[float], size: int, rng: np.random.Generator, block: int) -> list[int]:
    """Draw with replacement by walking along the blocks and then along one block; skip what came before."""
    blocks = [list(weights[start : start + block]) for start in range(0, len(weights), block)]
    drawn: list[int] = []
    while len(drawn) < size:
        left = rng.random() * sum(sum(elements) for elements in blocks)
        number = 0
        while left >= sum(blocks[number]):
            left -= sum(blocks[number])
            number += 1
        left = rng.random() * sum(blocks[number])
        element = 0
        while left >= blocks[number][element]:
            left -= blocks[number][element]
            element += 1
        slot = number * block + element
        if slot not in drawn:
            drawn.append(slot)
    return drawn


def successive_outcomes(weights: Sequence[float], size: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered outcome of successive sampling: product of w_i / (sum of what is left)."""
    outcomes = {}
    for order in itertools.permutations(range(len(weights)), size):
        probability, left = 1.0, sum(weights)
        for slot in order:
            probability *= weights[slot] / left
            left -= weights[slot]
        outcomes[order] = probability
    return outcomes


def inclusion_probabilities(weights: Sequence[float], size: int) -> np.ndarray:
    """Probability that each slot is among the ``size`` drawn, summed over all ordered outcomes."""
    inclusion = np.zeros(len(weights))
    for order, probability in successive_outcomes(weights, size).items():
        inclusion[list(order)] += probability
    return inclusion


def ordered_p_value(draw_one: Callable[[], Sequence[int]], weights: Sequence[float], size: int, repeats: int) -> float:
    """Chi-square p-value of the drawn ordered outcomes against enumerated successive sampling.

    An outcome that cannot happen (a repeat, a wrong length) gives 0.
    """
    expected = {
        order: repeats * probability
        for order, probability in successive_outcomes(weights, size).items()
        if probability > 0
    }
    assert min(expected.values()) >= 5, "too few repeats for a chi-square approximation"
    seen = Counter(tuple(int(slot) for slot in draw_one()) for _ in range(repeats))
    if not seen.keys() <= expected.keys():
        return 0.0
    statistic = sum((seen[order] - mean) ** 2 / mean for order, mean in expected.items())
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def inclusion_z_scores(
    draw_one: Callable[[], Sequence[int]], weights: Sequence[float], size: int, repeats: int
) -> np.ndarray:
    """Standardised deviation of each slot's inclusion count from its binomial mean."""
    count = np.zeros(len(weights))
    for _ in range(repeats):
        count[np.asarray(draw_one())] += 1
    p = inclusion_probabilities(weights, size)
    return np.asarray((count - repeats * p) / np.sqrt(repeats * p * (1 - p)))
