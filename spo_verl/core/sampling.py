"""Which prompts to train on next: weights from the evidence, and exact weighted draws without replacement.

*Successive sampling*: the first slot is drawn with probability w / sum(w), each next one the same way among
the slots that are left. Two ways to do it, equal in distribution and in the meaning of what they return:

- ``draw`` races exponential clocks, O(P) per draw, and needs no preparation;
- ``WeightIndex`` keeps block sums, draws with replacement and discards repeats, O(size * block + P / block)
  per draw, for tables of millions of prompts of which a step touches a few thousand.

Where several data sources share a batch by quotas, ``quota_counts`` says how many slots each one gets; within
a source the draw is one of the two.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from spo_verl.core._checks import (
    FloatArray,
    IntArray,
    as_float64,
    require,
    require_number,
    require_same_shape,
)
from spo_verl.core.evidence import effective_sample_size, value
from spo_verl.errors import SpoArgumentError

REJECTION_ROUNDS = 8
SPARE_CANDIDATES = 16
"""``WeightIndex.draw`` draws with replacement for this many rounds, each time as many candidates as are
missing and some to spare, before it races for the rest. Rounds run out only where a few slots hold most of the
weight, or where nearly all slots are wanted."""
MOST_CANDIDATES = 8.0
"""With taken slots it draws more candidates, as some of them will be discarded, but at most this many times more."""


def sampling_weights(
    alpha_P: npt.ArrayLike, beta_P: npt.ArrayLike, *, gamma: float = 0.0, epsilon: float = 0.05
) -> FloatArray:
    """w = sqrt(v (1 - v)) / N_eff^gamma + eps (https://arxiv.org/abs/2509.13232, eq. 11).

    N_eff is floored at 1 in the power, so that w <= 1/2 + eps for any evidence. The floor is reached only by
    evidence that was discounted over and over without a new outcome: an observation leaves N_eff >= 1.

    Args:
        alpha_P, beta_P: (P,) evidence, finite and >= 0.
        gamma: in [0, 1]; 0 leaves N_eff out, 1 prefers prompts with little evidence most.
        epsilon: weight of a prompt whose value is 0 or 1, >= 0; with 0 such prompts are never drawn as long
            as there are others.

    Returns:
        weight_P: (P,) float64 in [epsilon, 1/2 + epsilon].

    Raises:
        SpoArgumentError: evidence is negative or not finite, shapes differ, or a setting is out of its range.
    """
    return value_weights(value(alpha_P, beta_P), effective_sample_size(alpha_P, beta_P), gamma=gamma, epsilon=epsilon)


def value_weights(
    value_P: npt.ArrayLike, n_eff_P: npt.ArrayLike, *, gamma: float = 0.0, epsilon: float = 0.05
) -> FloatArray:
    """The weight of eq. 11 from a value and an effective sample size that were read apart, as in event time.

    Args:
        value_P: (P,) in [0, 1].
        n_eff_P: (P,) finite and >= 0; floored at 1, also where it has decayed to nothing.
        gamma, epsilon: as for ``sampling_weights``.

    Returns:
        weight_P: (P,) float64 in [epsilon, 1/2 + epsilon].

    Raises:
        SpoArgumentError: a value or an effective sample size is impossible, shapes differ, or a setting is out of
            its range.
    """
    require_number(0.0 <= gamma <= 1.0, "gamma", gamma, "it must lie in [0, 1]")
    require_number(0.0 <= epsilon < np.inf, "epsilon", epsilon, "it must be a finite number >= 0")
    value_P, n_eff_P = as_float64("value_P", value_P), as_float64("n_eff_P", n_eff_P)
    require_same_shape(value_P=value_P, n_eff_P=n_eff_P)
    require((value_P >= 0) & (value_P <= 1), "value_P", value_P, "it must lie in [0, 1]")
    require(np.isfinite(n_eff_P) & (n_eff_P >= 0), "n_eff_P", n_eff_P, "it must be finite and >= 0")
    bounded_P = np.maximum(n_eff_P, 1.0)
    return np.asarray(np.sqrt(value_P * (1.0 - value_P)) / bounded_P**gamma + epsilon)


def draw(
    weight_P: npt.ArrayLike,
    size: int,
    rng: np.random.Generator,
    *,
    replace: bool = False,
    taken: npt.ArrayLike = (),
) -> tuple[IntArray, FloatArray]:
    """Draw ``size`` slots by weight, in order; without replacement by exact successive sampling.

    Args:
        weight_P: (P,) finite, >= 0. If all are 0 the draw is uniform. Without replacement, slots of weight 0
            follow in uniform order once all slots of positive weight are drawn.
        size: number of slots, >= 0; at most P without replacement, less those that are taken.
        rng: the generator that is advanced; equal weights and state give equal draws.
        replace: draw independently; a slot may then come up repeatedly.
        taken: (X,) distinct slots that count as drawn already: the draw is that from the other slots alone.

    Returns:
        slot_B: (size,) int64 in the order drawn.
        share_B: (size,) float64, each slot's share of the *total* weight of the slots that are not taken (one over
            their number where the total is 0). That is the probability of the first draw, also for the slots drawn
            later.

    Raises:
        SpoArgumentError: a weight is NaN, infinite or negative, more slots are wanted than there are, or a taken
            slot does not exist or is named twice.
    """
    weight_P = _checked_weights("weight_P", weight_P)
    require_number(weight_P.ndim == 1, "weight_P.shape", weight_P.shape, "it must be (P,), one per prompt slot")
    taken_X = _checked_slots("taken", taken, weight_P.size)
    if taken_X.size:
        free = np.delete(np.arange(weight_P.size), taken_X)
        place_B, share_B = draw(weight_P[free], size, rng, replace=replace)
        return free[place_B], share_B
    total = _checked_total(weight_P.sum())
    _check_request(size, weight_P.size, rng, replace)
    if not replace:
        slot_B = _race(weight_P, size, rng)
    elif total > 0:
        slot_B = _locate(np.cumsum(weight_P), rng.random(size))
    else:
        slot_B = rng.integers(weight_P.size, size=size)
    return slot_B, _share(weight_P, slot_B, total, weight_P.size)


ROWS_AT_ONCE = 1 << 11
"""Blocks whose weights are squared at once: temporary arrays that stay in the cache."""


class WeightIndex:
    """Two-level block sums over P weights, for repeated draws from a large table that changes a little.

    State: the weights and, of their blocks, sums, largest weights and squares. Every touched block is summed again
    from its elements by the same reduction as when built, so that sums do not drift, and an index that was updated n
    times equals one built from ``weight_P`` bit for bit. A restart therefore saves the weights (or what they follow
    from) and nothing else; the draws after it depend on the weights, the block size and the generator's state only.

    Args:
        weight_P: (P,) finite, >= 0; copied.
        block: elements per block, >= 1. A draw costs about size * block + P / block.

    Raises:
        SpoArgumentError: a weight is NaN, infinite or negative, or block is below 1.
    """

    def __init__(self, weight_P: npt.ArrayLike, *, block: int = 64) -> None:
        weight_P = _checked_weights("weight_P", weight_P)
        require_number(weight_P.ndim == 1, "weight_P.shape", weight_P.shape, "it must be (P,), one per slot")
        require_number(block >= 1, "block", block, "it must be at least 1")
        self._size = weight_P.size
        # One row per block, the last one padded with weight 0, which is never drawn.
        self._blocks = np.zeros((-(-self._size // block), block))
        self._blocks.reshape(-1)[: self._size] = weight_P
        self._block_sums = self._blocks.sum(axis=1)
        # Of each block the largest weight, and the sum of squares in units of it: squares of tiny weights underflow.
        self._block_largest, self._block_squares = _largest_and_squares(self._blocks)
        self._cumulative: FloatArray | None = None

    @property
    def weight_P(self) -> FloatArray:
        """(P,) read-only view of the current weights."""
        view = self._blocks.reshape(-1)[: self._size]
        view.flags.writeable = False
        return view

    @property
    def total(self) -> float:
        """Sum of all weights."""
        cumulative = self._cumulative_sums()
        return float(cumulative[-1]) if cumulative.size else 0.0

    def update(self, slot_B: npt.ArrayLike, weight_B: npt.ArrayLike) -> None:
        """Set the weights of distinct slots; O(B * block). On an error nothing has changed.

        Raises:
            SpoArgumentError: a weight is NaN, infinite or negative, a slot does not exist or occurs twice
                (its weight would be ambiguous), or shapes differ.
        """
        slot_B, weight_B = checked_update(slot_B, weight_B, self._size)
        self._blocks.reshape(-1)[slot_B] = weight_B
        touched = np.unique(slot_B // self._blocks.shape[1])
        blocks = self._blocks[touched]
        self._block_sums[touched] = blocks.sum(axis=1)
        self._block_largest[touched], self._block_squares[touched] = _largest_and_squares(blocks)
        self._cumulative = None

    def draw(self, size: int, rng: np.random.Generator, taken: npt.ArrayLike = ()) -> tuple[IntArray, FloatArray]:
        """As ``draw(self.weight_P, size, rng, taken=taken)`` in distribution and errors, with other random numbers.

        Drawing with replacement and discarding repeats is successive sampling, and what is taken is a repeat from
        the start: its weight stays where it is. Where repeats become many, the race takes over for what is missing;
        that is exact too, as it continues from the slots drawn so far. With nothing taken neither the random numbers
        nor the results depend on there being such an argument.
        """
        taken_X = _checked_slots("taken", taken, self._size)
        available = self._size - taken_X.size
        _check_request(size, available, rng, replace=False)
        total = _checked_total(self._total_without(taken_X))
        slot_B = np.empty(0, dtype=np.int64)
        for _ in range(REJECTION_ROUNDS if total > 0 else 0):
            missing = size - slot_B.size
            if missing == 0:
                break
            candidates = self._candidates(self._worthwhile(missing + SPARE_CANDIDATES, total), rng)
            if taken_X.size:
                candidates = candidates[~np.isin(candidates, taken_X)]
            slot_B = _first_occurrences(np.concatenate([slot_B, candidates]))[:size]
        if slot_B.size < size:
            gone = np.concatenate([taken_X, slot_B])
            slot_B = np.concatenate([slot_B, _race(self.weight_P, size - slot_B.size, rng, taken=gone)])
        return slot_B, _share(self.weight_P, slot_B, total, available)

    def effective_number(self) -> float:
        """(sum w)^2 / sum w^2: how many equally likely prompts are as spread out; P if all weights are 0.

        O(P / block).
        """
        largest = self._block_largest.max(initial=0.0)
        if largest == 0.0:
            return float(self._size)
        squares = np.square(self._block_largest / largest) * self._block_squares
        scaled_sums = self._block_sums / largest
        if not np.isfinite(scaled_sums).all():  # a block whose weights are finite and whose sum is not
            scaled_sums = (self._blocks / largest).sum(axis=1)
        return float(scaled_sums.sum() ** 2 / squares.sum())

    def _cumulative_sums(self) -> FloatArray:
        if self._cumulative is None:
            self._cumulative = np.cumsum(self._block_sums)
        return self._cumulative

    def _total_without(self, taken_X: IntArray) -> float:
        """Sum of the weights that are not taken. Subtracting would lose digits where the taken hold nearly all."""
        if not taken_X.size:
            return self.total
        block = self._blocks.shape[1]
        touched, row_X = np.unique(taken_X // block, return_inverse=True)
        blocks = self._blocks[touched]
        blocks[row_X, taken_X % block] = 0.0
        sums = self._block_sums.copy()
        sums[touched] = blocks.sum(axis=1)
        return float(np.cumsum(sums)[-1])

    def _worthwhile(self, wanted: int, free_total: float) -> int:
        """How many candidates to draw for ``wanted`` that are not taken, within bounds."""
        if free_total == self.total:
            return wanted
        return math.ceil(wanted * min(self.total / free_total, MOST_CANDIDATES))

    def _candidates(self, count: int, rng: np.random.Generator) -> IntArray:
        """``count`` independent slots by weight: first the block, then the element in it."""
        uniform = rng.random((count, 2))
        block_C = _locate(self._cumulative_sums(), uniform[:, 0])
        cumulative_CJ = np.cumsum(self._blocks[block_C], axis=1)
        element_C = (cumulative_CJ / cumulative_CJ[:, -1:] <= uniform[:, 1:]).sum(axis=1)
        return np.asarray(block_C * self._blocks.shape[1] + element_C, dtype=np.int64)


def _largest_and_squares(blocks: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of each row the largest weight m, and sum (w / m)^2, which is 0 where all weights are."""
    largest, squares = blocks.max(axis=1, initial=0.0), np.empty(len(blocks))
    unit = np.where(largest > 0, largest, 1.0)[:, None]
    for first in range(0, len(blocks), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        squares[part] = np.square(blocks[part] / unit[part]).sum(axis=1)
    return largest, squares


def quota_counts(share_Q: npt.ArrayLike, size: int, rng: np.random.Generator) -> IntArray:
    """How many slots of a batch each source gets: systematic rounding of its exact count by one random number.

    The exact counts are laid end to end on [0, size]; with u uniform in [0, 1), a source gets as many slots as there
    are points 1 - u, 2 - u, ..., size - u in its stretch. That is the floor or the ceiling of its exact count, and
    the exact count in expectation.

    Args:
        share_Q: (Q,) finite, > 0; only their proportions count. The arithmetic is that of the decimals as which they
            print, so that 0.1 of 10 is 1 in every batch.
        size: slots of the batch, >= 0.
        rng: the generator that is advanced by one uniform number, also where nothing is left to chance.

    Returns:
        count_Q: (Q,) int64, sum ``size``.

    Raises:
        SpoArgumentError: there is no share, one is not a finite positive number, or size is not a whole number >= 0.
    """
    exact_Q = _exact_counts(share_Q, size)
    _check_request(size, len(exact_Q), rng, replace=True)
    u = Fraction(float(rng.random()))
    last, reached, counts = 0, Fraction(0), []
    for exact in exact_Q:
        reached += exact
        point = math.floor(reached + u)
        counts.append(point - last)
        last = point
    return np.array(counts, dtype=np.int64)


def quota_limits(share_Q: npt.ArrayLike, size: int) -> tuple[IntArray, IntArray]:
    """The fewest and the most slots that ``quota_counts`` gives each source, whatever the random number.

    Args:
        share_Q, size: as for ``quota_counts``.

    Returns:
        fewest_Q, most_Q: (Q,) int64 each: floor and ceiling of the exact counts, equal where those are whole.

    Raises:
        SpoArgumentError: as for ``quota_counts``.
    """
    exact_Q = _exact_counts(share_Q, size)
    fewest = [math.floor(exact) for exact in exact_Q]
    most = [math.ceil(exact) for exact in exact_Q]
    return np.array(fewest, dtype=np.int64), np.array(most, dtype=np.int64)


def _exact_counts(share_Q: npt.ArrayLike, size: int) -> list[Fraction]:
    """share / sum(share) * size of each source, as fractions of the shares' decimals; their sum is ``size``."""
    share_Q = as_float64("share_Q", share_Q)
    require_number(share_Q.ndim == 1 and share_Q.size > 0, "share_Q.shape", share_Q.shape, "it must be (Q,), Q >= 1")
    require(np.isfinite(share_Q) & (share_Q > 0), "share_Q", share_Q, "shares must be finite and > 0")
    _check_size(size)
    part_Q = [Fraction(repr(share)) for share in share_Q.tolist()]
    total = sum(part_Q)
    return [part * int(size) / total for part in part_Q]


def _race(weight_P: FloatArray, size: int, rng: np.random.Generator, taken: IntArray | None = None) -> IntArray:
    """The ``size`` slots, none of ``taken``, whose exponential clocks of rate w_i ring first.

    The minimum of independent exponentials falls on i with probability w_i / sum(w), and by memorylessness
    the rest races on in the same way: successive sampling (Efraimidis and Spirakis 2006). Times are
    compared as logarithms, as E / w overflows for tiny weights.
    """
    free_P = np.ones(weight_P.size, dtype=bool)
    if taken is not None:
        free_P[taken] = False
    racing = np.flatnonzero(free_P & (weight_P > 0))
    with np.errstate(divide="ignore"):  # a clock of exactly 0 rings first, which log 0 = -inf says
        log_time = np.log(rng.standard_exponential(racing.size)) - np.log(weight_P[racing])
    winners = racing[_smallest_in_order(log_time, min(size, racing.size))]
    if winners.size == size:
        return winners
    weightless = np.flatnonzero(free_P & (weight_P == 0))
    return np.concatenate([winners, rng.choice(weightless, size - winners.size, replace=False)])


def _smallest_in_order(time: FloatArray, size: int) -> IntArray:
    """Indices of the ``size`` smallest elements, ascending; a full sort only of those."""
    first = np.argpartition(time, size - 1)[:size] if 0 < size < time.size else np.arange(time.size)[:size]
    return first[np.argsort(time[first], kind="stable")]


def _first_occurrences(slots: IntArray) -> IntArray:
    """Distinct slots in the order in which each came first."""
    _, first = np.unique(slots, return_index=True)
    return slots[np.sort(first)]


def _locate(cumulative: FloatArray, uniform: FloatArray) -> IntArray:
    """Index of the element that each point of [0, 1) falls into; elements of weight 0 have no width.

    The sums are divided rather than the points multiplied: the last quotient is exactly 1, which no point
    reaches, and subnormal weights keep their proportions.
    """
    return np.searchsorted(cumulative / cumulative[-1], uniform, side="right")


def _share(weight_P: FloatArray, slot_B: IntArray, total: float, available: int) -> FloatArray:
    if total > 0:
        return np.asarray(weight_P[slot_B] / total)
    return np.full(slot_B.size, 1.0 / max(available, 1))


def checked_update(slot_B: npt.ArrayLike, weight_B: npt.ArrayLike, size: int) -> tuple[IntArray, FloatArray]:
    """Slots and weights as ``WeightIndex.update`` takes them, out of ``size`` slots; errors as there."""
    slots = _checked_slots("slot_B", slot_B, size)
    weights = _checked_weights("weight_B", weight_B)
    require_number(weights.shape == slots.shape, "weight_B.shape", weights.shape, f"slots are {slots.shape}")
    return slots, weights


def _checked_slots(name: str, slot_B: npt.ArrayLike, size: int) -> IntArray:
    slots = np.asarray(slot_B)
    integers = slots.ndim == 1 and (slots.size == 0 or np.issubdtype(slots.dtype, np.integer))
    require_number(integers, name, slot_B, "it must be a (B,) array of integers")
    require((slots >= 0) & (slots < size), name, slots, f"there are {size} slots, counted from 0")
    if np.unique(slots).size < slots.size:
        raise SpoArgumentError(f"{name} names a slot twice; pass each once")
    return slots.astype(np.int64)


def _checked_weights(name: str, weights: npt.ArrayLike) -> FloatArray:
    array = as_float64(name, weights)
    require(np.isfinite(array) & (array >= 0), name, array, "weights must be finite and >= 0")
    return array


def _checked_total(total: float) -> float:
    require_number(bool(np.isfinite(total)), "sum of the weights", total, "it must be finite: scale them down")
    return float(total)


def _check_size(size: int) -> None:
    is_count = isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 0
    require_number(is_count, "size", size, "it must be a whole number >= 0")


def _check_request(size: int, available: int, rng: np.random.Generator, replace: bool) -> None:
    _check_size(size)
    if not isinstance(rng, np.random.Generator):
        raise SpoArgumentError(f"rng is a {type(rng).__name__}; pass a numpy.random.Generator that you seeded")
    if (size > available and not replace) or (size > 0 and available == 0):
        raise SpoArgumentError(
            f"{size} slots are wanted, but there are {available}; draw fewer, or draw with replacement"
        )
