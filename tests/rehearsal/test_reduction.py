"""What a rehearsal changes: every change has a reason and another value, and what makes the recipe stays."""

import pytest

from spo_verl.launching.composition import problems_of
from spo_verl.rehearsal import reduction
from spo_verl.rehearsal.reduction import Files, changes, kind_of, overrides, shared_rows
from spo_verl.rehearsal.split import Split, problems
from spo_verl.small.model import ModelShape
from tests.recipes.helpers import RECIPES, composed, values

pytestmark = pytest.mark.long

KEPT = (
    "algorithm.",
    "reward.",
    "spo.forgetting.",
    "spo.sampling.",
    "spo.advantage.",
    "spo.oversample",
    "spo.late.",
    "trainer.v1.trainer_mode",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.agent.agent_loop",
    "actor_rollout_ref.rollout.agent.default",
    "actor_rollout_ref.actor.clip_ratio",
    "actor_rollout_ref.actor.optim",
    "actor_rollout_ref.actor.use_dynamic_bsz",
)
"""What a rehearsal is for: these reach the run as the recipe has them."""


@pytest.fixture
def files(tmp_path):
    return Files(
        tmp_path, tmp_path / "model", tmp_path / "t.parquet", tmp_path / "h.parquet", tmp_path / "v.parquet", 99
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_reduced_recipe_is_accepted_and_keeps_what_it_is(name, files):
    config = composed(name).config
    found = changes(config, files, device="cpu")
    assert all(change.why and change.recipe != change.rehearsal for change in found)
    assert len({change.key for change in found}) == len(found)
    unlisted = {change.key for change in found if change.key.startswith(KEPT)}
    assert unlisted <= {f"actor_rollout_ref.rollout.{key}" for key in ("n_gpus_per_node", "nnodes")} | {
        "reward.num_workers"
    }
    reduced = composed(name, *overrides(found))
    assert problems_of(reduced) == []
    assert kind_of(reduced.config) == kind_of(config)
    config, before = values(name, *overrides(found)), values(name)
    for change in (one for one in found if not one.group):
        assert config[change.key] == change.rehearsal != before[change.key]


def test_two_updates_per_step_in_every_training(files):
    for name in RECIPES:
        config = composed(name).config
        if kind_of(config) == "training":
            to = {change.key: change.rehearsal for change in changes(config, files, device="cpu")}
            batch, mini = to["data.train_batch_size"], to["actor_rollout_ref.actor.ppo_mini_batch_size"]
            assert batch // mini == 2
            assert batch * config.actor_rollout_ref.rollout.n == reduction.TRAJECTORIES


def test_values_are_exchanged_only_where_a_recipe_has_some(files):
    def exchanged(name):
        return [one.rehearsal for one in changes(composed(name).config, files, device="cpu") if "initial" in one.key]

    assert exchanged("ablations/spo") == [str(files.values)]
    assert exchanged("ablations/no_offline_values") == exchanged("qwen3_8b_math_tir/grpo") == []


def test_on_a_gpu_the_platform_stays(files):
    found = changes(composed("qwen3_8b_math_tir/spo").config, files, device="gpu")
    assert not [change for change in found if change.group]
    assert "actor_rollout_ref.actor.fsdp_config.param_offload" not in {change.key for change in found}


@pytest.mark.parametrize(
    ("name", "split", "engine"),
    [
        ("gsm8k_qwen3_0_6b/spo", Split(2), []),
        ("gsm8k_qwen3_0_6b/grpo", Split(8), []),
        ("async/separate_async", Split(4), []),
        ("gsm8k_qwen3_0_6b/evaluate", Split(4), []),
        ("gsm8k_qwen3_0_6b/offline_values", Split(2), []),
        ("gsm8k_qwen3_0_6b/spo", Split(4, tp=2, pp=2), ["model_engine=megatron"]),
        ("gsm8k_qwen3_0_6b/grpo", Split(4, pp=2), ["model_engine=megatron"]),
    ],
)
def test_several_processes_are_accepted_and_share_the_rows(name, split, engine, files):
    config = composed(name, *engine).config
    assert list(problems(split, config, device="cpu", rows=shared_rows(config), shape=ModelShape(layers=2))) == []
    reduced = composed(name, *engine, *overrides(changes(config, files, device="gpu", split=split)))
    assert problems_of(reduced) == []
    actor, rollout = reduced.config.actor_rollout_ref.actor, reduced.config.actor_rollout_ref.rollout
    assert reduced.config.trainer.n_gpus_per_node * reduced.config.trainer.nnodes == split.ranks
    assert rollout.n_gpus_per_node == split.ranks  # as many rollout processes of their own, where there are some
    if engine:
        assert actor.megatron.tensor_model_parallel_size == split.tp
        assert actor.megatron.pipeline_model_parallel_size == split.pp
    if kind_of(config) == "training" and not actor.use_dynamic_bsz:
        assert shared_rows(config) // split.copies % actor.ppo_micro_batch_size_per_gpu == 0


@pytest.mark.parametrize(
    ("split", "engine", "device", "said"),
    [
        (Split(3), [], "cpu", "set --ranks to one of 1, 2, 4, 8"),
        (Split(16), [], "cpu", "cannot share the 8 rows"),
        (Split(2, tp=2), [], "cpu", "add model_engine=megatron"),
        (Split(2, sp=2), [], "cpu", "needs flash attention"),
        (Split(3, sp=2), [], "gpu", "set --ranks to a multiple of 2"),
        (Split(3, tp=2), ["model_engine=megatron"], "cpu", "set --ranks to a multiple of 2"),
        (Split(6, tp=2), ["model_engine=megatron"], "cpu", "set --ranks to one of 2, 4, 8, 16"),
        (Split(4, tp=4), ["model_engine=megatron"], "cpu", "set --tp to 1 or 2"),
        (Split(3, pp=3), ["model_engine=megatron"], "cpu", "set --pp to 1 or 2"),
        (Split(2, sp=2), ["model_engine=megatron"], "gpu", "use --tp"),
        (Split(8, sp=8), [], "gpu", "set --sp to 1, 2 or 4"),
    ],
)
def test_numbers_that_cannot_be_are_refused_with_those_that_can(split, engine, device, said):
    config = composed("gsm8k_qwen3_0_6b/spo", *engine).config
    found = list(problems(split, config, device=device, rows=shared_rows(config), shape=ModelShape(layers=2)))
    assert len(found) == 1, found
    assert said in found[0]


def test_one_process_changes_nothing_more(files):
    config = composed("gsm8k_qwen3_0_6b/spo").config
    assert changes(config, files, device="cpu") == changes(config, files, device="cpu", split=Split())
    assert Split().text() == ""
    assert Split(4, tp=2, pp=2).text() == "4 ranks, tp 2, pp 2"
    assert list(problems(Split(), config, device="cpu", rows=shared_rows(config), shape=ModelShape(layers=2))) == []
