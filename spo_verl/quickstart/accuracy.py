"""Held-out accuracy out of verl's validation metrics, overall and by level."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spo_verl.small.task import LEVELS, data_source

_KEY = re.compile(r"val-core/(?P<source>[^/]+)/acc/mean@\d+$")


@dataclass(frozen=True)
class Accuracy:
    """Share of held-out prompts answered right, one response each, sampled at temperature 1.

    ``standard_error`` is that of the mean when the levels are equally large (a stratified sample).
    """

    step: int
    by_level: tuple[float, ...]
    prompts: int

    @property
    def mean(self) -> float:
        return sum(self.by_level) / len(self.by_level)

    @property
    def standard_error(self) -> float:
        per_level = self.prompts / len(self.by_level)
        return math.sqrt(sum(p * (1 - p) / per_level for p in self.by_level)) / len(self.by_level)


def read_accuracy(record: Mapping[str, Any], *, prompts: int) -> Accuracy | None:
    """The accuracy in one of verl's metric records, or None where the step was not validated."""
    by_source = {}
    for key, value in record["data"].items():
        match = _KEY.match(key)
        if match:
            by_source[match["source"]] = float(value)
    wanted = [data_source(level) for level in range(1, len(LEVELS) + 1)]
    if not all(source in by_source for source in wanted):
        return None
    return Accuracy(record["step"], tuple(by_source[source] for source in wanted), prompts)


def accuracies(records: Sequence[Mapping[str, Any]], *, prompts: int) -> list[Accuracy]:
    """Every validation of a run, in order."""
    found = (read_accuracy(record, prompts=prompts) for record in records)
    return [accuracy for accuracy in found if accuracy is not None]


def comparison(before: Accuracy, after: Accuracy) -> str:
    """A table of both by level, with the overall difference and its standard error."""
    lines = [f"{'level':<14}{'before':>8}{'after':>8}{'change':>9}"]
    for (name, _), first, last in zip(LEVELS, before.by_level, after.by_level, strict=True):
        lines.append(f"{name:<14}{first:>8.3f}{last:>8.3f}{last - first:>+9.3f}")
    error = math.hypot(before.standard_error, after.standard_error)
    change = after.mean - before.mean
    lines.append(f"{'all':<14}{before.mean:>8.3f}{after.mean:>8.3f}{change:>+9.3f}  (standard error {error:.3f})")
    return "\n".join(lines)
