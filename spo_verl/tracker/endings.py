"""Why rollouts end, and how the outcomes of those that were not trained on join those that were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl.errors import SpoStateError
from spo_verl.tracker.arguments import checked_uids, shown
from spo_verl.tracker.outcomes import check_shapes
from spo_verl.tracker.reports import Late
from spo_verl.tracker.settings import Ending

Rows = tuple[Sequence[str], ArrayLike, ArrayLike, ArrayLike]
"""uids, session_B, reward_B, divergence_B, as ``Tracker.observe`` takes them."""


def check_kind(kind: str) -> None:
    """Raise :class:`SpoStateError` where a rollout cannot end so."""
    if not isinstance(kind, str) or kind not in get_args(Ending):
        raise SpoStateError(f"a rollout ends as one of {', '.join(get_args(Ending))}, not as {shown(kind)}.")


def checked(late: Sequence[Late]) -> list[Late]:
    """The same groups with lists of uids; raises :class:`SpoStateError` where one is no group or of no known kind."""
    if not isinstance(late, (list, tuple)) or not all(isinstance(group, Late) for group in late):
        raise SpoStateError(f"late is {shown(late)}; pass a list of Late.")
    for group in late:
        check_kind(group.kind)
    return [
        replace(
            group,
            uids=checked_uids(group.uids, "observe"),
            ended=None if group.ended is None else checked_uids(group.ended, "settle"),
        )
        for group in late
    ]


def joined(rows: Rows, late: Sequence[Late]) -> Rows:
    """The outcomes of a step, and behind them those of late rollouts, as one request; errors as for ``observe``."""
    requests = [rows]
    for group in late:
        unmeasured = np.full(len(group.uids), np.nan)
        divergence_B = unmeasured if group.divergence_B is None else group.divergence_B
        requests.append((group.uids, group.session_B, group.reward_B, divergence_B))
    columns = zip(*(check_shapes(*request) for request in requests), strict=True)
    session_B, reward_B, divergence_B = (np.concatenate(parts) for parts in columns)
    return [uid for uids, *_ in requests for uid in uids], session_B, reward_B, divergence_B


def untrained(new_row_B: NDArray[np.int64], trained_rows: int, late: Sequence[Late]) -> int:
    """How many new outcomes of a joined request, given by their rows, are of rollouts that were not trained on."""
    total, first = 0, trained_rows
    for group in late:
        last = first + len(group.uids)
        if group.kind != "trained":
            total += int(((new_row_B >= first) & (new_row_B < last)).sum())
        first = last
    return total
