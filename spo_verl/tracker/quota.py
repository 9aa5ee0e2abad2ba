"""Several data sources in every batch, each with its quota: which prompt is of which source, and draws that keep it.

The quota decides *how many* prompts of a source a batch has, the weights decide *which*. Suffix Q: data sources.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl import core
from spo_verl.core.sampling import checked_update
from spo_verl.errors import SpoStateError
from spo_verl.tracker.arguments import as_array, shown

IN_FLIGHT_REMEDY = (
    "lower trainer.v1.<mode>.num_warmup_batches, spo.oversample or data.train_batch_size, raise "
    "spo.sampling.max_in_flight, or add prompts"
)
"""What helps where too many prompts are in flight for another batch."""

LISTED_NAMES = 20
"""Data sources that a message names before it counts the others."""

NOTHING_TAKEN = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class PromptSources:
    """The data source of every prompt.

    Attributes:
        names: the sources, distinct and sorted: what is drawn must not depend on the order of the dataset's rows.
        source_P: (P,) position in ``names`` for each prompt slot; held as the smallest unsigned integer that fits.

    Raises:
        SpoStateError: names repeat, are not sorted or have no prompt, or a position is not one of theirs.
    """

    names: tuple[str, ...]
    source_P: NDArray[np.unsignedinteger]

    def __post_init__(self) -> None:
        if not isinstance(self.names, Iterable) or not all(isinstance(name, str) for name in self.names):
            raise SpoStateError(f"data sources are {shown(self.names)}; pass their names as strings.")
        names, source_P = tuple(self.names), as_array("source_P", self.source_P)
        if not names or list(names) != sorted(set(names)):
            raise SpoStateError(
                f"data sources {list(names)} are not one or more distinct names in sorted order; use PromptSources.of."
            )
        integers = source_P.ndim == 1 and np.issubdtype(source_P.dtype, np.integer)
        if not integers or (source_P.size and not 0 <= source_P.min() <= source_P.max() < len(names)):
            raise SpoStateError(
                f"source_P has type {source_P.dtype} and shape {source_P.shape}; it must be (P,) integers from 0 to "
                f"{len(names) - 1}, positions in names."
            )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "source_P", source_P.astype(np.min_scalar_type(len(names) - 1)))
        if not self.prompts_Q.all():
            raise SpoStateError(f"data source {names[int(np.argmin(self.prompts_Q))]!r} has no prompt; leave it out.")

    @classmethod
    def of(cls, labels: Iterable[str]) -> PromptSources:
        """From the name of each prompt's source, in slot order."""
        labels = list(labels) if isinstance(labels, Iterable) else [labels]
        wrong = next((label for label in labels if not isinstance(label, str)), None)
        if wrong is not None or None in labels:
            raise SpoStateError(f"a prompt's data source is {shown(wrong)}; pass the name of each as a string.")
        number_of: dict[str, int] = {}
        seen_P = np.fromiter((number_of.setdefault(label, len(number_of)) for label in labels), dtype=np.int32)
        names = sorted(number_of)
        position = np.empty(len(names), dtype=np.int32)
        position[[number_of[name] for name in names]] = np.arange(len(names))
        return cls(tuple(names), position[seen_P].astype(np.min_scalar_type(max(len(names) - 1, 0))))

    @cached_property
    def prompts_Q(self) -> NDArray[np.int64]:
        """(Q,) prompts of each source."""
        return np.bincount(self.source_P, minlength=len(self.names)).astype(np.int64)

    def counts(self, slot_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """(Q,) how many of these slots are of each source."""
        return np.bincount(self.source_P[slot_B], minlength=len(self.names)).astype(np.int64)

    def describe(self, names: Iterable[str] | None = None) -> str:
        """The sources (or these of them) with their numbers of prompts, for a message."""
        prompts = dict(zip(self.names, self.prompts_Q.tolist(), strict=True))
        chosen = list(prompts if names is None else names)
        listed = [f"{name!r} ({prompts[name]} prompts)" for name in chosen[:LISTED_NAMES]]
        more = len(chosen) - len(listed)
        return ", ".join(listed) + (f" and {more} more" if more else "")


def parts_of(quota: Mapping[str, float], names: Iterable[str]) -> NDArray[np.float64]:
    """(Q,) the quota of each source in the order of ``names``, as it was given."""
    return np.array([float(quota[name]) for name in names])


def quota_problems(
    quota: Mapping[str, float],
    sources: PromptSources,
    size: int | None = None,
    taken_Q: NDArray[np.int64] | None = None,
) -> Iterator[str]:
    """Yield every way in which a quota does not fit the dataset, as a sentence that names the fix.

    Args:
        quota: data source -> its part, positive.
        sources: of the dataset's prompts.
        size: prompts per batch; without it their number is not looked at.
        taken_Q: (Q,) prompts of each source that cannot be drawn now, being in flight.
    """
    unknown = [name for name in quota if name not in sources.names]
    for name in unknown:
        close = difflib.get_close_matches(name, sources.names, n=1)
        yield (
            f"spo.sampling.quota names {name!r}, but no prompt of the training data has that data_source"
            + (f"; did you mean {close[0]!r}?" if close else ";")
            + f" There are {sources.describe()}."
        )
    unnamed = [name for name in sources.names if name not in quota]
    if unnamed:
        yield (
            f"spo.sampling.quota says nothing about {sources.describe(unnamed)}: it must name every data_source of the "
            "training data; give each of them a share, or take its rows out of data.train_files."
        )
    if not unknown and not unnamed and size is not None:
        yield from _too_many(quota, sources, size, np.zeros_like(sources.prompts_Q) if taken_Q is None else taken_Q)


def _too_many(
    quota: Mapping[str, float], sources: PromptSources, size: int, taken_Q: NDArray[np.int64]
) -> Iterator[str]:
    """Sources of which a batch may need more different prompts than there are, with the arithmetic."""
    part_Q = parts_of(quota, sources.names)
    _, most_Q = core.quota_limits(part_Q, size)
    for name, part, most, prompts, taken in zip(sources.names, part_Q, most_Q, sources.prompts_Q, taken_Q, strict=True):
        share = part / part_Q.sum()
        if prompts >= most > prompts - taken:
            yield (
                f"spo.sampling.quota gives {name!r} {part:g} / {part_Q.sum():g} x {size} = {share * size:.6g} prompts "
                f"of a batch of {size}, so up to {most} different ones, but of its {prompts} {taken} are in flight "
                f"(spo.sampling.max_in_flight), which leaves {prompts - taken}; {IN_FLIGHT_REMEDY} of that source."
            )
        if most > prompts:
            yield (
                f"spo.sampling.quota gives {name!r} {part:g} / {part_Q.sum():g} x {size} = {share * size:.6g} prompts "
                f"of a batch of {size}, so up to {most} different ones, but the training data has {prompts}; lower its "
                f"share of the batch to {_floored(prompts / size)} or less, or data.train_batch_size to "
                f"{int(prompts / share)} or less, or add prompts of that source."
            )


def _places(slot_of_place: NDArray[np.unsignedinteger], slot_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where slots of a source are among its slots, which ascend."""
    # In the type of the table: another one would make numpy convert all of it.
    return np.searchsorted(slot_of_place, slot_B.astype(slot_of_place.dtype))


def _floored(share: float) -> str:
    """A share to four decimals, rounded down so that it still fits."""
    return f"{np.floor(share * 1e4) / 1e4:g}"


class QuotaIndex:
    """One ``WeightIndex`` per data source; a batch takes from each what its quota says.

    It has no state but the weights. Like ``WeightIndex``, one that was updated equals one built from the same weights,
    so a restart saves the weights (or what they follow from) and the generators.

    Args:
        weight_P: (P,) finite, >= 0.
        sources: of the P prompts.
        quota: part of every batch for exactly the sources that there are.

    Raises:
        SpoStateError: the quota and the sources do not fit together; lists every problem.
    """

    def __init__(self, weight_P: NDArray[np.float64], sources: PromptSources, quota: Mapping[str, float]) -> None:
        if len(sources.source_P) != len(weight_P):
            raise SpoStateError(
                f"{len(sources.source_P)} prompts have a data source and there are {len(weight_P)} prompts; pass the "
                "source of every slot."
            )
        problems = list(quota_problems(quota, sources))
        if problems:
            raise SpoStateError(" ".join(problems))
        self.sources = sources
        self._quota = quota
        self._part_Q = parts_of(quota, sources.names)
        self._share_Q = self._part_Q / self._part_Q.sum()
        # Ascending within each source, as the sort is stable: a slot's place in its source is found by bisection.
        order_P = np.argsort(sources.source_P, kind="stable").astype(np.min_scalar_type(max(len(weight_P) - 1, 0)))
        self._slots_Q = np.split(order_P, np.cumsum(sources.prompts_Q)[:-1])
        self._index_Q = [core.WeightIndex(weight_P[slots]) for slots in self._slots_Q]

    def refuse(self, size: int, taken: NDArray[np.int64] = NOTHING_TAKEN) -> None:
        """Raise :class:`SpoStateError` when a batch of this size may need more of a source than it has to give."""
        problems = list(quota_problems(self._quota, self.sources, size, self.sources.counts(taken)))
        if problems:
            raise SpoStateError(" ".join(problems))

    def replace(self, weight_P: NDArray[np.float64]) -> None:
        """Set all weights; on an error nothing has changed.

        Raises:
            SpoStateError: not one weight per prompt.
            SpoArgumentError: a weight is NaN, infinite or negative.
        """
        if np.shape(weight_P) != self.sources.source_P.shape:
            raise SpoStateError(f"weights have shape {np.shape(weight_P)}; pass {self.sources.source_P.shape}.")
        self._index_Q = [core.WeightIndex(weight_P[slots]) for slots in self._slots_Q]

    def draw(
        self,
        size: int,
        rng: np.random.Generator,
        mixing: np.random.Generator,
        taken: NDArray[np.int64] = NOTHING_TAKEN,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw distinct slots: ``core.quota_counts`` of each source, within it by weight, and all in random order.

        Args:
            size: prompts of the batch.
            rng: draws within the sources.
            mixing: rounds the quotas, and orders the batch.
            taken: distinct slots that are not drawn; within their sources they count as drawn already.

        Returns:
            slot_B: (size,) int64. The trainer cuts a batch into mini-batches in its order, hence the mixing.
            share_B: (size,) float64, the quota of the slot's source times its share of the weight there, without
                what is taken: the probability of being the one prompt of a batch of one.

        Raises:
            SpoStateError: a source has fewer prompts than such a batch may need; no random number was used.
        """
        self.refuse(size, taken)
        taken_of_X = self.sources.source_P[taken]
        count_Q = core.quota_counts(self._part_Q, size, mixing)
        slots, shares = [], []
        for source, (count, share, slot_of_place, index) in enumerate(
            zip(count_Q.tolist(), self._share_Q, self._slots_Q, self._index_Q, strict=True)
        ):
            mine = taken[taken_of_X == source]
            place_B, share_B = index.draw(count, rng, taken=_places(slot_of_place, mine))
            slots.append(slot_of_place[place_B].astype(np.int64))
            shares.append(share * share_B)
        order_B = mixing.permutation(size)
        return np.concatenate(slots)[order_B], np.concatenate(shares)[order_B]

    def update(self, slot_B: ArrayLike, weight_B: NDArray[np.float64]) -> None:
        """Set the weights of distinct slots, as ``WeightIndex.update``: on an error nothing has changed."""
        slots, weight_B = checked_update(slot_B, weight_B, len(self.sources.source_P))
        source_B = self.sources.source_P[slots]
        for source in np.unique(source_B):
            mine_B = source_B == source
            self._index_Q[source].update(_places(self._slots_Q[source], slots[mine_B]), weight_B[mine_B])

    def effective_number(self) -> float:
        """1 / sum p^2 of the first-draw probabilities p: how many prompts the draws spread over."""
        number_Q = np.array([index.effective_number() for index in self._index_Q])
        return float(1.0 / (self._share_Q**2 / number_Q).sum())
