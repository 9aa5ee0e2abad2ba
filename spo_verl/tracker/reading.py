"""What evidence says at a policy version: value, effective sample size, sampling weight; by forgetting mode.

Under ``kl``, ``constant`` and ``drift`` evidence is discounted when new evidence arrives, and says between visits
what it said after the last one. Under ``version`` it decays from its own newest event to the version at which it is
read (:mod:`spo_verl.core.event_time`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spo_verl import core
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.tracker.table import PromptTable

Column = NDArray[np.float64]


def newest_event(version_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """The version that evidence stands at; that of prompts which entered at version 0, marked by -1, is 0."""
    return np.maximum(version_B, 0)


def read_evidence(
    settings: TrackerSettings, version: int, alpha_B: Column, beta_B: Column, version_B: NDArray[np.int64]
) -> tuple[Column, Column]:
    """(value, effective sample size) of rows of the table, as read at a policy version."""
    if settings.forgetting_mode != "version":
        return core.value(alpha_B, beta_B), core.effective_sample_size(alpha_B, beta_B)
    row = (alpha_B, beta_B, newest_event(version_B), version)
    alpha_now_B, beta_now_B = core.evidence_at(*row, rho=settings.rho, floor=settings.floor)
    value_B = core.value_at(*row, rho=settings.rho, floor=settings.floor)
    return value_B, core.effective_sample_size(alpha_now_B, beta_now_B)


def weights(
    settings: TrackerSettings, version: int, alpha_B: Column, beta_B: Column, version_B: NDArray[np.int64]
) -> Column:
    """What rows of the table are drawn by, at a policy version."""
    if settings.sampling_mode == "uniform":
        return np.ones(len(alpha_B))
    value_B, n_eff_B = read_evidence(settings, version, alpha_B, beta_B, version_B)
    return core.value_weights(value_B, n_eff_B, gamma=settings.gamma, epsilon=settings.epsilon)


def weights_age(settings: TrackerSettings) -> bool:
    """Whether weights change with the version alone: in event time, where mass or the floor has a say in them."""
    depends = settings.gamma > 0 or settings.floor > 0
    return settings.forgetting_mode == "version" and settings.sampling_mode == "prioritized" and depends


@dataclass
class Clock:
    """How far the run has come, in what the forgetting mode counts; saved with the tracker.

    Attributes:
        version: the newest policy version that the tracker was told; only under ``version``.
        movement: sum of the policy's movements so far; only under ``drift``.
    """

    version: int | None = None
    movement: float | None = None

    @classmethod
    def resumed(cls, saved: dict[str, float], settings: TrackerSettings, table: PromptTable) -> Clock:
        """Where a saved clock stood; one that the saved run did not have starts at what the table knows, or at 0."""
        mode = settings.forgetting_mode
        newest = max(int(saved.get("version", 0)), int(table.version_P.max(initial=0)))
        return cls(
            version=newest if mode == "version" else None,
            movement=float(saved.get("movement", 0.0)) if mode == "drift" else None,
        )

    def note_version(self, version: int) -> None:
        """A policy version was heard of; older ones than the newest change nothing."""
        if self.version is not None:
            self.version = max(self.version, version)

    def as_json(self) -> dict[str, float]:
        """What is saved; empty where the mode counts nothing, so that such a checkpoint is as it always was."""
        entries = {"version": self.version, "movement": self.movement}
        return {name: entry for name, entry in entries.items() if entry is not None}
