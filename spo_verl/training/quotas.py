"""Data sources in a run: quotas checked when the data is read, and reported with every step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from spo_verl.config import SpoConfig, refuse
from spo_verl.data.identity import DatasetKeys
from spo_verl.data.prompt_sources import prompt_sources, stated_sources
from spo_verl.tracker.quota import PromptSources, parts_of, quota_problems
from spo_verl.tracker.readout import MOST_SOURCES
from spo_verl.training.metrics import source_labels

logger = logging.getLogger(__name__)


def read_sources(spo: SpoConfig, dataset: Any, keys: DatasetKeys, batch_size: int) -> PromptSources | None:
    """The data source of every prompt, and a log line with each one's part of a batch; None without quotas.

    Args:
        spo: settings.
        dataset: verl's training dataset.
        keys: its prompts.
        batch_size: prompts per batch.

    Raises:
        SpoConfigError: the dataset does not say its sources, or they do not fit the quotas; lists every problem.
    """
    quota = spo.sampling.quota
    if quota is None:
        return None
    sources = prompt_sources(dataset, keys.row_of_slot_P)
    refuse(list(quota_problems(quota, sources, batch_size)))
    part_Q = parts_of(quota, sources.names)
    shares = [
        f"{name} {batch_size * part / part_Q.sum():g} of {batch_size} ({prompts} prompts)"
        for name, part, prompts in zip(sources.names, part_Q, sources.prompts_Q, strict=True)
    ]
    logger.info("spo: every batch draws on average %s", ", ".join(shares))
    return sources


def sources_of_readout(spo: SpoConfig, dataset: Any, keys: DatasetKeys) -> PromptSources | None:
    """With the calibrated read-out the data source of every prompt, and a log line; None where nothing says it.

    Args:
        spo, dataset, keys: as for :func:`read_sources`.
    """
    if spo.value.readout != "calibrated":
        return None
    sources = stated_sources(dataset, keys.row_of_slot_P)
    if sources is None:
        logger.info("spo: the calibrated read-out does not tell data sources apart: no table with a data_source")
    else:
        logger.info("spo: the calibrated read-out tells %d data sources apart", min(len(sources.names), MOST_SOURCES))
    return sources


class SourceRecord:
    """What a step drew of each data source, and their values after it; emptied by :meth:`drain`."""

    def __init__(self, sources: PromptSources) -> None:
        self._sources = sources
        self._labels = source_labels(sources.names)
        self._drawn_Q = np.zeros(len(sources.names), dtype=np.int64)
        self._values: dict[str, float] = {}

    def note_draw(self, slot_B: np.ndarray) -> None:
        """These prompts were drawn."""
        self._drawn_Q += self._sources.counts(slot_B)

    def note_values(self, tracker_metrics: Mapping[str, float]) -> None:
        """What the tracker says of its sources after an update, see ``Tracker.metrics``."""
        self._values = {
            f"source/{label}/value_mean": tracker_metrics[key]
            for name, label in self._labels.items()
            if (key := f"source/{name}/value_mean") in tracker_metrics
        }

    def drain(self) -> dict[str, float]:
        """The step's metrics, under the names of ``METRICS``; where nothing was drawn there are no shares."""
        drawn = int(self._drawn_Q.sum())
        shares = zip(self._labels.values(), self._drawn_Q / drawn, strict=True) if drawn else ()
        metrics = self._values | {f"source/{label}/drawn_share": float(share) for label, share in shares}
        self._drawn_Q[:] = 0
        self._values = {}
        return metrics
