"""Rehearsals: where one stops without a launch, and real ones. One runs by default, all others are slow."""

import json

import pytest

from spo_verl.errors import SpoConfigError
from spo_verl.launching.recipes import find_run
from spo_verl.rehearsal import rehearse as module
from spo_verl.rehearsal.rehearse import absent_modules, rehearse
from spo_verl.rehearsal.split import Split
from tests.recipes.helpers import RECIPES, ROOT, composed, real_rows, sums, write
from tests.support.gsm8k import THERE, needs_gsm8k

DEFAULT = "gsm8k_qwen3_0_6b/spo"


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.setenv("SPO_RECIPES_DIR", str(ROOT))


@pytest.fixture
def data(tmp_path):
    return [write(sums(120), tmp_path / "rows.parquet")]


@pytest.fixture
def never_launched(monkeypatch):
    monkeypatch.setattr(module, "_launch", lambda *_, **__: pytest.fail("launched"))


def test_without_megatron_it_says_how_far_it_got_and_why_it_stops(tmp_path, data, never_launched, monkeypatch):
    known = module._importable
    monkeypatch.setattr(module, "_importable", lambda name: name != "megatron.core" and known(name))
    found = rehearse(DEFAULT, ["model_engine=megatron"], data=data, folder=tmp_path / "out")
    assert [stage.name for stage in found.stages] == ["composed", "validated", "data and stand-in", "reduced"]
    assert "megatron-core is not installed" in found.stopped
    assert not found.passed
    saved = json.loads((tmp_path / "out" / "rehearsal.json").read_text())
    assert saved["stopped"] == found.stopped
    assert (saved["engine"], saved["passed"]) == ("megatron", False)


def test_megatron_is_launched_with_the_keys_of_its_own_platform(tmp_path, data, monkeypatch):
    monkeypatch.setattr(module, "_launch", lambda *_, **__: None)
    monkeypatch.setattr(module, "_importable", lambda name: True)
    found = rehearse(DEFAULT, ["model_engine=megatron"], data=data, folder=tmp_path / "out")
    assert found.stopped is None
    changed = {change.key: change.rehearsal for change in found.changes if change.group}
    assert changed["actor_rollout_ref.actor.megatron.dtype"] == "float32"
    assert not [key for key in changed if "fsdp" in key]


def test_a_recipe_that_is_not_accepted_stops_before_anything_is_made(tmp_path, data, never_launched):
    found = rehearse(DEFAULT, ["spo.forgetting.rho_min=0.99"], data=data, folder=tmp_path / "out")
    assert [stage.name for stage in found.stages] == ["composed"]
    assert "rho_min=0.99" in found.stopped
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rehearsal.json"]


def test_a_module_that_is_not_there_stops_it(tmp_path, data, never_launched):
    override = "reward.custom_reward_function.path=pkg://no_such.reward"
    found = rehearse(DEFAULT, [override], data=data, folder=tmp_path / "out")
    assert found.stopped.startswith("not there: no_such.reward")
    assert absent_modules(composed("qwen3_8b_math_tir/spo").config) == []


def test_a_folder_in_use_is_left_alone(tmp_path, data):
    with pytest.raises(SpoConfigError, match="is not empty"):
        rehearse(DEFAULT, data=data, folder=tmp_path)


def test_without_rows_the_command_that_makes_them_is_named(tmp_path, never_launched):
    with pytest.raises(SpoConfigError, match=r"spo-verl data prepare"):
        rehearse(DEFAULT, ["data_dir=/nowhere"], folder=tmp_path / "out")


def of_ones_own(tmp_path, *more):
    """A command line that names no recipe: GRPO as in verl's examples, its files as one text."""
    words = ["python", "-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=grpo",
             f"data.train_files={tmp_path}/rows.parquet", f"data.val_files={tmp_path}/rows.parquet",
             "data.train_batch_size=1024", "actor_rollout_ref.model.path=Qwen/Qwen3-8B",
             "actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=4",
             "actor_rollout_ref.actor.ppo_mini_batch_size=256",
             "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32",
             "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32",
             "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=32",
             "actor_rollout_ref.rollout.max_model_len=9216", *more]  # fmt: skip
    return find_run(words)


def test_a_command_line_of_ones_own_is_made_small_and_accepted(tmp_path, data, monkeypatch):
    monkeypatch.setattr(module, "_launch", lambda *_, **__: None)
    source, overrides = of_ones_own(tmp_path)
    found = rehearse(source, overrides, folder=tmp_path / "out")
    assert found.stopped is None
    assert [stage.name for stage in found.stages] == ["composed", "validated", "data and stand-in", "reduced"]
    changed = {change.key: (change.recipe, change.rehearsal) for change in found.changes}
    assert changed["data.train_batch_size"] == (1024, 4)
    assert changed["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"] == (32, 2)
    assert changed["actor_rollout_ref.rollout.max_model_len"][0] == 9216
    assert changed["data.train_files"][0] == f"{tmp_path}/rows.parquet"


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["actor_rollout_ref.model.path=Qwen/Qwen3-30B-A3B"], "mixture of experts"),
        (["actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct"], "multimodal"),
        (["algorithm.adv_estimator=gae", "critic.ppo_micro_batch_size_per_gpu=4", "critic.model.path=x"], "a critic"),
        (["actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent"], "tools that the stand-in was not taught"),
    ],
)
def test_what_has_no_stand_in_stops_with_the_reason(tmp_path, data, never_launched, overrides, why):
    source, own = of_ones_own(tmp_path, *overrides)
    found = rehearse(source, own, folder=tmp_path / "out")
    assert [stage.name for stage in found.stages] == ["composed"]
    assert why in found.stopped


def test_rollouts_of_another_engine_stop_on_a_cpu():
    config = composed(DEFAULT, "actor_rollout_ref.rollout.name=sglang").config
    assert "only vLLM" in module.engine_obstacle(config, "cpu")
    assert module.engine_obstacle(config, "gpu") is None


def test_a_plain_file_is_launched_as_a_copy_that_names_its_base(tmp_path, data, monkeypatch):
    (tmp_path / "mine.yaml").write_text(
        "data: {train_batch_size: 64}\nalgorithm: {adv_estimator: grpo}\n"
        "actor_rollout_ref: {model: {path: Qwen/Qwen3-8B}, actor: {use_dynamic_bsz: true, ppo_mini_batch_size: 32},"
        " rollout: {name: vllm, log_prob_use_dynamic_bsz: true, n: 8}}\n"
    )
    seen = {}

    def launch(overrides, folder, *, configuration, **_):
        seen.update(overrides=overrides, configuration=configuration)
        raise SpoConfigError("as far as this")

    monkeypatch.setattr("spo_verl.launching.launch.run_main_ppo", launch)
    with pytest.raises(SpoConfigError, match="as far as this"):
        rehearse(str(tmp_path / "mine.yaml"), data=data, folder=tmp_path / "out")
    assert seen["configuration"] == ["--config-dir", str(tmp_path / "out"), "--config-name", "mine_on_ppo_trainer"]
    assert "defaults: [ppo_trainer, _self_]" in (tmp_path / "out" / "mine_on_ppo_trainer.yaml").read_text()


def passes(name, tmp_path, *overrides, split=None, gib=12):
    """Rehearse on problems of GSM8K, or where they are not there on made ones; returns the metrics by step."""
    rows = tmp_path / "rows.parquet"
    data = [real_rows(rows) if THERE else write(sums(200), rows)]
    found = rehearse(name, overrides, data=data, folder=tmp_path / "out", split=split or Split())
    assert found.stopped is None
    assert [check for check in found.checks if not check.ok] == []
    assert found.passed
    assert found.peak_gib < gib
    records = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["data"] for record in records if "actor/grad_norm" in record["data"]}


@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_recipe_is_rehearsed_with_megatron_on_two_tensor_parallel_ranks(tmp_path):
    # So large a step that rollouts by the weights of before it would be far from the policy.
    overrides = ["model_engine=megatron", "actor_rollout_ref.actor.optim.lr=1e-2"]
    metrics = passes(DEFAULT, tmp_path, *overrides, split=Split(ranks=2, tp=2), gib=16)
    assert set(metrics) == {1, 2}
    for step in metrics.values():
        assert step["training/rollout_probs_diff_max"] < 1e-4
        assert step["actor/lr"] == 1e-2
        assert step["actor/grad_norm"] > 0


@needs_gsm8k
@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_rehearsed_on_real_rows(name, tmp_path):
    passes(name, tmp_path)
