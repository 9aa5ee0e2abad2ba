"""Outcomes of a request: checked, in their types, and without what was observed before.

What they do to evidence is said by the rule of the forgetting mode (:mod:`spo_verl.tracker.forgetting_rules`).
Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spo_verl.errors import SpoRewardError, SpoStateError
from spo_verl.tracker.arguments import as_array, as_floats, as_integers, checked_uids, shown
from spo_verl.tracker.ledger import Ledger, Rollout, check_ending
from spo_verl.tracker.reports import Late, ObserveReport
from spo_verl.tracker.settings import Ending
from spo_verl.tracker.table import TouchedRows


@dataclass(frozen=True)
class Outcomes:
    """Outcomes that had not been observed before, one row each.

    Attributes:
        slot_B, version_B: prompt slot, and policy version of the dispatch, int64.
        reward_B: in [0, 1].
        divergence_B: at least 0, NaN for outcomes without one.
        trained_B: whether the rollout was trained on, bool.
        source_B: the rollout and the session that they come from.
        rollout_B: what was frozen with these rollouts.
        duplicate: how many of the request had been observed before.
    """

    slot_B: NDArray[np.int64]
    version_B: NDArray[np.int64]
    reward_B: NDArray[np.float64]
    divergence_B: NDArray[np.float64]
    trained_B: NDArray[np.bool_]
    source_B: list[tuple[str, int]]
    rollout_B: list[Rollout]
    duplicate: int


@dataclass(frozen=True)
class Effects:
    """What a request will do: the rows as they become, the report, and the open rollouts that end, by their kind."""

    rows: TouchedRows
    outcomes: Outcomes
    report: ObserveReport
    ending: list[tuple[Ending, list[str]]]

    @property
    def untrained(self) -> int:
        """New outcomes of rollouts that were not trained on."""
        return int(np.count_nonzero(~self.outcomes.trained_B))


def checked_groups(trained: Late, late: Sequence[Late]) -> list[Late]:
    """The rollouts that were trained on, then the late ones, with lists of uids.

    Raises:
        SpoStateError: one is no group or of no known kind, or its uids are not strings.
    """
    if not isinstance(late, (list, tuple)) or not all(isinstance(group, Late) for group in late):
        raise SpoStateError(f"late is {shown(late)}; pass a list of Late.")
    for group in late:
        check_ending(group.kind)
    return [
        replace(
            group,
            uids=checked_uids(group.uids, "observe"),
            ended=None if group.ended is None else checked_uids(group.ended, "settle"),
        )
        for group in (trained, *late)
    ]


def new_outcomes(groups: Sequence[Late], ledger: Ledger) -> Outcomes:
    """What these groups bring that has not been observed before; errors as of ``Tracker.observe``."""
    uids = [uid for group in groups for uid in group.uids]
    session_B = _column("session_B", groups, as_integers)
    reward_B = _column("reward_B", groups, as_floats)
    divergence_B = _column("divergence_B", groups, as_floats, without=np.nan)
    _check_values(uids, session_B, reward_B, divergence_B)
    seen: set[tuple[str, int]] = set()
    fresh = []
    for row, source in enumerate(zip(uids, session_B.tolist(), strict=True)):
        if ledger.is_new(*source) and source not in seen:
            seen.add(source)
            fresh.append((row, source))
    row_B = np.array([row for row, _ in fresh], dtype=np.int64)
    open_B = [ledger.open[uid] for _, (uid, _) in fresh]
    trained_B = np.repeat([group.kind == "trained" for group in groups], [len(group.uids) for group in groups])
    return Outcomes(
        slot_B=np.array([one.slot for one in open_B], dtype=np.int64),
        version_B=np.array([one.version for one in open_B], dtype=np.int64),
        reward_B=reward_B[row_B],
        divergence_B=divergence_B[row_B],
        trained_B=trained_B[row_B],
        source_B=[source for _, source in fresh],
        rollout_B=open_B,
        duplicate=len(uids) - len(fresh),
    )


def _column(
    name: str, groups: Sequence[Late], convert: Callable[[str, Any], NDArray[Any]], *, without: float | None = None
) -> NDArray[Any]:
    """One number per uid of all groups in its type; ``without`` is that of groups which have None."""
    parts = []
    for group in groups:
        given = getattr(group, name)
        if given is None and without is not None:
            given = np.full(len(group.uids), without)
        shape = as_array(f"observe: {name}", given).shape
        if shape != (len(group.uids),):
            raise SpoStateError(
                f"observe: {name} has shape {shape} for {len(group.uids)} uids; pass one entry per uid."
            )
        parts.append(convert(f"observe: {name}", given))
    return np.concatenate(parts)


def _check_values(
    uids: Sequence[str],
    session_B: NDArray[np.int64],
    reward_B: NDArray[np.float64],
    divergence_B: NDArray[np.float64],
) -> None:
    """Raise where a reward is not in [0, 1], or a divergence negative."""
    bad = np.flatnonzero(~((reward_B >= 0) & (reward_B <= 1)))  # NaN fails both comparisons
    if bad.size:
        at = int(bad[0])
        raise SpoRewardError(
            f"observe: reward {reward_B[at]} of uid {shown(uids[at])}, session {session_B[at]}, is "
            f"not in [0, 1] ({bad.size} of {len(reward_B)} are not); map rewards to [0, 1] first "
            "(spo.reward.low, spo.reward.high)."
        )
    if (divergence_B < 0).any():
        at = int(np.argmax(divergence_B < 0))
        raise SpoStateError(
            f"observe: divergence {divergence_B[at]} of uid {shown(uids[at])} is negative; pass "
            "core.divergence's result, or NaN where there is no stored response."
        )


def joined(parts: Sequence[ObserveReport], duplicate: int) -> ObserveReport:
    """The reports of the policy versions of a request as one."""

    def column(name: str, dtype: type) -> NDArray:
        return np.concatenate([np.zeros(0, dtype=dtype), *(getattr(part, name) for part in parts)])

    return ObserveReport(
        slot_B=column("slot_B", np.int64),
        version_B=column("version_B", np.int64),
        count_B=column("count_B", np.int64),
        rho_B=column("rho_B", np.float64),
        divergence_B=column("divergence_B", np.float64),
        n_eff_B=column("n_eff_B", np.float64),
        discounted_B=column("discounted_B", np.bool_),
        first_visit_B=column("first_visit_B", np.bool_),
        new=sum(part.new for part in parts),
        duplicate=duplicate,
    )
