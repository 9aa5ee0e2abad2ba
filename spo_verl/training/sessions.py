"""Which rows of a verl batch belong to which rollout.

verl names a trajectory ``{uid}_{session}_{index}``: ``uid`` is one dispatch of a prompt, ``session`` one of its
``rollout.n`` rollouts, ``index`` one output of that rollout (an agent loop may return several). Padding rows have
the tag ``is_padding`` and belong to nobody. Suffixes: R rows, S sessions, B dispatched prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spo_verl.errors import SpoStateError


@dataclass(frozen=True)
class Sessions:
    """The rollouts of one batch.

    Attributes:
        uid_B: dispatched prompts in order of first appearance.
        prompt_S: int64, index into ``uid_B`` of each session.
        session_S: int64, verl's session number within its prompt.
        first_row_S, final_row_S: int64, rows of the session's lowest and highest output index.
        session_R: int64, session of each row, -1 for padding.
    """

    uid_B: tuple[str, ...]
    prompt_S: np.ndarray
    session_S: np.ndarray
    first_row_S: np.ndarray
    final_row_S: np.ndarray
    session_R: np.ndarray

    def __len__(self) -> int:
        return len(self.session_S)

    @property
    def uid_S(self) -> list[str]:
        """The dispatch that each session belongs to."""
        return [self.uid_B[prompt] for prompt in self.prompt_S]

    def first_row_B(self) -> np.ndarray:
        """Row of the first output of the lowest-numbered session of each prompt, int64 (B,)."""
        order = np.lexsort((self.session_S, self.prompt_S))
        _, position = np.unique(self.prompt_S[order], return_index=True)
        rows: np.ndarray = self.first_row_S[order[position]]
        return rows


def read_sessions(keys: Sequence[str], tags: Sequence[Mapping[str, Any]]) -> Sessions:
    """Group the rows of a batch, in the order of their first row.

    Raises:
        SpoStateError: a key is not ``{uid}_{session}_{index}``.
    """
    prompts: dict[str, int] = {}
    sessions: dict[tuple[int, int], int] = {}
    first: list[tuple[int, int]] = []
    final: list[tuple[int, int]] = []
    session_R = np.full(len(keys), -1, dtype=np.int64)
    for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        if tag.get("is_padding", False):
            continue
        uid, session, index = split_key(key)
        prompt = prompts.setdefault(uid, len(prompts))
        where = sessions.setdefault((prompt, session), len(sessions))
        if where == len(first):
            first.append((index, row))
            final.append((index, row))
        first[where] = min(first[where], (index, row))
        final[where] = max(final[where], (index, row))
        session_R[row] = where
    pairs = np.array(list(sessions), dtype=np.int64).reshape(-1, 2)
    return Sessions(
        uid_B=tuple(prompts),
        prompt_S=pairs[:, 0],
        session_S=pairs[:, 1],
        first_row_S=np.array([row for _, row in first], dtype=np.int64),
        final_row_S=np.array([row for _, row in final], dtype=np.int64),
        session_R=session_R,
    )


def response_tokens(sessions: Sessions, tags: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Generated and observed tokens of each session, int64 (S,), all its outputs together."""
    token_S = np.zeros(len(sessions), dtype=np.int64)
    for session, tag in zip(sessions.session_R.tolist(), tags, strict=True):
        if session >= 0:
            token_S[session] += int(tag.get("response_len") or 0)
    return token_S


def version_spans(sessions: Sessions, tags: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Oldest and newest policy version that generated each session, int64 (S, 2), all its outputs together; or -1."""
    span_S = np.full((len(sessions), 2), -1, dtype=np.int64)
    for session, tag in zip(sessions.session_R.tolist(), tags, strict=True):
        first, last = tag.get("min_global_steps"), tag.get("max_global_steps")
        if session >= 0 and first is not None and last is not None:
            oldest, newest = span_S[session]
            span_S[session] = int(first) if oldest < 0 else min(oldest, int(first)), max(newest, int(last))
    return span_S


def split_key(key: str) -> tuple[str, int, int]:
    """The uid, session and output index that a trajectory key names; :class:`SpoStateError` for another form."""
    parts = key.rsplit("_", 2)
    if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
        raise SpoStateError(
            f"The trajectory key {key!r} is not '<uid>_<session>_<index>', the form that verl 0.9.1 writes; "
            "a custom agent-loop manager or replay buffer must keep it for adv_estimator=spo."
        )
    return parts[0], int(parts[1]), int(parts[2])
