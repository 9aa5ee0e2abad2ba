"""Every recipe composes for both engines, is accepted by verl's check and ours, and is what its README says."""

import os
import subprocess
import sys

import pytest
import yaml

from spo_verl.launching.composition import problems_of
from spo_verl.launching.recipes import find_recipe, recipes_in
from tests.recipes.helpers import ENGINES, RECIPES, ROOT, composed, values

pytestmark = pytest.mark.long

STRATEGY = "actor_rollout_ref.actor.strategy"
PLACES = ("trainer.experiment_name", "trainer.project_name", "trainer.default_local_dir")


def test_every_file_is_a_recipe_or_a_part_that_a_recipe_names():
    yaml_files = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yaml")}
    recipes = {f"{name}.yaml" for name in RECIPES}
    parts = {path for path in yaml_files if path.split("/")[1] in ("parts", "strategy")}
    others = {"qwen3_8b_math_tir/agents.yaml", "cluster/rayjob.yaml"}
    assert recipes | parts | others == yaml_files
    assert len(recipes) >= 20
    for part in parts:
        folder, kind, file = part.split("/")
        users = [path.read_text() for path in (ROOT / folder).glob("*.yaml")]
        named = f"{kind}/{file.removesuffix('.yaml')}" if kind == "parts" else "strategy: ${model_engine}"
        assert any(named in text for text in users), part


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", RECIPES)
def test_it_composes_and_is_accepted(name, engine):
    found = composed(name, f"model_engine={engine}")
    assert problems_of(found) == []
    assert values(name, f"model_engine={engine}")[STRATEGY] == {"dp": "fsdp2", "megatron": "megatron"}[engine]


@pytest.mark.parametrize("name", RECIPES)
def test_one_switch_changes_the_engine_and_nothing_of_the_algorithm(name):
    one, other = (values(name, f"model_engine={engine}") for engine in ENGINES)
    sections = ("spo.", "algorithm.", "data.", "reward.", "trainer.")
    for key in set(one) | set(other):
        if key.startswith(sections) or ".rollout.n" in key or "clip_ratio" in key or key.endswith("mini_batch_size"):
            assert one.get(key) == other.get(key), key


@pytest.mark.parametrize("name", RECIPES)
def test_its_data_lie_in_the_folder_that_the_variable_names(name, monkeypatch):
    monkeypatch.setenv("SPO_DATA_DIR", "/from/variable")
    config = values(name)
    files = [*config["data.train_files"], *config["data.val_files"], config["values"]]
    assert all(file.startswith("/from/variable/") for file in files)


def test_its_data_lie_in_the_folder_that_the_key_names(monkeypatch):
    monkeypatch.setenv("SPO_DATA_DIR", "/from/variable")
    assert values("gsm8k_qwen3_0_6b/spo", "data_dir=/from/key")["data.val_files"] == ["/from/key/gsm8k_test.parquet"]


def test_recipes_that_build_on_others_lie_in_places_of_their_own():
    seen = [tuple(values(name)[key] for key in PLACES) for name in RECIPES]
    assert len(set(seen)) == len(seen)


def per_step(name):
    config = values(name)
    n = config["actor_rollout_ref.rollout.n"]
    batch, mini = config["data.train_batch_size"], config["actor_rollout_ref.actor.ppo_mini_batch_size"]
    return batch * n, batch / mini


@pytest.mark.parametrize(
    ("spo", "grpo", "trajectories", "updates"),
    [
        ("gsm8k_qwen3_0_6b/spo", "gsm8k_qwen3_0_6b/grpo", 256, 4),
        ("qwen3_8b_math_tir/spo", "qwen3_8b_math_tir/grpo", 2048, 8),
        ("qwen3_8b_math_tir/spo_script", "qwen3_8b_math_tir/grpo_script", 1024, 8),
    ],
)
def test_spo_and_grpo_differ_in_estimator_and_grouping_only(spo, grpo, trajectories, updates):
    assert per_step(spo) == per_step(grpo) == (trajectories, updates)
    allowed = {
        "algorithm.adv_estimator",
        "data.train_batch_size",
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        "actor_rollout_ref.actor.rollout_n",
        "actor_rollout_ref.ref.rollout_n",
        "critic.ppo_mini_batch_size",
        "critic.rollout_n",
        "actor_rollout_ref.rollout.n",
        "actor_rollout_ref.rollout.trace.experiment_name",
        "mini_batch_seed",  # spo.seed in SPO's runs: both deal their mini-batches out alike
    }
    one, other = values(spo), values(grpo)
    differing = {key for key in set(one) | set(other) if one.get(key) != other.get(key) and not key.startswith("spo.")}
    assert {key for key in differing if key not in PLACES} == allowed
    assert other["mini_batch_seed"] == one["spo.seed"]


EXCHANGED = {
    "no_baseline": {"spo.advantage.baseline": "none"},
    "static_values": {"spo.advantage.baseline": "initial"},
    "no_offline_values": {"spo.initial.values": None},
    "uniform_sampling": {"spo.sampling.mode": "uniform"},
    "constant_retention": {"spo.forgetting.mode": "constant"},
    "token_measure": {"spo.advantage.measure": "token"},
}


def test_each_ablation_exchanges_one_thing():
    assert {f"ablations/{name}" for name in EXCHANGED} | {"ablations/spo"} == {
        name for name in RECIPES if name.startswith("ablations/")
    }
    control = values("ablations/spo")
    for name, exchanged in EXCHANGED.items():
        config = values(f"ablations/{name}")
        differing = {key: config[key] for key in config if config[key] != control[key] and "experiment" not in key}
        differing.pop("trainer.default_local_dir")
        assert differing == exchanged, name


def test_the_agents_are_settings_that_the_loop_accepts():
    from spo_verl.agent.config import parse

    [entry] = yaml.safe_load((ROOT / "qwen3_8b_math_tir" / "agents.yaml").read_text())
    assert entry.pop("_target_") == "spo_verl.agent.loop.CodeInterpreterLoop"
    assert entry.pop("name") == values("qwen3_8b_math_tir/spo")["actor_rollout_ref.rollout.agent.default_agent_loop"]
    assert parse(entry).max_turns == 8


def shown_by_launcher(*arguments):
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT.parent)}
    return subprocess.run(
        ["bash", str(ROOT / "run.sh"), *arguments],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_launcher_composes_what_the_tests_compose():
    from omegaconf import OmegaConf

    name = "ablations/token_measure"
    done = shown_by_launcher(name, "model_engine=megatron", "spo.seed=7", "--cfg", "job")
    assert done.returncode == 0, done.stderr[-2000:]
    shown = OmegaConf.create(done.stdout[done.stdout.index("actor_rollout_ref:") :])
    ours = composed(name, "model_engine=megatron", "spo.seed=7").config
    for section in ("spo", "data", "algorithm", "trainer"):
        assert OmegaConf.to_container(shown[section]) == OmegaConf.to_container(ours[section])
    assert shown.recipes_dir == ours.recipes_dir == str(ROOT)


def test_the_launcher_lists_recipes_where_there_is_none():
    done = shown_by_launcher("ablations/nothing")
    assert done.returncode == 2
    assert all(name in done.stderr for name in RECIPES)


def test_a_recipe_is_found_by_name_and_by_path(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT.parent)
    by_name, by_path = find_recipe("async/separate_async"), find_recipe("recipes/async/separate_async.yaml")
    assert by_name == by_path
    assert by_name.path == ROOT / "async" / "separate_async.yaml"
    (tmp_path / "mine.yaml").write_text("# @package _global_\ndefaults: [/ppo_trainer, /spo: paper, _self_]\n")
    mine = find_recipe(str(tmp_path / "mine.yaml"))
    assert (mine.root, mine.name) == (tmp_path, "mine")
    assert recipes_in(tmp_path) == []
