"""Other calibrated read-outs on recorded visits: which features, how many outcomes, how strong a prior.

The visits are those of one ``spo`` training, whose tracker does not depend on the read-out. Each variant is fitted on
outcomes of earlier steps only, as in training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spo_verl import core

from .tasks import LEVELS
from .training import VISIT

SKIPPED = 5
"""Steps at the start that are not counted."""
SOURCES = tuple(range(4, 4 + LEVELS))
EXTRA = (SOURCES[-1] + 1, SOURCES[-1] + 2)
SETS = {
    "all": (0, 1, 2, 3, *SOURCES),
    "without age": (0, 1, 2, *SOURCES),
    "without N_eff": (0, 1, 3, *SOURCES),
    "without sources": (0, 1, 2, 3),
    "intercept and slope": (0, 1),
    "digits and carries, without sources": (0, 1, 2, 3, *EXTRA),
    "all, digits and carries": (0, 1, 2, 3, *SOURCES, *EXTRA),
}
"""Columns of ``core.calibration_features``: logit v, 1, logit v / sqrt(N_eff), age, sources, :func:`difficulty`."""


def difficulty(question: str) -> tuple[float, float]:
    """Digits of the question, and its carries: columns of the first two numbers whose sum is at least ten, with the
    carry from before, or borrows of a difference. What a user could write as ``spo.value.features``."""
    digits = float(sum(character.isdigit() for character in question))
    parts = re.fullmatch(r"(\d+)([-+*])(\d+).*=", question)
    assert parts is not None
    first, sign, second = parts.groups()  # the last digit is written first
    carry, carries = 0, 0
    for place, digit in enumerate(first):
        other = int(second[place]) if place < len(second) else 0
        if sign == "+":
            carry = int(int(digit) + other + carry >= 10)
        elif sign == "-":
            carry = int(int(digit) - other - carry < 0)
        else:
            carry = int(int(digit) * int(second) + carry) // 10
        carries += carry > 0
    return digits, float(carries)


class Visits:
    """(S, 8, B) recorded visits, the rows as in ``VISIT``."""

    def __init__(self, path: Path) -> None:
        stored = np.load(path)
        table = stored["visits"].astype(np.float64)
        hard_PF = np.array([difficulty(question) for question in stored["question"].tolist()])
        hard_PF = (hard_PF - hard_PF.mean(0)) / hard_PF.std(0)
        self.columns = {name: table[:, index] for index, name in enumerate(VISIT)}
        self.steps = len(table)
        self.rate_SB = self.columns["rate"]
        values = zip(*(self.columns[name] for name in ("value", "n_eff", "age", "level", "slot")), strict=True)
        self.features = [
            core.calibration_features(
                np.clip(value, 0, 1), n_eff, age, level - 1, sources=LEVELS, extra_BF=hard_PF[slot.astype(int)]
            )
            for value, n_eff, age, level, slot in values
        ]

    def error(self, value_SB: np.ndarray) -> tuple[float, float]:
        """Mean squared error and bias."""
        error_SB = (value_SB - self.rate_SB)[SKIPPED:]
        return float((error_SB**2).mean()), float(error_SB.mean())

    def group(self, size: int = 8) -> float:
        """Squared error of the mean of a group of responses."""
        rate_SB = self.rate_SB[SKIPPED:]
        return float((rate_SB * (1 - rate_SB)).mean()) / size

    def calibrated(self, columns: Sequence[int], window: int, precision: float) -> np.ndarray:
        """(S, B) values of a read-out that is fitted on the last ``window`` steps."""
        value_SB = self.columns["value"].copy()
        chosen = [feature[:, list(columns)] for feature in self.features]
        for step in range(1, self.steps):
            since = slice(max(0, step - window), step)
            features, rewards = np.concatenate(chosen[since]), np.concatenate(self.columns["reward"][since])
            fitted = core.fit_calibration(features, rewards, precision=precision)
            value_SB[step] = core.calibrated_value(chosen[step], fitted)
        return value_SB


def compare(path: Path) -> list[str]:
    """Markdown rows, one per variant."""
    visits = Visits(path)
    batch = visits.rate_SB.shape[1]
    rows = ["| read-out | outcomes | lambda | squared error | bias |", "|---|---|---|---|---|"]

    def add(name: str, outcomes: object, precision: object, found: tuple[float, float]) -> None:
        rows.append(f"| {name} | {outcomes} | {precision} | {found[0]:.4f} | {found[1]:+.4f} |")

    add("raw value", "", "", visits.error(visits.columns["value"]))
    variants = [(name, 8, 5.0) for name in SETS]
    variants += [("all", window, 5.0) for window in (4, 16, 32, 64)]
    variants += [("all, digits and carries", 32, 5.0)]
    variants += [("all", window, precision) for window in (8, 32) for precision in (1.0, 20.0)]
    for name, window, precision in variants:
        found = visits.error(visits.calibrated(SETS[name], window, precision))
        add(name, window * batch, f"{precision:g}", found)
    rows.append(f"| mean of a group of eight | | | {visits.group():.4f} | |")
    return rows
