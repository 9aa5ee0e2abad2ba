"""The calibrated read-out (``spo.value.readout=calibrated``): state and use; the maths is in ``core.calibration``.

Evidence, forgetting and everything else of the tracker are as without it: only the value that is read of the evidence
changes, for baselines and sampling weights alike.

**What may depend on what.** Each outcome is kept with the features of its own dispatch. The coefficients are fitted on
outcomes that have been observed, so the value that a dispatch freezes cannot depend on the reward of its own rollout.

**When.** Outcomes are noted whenever they are observed. The coefficients change only at the end of ``observe`` and
``finish_step``: once per update, however many rollouts are evicted and replaced in between. All sampling weights follow
at the next draw.

**Ages** are policy versions since the newest outcome of the prompt that was observed. A dispatch counts them to its
own version. Where all prompts are read (weights, metrics) they are counted to the version of the last fit, so that
weights follow from what is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spo_verl import core
from spo_verl.core.calibration import OWN_FEATURES
from spo_verl.tracker.arguments import LARGEST
from spo_verl.tracker.features import PromptFeatures, Scale
from spo_verl.tracker.forgetting_rules import Forgetting
from spo_verl.tracker.ledger import Rollout
from spo_verl.tracker.quota import PromptSources
from spo_verl.tracker.table import PromptTable

MOST_SOURCES = 100
"""Data sources with a coefficient of their own: those with the most prompts. The others share the intercept."""

NO_SOURCE = -1

OUTCOMES: dict[str, np.dtype] = {
    "value_N": np.dtype(np.float64),
    "n_eff_N": np.dtype(np.float64),
    "age_N": np.dtype(np.int64),
    "source_N": np.dtype(np.int64),
    "reward_N": np.dtype(np.float64),
}
"""Columns of the outcomes that are kept for the fit, and their types."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The state of the read-out, saved with the tracker; arrays are replaced, never written to.

    Attributes:
        sources: data sources that outcomes point into, sorted.
        coefficient_F: of logit v, 1, logit v / sqrt(N_eff), log(1 + age), of each source where there are several, and
            of each of the user's features.
        version: policy version that ages are counted to where all prompts are read.
        value_N, n_eff_N, age_N: the evidence's own value, effective sample size and age at the dispatch of the last
            outcomes, oldest first.
        source_N: position in ``sources``, -1 for none.
        reward_N: in [0, 1].
        features: names of the user's features.
        scales: mean and standard deviation that each was standardised with when it was first fitted.
        extra_NF: their values for the prompts of the outcomes; (N, 0) without any.
    """

    sources: tuple[str, ...]
    coefficient_F: NDArray[np.float64]
    version: int
    value_N: NDArray[np.float64]
    n_eff_N: NDArray[np.float64]
    age_N: NDArray[np.int64]
    source_N: NDArray[np.int64]
    reward_N: NDArray[np.float64]
    features: tuple[str, ...]
    scales: tuple[Scale, ...]
    extra_NF: NDArray[np.float64]

    @classmethod
    def fresh(cls, sources: tuple[str, ...] = (), features: PromptFeatures | None = None) -> Calibration:
        """Without outcomes: what is read is the evidence's own value."""
        empty = {name: np.zeros(0, dtype=dtype) for name, dtype in OUTCOMES.items()}
        names, scales = ((), ()) if features is None else (features.names, features.scales)
        coefficient_F = core.fit_calibration(np.zeros((0, features_of(len(sources), len(names)))), [])
        extra_NF = np.zeros((0, len(names)))
        return cls(sources, coefficient_F, 0, **empty, features=names, scales=scales, extra_NF=extra_NF)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns of the outcomes by name."""
        return {name: getattr(self, name) for name in OUTCOMES}

    def of(self, sources: tuple[str, ...], given: PromptFeatures | None) -> Calibration:
        """The same outcomes and coefficients for a dataset of these sources and features.

        A new one has the coefficient 0; a new feature is 0, its mean, for the outcomes of before. Features have to be
        on the scales of :meth:`known_scales`.
        """
        features, scales = ((), ()) if given is None else (given.names, given.scales)
        if (sources, features) == (self.sources, self.features):
            return self
        place = {name: number for number, name in enumerate(sources)}
        new_source_Q = np.array([*(place.get(name, NO_SOURCE) for name in self.sources), NO_SOURCE], dtype=np.int64)
        extra_NF = np.zeros((len(self.reward_N), len(features)))
        for number, name in enumerate(features):
            if name in self.features:
                extra_NF[:, number] = self.extra_NF[:, self.features.index(name)]
        found = dict(zip(self._coefficient_names(), self.coefficient_F.tolist(), strict=True))
        renamed = replace(self, sources=sources, features=features, scales=scales, extra_NF=extra_NF)
        coefficient_F = np.array([found.get(name, 0.0) for name in renamed._coefficient_names()])
        return replace(renamed, coefficient_F=coefficient_F, source_N=new_source_Q[self.source_N])

    def known_scales(self) -> dict[str, Scale]:
        """Scales of the features that there are coefficients of, by name."""
        return dict(zip(self.features, self.scales, strict=True))

    def _coefficient_names(self) -> list[tuple[str, str]]:
        """What each coefficient belongs to: kind and name."""
        own = [("own", str(number)) for number in range(OWN_FEATURES)]
        sources = [("source", name) for name in self.sources] if len(self.sources) > 1 else []
        return [*own, *sources, *(("feature", name) for name in self.features)]

    def last(self, window: int) -> Calibration:
        """With the last ``window`` outcomes."""
        kept: dict[str, Any] = {name: column_N[-window:] for name, column_N in self.columns().items()}
        return replace(self, **kept, extra_NF=self.extra_NF[-window:])

    def added(self, columns: dict[str, NDArray[Any]], extra_NF: NDArray[np.float64]) -> Calibration:
        """With more outcomes."""
        joined: dict[str, Any] = {name: np.concatenate([kept, columns[name]]) for name, kept in self.columns().items()}
        return replace(self, **joined, extra_NF=np.concatenate([self.extra_NF, extra_NF]))

    def fitted(self, version: int) -> Calibration:
        """With the coefficients of these outcomes; ages of all prompts are counted to ``version``."""
        feature_NF = core.calibration_features(
            self.value_N, self.n_eff_N, self.age_N, self.source_N, sources=len(self.sources), extra_BF=self.extra_NF
        )
        return replace(self, coefficient_F=core.fit_calibration(feature_NF, self.reward_N), version=version)

    def as_json(self) -> dict[str, Any]:
        """What is saved besides the outcomes."""
        coefficients = self.coefficient_F.tolist()
        saved = {"sources": list(self.sources), "coefficients": coefficients, "version": self.version}
        features = [[name, *scale] for name, scale in zip(self.features, self.scales, strict=True)]
        return saved | ({"features": features} if features else {})


def features_of(sources: int, features: int = 0) -> int:
    """Coefficients of a read-out with so many data sources (a single one has the intercept) and features of users."""
    return OWN_FEATURES + (sources if sources > 1 else 0) + features


class CalibratedReadOut:
    """Reads values with the coefficients of now, and learns them from the outcomes of rollouts.

    Args:
        window: outcomes that the fit looks at, the last ones.
        prompts: of the dataset.
        sources: data source of each prompt; None where they are not known.
        features: further features of each prompt; None: none.
        saved: the state that a run continues from.
    """

    def __init__(
        self,
        window: int,
        prompts: int,
        sources: PromptSources | None,
        features: PromptFeatures | None,
        saved: Calibration | None,
    ) -> None:
        self._window, self._prompts = window, prompts
        names, self._source_P = _with_coefficients(sources)
        # Coefficients and outcomes are of the dataset that they were made with, which may have had other means.
        self._features = features if saved is None or features is None else features.on(saved.known_scales())
        fresh = Calibration.fresh(names, features)
        self.state = fresh if saved is None else saved.of(names, self._features).last(window)

    def metrics(self) -> dict[str, float]:
        """``readout_slope`` and ``readout_intercept``: the coefficients of logit v and of 1."""
        slope, intercept = self.state.coefficient_F[:2].tolist()
        return {"readout_slope": slope, "readout_intercept": intercept}

    def value(
        self,
        value_B: NDArray[np.float64],
        n_eff_B: NDArray[np.float64],
        age_B: NDArray[np.int64],
        rows: NDArray[np.int64] | slice,
    ) -> NDArray[np.float64]:
        """v^ of rows of the table, from the evidence's own value, effective sample size and age."""
        coefficient_F, source_B, extra_BF = self.state.coefficient_F, self._sources_of(rows), self._extra_of(rows)
        return core.read_calibrated(value_B, n_eff_B, age_B, coefficient_F, source_B, extra_BF=extra_BF)

    def note(self, rollouts: Sequence[Rollout], reward_B: NDArray[np.float64]) -> None:
        """Keep these outcomes for the next fit.

        Two kinds are left out: of rollouts that were dispatched without a read-out, and of prompts that are kept aside,
        whose data source is not known any more.
        """
        chosen = [at for at, one in enumerate(rollouts) if one.age is not None and one.slot < self._prompts]
        known = [rollouts[at] for at in chosen]
        slot_N = np.array([one.slot for one in known], dtype=np.int64)
        source_N = self._sources_of(slot_N)
        more = {
            "value_N": np.array([one.raw for one in known], dtype=np.float64),
            "n_eff_N": np.array([one.n_eff for one in known], dtype=np.float64),
            "age_N": np.array([one.age for one in known], dtype=np.int64),
            "source_N": np.full(len(known), NO_SOURCE) if source_N is None else source_N,
            "reward_N": reward_B[chosen],
        }
        extra_NF = self._extra_of(slot_N)
        extra_NF = np.zeros((len(known), 0)) if extra_NF is None else extra_NF
        self.state = self.state.added(more, extra_NF).last(self._window)

    def fit(self, version_B: NDArray[np.int64]) -> None:
        """Fit the coefficients on the outcomes that are kept.

        Args:
            version_B: policy versions of the outcomes that came last; ages are then counted to the version after them.
        """
        after = min(int(version_B.max(initial=-1)) + 1, LARGEST)
        self.state = self.state.fitted(max(self.state.version, after))

    def _sources_of(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64] | None:
        if self._source_P is None:
            return None
        if isinstance(rows, slice):
            return self._source_P[rows].astype(np.int64)
        inside_B = rows < self._prompts
        found_B = self._source_P[np.where(inside_B, rows, 0)].astype(np.int64)
        return np.where(inside_B, found_B, NO_SOURCE)

    def _extra_of(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float64] | None:
        """The user's features; 0, the mean, for prompts that are kept aside. None without any."""
        if self._features is None:
            return None
        if isinstance(rows, slice):
            return self._features.feature_PF[rows].astype(np.float64)
        inside_B = rows < self._prompts
        found_BF = self._features.feature_PF[np.where(inside_B, rows, 0)].astype(np.float64)
        return np.where(inside_B[:, None], found_BF, 0.0)


def ages(version_B: NDArray[np.int64], version: int) -> NDArray[np.int64]:
    """Policy versions from the newest outcome of each prompt, or from the start of the run, to this version."""
    return np.asarray(np.maximum(version - np.maximum(version_B, 0), 0))


def read_rows(
    table: PromptTable,
    rule: Forgetting,
    readout: CalibratedReadOut | None,
    rows: NDArray[np.int64] | slice,
    version: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(value, effective sample size) of rows of the table, as weights and metrics take them at a policy version."""
    alpha_B, beta_B, version_B = table.read_from(rows)
    value_B, n_eff_B = rule.read(version, alpha_B, beta_B, version_B)
    if readout is None:
        return value_B, n_eff_B
    return readout.value(value_B, n_eff_B, ages(version_B, readout.state.version), rows), n_eff_B


def _with_coefficients(sources: PromptSources | None) -> tuple[tuple[str, ...], NDArray[np.int8] | None]:
    """The data sources with an indicator, and the position among them of each prompt."""
    if sources is None:
        return (), None
    most_first = sorted(range(len(sources.names)), key=lambda number: (-int(sources.prompts_Q[number]), number))
    chosen = sorted(most_first[:MOST_SOURCES])
    new_Q = np.full(len(sources.names), NO_SOURCE, dtype=np.int8)
    new_Q[chosen] = np.arange(len(chosen))
    return tuple(sources.names[number] for number in chosen), new_Q[sources.source_P]
