"""The settings of a tracker and the random generators that follow from them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np

from spo_verl.config import SpoConfig
from spo_verl.errors import SpoConfigError
from spo_verl.tracker.arguments import LARGEST, is_whole, shown

SamplingMode = Literal["prioritized", "uniform"]
ForgettingMode = Literal["kl", "constant", "version", "drift"]
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
    "settings": frozenset({"quota", "floor", "drift_scale", "max_in_flight"}),
    "random": frozenset({"quota"}),
    "counters": frozenset(LATER_COUNTERS),
    "clock": frozenset({"version", "movement"}),
}
"""Names that a checkpoint may lack because it is older than they are; it then had their defaults."""

LARGEST_EPSILON = 1e100


def _number(given: object) -> bool:
    """Whether it is a finite number of Python."""
    return isinstance(given, (int, float)) and not isinstance(given, bool) and abs(given) <= sys.float_info.max


def _one_of(choices: Any, given: object) -> bool:
    return isinstance(given, str) and given in get_args(choices)


def _identifiers(names: object) -> bool:
    """Whether these are distinct names that can be columns of a file."""
    if not isinstance(names, tuple) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        return False
    return len(set(names)) == len(names)


def _quota(quota: object) -> bool:
    return isinstance(quota, dict) and all(
        isinstance(name, str) and _number(part) and part > 0 for name, part in quota.items()
    )


@dataclass(frozen=True)
class TrackerSettings:
    """How prompts are drawn, how evidence is forgotten, what is stored (see docs/algorithm.md).

    Attributes:
        sampling_mode: draw by the weights of equation (11), or all prompts alike.
        gamma: exponent of the effective sample size in (11), in [0, 1].
        epsilon: exploration bonus of (11), not negative, at most ``LARGEST_EPSILON``, so that weights can be summed.
        quota: data source -> its part of every batch, finite and positive; only the proportions count. ``None`` (and an
            empty mapping, which becomes it): sources play no part.
        max_in_flight: a prompt with so many open rollouts is not drawn, at least 1; ``None``: no limit.
        forgetting_mode: ``kl``: retention from the divergence of each prompt; ``constant``: always ``rho``;
            ``version``: ``rho`` per policy version between the event and the reading; ``drift``: retention from the
            movement of the policy since the prompt's last visit.
        half_life: divergence at which half of the evidence is forgotten, positive.
        rho_min, rho_max: bounds of the retention under ``kl`` and ``drift``, in (0, 1].
        rho: the retention under ``constant``, and that per version under ``version``, in (0, 1].
        floor: prior mass that does not decay under ``version``, finite and not negative.
        drift_scale: what the summed movement is multiplied by to stand for a divergence under ``drift``, positive.
        references: log-prob columns of stored responses, the one that forgetting uses first; ``()`` stores
            none.
        max_tokens: stored tokens per response, ``None`` for all.
        seed: of the plugin's own random choices, not negative, below 2^128.

    Raises:
        SpoConfigError: lists every setting that is out of range.
    """

    sampling_mode: SamplingMode = "prioritized"
    gamma: float = 0.0
    epsilon: float = 0.05
    forgetting_mode: ForgettingMode = "kl"
    half_life: float = 0.06
    rho_min: float = 0.875
    rho_max: float = 0.96
    rho: float = 0.875
    references: tuple[str, ...] = ("acting",)
    max_tokens: int | None = None
    seed: int = 0
    quota: Mapping[str, float] | None = field(default=None, hash=False)
    floor: float = 0.0
    drift_scale: float = 1.0
    max_in_flight: int | None = 1

    def __post_init__(self) -> None:
        for entry in fields(self):
            given = getattr(self, entry.name)
            if isinstance(given, np.generic):  # the settings are saved as JSON
                object.__setattr__(self, entry.name, given.item())
        if isinstance(self.references, list):
            object.__setattr__(self, "references", tuple(self.references))
        if isinstance(self.quota, Mapping):
            object.__setattr__(self, "quota", dict(self.quota) or None)
        allowed = {
            "sampling_mode": _one_of(SamplingMode, self.sampling_mode),
            "gamma": _number(self.gamma) and 0 <= self.gamma <= 1,
            "epsilon": _number(self.epsilon) and 0 <= self.epsilon <= LARGEST_EPSILON,
            "forgetting_mode": _one_of(ForgettingMode, self.forgetting_mode),
            "half_life": _number(self.half_life) and self.half_life > 0,
            "rho_min": _number(self.rho_min) and _number(self.rho_max) and 0 < self.rho_min <= self.rho_max,
            "rho_max": _number(self.rho_max) and self.rho_max <= 1,
            "rho": _number(self.rho) and 0 < self.rho <= 1,
            "references": _identifiers(self.references),
            "max_tokens": self.max_tokens is None or (is_whole(self.max_tokens) and 0 < self.max_tokens <= LARGEST),
            "seed": is_whole(self.seed) and 0 <= self.seed < 2**128,
            "floor": _number(self.floor) and self.floor >= 0,
            "drift_scale": _number(self.drift_scale) and self.drift_scale > 0,
            "max_in_flight": self.max_in_flight is None
            or (is_whole(self.max_in_flight) and 1 <= self.max_in_flight <= LARGEST),
            "quota": self.quota is None or _quota(self.quota),
        }
        wrong = [f"{name}={shown(getattr(self, name))}" for name, fine in allowed.items() if not fine]
        if wrong:
            raise SpoConfigError(
                f"tracker settings out of range: {', '.join(wrong)}; the ranges stand in TrackerSettings."
            )

    @classmethod
    def of(cls, spo: SpoConfig) -> TrackerSettings:
        """The part of a run's configuration that its tracker works by."""
        return cls(
            sampling_mode=spo.sampling.mode,
            gamma=spo.sampling.gamma,
            epsilon=spo.sampling.epsilon,
            forgetting_mode=spo.forgetting.mode,
            half_life=spo.forgetting.half_life,
            rho_min=spo.forgetting.rho_min,
            rho_max=spo.forgetting.rho_max,
            rho=spo.forgetting.rho,
            references=spo.references,
            max_tokens=spo.drift.max_tokens,
            seed=spo.seed,
            quota=spo.sampling.quota,
            floor=spo.forgetting.floor,
            drift_scale=spo.forgetting.drift_scale,
            max_in_flight=spo.sampling.max_in_flight,
        )

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
