"""The previous response of each prompt, on which the divergence is measured.

All responses lie in append-only arrays; a slot only holds where its own begins and how long it is. Because
nothing that was written is ever overwritten, a snapshot shares these arrays instead of copying them, and
stays valid while training continues. What a newer response replaces becomes garbage; when more than half is
garbage the live part moves to fresh arrays. A restart restores every stored response exactly
(tests/tracker/test_checkpoint_continue.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spo_verl.errors import SpoStateError
from spo_verl.tracker.responses import (
    GROUP,
    PackedResponses,
    StoredResponses,
    group_count,
    pack,
    ragged_index,
    unpack,
)

CHUNK_TOKENS = 1 << 18
"""Tokens that are handled at once when all responses are walked over: temporary arrays that stay in the cache."""

COMPACT_ABOVE_TOKENS = 1 << 16
"""Smaller arenas are left alone: their garbage costs less than moving it."""


@dataclass(frozen=True)
class MemoryView:
    """The live responses at one moment: one entry per slot that has one, in slot order."""

    slot_E: NDArray[np.int64]
    start_E: NDArray[np.int64]
    """First group of eight tokens of each entry."""
    length_E: NDArray[np.int32]
    prompt_hash_E: NDArray[np.uint64]
    token_N: NDArray[np.int32]
    mask_byte_M: NDArray[np.uint8]
    log_prob: Mapping[str, NDArray[np.float16]]

    def __len__(self) -> int:
        return len(self.slot_E)

    def take(self, entry: NDArray[np.int64] | slice) -> PackedResponses:
        """Copy out some of the entries."""
        start_E, length_E = self.start_E[entry], self.length_E[entry]
        token_index_N = ragged_index(start_E * GROUP, length_E)
        group_index_M = ragged_index(start_E, group_count(length_E).astype(np.int32))
        return PackedResponses(
            slot_B=self.slot_E[entry],
            length_B=length_E,
            prompt_hash_B=self.prompt_hash_E[entry],
            token_N=self.token_N[token_index_N],
            mask_byte_M=self.mask_byte_M[group_index_M],
            log_prob={name: column_N[token_index_N] for name, column_N in self.log_prob.items()},
        )

    def chunks(self) -> Iterator[PackedResponses]:
        """All entries in slot order, at most :data:`CHUNK_TOKENS` tokens or else one entry at a time."""
        end_E = np.cumsum(self.length_E.astype(np.int64))
        first = 0
        while first < len(self):
            budget = (end_E[first - 1] if first else 0) + CHUNK_TOKENS
            last = max(first + 1, int(np.searchsorted(end_E, budget, side="right")))
            yield self.take(slice(first, last))
            first = last


class ResponseMemory:
    """At most one response per slot.

    Args:
        rows: number of slots.
        references: names of the log-prob columns. With none, nothing is stored at all.
        max_tokens: stored tokens per response; a longer one keeps its first ones, whose log-probs do not
            depend on what came later.
    """

    def __init__(self, rows: int, references: Sequence[str], max_tokens: int | None = None) -> None:
        self.references = tuple(references)
        self.max_tokens = max_tokens
        # Zeros come from untouched pages: a slot without a response costs address space, not memory.
        self._start_P = np.zeros(rows, dtype=np.int64)
        self._length_P = np.zeros(rows, dtype=np.int32)
        self._prompt_hash_P = np.zeros(rows, dtype=np.uint64)
        self._clear_arenas()

    def _clear_arenas(self) -> None:
        self._token_N = np.empty(0, dtype=np.int32)
        self._mask_byte_M = np.empty(0, dtype=np.uint8)
        self._log_prob = {name: np.empty(0, dtype=np.float16) for name in self.references}
        self._used = 0  # groups of eight tokens
        self._live = 0
        self._entries = 0

    @property
    def rows(self) -> int:
        """Slots."""
        return len(self._length_P)

    @property
    def entries(self) -> int:
        """Slots that have a response."""
        return self._entries

    @property
    def nbytes(self) -> int:
        """Bytes in use: stored responses with their garbage, and the columns of the slots that have one."""
        return self._used * self._group_bytes + self._entries * (8 + 4 + 8)

    @property
    def _group_bytes(self) -> int:
        return GROUP * (4 + 2 * len(self.references)) + 1

    def check(self, responses: StoredResponses) -> None:
        """Raise :class:`SpoStateError` unless these are responses with exactly this memory's log-prob columns."""
        if not isinstance(responses, StoredResponses):
            raise SpoStateError(f"responses are a {type(responses).__name__}; pass StoredResponses.")
        if self.references and set(responses.log_prob) != set(self.references):
            raise SpoStateError(
                f"responses bring the log-prob columns {sorted(responses.log_prob)}, the tracker was set up "
                f"with {sorted(self.references)}; pass exactly those."
            )

    def remember(self, slot_B: NDArray[np.int64], responses: StoredResponses) -> None:
        """Replace the responses of these slots; of several for one slot the last is kept.

        A response without tokens leaves its slot without one, as there is nothing to measure on.
        """
        self.check(responses)
        if not self.references or not len(slot_B):
            return
        _, from_end_E = np.unique(slot_B[::-1], return_index=True)
        self._append(pack(responses, slot_B, len(slot_B) - 1 - from_end_E, self.max_tokens))
        if self._used > 2 * self._live and self._used * GROUP > COMPACT_ABOVE_TOKENS:
            self._compact()

    def recall(self, slot_B: NDArray[np.int64]) -> StoredResponses:
        """The responses of those slots that have one; ``row_B`` points into ``slot_B``."""
        row_E = np.flatnonzero(self._length_P[slot_B])
        view = self._view_of(slot_B[row_E])
        return unpack(view.take(slice(None)), row_E)

    def view(self) -> MemoryView:
        """Everything that is stored now; later changes do not show in it."""
        return self._view_of(np.flatnonzero(self._length_P))

    def _view_of(self, slot_E: NDArray[np.int64]) -> MemoryView:
        tokens = self._used * GROUP
        return MemoryView(
            slot_E=slot_E,
            start_E=self._start_P[slot_E],
            length_E=self._length_P[slot_E],
            prompt_hash_E=self._prompt_hash_P[slot_E],
            token_N=self._token_N[:tokens],
            mask_byte_M=self._mask_byte_M[: self._used],
            log_prob={name: self._log_prob[name][:tokens] for name in self.references},
        )

    def reserve(self, nbytes: int) -> None:
        """Expect so many bytes of tokens, masks and log-probs: they will not be moved as they come."""
        self._reserve(nbytes // self._group_bytes)

    def extend(self, packed: PackedResponses) -> None:
        """Add responses, cut to ``max_tokens``; columns of other references are left out."""
        longest = int(packed.length_B.max(initial=0))
        if self.max_tokens is not None and longest > self.max_tokens:
            every_E = np.arange(len(packed))
            packed = pack(unpack(packed, every_E), packed.slot_B, every_E, self.max_tokens)
        self._append(packed)

    def remapped(self, new_slot_O: NDArray[np.int64], rows: int) -> ResponseMemory:
        """The same responses where slot ``s`` is now called ``new_slot_O[s]``, out of ``rows`` slots."""
        moved = ResponseMemory(rows, self.references, self.max_tokens)
        slot_E = np.flatnonzero(self._length_P)
        to_E = new_slot_O[slot_E]
        moved._start_P[to_E] = self._start_P[slot_E]
        moved._length_P[to_E] = self._length_P[slot_E]
        moved._prompt_hash_P[to_E] = self._prompt_hash_P[slot_E]
        moved._token_N, moved._mask_byte_M, moved._log_prob = self._token_N, self._mask_byte_M, self._log_prob
        moved._used, moved._live, moved._entries = self._used, self._live, self._entries
        return moved

    def _append(self, packed: PackedResponses) -> None:
        slot_B, length_B = packed.slot_B, packed.length_B
        group_B = group_count(length_B)
        total = int(group_B.sum())
        self._reserve(self._used + total)
        start_B = self._used + np.cumsum(group_B) - group_B
        token_index_N = ragged_index(start_B * GROUP, length_B)
        self._token_N[token_index_N] = packed.token_N
        self._mask_byte_M[self._used : self._used + total] = packed.mask_byte_M
        for name in self.references:
            self._log_prob[name][token_index_N] = packed.log_prob[name]
        self._live += total - int(group_count(self._length_P[slot_B]).sum())
        self._entries += int(np.count_nonzero(length_B)) - int(np.count_nonzero(self._length_P[slot_B]))
        self._used += total
        self._start_P[slot_B] = start_B
        self._length_P[slot_B] = length_B
        self._prompt_hash_P[slot_B] = packed.prompt_hash_B

    def _reserve(self, groups: int) -> None:
        if groups <= len(self._mask_byte_M):
            return
        capacity = max(groups, len(self._mask_byte_M) * 3 // 2)

        def grown(old: NDArray, per_group: int) -> NDArray:
            new = np.empty(capacity * per_group, dtype=old.dtype)
            new[: self._used * per_group] = old[: self._used * per_group]
            return new

        self._token_N = grown(self._token_N, GROUP)
        self._mask_byte_M = grown(self._mask_byte_M, 1)
        self._log_prob = {name: grown(column_N, GROUP) for name, column_N in self._log_prob.items()}

    def _compact(self) -> None:
        view = self.view()
        self._length_P[view.slot_E] = 0
        self._clear_arenas()
        self._reserve(int(group_count(view.length_E).sum()))
        for packed in view.chunks():
            self._append(packed)
