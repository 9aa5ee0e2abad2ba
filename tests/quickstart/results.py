"""A made-up result of a run, for tests of what is said and drawn about it."""

from __future__ import annotations

from typing import Any

from spo_verl.small.launches import Settings


def changed(before: float, after: float, prompts: int = 512) -> dict[str, Any]:
    return {
        "before": before,
        "after": after,
        "change": after - before,
        "standard_error": 0.01,
        "before_by_level": [before] * 8,
        "after_by_level": [after] * 8,
        "standard_error_by_level": [0.02] * 8,
        "prompts": prompts,
    }


def result(
    *, estimator: str = "spo", seed: int = 0, after: float = 0.5, offline: int = 8192, **settings: Any
) -> dict[str, Any]:
    chosen = Settings(estimator=estimator, seed=seed, **settings)  # type: ignore[arg-type]
    used = {"trajectories": chosen.steps * chosen.trajectories, "response_tokens": 1000, "prompt_tokens": 2000}
    spent = {"training": used, "total": dict(used)}
    if offline:
        before = {"trajectories": offline, "response_tokens": 10, "prompt_tokens": 20}
        spent = {
            "offline values": before,
            "training": used,
            "total": {key: used[key] + before[key] for key in used},
        }
    prompts = [
        {
            "question": f"q{number}",
            "level": number % 8 + 1,
            "visits": number,
            "successes": 3.0,
            "trials": 8,
            "value": 0.4,
        }
        | {"before": 0.35, "after": 0.45}
        for number in range(16)
    ]
    agreement = {"prompts": 16, "mean_absolute_error": 0.05, "mean_difference": -0.05, "correlation": 0.9}
    agreement["constant_error"] = 0.3
    return {
        "format": 2,
        "settings": chosen.as_json(),
        "variant": chosen.variant,
        "folder": f"/runs/{estimator}-seed{seed}",
        "steps_done": chosen.steps,
        "warm_start": {"steps": 450, "accuracy": 0.38},
        "offline_prompts": chosen.train_prompts if offline else 0,
        "held_out": changed(0.4, after),
        "train": changed(0.4, after + 0.05, 1024),
        "curve": [{"step": step, "held_out": 0.4 + step / 1000, "train": 0.4} for step in (0, 8, 16)],
        "sampled": [{"step": step, "accuracy": 0.4, "standard_error": 0.02} for step in (0, chosen.steps)],
        "reward": {},
        "spent": spent,
        "tracker": {"tracker": agreement, "offline": agreement, "prompts": prompts} if estimator == "spo" else None,
        "seconds": {"warm_start": 60.0, "training": 420.0},
        "peak_bytes": 6.5 * 2**30,
    }
