"""Which prompts come next: the weights of all prompts, the index over them, and the random generators of the draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spo_verl import core
from spo_verl.errors import SpoStateError
from spo_verl.tracker.arguments import is_whole, shown
from spo_verl.tracker.forgetting_rules import Forgetting
from spo_verl.tracker.prompt_statistics import read_parts
from spo_verl.tracker.quota import IN_FLIGHT_REMEDY, PromptSources, QuotaIndex
from spo_verl.tracker.readout import CalibratedReadOut, read_rows
from spo_verl.tracker.reports import Draw
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.tracker.table import PromptTable


class Drawing:
    """Draws prompts of the dataset by the weights of equation (11), or uniformly, with quotas or without.

    A restart saves the states of the generators only: weights follow from table and version, and are rebuilt.

    Args:
        settings, rule: how prompts are weighed.
        table: the prompts; it is read whenever weights are.
        generators: purpose -> generator, see ``settings.PURPOSES``.
        sources: data source of each prompt; needed with quotas.
        version: policy version at which evidence is read.
        readout: reads values of the evidence; None: its own value.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        rule: Forgetting,
        table: PromptTable,
        generators: dict[str, np.random.Generator],
        sources: PromptSources | None,
        version: int,
        readout: CalibratedReadOut | None = None,
    ) -> None:
        self._settings, self._rule, self._table, self._readout = settings, rule, table, readout
        self.generators = generators
        prioritized = settings.sampling_mode == "prioritized"
        self._prioritized = prioritized
        # Values do not fade without a floor: then only mass makes weights change with the version alone.
        by_mass = settings.gamma > 0 or readout is not None
        self._ages = rule.fades and prioritized and (by_mass or settings.floor > 0)
        self._version, self._refitted = version, False
        weight_P = self._all_weights(version)
        self._index: core.WeightIndex | QuotaIndex
        if settings.quota is None:
            self._index = core.WeightIndex(weight_P)
        elif not isinstance(sources, PromptSources):
            raise SpoStateError("quotas need the data source of every prompt; pass sources=PromptSources.of(labels).")
        else:
            self._index = QuotaIndex(weight_P, sources, settings.quota)

    @property
    def sources(self) -> PromptSources | None:
        """With quotas: the data source of each prompt."""
        return self._index.sources if isinstance(self._index, QuotaIndex) else None

    def check(self, size: int, taken: NDArray[np.int64]) -> None:
        """Raise :class:`SpoStateError` where there is no such batch, without prompts that are taken."""
        prompts = self._table.active
        if not is_whole(size):
            raise SpoStateError(f"a batch of {shown(size)} prompts was asked for; pass a whole number.")
        if not 1 <= size <= prompts:
            raise SpoStateError(
                f"a batch of {shown(size)} different prompts was asked for, the dataset has {prompts}; lower "
                f"data.train_batch_size to between 1 and {prompts}, or add prompts."
            )
        if size > prompts - len(taken):
            raise SpoStateError(
                f"a batch of {size} different prompts was asked for; of the dataset's {prompts} prompts {len(taken)} "
                f"are in flight with spo.sampling.max_in_flight={self._settings.max_in_flight}, which leaves "
                f"{prompts - len(taken)}; {IN_FLIGHT_REMEDY}."
            )
        if isinstance(self._index, QuotaIndex):
            self._index.refuse(size, taken)

    def draw(self, size: int, taken: NDArray[np.int64], version: int) -> Draw:
        """Distinct slots at this version, none of those taken; ``check`` first."""
        index = self.index(version)
        if isinstance(index, QuotaIndex):
            return Draw(*index.draw(int(size), self.generators["draw"], self.generators["quota"], taken))
        return Draw(*index.draw(int(size), self.generators["draw"], taken))

    def update(self, slot_B: NDArray[np.int64], version: int) -> None:
        """The evidence of these slots has changed."""
        if self._prioritized:
            reading = read_rows(self._table, self._rule, self._readout, slot_B, version)
            self.index(version).update(slot_B, self._weights(*reading))

    def index(self, version: int) -> core.WeightIndex | QuotaIndex:
        """The index at a version; O(P) after a fit, and where weights age with versions and this one is new."""
        if self._refitted or (self._ages and self._version != version):
            weight_P = self._all_weights(version)
            if isinstance(self._index, QuotaIndex):
                self._index.replace(weight_P)
            else:
                self._index = core.WeightIndex(weight_P)
        self._version, self._refitted = version, False
        return self._index

    def refit(self) -> None:
        """The read-out has other coefficients: all weights follow when they are needed next."""
        self._refitted = self._prioritized

    def _all_weights(self, version: int) -> NDArray[np.float64]:
        """The sampling weights of all prompts of the dataset at a policy version."""
        if not self._prioritized:
            return np.ones(self._table.active)
        readings = read_parts(self._table, self._rule, version, self._readout)
        return np.concatenate([self._weights(*reading) for reading in readings])

    def _weights(self, value_B: NDArray[np.float64], n_eff_B: NDArray[np.float64]) -> NDArray[np.float64]:
        return core.value_weights(value_B, n_eff_B, gamma=self._settings.gamma, epsilon=self._settings.epsilon)
