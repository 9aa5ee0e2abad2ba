"""Numbers over all prompts of the dataset, for the log. O(P), part by part."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from spo_verl.tracker.forgetting_rules import Forgetting
from spo_verl.tracker.quota import PromptSources
from spo_verl.tracker.readout import CalibratedReadOut, read_rows
from spo_verl.tracker.table import PromptTable

SCAN_ROWS = 1 << 17
"""Rows looked at at once: their temporary arrays stay in the cache."""

Readings = Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]


def read_parts(
    table: PromptTable, rule: Forgetting, version: int, readout: CalibratedReadOut | None = None
) -> Readings:
    """(value, effective sample size) of the prompts of the dataset as read at a policy version, part by part."""
    for first in range(0, table.active, SCAN_ROWS):
        yield read_rows(table, rule, readout, slice(first, min(first + SCAN_ROWS, table.active)), version)


def value_histogram(parts: Readings, bins: int) -> NDArray[np.int64]:
    """(bins,) how many prompts have their value in each of ``bins`` equal parts of [0, 1]."""
    counts = np.zeros(bins, dtype=np.int64)
    for value_P, _ in parts:
        counts += np.histogram(value_P, bins=bins, range=(0.0, 1.0))[0]
    return counts


def prompt_metrics(parts: Readings, table: PromptTable) -> dict[str, float]:
    """``prompts``, ``prompts_aside``, ``value_mean``, ``n_eff_mean``, ``table_bytes``."""
    values = mass = 0.0
    for value_P, n_eff_P in parts:
        values += float(value_P.sum())
        mass += float(n_eff_P.sum())
    return {
        "prompts": float(table.active),
        "prompts_aside": float(len(table) - table.active),
        "value_mean": values / table.active,
        "n_eff_mean": mass / table.active,
        "table_bytes": float(table.nbytes),
    }


def source_metrics(parts: Readings, sources: PromptSources) -> dict[str, float]:
    """``source/<name>/value_mean`` of every data source."""
    total_Q = np.zeros(len(sources.names))
    first = 0
    for value_P, _ in parts:
        source_P = sources.source_P[first : first + len(value_P)]
        total_Q += np.bincount(source_P, weights=value_P, minlength=len(total_Q))
        first += len(value_P)
    mean_Q = total_Q / sources.prompts_Q
    return {f"source/{name}/value_mean": float(mean) for name, mean in zip(sources.names, mean_Q, strict=True)}
