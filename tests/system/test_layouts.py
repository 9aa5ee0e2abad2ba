"""Further ways to divide training processes and rollouts, two steps each: what ./test.sh has no time for."""

import pytest

from tests.system.harness import train

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = ["+spo=paper", "trainer.total_training_steps=2", "trainer.save_freq=2", "trainer.test_freq=-1",
         "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
         # Of 16 rollouts four ranks have four each, of a mini-batch of separate_async two ranks.
         "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
         "ray_kwargs.ray_init.num_cpus=48"]  # fmt: skip
TWO, FOUR = "trainer.n_gpus_per_node=2", "trainer.n_gpus_per_node=4"
SEPARATE = [
    "trainer.v1.trainer_mode=separate_async",
    "actor_rollout_ref.hybrid_engine=False",
    "trainer.v1.separate_async.parameter_sync_step=2",
    "trainer.v1.separate_async.num_warmup_batches=0",
]
LAYOUTS = {
    "four_ranks": [FOUR],
    "one_replica_of_two": [TWO, "actor_rollout_ref.rollout.tensor_model_parallel_size=2"],
    "two_to_two": [TWO, *SEPARATE],
    "two_to_one": [TWO, *SEPARATE, "actor_rollout_ref.rollout.n_gpus_per_node=1"],
    "colocated": [TWO, "trainer.v1.trainer_mode=colocate_async", "spo.oversample=0.5"],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_steps_with_each_layout(workdir, name):
    run = train(workdir, name, [*STEPS, *LAYOUTS[name]])
    assert run.returncode == 0, run.log[-3000:]
    metrics = run.metrics()
    assert sorted(metrics) == [1, 2]
    for step in metrics.values():
        assert step["spo/evidence/observed_total"] == 16
        assert step["spo/evidence/duplicate_total"] == 0
        assert abs(step["critic/advantages/max"]) > 0.1
        # Asynchronous rollouts may come from older weights than those that are trained.
        assert step["spo/staleness/max"] > 0 or step["training/rollout_probs_diff_max"] < 1e-4
    assert set(run.saved()) == {2}


def test_another_number_of_ranks_is_refused_before_verl_loads(workdir):
    said = "was saved by 2 training processes"
    first = train(workdir, "two_ranks", [*STEPS, TWO], checkpoints="ranks", feature="saved")
    assert first.returncode == 0, first.log[-3000:]
    second = train(
        workdir,
        "one_rank",
        [*STEPS, "trainer.total_training_steps=3"],
        checkpoints="ranks",
        kill_when=lambda log: said in log,
        feature="other number of ranks refused",
    )
    assert said in second.log
    assert "model_world_size_1_rank" not in second.log  # verl was not asked to load what is not there
    assert second.metrics() == {}
