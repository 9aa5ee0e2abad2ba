"""The settings of a tracker and the random generators that follow from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from typing import Any, Literal

import numpy as np

from spo_verl.config import ForgettingMode, ReadOut, SamplingMode, SpoConfig, fault, retentions_in_order
from spo_verl.errors import SpoConfigError
from spo_verl.tracker.arguments import shown

Ending = Literal["trained", "stale", "surplus", "rejected", "failed", "aborted"]
"""Why a rollout ends; see ``Tracker.settle``."""

PURPOSES = ("draw", "quota")
"""What random numbers are used for, a generator each. Append only: the position is its key.

``draw``: which prompts; ``quota``: how the quotas are rounded and the order in which the sources mix, only where there
are quotas, so that the state of a tracker without them is what it was before there were any.
"""

COUNTERS = ("drawn", "dispatched", "observations", "duplicates", "first_visits", "settled", "failed")
"""Running totals of a tracker since the first step of the run."""

LATER_COUNTERS = ("stale", "surplus", "rejected", "aborted", "untrained")
"""Running totals that are kept, saved and hashed once they are not 0, so that the state of a run that never has any
is what it was before there were any. ``untrained``: outcomes that became evidence without training."""

ADDED_LATER = {
    "settings": frozenset({"quota", "floor", "drift_scale", "max_in_flight", "readout", "window"}),
    "random": frozenset({"quota"}),
    "counters": frozenset(LATER_COUNTERS),
    "clock": frozenset({"version", "movement"}),
    "readout": frozenset({"features"}),
}
"""Names that a checkpoint may lack because it is older than they are; it then had their defaults."""

KEYS = {
    "sampling_mode": "sampling.mode",
    "gamma": "sampling.gamma",
    "epsilon": "sampling.epsilon",
    "forgetting_mode": "forgetting.mode",
    "half_life": "forgetting.half_life",
    "rho_min": "forgetting.rho_min",
    "rho_max": "forgetting.rho_max",
    "rho": "forgetting.rho",
    "max_tokens": "drift.max_tokens",
    "seed": "seed",
    "quota": "sampling.quota",
    "floor": "forgetting.floor",
    "drift_scale": "forgetting.drift_scale",
    "max_in_flight": "sampling.max_in_flight",
    "readout": "value.readout",
    "window": "value.window",
}
"""Settings of a tracker, and the keys of :class:`SpoConfig` that have their defaults, ranges and meanings."""

_DEFAULT = SpoConfig()


def _names_fault(names: object) -> str | None:
    """What keeps these from being the names of columns of a file, None where nothing does."""
    if isinstance(names, tuple) and all(isinstance(name, str) and name.isidentifier() for name in names):
        return None if len(set(names)) == len(names) else "Input should have each name once"
    return "Input should be a tuple of identifiers"


@dataclass(frozen=True)
class TrackerSettings:
    """How prompts are drawn, how evidence is forgotten, what is stored (see docs/algorithm.md).

    Defaults, ranges and meanings are those of the keys of :class:`SpoConfig` that ``KEYS`` names. An empty ``quota``
    becomes None.

    Attributes:
        references: log-prob columns of stored responses, the one that forgetting uses first; ``()`` stores none.

    Raises:
        SpoConfigError: lists every setting that is out of range.
    """

    sampling_mode: SamplingMode = _DEFAULT.sampling.mode
    gamma: float = _DEFAULT.sampling.gamma
    epsilon: float = _DEFAULT.sampling.epsilon
    forgetting_mode: ForgettingMode = _DEFAULT.forgetting.mode
    half_life: float = _DEFAULT.forgetting.half_life
    rho_min: float = _DEFAULT.forgetting.rho_min
    rho_max: float = _DEFAULT.forgetting.rho_max
    rho: float = _DEFAULT.forgetting.rho
    references: tuple[str, ...] = _DEFAULT.references
    max_tokens: int | None = _DEFAULT.drift.max_tokens
    seed: int = _DEFAULT.seed
    quota: Mapping[str, float] | None = field(default=_DEFAULT.sampling.quota, hash=False)
    floor: float = _DEFAULT.forgetting.floor
    drift_scale: float = _DEFAULT.forgetting.drift_scale
    max_in_flight: int | None = _DEFAULT.sampling.max_in_flight
    readout: ReadOut = _DEFAULT.value.readout
    window: int = _DEFAULT.value.window

    def __post_init__(self) -> None:
        for entry in fields(self):
            given = getattr(self, entry.name)
            if isinstance(given, np.generic):  # the settings are saved as JSON
                object.__setattr__(self, entry.name, given.item())
        if isinstance(self.references, list):
            object.__setattr__(self, "references", tuple(self.references))
        if isinstance(self.quota, Mapping):
            object.__setattr__(self, "quota", dict(self.quota) or None)
        faults = {name: fault(key, getattr(self, name)) for name, key in KEYS.items()}
        faults["references"] = _names_fault(self.references)
        if not (faults["rho_min"] or faults["rho_max"] or retentions_in_order(self.rho_min, self.rho_max)):
            faults["rho_min"] = "Input should not be above rho_max"
        wrong = {name: faults[name] for name in self.__dataclass_fields__ if faults[name]}
        if wrong:
            given = ", ".join(f"{name}={shown(getattr(self, name))}" for name in wrong)
            reasons = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
            raise SpoConfigError(f"tracker settings out of range: {given}. {reasons}.")

    @classmethod
    def of(cls, spo: SpoConfig) -> TrackerSettings:
        """The part of a run's configuration that its tracker works by."""
        given = {name: attrgetter(key)(spo) for name, key in KEYS.items()}
        return cls(references=spo.references, **given)

    @property
    def purposes(self) -> tuple[str, ...]:
        """The generators that draws under these settings need."""
        return PURPOSES if self.quota else ("draw",)

    def as_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self) | {"references": list(self.references)}

    @classmethod
    def names(cls) -> set[str]:
        """Names of all settings."""
        return {entry.name for entry in fields(cls)}


def make_generators(seed: int, purposes: Collection[str] = PURPOSES) -> dict[str, np.random.Generator]:
    """One independent PCG64 generator for each of these purposes; it does not depend on which others are asked for."""
    return {
        purpose: np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(position,))))
        for position, purpose in enumerate(PURPOSES)
        if purpose in purposes
    }
