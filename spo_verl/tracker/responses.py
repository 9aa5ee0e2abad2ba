"""Ragged batches of responses, as callers pass them and as they are stored.

Axis suffixes: ``_B`` one entry per response, ``_N`` one entry per token of all responses in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spo_verl.errors import SpoStateError
from spo_verl.tracker.arguments import as_array, as_floats, as_integers

GROUP = 8
"""Tokens per mask byte. Entries are stored in whole groups, so that tokens and mask share one offset."""

_RANGES: dict[type, tuple[int, int, str]] = {
    np.int32: (int(np.iinfo(np.int32).min), int(np.iinfo(np.int32).max), "token ids (int32)"),
    np.bool_: (0, 1, "a mask (0 and 1)"),
    np.uint64: (0, int(np.iinfo(np.int64).max), "hashes (uint64)"),
}
"""What integers of another type may become, and what they are; ``int64`` takes them all."""


def group_count(length_B: NDArray[np.int32]) -> NDArray[np.int64]:
    """Whole groups of eight tokens that responses of these lengths take up."""
    return (length_B.astype(np.int64) + GROUP - 1) // GROUP


def ragged_index(start_B: NDArray[np.int64], length_B: NDArray[np.int32]) -> NDArray[np.int64]:
    """Positions ``start, start + 1, ..., start + length - 1`` of every entry, one after the other."""
    length_B = length_B.astype(np.int64)
    before_B = np.cumsum(length_B) - length_B
    index_N = np.repeat(start_B - before_B, length_B)
    index_N += np.arange(len(index_N), dtype=np.int64)
    return index_N


def offsets_of(length_B: NDArray[np.int32]) -> NDArray[np.int64]:
    """Cumulative starts ``(B + 1,)`` of entries of these lengths, the total last."""
    offset = np.zeros(len(length_B) + 1, dtype=np.int64)
    np.cumsum(length_B, out=offset[1:])
    return offset


def _column(values: Any, dtype: type, name: str) -> NDArray:
    name = f"responses.{name}"
    array = as_array(name, values)
    if array.ndim != 1:
        raise SpoStateError(f"{name} has shape {array.shape}; flatten it to one axis.")
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if dtype is np.float16:
        return as_floats(name, array).astype(np.float16)
    if dtype is np.uint64 and array.dtype.kind == "u":
        return array.astype(np.uint64)
    if dtype is np.bool_ and array.dtype.kind == "f" and np.isin(array, (0, 1)).all():
        array = array.astype(np.int64)  # masks of frameworks are often floats
    array = as_integers(name, array)
    low, high, meaning = _RANGES.get(dtype, (array.min(initial=0), array.max(initial=0), ""))
    if array.size and not low <= array.min() <= array.max() <= high:
        raise SpoStateError(f"{name} spans {array.min()} to {array.max()}, which {meaning} cannot hold.")
    return array.astype(dtype)


def _not_finite(column_N: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Infinite or NaN: all exponent bits set. Many times faster than ``np.isfinite`` on half precision."""
    return np.asarray((column_N.view(np.uint16) & 0x7C00) == 0x7C00)


@dataclass(frozen=True)
class StoredResponses:
    """Responses of some prompts, laid end to end.

    | field | shape | dtype | meaning |
    |---|---|---|---|
    | ``row_B`` | (B,) | int64 | index of the response's uid within the request |
    | ``offset_B`` | (B + 1,) | int64 | response i owns tokens ``offset_B[i]`` to ``offset_B[i + 1]`` |
    | ``token_N`` | (N,) | int32 | token ids |
    | ``mask_N`` | (N,) | bool | tokens that the policy generated (observations are False) |
    | ``log_prob`` | name -> (N,) | float16 | log-probabilities, one column per reference policy |
    | ``prompt_hash_B`` | (B,) | uint64 | the caller's hash of the prompt tokens that were answered |

    Columns are converted to these types. Log-probs must be finite where ``mask_N`` holds.

    Raises:
        SpoStateError: shapes disagree, offsets do not cover the tokens, or a used log-prob is not finite.
    """

    row_B: NDArray[np.int64]
    offset_B: NDArray[np.int64]
    token_N: NDArray[np.int32]
    mask_N: NDArray[np.bool_]
    log_prob: Mapping[str, NDArray[np.float16]]
    prompt_hash_B: NDArray[np.uint64]

    def __post_init__(self) -> None:
        types = {"row_B": np.int64, "offset_B": np.int64, "token_N": np.int32, "mask_N": np.bool_}
        for name, dtype in (types | {"prompt_hash_B": np.uint64}).items():
            object.__setattr__(self, name, _column(getattr(self, name), dtype, name))
        with np.errstate(over="ignore"):  # an overflow is reported below, with its position
            if not isinstance(self.log_prob, Mapping):
                raise SpoStateError(f"responses.log_prob is a {type(self.log_prob).__name__}; pass a dictionary.")
            columns = {k: _column(v, np.float16, f"log_prob[{k!r}]") for k, v in self.log_prob.items()}
        object.__setattr__(self, "log_prob", columns)
        self._check()

    def _check(self) -> None:
        rows, tokens = len(self.row_B), len(self.token_N)
        if len(self.offset_B) != rows + 1 or len(self.prompt_hash_B) != rows:
            raise SpoStateError(
                f"{rows} responses need {rows + 1} offsets and {rows} prompt hashes, not "
                f"{len(self.offset_B)} and {len(self.prompt_hash_B)}."
            )
        starts_right = self.offset_B[0] == 0 and self.offset_B[-1] == tokens
        if not starts_right or np.any(np.diff(self.offset_B) < 0):
            raise SpoStateError(f"responses.offset_B must rise from 0 to the {tokens} tokens.")
        for name, column_N in (("mask_N", self.mask_N), *self.log_prob.items()):
            if len(column_N) != tokens:
                raise SpoStateError(f"responses: {name} has {len(column_N)} entries for {tokens} tokens.")
        for name, column_N in self.log_prob.items():
            bad_N = np.flatnonzero(_not_finite(column_N) & self.mask_N)
            if bad_N.size:
                at = int(np.searchsorted(self.offset_B, bad_N[0], side="right")) - 1
                raise SpoStateError(
                    f"responses: log_prob[{name!r}] is {column_N[bad_N[0]]} at token "
                    f"{bad_N[0] - self.offset_B[at]} of response {at}, a token that its mask counts; mask it "
                    "out or pass its log-probability."
                )

    def __len__(self) -> int:
        return len(self.row_B)

    @property
    def length_B(self) -> NDArray[np.int32]:
        """Tokens of each response, (B,)."""
        return np.diff(self.offset_B).astype(np.int32)

    @classmethod
    def empty(cls, references: Sequence[str] = ()) -> StoredResponses:
        """No response at all."""
        return cls.from_rows([], [], {name: [] for name in references}, np.zeros(0, dtype=np.uint64))

    @classmethod
    def from_rows(
        cls,
        tokens: Sequence[NDArray],
        masks: Sequence[NDArray],
        log_prob: Mapping[str, Sequence[NDArray]],
        prompt_hash_B: NDArray[np.uint64],
        row_B: NDArray[np.int64] | None = None,
    ) -> StoredResponses:
        """Lay responses that are given one by one end to end; ``row_B`` counts from 0 unless given."""

        def flat(parts: Sequence[NDArray], dtype: type) -> NDArray:
            return np.concatenate([np.zeros(0, dtype=dtype), *(np.asarray(part) for part in parts)])

        return cls(
            row_B=np.arange(len(tokens)) if row_B is None else np.asarray(row_B),
            offset_B=offsets_of(np.array([len(part) for part in tokens], dtype=np.int32)),
            token_N=flat(tokens, np.int32),
            mask_N=flat(masks, np.bool_).astype(np.bool_),
            log_prob={name: flat(parts, np.float16) for name, parts in log_prob.items()},
            prompt_hash_B=prompt_hash_B,
        )


@dataclass(frozen=True)
class PackedResponses:
    """Responses by slot with eight mask bits per byte; every response begins a new mask byte.

    ``slot_B`` int64, ``length_B`` int32, ``prompt_hash_B`` uint64, ``token_N`` int32, ``log_prob`` float16
    (N,), ``mask_byte_M`` uint8 with ``group_count(length_B)`` bytes per response; bits past its length are 0.
    """

    slot_B: NDArray[np.int64]
    length_B: NDArray[np.int32]
    prompt_hash_B: NDArray[np.uint64]
    token_N: NDArray[np.int32]
    mask_byte_M: NDArray[np.uint8]
    log_prob: Mapping[str, NDArray[np.float16]]

    def __len__(self) -> int:
        return len(self.slot_B)


def pack(
    responses: StoredResponses, slot_B: NDArray[np.int64], keep_E: NDArray[np.int64], max_tokens: int | None
) -> PackedResponses:
    """Take the responses ``keep_E``, cut each to its first ``max_tokens`` tokens, and pack the masks."""
    length_E = responses.length_B[keep_E]
    if max_tokens is not None:
        length_E = np.minimum(length_E, max_tokens).astype(np.int32)
    every = len(keep_E) == len(responses) and int(length_E.sum()) == len(responses.token_N)
    if every and np.array_equal(keep_E, np.arange(len(responses))):
        index_N: NDArray[np.int64] | slice = slice(None)  # the common case: nothing to pick, nothing to cut
    else:
        index_N = ragged_index(responses.offset_B[keep_E], length_E)
    group_E = group_count(length_E)
    bit_N = np.zeros(int(group_E.sum()) * GROUP, dtype=np.bool_)
    bit_N[ragged_index((np.cumsum(group_E) - group_E) * GROUP, length_E)] = responses.mask_N[index_N]
    return PackedResponses(
        slot_B=slot_B[keep_E],
        length_B=length_E,
        prompt_hash_B=responses.prompt_hash_B[keep_E],
        token_N=responses.token_N[index_N],
        mask_byte_M=np.packbits(bit_N),
        log_prob={name: column_N[index_N] for name, column_N in responses.log_prob.items()},
    )


def unpack(packed: PackedResponses, row_B: NDArray[np.int64]) -> StoredResponses:
    """Undo :func:`pack`; ``row_B`` becomes the responses' index within the request."""
    group_B = group_count(packed.length_B)
    bit_N = np.unpackbits(packed.mask_byte_M).view(np.bool_)
    return StoredResponses(
        row_B=row_B,
        offset_B=offsets_of(packed.length_B),
        token_N=packed.token_N,
        mask_N=bit_N[ragged_index((np.cumsum(group_B) - group_B) * GROUP, packed.length_B)],
        log_prob=packed.log_prob,
        prompt_hash_B=packed.prompt_hash_B,
    )
