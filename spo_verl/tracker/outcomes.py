"""Folding outcomes into evidence: group by prompt and version, discount, add; or, in event time, add each version's
outcomes with the weight of that version.

What stands behind a discount says how often it is applied. Under ``constant`` it is the version: one discount for each
version beyond the last one. Under ``kl`` and ``drift`` it is a measurement, of the stored response or of the policy's
movement: one discount for each prompt and request that has a version beyond the last one, however many there are.

:func:`read` checks the request and :func:`plan` works out what the touched rows become; only :func:`commit`
writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl import core
from spo_verl.errors import SpoRewardError, SpoStateError
from spo_verl.tracker.arguments import as_array, as_floats, as_integers, shown
from spo_verl.tracker.reading import newest_event, read_evidence
from spo_verl.tracker.reports import ObserveReport
from spo_verl.tracker.rollouts import Ledger
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.tracker.table import PromptTable


@dataclass(frozen=True)
class Outcomes:
    """New outcomes, one row each, and how many of the request were no news.

    ``slot_B`` prompt slot, ``version_B`` policy version of the dispatch, ``reward_B`` in [0, 1],
    ``divergence_B`` at least 0 or NaN, ``source_B`` the rollout and session they come from, ``row_B`` where they
    stood in the request.
    """

    slot_B: NDArray[np.int64]
    version_B: NDArray[np.int64]
    reward_B: NDArray[np.float64]
    divergence_B: NDArray[np.float64]
    source_B: list[tuple[str, int]]
    row_B: NDArray[np.int64]
    duplicate: int


@dataclass
class Touched:
    """The rows of the table that outcomes touch (suffix S: distinct slots)."""

    slot_S: NDArray[np.int64]
    alpha_S: NDArray[np.float64]
    beta_S: NDArray[np.float64]
    visits_S: NDArray[np.int32]
    version_S: NDArray[np.int64]
    moved_S: NDArray[np.float64] | None
    measured_S: NDArray[np.float64]
    """What stands behind the request's one discount under ``kl`` and ``drift``: the largest divergence of the prompt's
    rows (NaN ignored, 0 where there is none: the same in any order), or the scaled movement since its last discount."""
    due_S: NDArray[np.bool_]
    """Whether it has not been applied yet."""


@dataclass(frozen=True)
class Plan:
    """What observing will do."""

    touched: Touched
    outcomes: Outcomes
    report: ObserveReport


def read(
    ledger: Ledger, uids: Sequence[str], session_B: ArrayLike, reward_B: ArrayLike, divergence_B: ArrayLike
) -> Outcomes:
    """Check a request and leave out what has been observed before; errors as for ``Tracker.observe``."""
    session_column, rewards, divergences = check_shapes(uids, session_B, reward_B, divergence_B)
    sessions = session_column.tolist()
    _check_values(uids, sessions, rewards, divergences)
    seen: set[tuple[str, int]] = set()
    fresh = []
    for row, source in enumerate(zip(uids, sessions, strict=True)):
        if ledger.is_new(*source) and source not in seen:
            seen.add(source)
            fresh.append(row)
    open_B = [ledger.open[uids[row]] for row in fresh]
    return Outcomes(
        slot_B=np.array([one.slot for one in open_B], dtype=np.int64),
        version_B=np.array([one.version for one in open_B], dtype=np.int64),
        reward_B=rewards[fresh],
        divergence_B=divergences[fresh],
        source_B=[(uids[row], sessions[row]) for row in fresh],
        row_B=np.array(fresh, dtype=np.int64),
        duplicate=len(uids) - len(fresh),
    )


def check_shapes(
    uids: Sequence[str], session_B: ArrayLike, reward_B: ArrayLike, divergence_B: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The columns of a request with one entry per uid each, in their types; errors as for ``Tracker.observe``."""
    rows = len(uids)
    for name, values in (("session_B", session_B), ("reward_B", reward_B), ("divergence_B", divergence_B)):
        shape = as_array(f"observe: {name}", values).shape
        if shape != (rows,):
            raise SpoStateError(f"observe: {name} has shape {shape} for {rows} uids; pass one entry per uid.")
    return (
        as_integers("observe: session_B", session_B),
        as_floats("observe: reward_B", reward_B),
        as_floats("observe: divergence_B", divergence_B),
    )


def _check_values(
    uids: Sequence[str], sessions: list[int], reward_B: NDArray[np.float64], divergence_B: NDArray[np.float64]
) -> None:
    bad = np.flatnonzero(~((reward_B >= 0) & (reward_B <= 1)))  # NaN fails both comparisons
    if bad.size:
        at = int(bad[0])
        raise SpoRewardError(
            f"observe: reward {reward_B[at]} of uid {shown(uids[at])}, session {sessions[at]}, is not in [0, 1] "
            f"({bad.size} of {len(reward_B)} are not); map rewards to [0, 1] first (spo.reward.low, "
            "spo.reward.high)."
        )
    bad = np.flatnonzero(divergence_B < 0)
    if bad.size:
        at = int(bad[0])
        raise SpoStateError(
            f"observe: divergence {divergence_B[at]} of uid {shown(uids[at])} is negative; pass core.divergence's "
            "result, or NaN where there is no stored response."
        )


def _retention(settings: TrackerSettings, divergence_B: NDArray[np.float64]) -> NDArray[np.float64]:
    if settings.forgetting_mode == "constant":
        return np.full(len(divergence_B), settings.rho)
    return core.retention(
        divergence_B, half_life=settings.half_life, rho_min=settings.rho_min, rho_max=settings.rho_max
    )


def _measured(
    settings: TrackerSettings,
    divergence_B: NDArray[np.float64],
    position_B: NDArray[np.int64],
    moved_S: NDArray[np.float64] | None,
    visits_S: NDArray[np.int32],
    movement: float,
) -> NDArray[np.float64]:
    """``Touched.measured_S``; 0 at a first visit, before which there was nothing to move away from (Algorithm 1)."""
    measured_S = np.zeros(len(visits_S))
    if moved_S is not None:
        with np.errstate(over="ignore"):  # beyond all bounds is far enough
            measured_S = settings.drift_scale * (movement - moved_S)
    elif settings.forgetting_mode == "kl":
        np.fmax.at(measured_S, position_B, divergence_B)
    return np.where(visits_S == 0, 0.0, measured_S)


def _fold_version(
    touched: Touched,
    position_B: NDArray[np.int64],
    outcomes: Outcomes,
    version: int,
    settings: TrackerSettings,
    movement: float,
) -> ObserveReport:
    """Fold the outcomes of one policy version into ``touched``."""
    rows = np.flatnonzero(outcomes.version_B == version)
    at, group_B = np.unique(position_B[rows], return_inverse=True)
    count = np.bincount(group_B)
    reward_B = outcomes.reward_B[rows]
    alpha, beta, version_S = touched.alpha_S[at], touched.beta_S[at], touched.version_S[at]
    first_visit = touched.visits_S[at] == 0
    if settings.forgetting_mode == "version":
        newest = newest_event(version_S)
        _, n_eff = read_evidence(settings, version, alpha, beta, version_S)
        discounted, divergence = newest < version, np.zeros(len(at))
        rho = core.decay(version - newest, settings.rho)
        touched.alpha_S[at], touched.beta_S[at], touched.version_S[at] = core.fold_events(
            alpha, beta, newest, group_B, np.full(len(rows), version), reward_B, rho=settings.rho
        )
    else:
        n_eff = core.effective_sample_size(alpha, beta)
        # A late outcome of an older version finds evidence that has been discounted beyond it: it adds, no more.
        discounted = version_S < version
        if settings.forgetting_mode != "constant":
            discounted &= touched.due_S[at]
            touched.due_S[at] &= ~discounted
        if touched.moved_S is not None:
            touched.moved_S[at] = np.where(discounted, movement, touched.moved_S[at])
        divergence = np.where(discounted, touched.measured_S[at], 0.0)
        rho = np.where(discounted, _retention(settings, divergence), 1.0)
        touched.alpha_S[at], touched.beta_S[at] = core.update_evidence(
            alpha, beta, np.bincount(group_B, weights=reward_B), rho, count=count
        )
        touched.version_S[at] = np.maximum(version_S, version)
    touched.visits_S[at] += count.astype(np.int32)
    return ObserveReport(
        slot_B=touched.slot_S[at],
        version_B=np.full(len(at), version, dtype=np.int64),
        count_B=count.astype(np.int64),
        rho_B=rho,
        divergence_B=divergence,
        n_eff_B=n_eff,
        discounted_B=discounted,
        first_visit_B=first_visit,
        new=len(rows),
        duplicate=0,
    )


def plan(table: PromptTable, settings: TrackerSettings, outcomes: Outcomes, movement: float = 0.0) -> Plan:
    """What the outcomes make of the rows that they touch, older versions first; changes nothing.

    Args:
        table, settings, outcomes: as they are.
        movement: the policy's summed movement so far, for ``forgetting_mode=drift``.
    """
    slot_S, position_B = np.unique(outcomes.slot_B, return_inverse=True)
    visits_S = table.visits_P[slot_S]
    moved_S = None if table.moved_P is None else table.moved_P[slot_S]
    touched = Touched(
        slot_S,
        table.alpha_P[slot_S],
        table.beta_P[slot_S],
        visits_S,
        table.version_P[slot_S],
        moved_S,
        _measured(settings, outcomes.divergence_B, position_B, moved_S, visits_S, movement),
        np.ones(len(slot_S), dtype=np.bool_),
    )
    parts = [
        _fold_version(touched, position_B, outcomes, int(version), settings, movement)
        for version in np.unique(outcomes.version_B)
    ]
    return Plan(touched, outcomes, _joined(parts, outcomes.duplicate))


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


def commit(table: PromptTable, ledger: Ledger, plan: Plan) -> None:
    """Write the touched rows into the table and note the outcomes in the ledger."""
    touched = plan.touched
    table.alpha_P[touched.slot_S] = touched.alpha_S
    table.beta_P[touched.slot_S] = touched.beta_S
    table.visits_P[touched.slot_S] = touched.visits_S
    table.version_P[touched.slot_S] = touched.version_S
    if table.moved_P is not None and touched.moved_S is not None:
        table.moved_P[touched.slot_S] = touched.moved_S
    for uid, session in plan.outcomes.source_B:
        ledger.add_session(uid, session)
