"""How evidence is forgotten: one rule for each forgetting mode. Nothing else in this package asks which mode it is.

| mode | rule | stores per prompt | reads | folds outcomes in |
|---|---|---|---|---|
| ``kl`` | :class:`KlForgetting` | newest version observed | divergence | discount, then add |
| ``constant`` | :class:`ConstantForgetting` | newest version observed | version | discount, then add |
| ``drift`` | :class:`DriftForgetting` | newest version, movement at last discount | movement | discount, then add |
| ``version`` | :class:`VersionForgetting` | version of its newest event | version | each by the age of its version |

How often evidence is discounted depends on what the discount follows from. Under ``constant`` that is the version: one
discount for each version beyond the last one. Under ``kl`` and ``drift`` it is a measurement: one discount for each
prompt and request that has a version beyond the last one, however many there are. The formulas are in
:mod:`spo_verl.core`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from spo_verl import core
from spo_verl.config import ForgettingMode
from spo_verl.errors import SpoStateError
from spo_verl.tracker.arguments import shown
from spo_verl.tracker.observing import Outcomes
from spo_verl.tracker.reports import ObserveReport
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.tracker.table import PromptTable, TouchedRows

Column = NDArray[np.float64]
Versions = NDArray[np.int64]


@dataclass
class Clock:
    """How far the run has come, in what the forgetting mode counts; saved with the tracker.

    Attributes:
        version: the newest policy version that the tracker knows; only under ``version``.
        movement: sum of the policy's movements so far; only under ``drift``.
    """

    version: int | None = None
    movement: float | None = None

    def note_version(self, version: int) -> None:
        """A policy version was heard of; older ones than the newest change nothing."""
        if self.version is not None:
            self.version = max(self.version, version)

    def as_json(self) -> dict[str, float]:
        """What is saved; empty where the mode counts nothing."""
        entries = {"version": self.version, "movement": self.movement}
        return {name: entry for name, entry in entries.items() if entry is not None}


@dataclass(frozen=True)
class OneVersion:
    """The outcomes of one policy version.

    ``at``: which touched rows have any, ascending; ``group_B``: which of those each outcome belongs to; ``reward_B``.
    """

    version: int
    at: NDArray[np.int64]
    group_B: NDArray[np.int64]
    reward_B: Column

    @property
    def count(self) -> NDArray[np.int64]:
        """How many outcomes each row of ``at`` has."""
        return np.bincount(self.group_B)

    @property
    def reward_sum(self) -> Column:
        """Sum of the rewards of each row of ``at``."""
        return np.bincount(self.group_B, weights=self.reward_B).astype(np.float64)


def by_version(rows: TouchedRows, outcomes: Outcomes) -> Iterator[OneVersion]:
    """The outcomes of each policy version, older versions first."""
    for version in np.unique(outcomes.version_B):
        of_version = np.flatnonzero(outcomes.version_B == version)
        at, group_B = np.unique(rows.position_B[of_version], return_inverse=True)
        yield OneVersion(int(version), at, group_B, outcomes.reward_B[of_version])


class Forgetting(ABC):
    """What a forgetting mode stores, reads and does with outcomes. It has no state: that is in table and clock."""

    stores_movement: ClassVar[bool] = False
    """Whether the table has ``moved_P``."""
    fades: ClassVar[bool] = False
    """Whether values change from version to version without new outcomes."""

    def __init__(self, settings: TrackerSettings) -> None:
        self.settings = settings

    # -- what it stores

    def fit(self, table: PromptTable) -> PromptTable:
        """The table with the columns of this mode."""
        return table.with_moved(self.stores_movement)

    def clock(self, saved: Mapping[str, float], table: PromptTable) -> Clock:
        """The saved clock; without one it starts at what the table knows, or at 0."""
        return Clock()

    def enter(self, table: PromptTable, version: int) -> PromptTable:
        """The table of prompts whose evidence comes under this rule at a policy version."""
        return table

    def leave(self, table: PromptTable) -> PromptTable:
        """The table for a run that continues under another rule."""
        return table

    def take_over(self, table: PromptTable, before: Forgetting, version: int) -> PromptTable:
        """The table of a run that continues under this rule at a policy version; ``before`` is its former rule."""
        return table if type(before) is type(self) else self.enter(before.leave(table), version)

    # -- what it reads

    def read(
        self, version: int, alpha_B: Column, beta_B: Column, version_B: NDArray[np.int64]
    ) -> tuple[Column, Column]:
        """(value, effective sample size) of rows of the table, as read at a policy version."""
        return core.value(alpha_B, beta_B), core.effective_sample_size(alpha_B, beta_B)

    def moved(self, clock: Clock, movement: float) -> float:
        """The summed movement after one more; raises :class:`SpoStateError` where there is no such movement."""
        raise SpoStateError(
            f"the movement of the policy plays no part in forgetting_mode={self.settings.forgetting_mode}; pass "
            "none, or set spo.forgetting.mode=drift."
        )

    # -- what it does with outcomes

    @abstractmethod
    def fold(self, rows: TouchedRows, outcomes: Outcomes, clock: Clock) -> list[ObserveReport]:
        """Fold outcomes into the rows of their prompts, in place; a report for each policy version."""


class Discounting(Forgetting):
    """What ``kl``, ``constant`` and ``drift`` share: discount a row at a new version, and add its outcomes."""

    measures: ClassVar[bool] = True
    """Whether a discount follows from a measurement: then one request discounts a row once."""

    def divergence(self, rows: TouchedRows, outcomes: Outcomes, clock: Clock) -> Column:
        """How far the policy has moved since the last discount of each row, at least 0."""
        return np.zeros(len(rows.slot_D))

    def retention(self, divergence_B: Column) -> Column | float:
        """What a discount keeps of the evidence."""
        settings = self.settings
        return core.retention(
            divergence_B, half_life=settings.half_life, rho_min=settings.rho_min, rho_max=settings.rho_max
        )

    def note_discount(self, rows: TouchedRows, at: NDArray[np.int64], clock: Clock) -> None:
        """Store with these rows what the next measurement starts from."""

    def fold(self, rows: TouchedRows, outcomes: Outcomes, clock: Clock) -> list[ObserveReport]:
        """Equation (5), version by version.

        A late outcome of an older version finds evidence that has been discounted beyond it: it is only added.
        """
        # 0 at a first visit, before which there was nothing to move away from
        divergence_D = np.where(rows.visits_D == 0, 0.0, self.divergence(rows, outcomes, clock))
        due_D = np.ones(len(rows.slot_D), dtype=np.bool_)
        reports = []
        for part in by_version(rows, outcomes):
            at = part.at
            discounted_B = (rows.version_D[at] < part.version) & due_D[at]
            if self.measures:
                due_D[at] &= ~discounted_B
            divergence_B = np.where(discounted_B, divergence_D[at], 0.0)
            rho_B = np.where(discounted_B, self.retention(divergence_B), 1.0)
            self.note_discount(rows, at[discounted_B], clock)
            alpha_B, beta_B = rows.alpha_D[at], rows.beta_D[at]
            rows.alpha_D[at], rows.beta_D[at] = core.update_evidence(
                alpha_B, beta_B, part.reward_sum, rho_B, count=part.count
            )
            rows.version_D[at] = np.maximum(rows.version_D[at], part.version)
            n_eff_B = core.effective_sample_size(alpha_B, beta_B)
            reports.append(_report(rows, part, rho_B, n_eff_B, discounted_B, divergence_B))
        return reports


class ConstantForgetting(Discounting):
    """``constant``: ``rho`` at the first outcome of each version beyond the one of the last discount."""

    measures = False

    def retention(self, divergence_B: Column) -> float:
        return self.settings.rho


class KlForgetting(Discounting):
    """``kl``: retention from the divergence of the prompt's stored response, which the request brings."""

    def divergence(self, rows: TouchedRows, outcomes: Outcomes, clock: Clock) -> Column:
        """The largest divergence of the prompt's outcomes, NaN ignored, or 0: the same in any order."""
        divergence_D = np.zeros(len(rows.slot_D))
        np.fmax.at(divergence_D, rows.position_B, outcomes.divergence_B)
        return divergence_D


class DriftForgetting(Discounting):
    """``drift``: retention from the movement of the policy since the prompt's last discount, scaled."""

    stores_movement = True

    def clock(self, saved: Mapping[str, float], table: PromptTable) -> Clock:
        return Clock(movement=float(saved.get("movement", 0.0)))

    def moved(self, clock: Clock, movement: float) -> float:
        number = isinstance(movement, (int, float, np.integer, np.floating)) and not isinstance(movement, bool)
        if not number or not 0 <= (movement if isinstance(movement, int) else float(movement)) <= sys.float_info.max:
            raise SpoStateError(
                f"movement {shown(movement)} is not a finite number >= 0; pass a mean absolute difference."
            )
        moved = (clock.movement or 0.0) + float(movement)
        if not np.isfinite(moved):
            raise SpoStateError(f"movement {shown(movement)} takes the sum beyond all floats; pass nats per token.")
        return moved

    def divergence(self, rows: TouchedRows, outcomes: Outcomes, clock: Clock) -> Column:
        """The scaled movement since the row's last discount."""
        with np.errstate(over="ignore"):  # beyond all bounds is far enough
            return self.settings.drift_scale * ((clock.movement or 0.0) - rows.require_moved())

    def note_discount(self, rows: TouchedRows, at: NDArray[np.int64], clock: Clock) -> None:
        rows.require_moved()[at] = clock.movement or 0.0


class VersionForgetting(Forgetting):
    """``version``: evidence decays by ``rho`` per policy version from its newest event: event time.

    Formulas: :mod:`spo_verl.core.event_time`. The event of an outcome is the version of its rollout's dispatch. What is
    read decays to the version of the reading.
    """

    fades = True

    def clock(self, saved: Mapping[str, float], table: PromptTable) -> Clock:
        return Clock(version=max(int(saved.get("version", 0)), int(table.version_P.max(initial=0))))

    def enter(self, table: PromptTable, version: int) -> PromptTable:
        """Evidence is of this version and decays from it: none has been discounted before."""
        return table.anchored(version)

    def leave(self, table: PromptTable) -> PromptTable:
        """Evidence stays as it is; a prompt that was never observed has no version again."""
        return table.anchored(0, table.visits_P == 0)

    def read(
        self, version: int, alpha_B: Column, beta_B: Column, version_B: NDArray[np.int64]
    ) -> tuple[Column, Column]:
        row = (alpha_B, beta_B, _newest_event(version_B), version)
        alpha_now_B, beta_now_B = core.evidence_at(*row, rho=self.settings.rho, floor=self.settings.floor)
        value_B = core.value_at(*row, rho=self.settings.rho, floor=self.settings.floor)
        return value_B, core.effective_sample_size(alpha_now_B, beta_now_B)

    def fold(self, rows: TouchedRows, outcomes: Outcomes, clock: Clock) -> list[ObserveReport]:
        rho, reports = self.settings.rho, []
        for part in by_version(rows, outcomes):
            at, version = part.at, part.version
            alpha_B, beta_B, newest_B = rows.alpha_D[at], rows.beta_D[at], _newest_event(rows.version_D[at])
            _, n_eff_B = self.read(version, alpha_B, beta_B, newest_B)
            event_B = np.full(len(part.reward_B), version)
            rows.alpha_D[at], rows.beta_D[at], rows.version_D[at] = core.fold_events(
                alpha_B, beta_B, newest_B, part.group_B, event_B, part.reward_B, rho=rho
            )
            rho_B = core.decay(version - newest_B, rho)
            reports.append(_report(rows, part, rho_B, n_eff_B, newest_B < version))
        return reports


def _report(
    rows: TouchedRows,
    part: OneVersion,
    rho_B: Column,
    n_eff_B: Column,
    discounted_B: NDArray[np.bool_],
    divergence_B: Column | None = None,
) -> ObserveReport:
    """Count the visits of one version, and say what was done."""
    count = part.count
    first_visit_B = rows.visits_D[part.at] == 0
    rows.visits_D[part.at] += count.astype(np.int32)
    return ObserveReport(
        slot_B=rows.slot_D[part.at],
        version_B=np.full(len(part.at), part.version, dtype=np.int64),
        count_B=count.astype(np.int64),
        rho_B=rho_B,
        divergence_B=np.zeros(len(part.at)) if divergence_B is None else divergence_B,
        n_eff_B=n_eff_B,
        discounted_B=discounted_B,
        first_visit_B=first_visit_B,
        new=len(part.reward_B),
        duplicate=0,
    )


def _newest_event(version_B: Versions) -> Versions:
    """The version of the evidence; that of prompts which entered at version 0, marked by -1, is 0."""
    return np.maximum(version_B, 0)


RULES: dict[ForgettingMode, type[Forgetting]] = {
    "kl": KlForgetting,
    "constant": ConstantForgetting,
    "version": VersionForgetting,
    "drift": DriftForgetting,
}


def forgetting(settings: TrackerSettings) -> Forgetting:
    """The rule of ``settings.forgetting_mode``."""
    return RULES[settings.forgetting_mode](settings)
