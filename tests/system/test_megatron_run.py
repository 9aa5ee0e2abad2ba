"""SPO with verl's Megatron engine on two ranks of a CPU."""

import re

import pytest

from tests.system.harness import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(5400)]


def tail(run: Run) -> str:
    return f"{run.name} ended with {run.returncode}:\n{run.log[-3000:]}"


def check_steps(run: Run, steps: set[int]) -> None:
    """Both engines agree on probabilities although the policy moves; the tracker sees whole batches."""
    assert run.returncode == 0, tail(run)
    metrics = run.metrics()
    assert set(metrics) == steps
    for step in metrics.values():
        assert step["training/rollout_probs_diff_max"] < 1e-4
        # The second mini-batch is taken by a policy that the first has moved: far, compared with that agreement.
        assert abs(step["actor/ppo_kl"]) > 1e-3
        assert step["actor/grad_norm"] > 0
        assert step["spo/evidence/observed_total"] == 16.0
        assert step["spo/open_rollouts"] == 0.0


def check_saved(run: Run, step: int) -> None:
    assert step in run.saved()
    folder = run.checkpoints / f"global_step_{step}"
    assert (folder / "spo" / "manifest.json").exists()
    assert any((folder / "actor").iterdir())
    assert (run.checkpoints / "latest_checkpointed_iteration.txt").read_text() == str(step)


def test_two_tensor_parallel_ranks_train(tensor):
    check_steps(tensor, {1, 2, 3})
    check_saved(tensor, 3)
    assert re.search(r"tensor_model_parallel_size['\"]?[:=] ?2", tensor.log)
    assert re.search(r"sequence_parallel['\"]?[:=] ?True", tensor.log)


@pytest.mark.slow
def test_two_pipeline_stages_train(pipeline):
    check_steps(pipeline, {1, 2})
    assert 2 in pipeline.saved()


@pytest.mark.slow
def test_a_run_of_two_pipeline_stages_continues(pipeline, continued):
    check_steps(continued, {3, 4})
    check_saved(continued, 4)
    assert continued.loaded() == {2: pipeline.saved()[2]}


@pytest.mark.slow
def test_stock_grpo_trains_with_megatron(megatron_grpo):
    assert megatron_grpo.returncode == 0, tail(megatron_grpo)
    metrics = megatron_grpo.metrics()
    assert set(metrics) == {1, 2}
    for step in metrics.values():
        assert step["training/rollout_probs_diff_max"] < 1e-4
        assert step["actor/grad_norm"] > 0
        assert step["critic/advantages/max"] > 0.1
        assert not [key for key in step if key.startswith("spo/")]
