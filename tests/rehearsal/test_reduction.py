"""What a rehearsal changes: every change has a reason and another value, and what makes the recipe stays."""

import pytest

from spo_verl.launching.composition import problems_of
from spo_verl.rehearsal import reduction
from spo_verl.rehearsal.reduction import Files, changes, kind_of, overrides
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
