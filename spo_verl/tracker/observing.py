"""A request of outcomes: checked, without what was observed before, and what it makes of the rows that it touches.

:func:`plan` works everything out and changes nothing; :func:`commit` only writes. What outcomes do to evidence is said
by the rule of the forgetting mode (:mod:`spo_verl.tracker.forgetting`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl.errors import SpoRewardError, SpoStateError
from spo_verl.tracker.arguments import as_array, as_floats, as_integers, checked_uids, shown
from spo_verl.tracker.forgetting import Clock, Forgetting
from spo_verl.tracker.ledger import Ledger, Outcomes, check_ending
from spo_verl.tracker.reports import Late, ObserveReport
from spo_verl.tracker.table import PromptTable, TouchedRows


@dataclass(frozen=True)
class Request:
    """Outcomes as they were passed, one entry per uid each, in their types.

    ``trained_B``: whether the rollout was trained on.
    """

    uids: list[str]
    session_B: NDArray[np.int64]
    reward_B: NDArray[np.float64]
    divergence_B: NDArray[np.float64]
    trained_B: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        uids: Sequence[str],
        session_B: ArrayLike,
        reward_B: ArrayLike,
        divergence_B: ArrayLike,
        *,
        trained: bool = True,
    ) -> Request:
        """From the arguments of ``Tracker.observe``; errors as there."""
        uids = checked_uids(uids, "observe")
        for name, values in (("session_B", session_B), ("reward_B", reward_B), ("divergence_B", divergence_B)):
            shape = as_array(f"observe: {name}", values).shape
            if shape != (len(uids),):
                raise SpoStateError(f"observe: {name} has shape {shape} for {len(uids)} uids; pass one entry per uid.")
        return cls(
            uids,
            as_integers("observe: session_B", session_B),
            as_floats("observe: reward_B", reward_B),
            as_floats("observe: divergence_B", divergence_B),
            np.full(len(uids), trained),
        )

    @classmethod
    def of_late(cls, group: Late) -> Request:
        """From rollouts that end without training."""
        divergence_B = np.full(len(group.uids), np.nan) if group.divergence_B is None else group.divergence_B
        trained = group.kind == "trained"
        return cls.of(group.uids, group.session_B, group.reward_B, divergence_B, trained=trained)

    def joined(self, others: Sequence[Request]) -> Request:
        """This request, and after it others, as one."""
        parts = [self, *others]
        return Request(
            [uid for part in parts for uid in part.uids],
            np.concatenate([part.session_B for part in parts]),
            np.concatenate([part.reward_B for part in parts]),
            np.concatenate([part.divergence_B for part in parts]),
            np.concatenate([part.trained_B for part in parts]),
        )

    def check_values(self) -> None:
        """Raise where a reward is not in [0, 1], or a divergence negative."""
        bad = np.flatnonzero(~((self.reward_B >= 0) & (self.reward_B <= 1)))  # NaN fails both comparisons
        if bad.size:
            at = int(bad[0])
            raise SpoRewardError(
                f"observe: reward {self.reward_B[at]} of uid {shown(self.uids[at])}, session {self.session_B[at]}, is "
                f"not in [0, 1] ({bad.size} of {len(self.reward_B)} are not); map rewards to [0, 1] first "
                "(spo.reward.low, spo.reward.high)."
            )
        bad = np.flatnonzero(self.divergence_B < 0)
        if bad.size:
            at = int(bad[0])
            raise SpoStateError(
                f"observe: divergence {self.divergence_B[at]} of uid {shown(self.uids[at])} is negative; pass "
                "core.divergence's result, or NaN where there is no stored response."
            )

    def new_outcomes(self, ledger: Ledger) -> Outcomes:
        """What has not been observed before; raises where a value or a uid is wrong, as ``Tracker.observe``."""
        self.check_values()
        seen: set[tuple[str, int]] = set()
        fresh = []
        for row, source in enumerate(zip(self.uids, self.session_B.tolist(), strict=True)):
            if ledger.is_new(*source) and source not in seen:
                seen.add(source)
                fresh.append((row, source))
        row_B = np.array([row for row, _ in fresh], dtype=np.int64)
        open_B = [ledger.open[uid] for _, (uid, _) in fresh]
        return Outcomes(
            slot_B=np.array([one.slot for one in open_B], dtype=np.int64),
            version_B=np.array([one.version for one in open_B], dtype=np.int64),
            reward_B=self.reward_B[row_B],
            divergence_B=self.divergence_B[row_B],
            trained_B=self.trained_B[row_B],
            source_B=[source for _, source in fresh],
            duplicate=len(self.uids) - len(fresh),
        )


def checked_late(late: Sequence[Late]) -> list[Late]:
    """The same groups with lists of uids; raises :class:`SpoStateError` where one is no group or of no known kind."""
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
        for group in late
    ]


@dataclass(frozen=True)
class Plan:
    """What observing will do: the rows as they become, and the report."""

    rows: TouchedRows
    outcomes: Outcomes
    report: ObserveReport

    @property
    def untrained(self) -> int:
        """New outcomes of rollouts that were not trained on."""
        return int(np.count_nonzero(~self.outcomes.trained_B))


def plan(request: Request, ledger: Ledger, table: PromptTable, rule: Forgetting, clock: Clock) -> Plan:
    """What a request makes of the rows that it touches; changes nothing."""
    outcomes = request.new_outcomes(ledger)
    rows = table.touched(outcomes.slot_B)
    return Plan(rows, outcomes, _joined(rule.fold(rows, outcomes, clock), outcomes.duplicate))


def commit(plan: Plan, ledger: Ledger, table: PromptTable) -> None:
    """Write the rows into the table and note the outcomes in the ledger."""
    table.write(plan.rows)
    for uid, session in plan.outcomes.source_B:
        ledger.add_session(uid, session)


def _joined(parts: list[ObserveReport], duplicate: int) -> ObserveReport:
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
