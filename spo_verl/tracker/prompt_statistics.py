"""Numbers over all prompts of the dataset, for the log."""

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
BLOCK_ROWS = 64
"""Rows that ``PromptSums`` reads again when the evidence of one of them has changed."""
KEPT_BINS = 20
"""Bins of the histogram that ``PromptSums`` keeps; divisors of it come from it too."""
BIN_EDGES = np.linspace(0.0, 1.0, KEPT_BINS + 1)

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


class PromptSums:
    """Sums of value and effective sample size over the prompts of the dataset, and a histogram of the values.

    One sum for each block of rows is kept, and only blocks with new evidence are read again: O(B * BLOCK_ROWS + P /
    BLOCK_ROWS) per step of B outcomes. All are read again where what is read has changed without new evidence: at
    another version in event time, and after a fit of the read-out. Each block is summed the same way every time, so
    that a resumed run logs the same numbers.
    """

    def __init__(self, table: PromptTable, rule: Forgetting, readout: CalibratedReadOut | None) -> None:
        self._table, self._rule, self._readout = table, rule, readout
        blocks = -(-table.active // BLOCK_ROWS)
        self._sums = np.zeros((blocks, 2))
        self._counts = np.zeros((blocks, KEPT_BINS), dtype=np.uint8)  # at most BLOCK_ROWS each
        self._stale = np.ones(blocks, dtype=np.bool_)
        self._version: int | None = None
        self._calibration: object = None

    def note(self, slot_B: NDArray[np.int64]) -> None:
        """The evidence of these prompts of the dataset has changed."""
        self._stale[slot_B // BLOCK_ROWS] = True

    def totals(self, version: int) -> tuple[float, float]:
        """Sums of (value, effective sample size) as read at a policy version."""
        self._refresh(version)
        value, n_eff = self._sums.sum(axis=0).tolist()
        return value, n_eff

    def value_histogram(self, version: int, bins: int) -> NDArray[np.int64]:
        """As :func:`value_histogram`, for a number of bins that divides ``KEPT_BINS``."""
        self._refresh(version)
        kept = self._counts.sum(axis=0, dtype=np.int64)
        return np.asarray(kept.reshape(bins, -1).sum(axis=1))

    def _refresh(self, version: int) -> None:
        calibration = None if self._readout is None else self._readout.state
        if calibration is not self._calibration or (self._rule.fades and version != self._version):
            self._stale[:] = True
        self._version, self._calibration = version, calibration
        stale = np.flatnonzero(self._stale)
        at_once = max(SCAN_ROWS // BLOCK_ROWS, 1)
        for first in range(0, len(stale), at_once):
            self._read(stale[first : first + at_once], version)
        self._stale[:] = False

    def _read(self, blocks: NDArray[np.int64], version: int) -> None:
        """Sum these blocks, which ascend."""
        rows: NDArray[np.int64] | slice
        if blocks[-1] - blocks[0] == len(blocks) - 1:  # without a gap: no copy of the columns
            rows = slice(blocks[0] * BLOCK_ROWS, min((blocks[-1] + 1) * BLOCK_ROWS, self._table.active))
        else:
            rows = (blocks[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).reshape(-1)
            rows = rows[rows < self._table.active]
        reading = read_rows(self._table, self._rule, self._readout, rows, version)
        for column, read in enumerate(reading):
            padded = np.zeros((len(blocks), BLOCK_ROWS))
            padded.reshape(-1)[: len(read)] = read
            self._sums[blocks, column] = padded.sum(axis=1)
        value_B = reading[0]
        # The last bin holds 1 too, as in numpy's histogram.
        bin_B = np.minimum(np.searchsorted(BIN_EDGES, value_B, side="right") - 1, KEPT_BINS - 1)
        block_B = np.arange(len(value_B)) // BLOCK_ROWS
        counts = np.bincount(block_B * KEPT_BINS + bin_B, minlength=len(blocks) * KEPT_BINS)
        self._counts[blocks] = counts.reshape(-1, KEPT_BINS)


def prompt_metrics(totals: tuple[float, float], table: PromptTable) -> dict[str, float]:
    """``prompts``, ``prompts_aside``, ``value_mean``, ``n_eff_mean``, ``table_bytes``; of ``PromptSums.totals``."""
    value, n_eff = totals
    return {
        "prompts": float(table.active),
        "prompts_aside": float(len(table) - table.active),
        "value_mean": value / table.active,
        "n_eff_mean": n_eff / table.active,
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
