"""What the quickstart passes to verl composes with verl's configuration, for both estimators."""

from __future__ import annotations

from pathlib import Path

import pytest

from spo_verl.small.launches import Settings, training_overrides
from tests.cpu.composing import compose, composed_configs

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def composed() -> dict[str, dict[str, object]]:
    paths = {"model": Path("/a model"), "train": Path("/it's/train.parquet"), "held_out": Path("/v.parquet")}
    more = {"checkpoints": Path("/check points"), "values": None}
    estimators = ("spo", "grpo")
    requests = [
        ["+platform=cpu", *training_overrides(Settings(estimator=name, trajectories=64), **paths, **more)]  # type: ignore[arg-type]
        for name in estimators
    ]
    more["values"] = Path("/o p/values.parquet")
    requests.append(["+platform=cpu", *training_overrides(Settings(trajectories=64), **paths, **more)])  # type: ignore[arg-type]
    done = compose(requests, VERL_PLATFORM="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip((*estimators, "values"), composed_configs(done), strict=True))


def test_paths_arrive_as_they_are(composed: dict[str, dict[str, object]]) -> None:
    for config in composed.values():
        assert config["data.train_files"] == "/it's/train.parquet"
        assert config["actor_rollout_ref.model.path"] == "/a model"
        assert config["trainer.device"] == "cpu"
    assert composed["spo"]["trainer.default_local_dir"] == "/check points"
    # One file in both places: what is missing of it is sampled first.
    for key in ("spo.estimate.output", "spo.initial.values"):
        assert composed["values"][key] == "/o p/values.parquet"
        assert composed["spo"][key] is None


def test_the_estimators_differ_in_estimator_and_grouping_only(composed: dict[str, dict[str, object]]) -> None:
    spo, grpo = composed["spo"], composed["grpo"]
    differing = {key for key in spo.keys() | grpo.keys() if spo.get(key) != grpo.get(key)}
    assert {key for key in differing if not key.startswith("spo.")} == {
        "algorithm.adv_estimator",
        "data.train_batch_size",
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        "actor_rollout_ref.rollout.n",
        "trainer.experiment_name",
        "mini_batch_seed",
    }
    assert grpo["mini_batch_seed"] == spo["spo.seed"]
    assert spo["data.train_batch_size"] == 64
    assert (grpo["data.train_batch_size"], grpo["actor_rollout_ref.rollout.n"]) == (8, 8)
    assert (spo["actor_rollout_ref.rollout.n"], spo["actor_rollout_ref.actor.clip_ratio_high"]) == (1, 0.28)
