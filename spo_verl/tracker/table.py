"""One row per prompt: its identity, its evidence, its counters; columns of numpy arrays.

Row numbers are the prompt slots. The first ``active`` rows are the prompts of the dataset; after them come
the prompts that a checkpoint knew and the dataset no longer has, kept so that nothing is lost if they return.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl.errors import SpoStateError
from spo_verl.tracker.arguments import as_array, as_floats

KEY_BYTES = 16
NO_VERSION = -1
"""``version_P`` of a prompt without a discounted outcome; in event time, of one that entered at version 0."""

COLUMNS: dict[str, np.dtype] = {
    "alpha_P": np.dtype(np.float64),
    "beta_P": np.dtype(np.float64),
    "draws_P": np.dtype(np.int32),
    "visits_P": np.dtype(np.int32),
    "version_P": np.dtype(np.int64),
}

MOVED: dict[str, np.dtype] = {"moved_P": np.dtype(np.float64)}
"""The column that only ``forgetting_mode=drift`` has."""


def as_keys(key_P: NDArray) -> NDArray[np.void]:
    """Keys as one contiguous ``V16`` column; accepts ``V16`` (P,) or uint8 (P, 16).

    Raises:
        SpoStateError: another type or shape, no prompt at all, or two equal keys.
    """
    array = as_array("prompt keys", key_P)
    if array.dtype == np.uint8 and array.ndim == 2 and array.shape[1] == KEY_BYTES:
        array = np.ascontiguousarray(array).view(f"V{KEY_BYTES}")[:, 0]
    if array.dtype != np.dtype(f"V{KEY_BYTES}") or array.ndim != 1:
        raise SpoStateError(
            f"prompt keys have type {array.dtype} and shape {array.shape}; pass (P,) of type V16 or (P, 16) "
            "of uint8 (spo_verl.data.dataset_keys makes them)."
        )
    if not len(array):
        raise SpoStateError("there are no prompts: the dataset is empty or was filtered away; check data.train_files.")
    array = np.ascontiguousarray(array)
    _refuse_equal_keys(array)
    return array


def _words(key_P: NDArray[np.void]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    word_P2 = key_P.view(np.uint64).reshape(-1, 2)
    return word_P2[:, 0], word_P2[:, 1]


def _equal_neighbours(high_P: NDArray, low_P: NDArray, order_P: NDArray) -> NDArray[np.int64]:
    same = (high_P[order_P[1:]] == high_P[order_P[:-1]]) & (low_P[order_P[1:]] == low_P[order_P[:-1]])
    return np.flatnonzero(same)


def _refuse_equal_keys(key_P: NDArray[np.void]) -> None:
    high_P, low_P = _words(key_P)
    sorted_P = np.sort(high_P)
    if not np.any(sorted_P[1:] == sorted_P[:-1]):  # the cheap test settles it for real hashes
        return
    order_P = np.lexsort((low_P, high_P))
    pair = _equal_neighbours(high_P, low_P, order_P)
    if pair.size:
        first, second = sorted((int(order_P[pair[0]]), int(order_P[pair[0] + 1])))
        raise SpoStateError(
            f"prompt key {key_P[first].tobytes().hex()} is at positions {first} and {second} "
            f"({pair.size} repeats "
            "in all); equal prompts share one slot, so pass each key once (spo_verl.data.dataset_keys does "
            "that)."
        )


def match_keys(saved_key_O: NDArray[np.void], key_P: NDArray[np.void]) -> NDArray[np.int64]:
    """For each key its row in ``saved_key_O``, or -1; both hold every key at most once. O(n log n)."""
    saved, size = len(saved_key_O), len(key_P)
    if saved >= size and np.array_equal(saved_key_O[:size].view(np.uint64), key_P.view(np.uint64)):
        return np.arange(size)
    found_P = np.full(size, -1, dtype=np.int64)
    high, low = _words(np.concatenate([saved_key_O, key_P]))
    order = np.lexsort((low, high))  # stable, so the saved one of an equal pair comes first
    first = _equal_neighbours(high, low, order)
    found_P[order[first + 1] - saved] = order[first]
    return found_P


def fingerprint(key_P: NDArray[np.void]) -> str:
    """SHA-256 of the dataset's keys in slot order."""
    return hashlib.sha256(key_P.view(np.uint8).data).hexdigest()


@dataclass
class TouchedRows:
    """Rows of the table while outcomes are folded into them (suffix D: different slots, ascending).

    ``position_B``: the row of each outcome; the other columns as in :class:`PromptTable`.
    """

    slot_D: NDArray[np.int64]
    position_B: NDArray[np.int64]
    alpha_D: NDArray[np.float64]
    beta_D: NDArray[np.float64]
    visits_D: NDArray[np.int32]
    version_D: NDArray[np.int64]
    moved_D: NDArray[np.float64] | None

    def require_moved(self) -> NDArray[np.float64]:
        """The column of movements; raises :class:`SpoStateError` where the table has none."""
        if self.moved_D is None:
            raise SpoStateError("the table has no moved_P; fit it to the forgetting mode first.")
        return self.moved_D


@dataclass(frozen=True)
class PromptTable:
    """The columns, ``(P,)`` each: the active prompts, then those kept aside.

    | column | meaning |
    |---|---|
    | ``key_P`` | V16, identity of the prompt; never written to |
    | ``alpha_P``, ``beta_P`` | Beta evidence as of the last observation |
    | ``draws_P`` | how often it was drawn |
    | ``visits_P`` | observed outcomes |
    | ``version_P`` | policy version at whose outcomes the evidence was last discounted (with event time: the newest
      event, at which the evidence is stored: before the first outcome the version at which the prompt entered), -1 for
      none, or for entry at version 0 |
    | ``moved_P`` | the policy's summed movement at that discount; None except under ``forgetting_mode=drift`` |

    Evidence is stored as of its last discount; what happens between visits is worked out at the next one.
    """

    active: int
    key_P: NDArray[np.void]
    alpha_P: NDArray[np.float64]
    beta_P: NDArray[np.float64]
    draws_P: NDArray[np.int32]
    visits_P: NDArray[np.int32]
    version_P: NDArray[np.int64]
    moved_P: NDArray[np.float64] | None = None

    @classmethod
    def create(
        cls, key_P: NDArray, alpha_P: NDArray | None = None, beta_P: NDArray | None = None, *, to_write: bool = True
    ) -> PromptTable:
        """Fresh rows with the given evidence; without it every prompt starts at Jeffreys' (0.5, 0.5).

        Unless they are to be written to, columns of one value take no memory: at a resume few of them are needed.

        Raises:
            SpoStateError: keys as in :func:`as_keys`; evidence that is not (P,), finite, non-negative and of
                positive mass, or only one of the two columns.
        """
        key_P = as_keys(key_P)
        size = len(key_P)
        filled = np.full if to_write else _one_value
        if alpha_P is None and beta_P is None:
            alpha_P, beta_P = filled(size, 0.5), filled(size, 0.5)
        else:
            alpha_P, beta_P = _given(alpha_P, beta_P, size, key_P)
        return cls(
            active=size,
            key_P=key_P,
            alpha_P=alpha_P,
            beta_P=beta_P,
            draws_P=np.zeros(size, dtype=np.int32),
            visits_P=np.zeros(size, dtype=np.int32),
            version_P=filled(size, np.int64(NO_VERSION)),
        )

    def __len__(self) -> int:
        return len(self.key_P)

    def checked_slots(self, slot_B: ArrayLike, count: int | None = None) -> NDArray[np.int64]:
        """Slots of the dataset as a new int64 array; raises :class:`SpoStateError` for anything else."""
        slots = as_array("slots", slot_B)
        if slots.size == 0:
            slots = np.zeros(0, dtype=np.int64)  # an empty list has no integer type of its own
        if slots.ndim != 1 or not np.issubdtype(slots.dtype, np.integer):
            raise SpoStateError(f"slots have type {slots.dtype} and shape {slots.shape}; pass integers of shape (B,).")
        if count is not None and len(slots) != count:
            raise SpoStateError(f"{count} uids came with {len(slots)} slots; pass one slot per uid.")
        wrong = slots[(slots < 0) | (slots >= self.active)]
        if wrong.size:
            raise SpoStateError(
                f"slot {wrong[0]} does not exist; the {self.active} prompts are 0 to {self.active - 1}."
            )
        return slots.astype(np.int64)

    def columns(self) -> Iterator[tuple[str, NDArray]]:
        """The columns that change, by name."""
        for name in (*COLUMNS, *MOVED):
            column = getattr(self, name)
            if column is not None:
                yield name, column

    def read_from(self, rows: NDArray[np.int64] | slice) -> tuple[NDArray, NDArray, NDArray]:
        """Evidence (alpha and beta) of these rows, and the version it is of: what ``Forgetting.read`` takes."""
        return self.alpha_P[rows], self.beta_P[rows], self.version_P[rows]

    def touched(self, slot_B: NDArray[np.int64]) -> TouchedRows:
        """Copies of the rows that outcomes of these slots change."""
        slot_D, position_B = np.unique(slot_B, return_inverse=True)
        moved_D = None if self.moved_P is None else self.moved_P[slot_D]
        alpha_D, beta_D, version_D = self.read_from(slot_D)
        return TouchedRows(slot_D, position_B, alpha_D, beta_D, self.visits_P[slot_D], version_D, moved_D)

    def write(self, rows: TouchedRows) -> None:
        """Put changed rows in their places."""
        self.alpha_P[rows.slot_D], self.beta_P[rows.slot_D] = rows.alpha_D, rows.beta_D
        self.visits_P[rows.slot_D], self.version_P[rows.slot_D] = rows.visits_D, rows.version_D
        if self.moved_P is not None:
            self.moved_P[rows.slot_D] = rows.require_moved()

    def copy(self) -> PromptTable:
        """A copy that later updates do not reach; the keys, which never change, are shared."""
        return self.with_columns(self.key_P, {name: column.copy() for name, column in self.columns()})

    def with_moved(self, wanted: bool) -> PromptTable:
        """The table with or without ``moved_P``; a new column holds 0, where a run's movement begins."""
        if wanted == (self.moved_P is not None):
            return self
        return replace(self, moved_P=np.zeros(len(self)) if wanted else None)

    def anchored(self, version: int, row_P: NDArray[np.bool_] | None = None) -> PromptTable:
        """The table with the evidence of these rows, or of all, stored at ``version``; 0 is -1, see ``version_P``."""
        at = version or NO_VERSION
        return replace(self, version_P=np.where(True if row_P is None else row_P, at, self.version_P))

    def with_columns(self, key_P: NDArray[np.void], columns: dict[str, NDArray]) -> PromptTable:
        """A table of the same dataset with other columns."""
        return PromptTable(active=self.active, key_P=key_P, **columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return self.key_P.nbytes + sum(column.nbytes for _, column in self.columns())


def _one_value(size: int, value: float | np.int64) -> NDArray:
    """As ``np.full``, read-only and without its memory."""
    return np.broadcast_to(np.asarray(value), size)


def _given(
    alpha_P: NDArray | None, beta_P: NDArray | None, size: int, key_P: NDArray[np.void]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if alpha_P is None or beta_P is None:
        raise SpoStateError("initial evidence needs both alpha_P and beta_P (core.initial_evidence returns both).")
    alpha, beta = as_floats("alpha_P", alpha_P), as_floats("beta_P", beta_P)
    if alpha.shape != (size,) or beta.shape != (size,):
        raise SpoStateError(f"initial evidence has shapes {alpha.shape} and {beta.shape}; ({size},) is needed.")
    bad_P = np.flatnonzero(~usable(alpha, beta))
    if bad_P.size:
        at = int(bad_P[0])
        raise SpoStateError(
            f"initial evidence of slot {at} (prompt key {key_P[at].tobytes().hex()}) is alpha={alpha[at]}, "
            f"beta={beta[at]} ({bad_P.size} slots in all); both must be finite, not negative, and one "
            "positive."
        )
    return alpha, beta


def usable(alpha_P: NDArray[np.float64], beta_P: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where evidence can be computed with: both parts >= 0, of a mass that is positive and finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        mass_P = alpha_P + beta_P
    return np.asarray((alpha_P >= 0) & (beta_P >= 0) & (mass_P > 0) & np.isfinite(mass_P))
