"""``+platform=cpu`` composes with verl's own configuration, and is there on a CPU only."""

from __future__ import annotations

import importlib.util
import os

import pytest

from spo_verl.conf import chosen_platform
from spo_verl.cpu.weight_transfer import ENGINE_MODULE
from tests.cpu.composing import compose, composed_configs

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def composed() -> list[dict[str, object]]:
    requests = [
        [],
        ["+platform=cpu"],
        ["+platform=cpu", "trainer.n_gpus_per_node=2", "actor_rollout_ref.rollout.agent.num_workers=1"],
        ["+platform=cpu", "trainer.v1.trainer_mode=separate_async"],
        ["+platform=cpu", "+actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.gloo.timeout_seconds=20"],
        ["model_engine=megatron"],
        ["+platform=cpu", "model_engine=megatron", "actor_rollout_ref.ref.megatron.dtype=bfloat16"],
    ]
    done = compose(requests, VERL_PLATFORM="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    return composed_configs(done)


def test_it_sets_what_a_cpu_needs(composed: list[dict[str, object]]) -> None:
    config = composed[1]
    assert config["trainer.device"] == "cpu"
    assert config["actor_rollout_ref.actor.strategy"] == "fsdp2"
    assert config["actor_rollout_ref.model.override_config.attn_implementation"] == "sdpa"
    assert config["actor_rollout_ref.rollout.dtype"] == "float32"
    assert config["actor_rollout_ref.rollout.enable_sleep_mode"] is False
    for part in ("actor", "ref"):
        assert config[f"actor_rollout_ref.{part}.fsdp_config.mixed_precision.param_dtype"] == "fp32"


def test_it_leaves_the_algorithm_alone(composed: list[dict[str, object]]) -> None:
    stock, config = composed[:2]
    changed = {key for key in stock.keys() | config.keys() if stock.get(key) != config.get(key)}
    assert changed
    learning = ("algorithm", "actor_rollout_ref.actor.optim", "actor_rollout_ref.actor.clip", "critic", "data.train")
    assert not [key for key in changed if key.startswith(learning)]
    assert {key.split(".")[0] for key in changed} == {
        "actor_rollout_ref",
        "data",
        "ray_kwargs",
        "reward",
        "trainer",
        "transfer_queue",
    }


def test_megatron_gets_keys_of_its_own_and_none_of_fsdp(composed: list[dict[str, object]]) -> None:
    fsdp, stock, config = composed[1], composed[5], composed[6]
    changed = {key for key in config if config[key] != stock.get(key)}
    assert [key for key in config.keys() - stock.keys() if key.startswith("actor_rollout_ref.actor")] == []
    assert config["actor_rollout_ref.actor.strategy"] == "megatron"
    assert config["actor_rollout_ref.actor.megatron.dtype"] == "float32"
    assert config["actor_rollout_ref.ref.megatron.dtype"] == "bfloat16"  # the command line wins
    shared = {key for key in changed if not key.startswith(("actor_rollout_ref.actor", "actor_rollout_ref.ref"))}
    assert shared
    assert {key: config[key] for key in shared} == {key: fsdp[key] for key in shared}


def test_the_command_line_wins(composed: list[dict[str, object]]) -> None:
    config = composed[2]
    assert config["trainer.n_gpus_per_node"] == 2
    assert config["actor_rollout_ref.rollout.agent.num_workers"] == 1


def test_separate_async_needs_its_mode_only(composed: list[dict[str, object]]) -> None:
    config = composed[3]
    rollout = "actor_rollout_ref.rollout"
    assert config["trainer.v1.trainer_mode"] == "separate_async"
    assert config[f"{rollout}.nnodes"] == 1
    assert config[f"{rollout}.n_gpus_per_node"] == "${oc.select:trainer.n_gpus_per_node,8}"  # verl's own default
    assert config[f"{rollout}.checkpoint_engine.backend"] == "gloo"
    assert config[f"{rollout}.checkpoint_engine.custom_backend_module"] == ENGINE_MODULE
    assert importlib.util.find_spec(ENGINE_MODULE)
    # Ray has a slot for a training process and one for a rollout process, with room to spare.
    assert config["ray_kwargs.ray_init.num_gpus"] == 16
    # All of it belongs to the platform, so that the mode can be changed back by itself.
    assert {key for key in config if config[key] != composed[1].get(key)} == {"trainer.v1.trainer_mode"}


def test_the_limit_of_a_transfer_can_be_set(composed: list[dict[str, object]]) -> None:
    # The key that the error message of a transfer names; verl hands what stands under the backend's name to the engine.
    config = composed[4]
    assert config["actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.gloo.timeout_seconds"] == 20


def test_without_the_platform_the_group_does_not_exist() -> None:
    done = compose([["+platform=cpu"], []])
    assert done.returncode == 0, done.stderr[-3000:]
    # hydra then takes it for a key of that name, and nothing else changes.
    config, stock = composed_configs(done)
    assert config.pop("platform") == "cpu"
    assert config == stock


@pytest.mark.parametrize(("environ", "platform"), [({}, ""), ({"VERL_PLATFORM": " CPU\n"}, "cpu")])
def test_the_platform_is_read_as_verl_reads_it(environ: dict[str, str], platform: str) -> None:
    assert chosen_platform(environ) == platform


def test_the_platform_is_of_the_environment_of_this_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filtering prompts with several processes leaves a copy as ``os.environ``."""
    monkeypatch.setattr(os, "environ", {**os.environ, "VERL_PLATFORM": "cpu"})
    assert chosen_platform() == "cpu"
    os.environ["VERL_PLATFORM"] = ""
    assert chosen_platform() == ""
