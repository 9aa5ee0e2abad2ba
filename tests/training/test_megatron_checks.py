"""Settings of the Megatron engine that are refused, each next to the same run that is accepted; verl composes all."""

import copy
import functools
import json
import re

import pytest
import yaml
from omegaconf import OmegaConf
from transformers import AutoConfig

from spo_verl.errors import SpoConfigError
from spo_verl.launching.composition import compose, examine
from spo_verl.training import megatron_checks
from spo_verl.training.checks import check
from spo_verl.training.megatron_checks import BRIDGE_DEFAULTS, ENGINE, contradictions
from spo_verl.training.trainer import SpoTrainer
from tests.support.verl_config import compose_verl

MEGATRON = ["algorithm.adv_estimator=spo", "model_engine=megatron"]
TRANSFORMER = f"{ENGINE}.override_transformer_config"
TWO_STAGES = [f"{ENGINE}.pipeline_model_parallel_size=2", f"{ENGINE}.virtual_pipeline_model_parallel_size=2"]


@pytest.fixture
def installed(monkeypatch):
    """Versions on a machine with accelerators; a test changes what it is about."""
    found = {"megatron-bridge": "0.3.1", "transformer-engine": "2.9.0", "transformers": "5.10.4"}
    monkeypatch.setattr(megatron_checks, "_installed", found.get)
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    return found


def model(folder, kind="qwen3", **content):
    """``actor_rollout_ref.model.path`` of a folder with a config.json as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **content}))
    return f"actor_rollout_ref.model.path={folder}"


@functools.cache
def composed(*overrides):
    return compose_verl(overrides)


def problems(*overrides, base=MEGATRON):
    """Of a run that verl has composed; what follows is set as its command line would, without composing anew."""
    config = copy.deepcopy(composed(*base))
    for override in overrides:
        key, _, value = override.partition("=")
        known = OmegaConf.select(config, key.lstrip("+"), default=config) is not config
        assert known == (not key.startswith("+")), f"hydra would refuse {override}"
        OmegaConf.update(config, key.lstrip("+"), yaml.safe_load(value), force_add=True)
    return list(contradictions(config))


def test_another_engine_is_not_looked_at(installed, tmp_path):
    assert problems(model(tmp_path, rope_theta=1e6), base=MEGATRON[:1]) == []


def test_the_start_of_a_run_and_spo_verl_config_refuse_and_accept_what_they_advise(installed, tmp_path):
    """As hydra composes the whole command line."""
    path = model(tmp_path, rope_theta=1e6, tie_word_embeddings=True)
    overrides = [*MEGATRON, path, f"{ENGINE}.use_distributed_optimizer=False", *TWO_STAGES]
    found = examine(compose(overrides, config_name="ppo_trainer")).problems
    assert len(found) == 3
    with pytest.raises(SpoConfigError, match=r"(?s)use_distributed_optimizer=False.*rope_theta.*virtual") as refused:
        check(compose_verl(overrides))
    assert all(problem in str(refused.value) for problem in found)
    advised = [re.search(r"; set (\S+?=\S+?)[,.]?(?: |$)", problem)[1] for problem in found]
    corrected = compose([*overrides, *advised], config_name="ppo_trainer")
    assert corrected.problems == []
    assert examine(corrected).problems == []


class TestDistributedOptimizer:
    DDP = f"+{ENGINE}.override_ddp_config.use_distributed_optimizer"
    MUON = (
        "actor_rollout_ref.actor.optim.optimizer=Muon",
        "+actor_rollout_ref.actor.optim.use_layer_wise_distributed_optimizer=True",
    )

    @pytest.mark.parametrize(
        ("overrides", "accepted"),
        [
            ([], True),
            ([f"{ENGINE}.use_distributed_optimizer=False"], False),
            ([f"{DDP}=False"], False),
            ([f"{DDP}=True", f"{ENGINE}.use_distributed_optimizer=False"], True),
            ([f"{ENGINE}.use_distributed_optimizer=False", f"{ENGINE}.use_megatron_fsdp=True"], True),
            ([f"{ENGINE}.use_distributed_optimizer=False", MUON[0]], False),
        ],
    )
    def test_where_weights_lie_in_no_buffer(self, overrides, accepted):
        found = problems(*overrides)
        assert len(found) == (not accepted)
        if found:
            assert f"set {ENGINE}.use_distributed_optimizer=True" in found[0]

    def test_muon_by_layers_has_the_buffers(self):
        overrides = [f"{ENGINE}.use_distributed_optimizer=False", self.MUON[0]]
        config = compose_verl([*MEGATRON, *overrides])
        if "use_layer_wise_distributed_optimizer" in config.actor_rollout_ref.actor.optim:
            config.actor_rollout_ref.actor.optim.use_layer_wise_distributed_optimizer = True
            assert list(contradictions(config)) == []
        else:
            assert problems(*overrides, self.MUON[1]) == []


class TestRotaryBase:
    @pytest.mark.parametrize("theta", [1e6, 5e5, 12345.0])
    def test_a_base_that_the_bridge_would_not_find(self, installed, tmp_path, theta):
        [found] = problems(model(tmp_path, rope_theta=theta))
        assert "takes 10000 without a word" in found
        assert f"({tmp_path}) has {theta:.10g}" in found
        fix = found.rpartition("set ")[2].rstrip(".")
        assert fix == f"+{TRANSFORMER}.rotary_base={theta:.10g}"
        assert problems(model(tmp_path, rope_theta=theta), fix) == []

    def test_it_is_where_this_transformers_has_it(self, installed, tmp_path):
        """A folder that transformers 5 saved says the same as one from the hub."""
        saved = model(tmp_path / "new", rope_parameters={"rope_theta": 1e6, "rope_type": "default"})
        [new] = problems(saved)
        [old] = problems(model(tmp_path / "old", rope_theta=1e6))
        assert new.replace("/new", "/old") == old

    def test_a_base_that_is_the_default_is_right(self, installed, tmp_path):
        assert problems(model(tmp_path, rope_theta=10_000)) == []

    def test_a_wrong_override_is_named(self, installed, tmp_path):
        [found] = problems(model(tmp_path, rope_theta=1e6), f"+{TRANSFORMER}.rotary_base=10000")
        assert found.startswith(f"{TRANSFORMER}.rotary_base=10000: ")
        assert "rope_theta 1000000" in found

    @pytest.mark.parametrize("kind", BRIDGE_DEFAULTS)
    def test_every_family(self, installed, tmp_path, kind):
        content = {"text_config": {"rope_theta": 7e5}} if "vl" in kind else {"rope_theta": 7e5}
        config = AutoConfig.for_model(kind, **content)
        assert config.get_text_config().rope_parameters["rope_theta"] == 7e5
        [found] = problems(model(tmp_path, kind, **content))
        assert f"takes {BRIDGE_DEFAULTS[kind]:.10g} without a word" in found
        assert "has 700000" in found

    @pytest.mark.parametrize("override", [f"{ENGINE}.vanilla_mbridge=True", f"{ENGINE}.use_mbridge=False"])
    def test_without_the_bridge_nothing_is_lost(self, installed, tmp_path, override):
        assert problems(model(tmp_path, rope_theta=1e6), override) == []

    @pytest.mark.parametrize(
        "change", [{"megatron-bridge": None}, {"transformer-engine": None}, {"megatron-bridge": "0.4.0"}]
    )
    def test_only_versions_that_were_read_and_that_train_here(self, installed, tmp_path, change):
        installed.update(change)
        assert problems(model(tmp_path, rope_theta=1e6)) == []

    def test_the_cpu_platform_corrects_the_bridge(self, installed, tmp_path, monkeypatch):
        monkeypatch.setenv("VERL_PLATFORM", "cpu")
        assert problems(model(tmp_path, rope_theta=1e6)) == []

    @pytest.mark.parametrize(
        ("kind", "content"),
        [("no_such_type", {"rope_theta": 1e6}), ("mistral", {"rope_theta": 1e6}), ("gpt2", {})],
    )
    def test_families_that_do_not_lose_it(self, installed, tmp_path, kind, content):
        assert problems(model(tmp_path, kind, **content)) == []

    def test_a_model_that_is_not_on_this_machine_is_not_judged(self, installed):
        assert problems("actor_rollout_ref.model.path=org/absent") == []
        assert problems("actor_rollout_ref.model.path=hdfs://there/model") == []

    def test_a_file_that_is_no_configuration(self, installed, tmp_path):
        override = model(tmp_path)
        (tmp_path / "config.json").write_text("[1]")
        with pytest.raises(SpoConfigError, match=r"config\.json is no model's config\.json"):
            problems(override)


class TestVirtualPipeline:
    def test_tied_embeddings(self, installed, tmp_path):
        tied = model(tmp_path, tie_word_embeddings=True)
        [found] = problems(tied, *TWO_STAGES)
        assert found.startswith(f"{ENGINE}.virtual_pipeline_model_parallel_size=2: ")
        fix = found.rpartition("set ")[2].rstrip(".")
        assert problems(tied, TWO_STAGES[0], fix) == []

    @pytest.mark.parametrize(
        ("tied", "overrides"),
        [
            (False, TWO_STAGES),
            (True, TWO_STAGES[1:]),
            (True, [TWO_STAGES[0], f"{ENGINE}.virtual_pipeline_model_parallel_size=1"]),
            (True, [*TWO_STAGES, f"+{TRANSFORMER}.share_embeddings_and_output_weights=False"]),
            (True, [*TWO_STAGES, f"{ENGINE}.vanilla_mbridge=True"]),
        ],
    )
    def test_what_works_is_accepted(self, installed, tmp_path, tied, overrides):
        assert problems(model(tmp_path, tie_word_embeddings=tied), *overrides) == []


def test_a_model_that_verl_fetches_first_is_judged_before_anything_starts(installed, tmp_path):
    class Fetching:
        def _init_tokenizer(self):
            model(tmp_path, rope_theta=1e6)

    trainer = object.__new__(type("Trainer", (SpoTrainer, Fetching), {}))
    trainer.config = composed(*MEGATRON, f"actor_rollout_ref.model.path={tmp_path}")
    assert list(contradictions(trainer.config)) == []
    with pytest.raises(SpoConfigError, match=r"has 1000000, so that another model would be trained"):
        trainer._init_tokenizer()
