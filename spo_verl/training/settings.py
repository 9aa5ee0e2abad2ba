"""From the user's ``spo.*`` settings to those of the tracker."""

from __future__ import annotations

from spo_verl.config import SpoConfig
from spo_verl.tracker.settings import TrackerSettings


def tracker_settings(spo: SpoConfig) -> TrackerSettings:
    """The part of the configuration that the tracker's actor works by."""
    return TrackerSettings(
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
