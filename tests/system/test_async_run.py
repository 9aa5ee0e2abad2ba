"""`colocate_async` for real: stragglers, surplus, SIGKILL and resume. Nothing is lost, nothing counted twice."""

import json
import re

import numpy as np
import pytest

from spo_verl.tracker import checkpoint
from spo_verl.tracker.table import match_keys
from tests.support.slow_agent import delay
from tests.system import mini_batches
from tests.system.harness import PROMPTS, Run, toy_keys

pytestmark = [pytest.mark.system, pytest.mark.timeout(5400)]


def trained(run: Run, steps: range) -> list[tuple[int, float]]:
    """Prompt and reward in [0, 1] of every rollout that these steps were trained on, from verl's own dumps."""
    found = {}
    for step in steps:
        for line in (run.rollouts / f"{step}.jsonl").read_text().splitlines():
            record = json.loads(line)
            uid = record["uid"]
            if uid.startswith("pad"):
                continue
            index = int(re.search(r"(\d+)\+1=", record["input"]).group(1))
            session = uid.rsplit("_", 1)[0]  # several outputs of one session have one outcome
            assert found.get(session, (step, index, record["score"])) == (step, index, record["score"])
            found[session] = (step, index, record["score"])
    return [(index, (score + 1) / 2) for _, index, score in found.values()]


def counted(outcomes: list[tuple[int, float]]) -> np.ndarray:
    """(P, 2) alpha and beta of a tracker that forgets nothing: 1/2 each, and one for each outcome."""
    evidence_P2 = np.full((PROMPTS, 2), 0.5)
    for index, reward in outcomes:
        evidence_P2[index] += (reward, 1 - reward)
    return evidence_P2


def saved(run: Run, step: int) -> checkpoint.Saved:
    return checkpoint.read(run.checkpoints / f"global_step_{step}" / "spo")


def evidence(run: Run, step: int) -> np.ndarray:
    table = saved(run, step).table
    slot_P = match_keys(table.key_P, toy_keys())
    return np.stack([table.alpha_P[slot_P], table.beta_P[slot_P]], axis=1)


def test_the_run_was_killed_with_rollouts_in_flight(async_killed):
    assert async_killed.returncode == -9
    open_rollouts = saved(async_killed, 4).ledger.open
    # 16 of 24 are taken; the eight others and refills of failures are under way or wait for the next batch.
    assert len(open_rollouts) >= 8
    assert max(one.version for one in open_rollouts.values()) == 3


def test_the_resumed_run_issued_them_again_and_finished(async_killed, async_resumed):
    assert async_resumed.returncode == 0, async_resumed.log[-3000:]
    assert async_resumed.loaded() == {4: async_killed.saved()[4]}
    reissued = int(re.search(r"froze the values of (\d+) re-issued prompts again", async_resumed.log).group(1))
    assert 1 <= reissued <= len(saved(async_killed, 4).ledger.open)
    assert f"Re-issued {reissued} in-flight prompts" in async_resumed.log
    assert "count as aborted" not in async_resumed.log


def test_evidence_is_every_trained_outcome_once(async_killed, async_resumed):
    """rho = 1 and nothing is evicted: evidence is plain counts, whatever order outcomes came in."""
    before = trained(async_killed, range(1, 5))
    np.testing.assert_allclose(evidence(async_killed, 4), counted(before), rtol=1e-12)
    after = trained(async_resumed, range(5, 9))
    np.testing.assert_allclose(evidence(async_resumed, 8), counted(before + after), rtol=1e-12)
    assert len(before) == len(after) == 64


def test_the_read_out_is_fitted_on_every_trained_outcome_before_and_after_the_kill(async_killed, async_resumed):
    before, after = trained(async_killed, range(1, 5)), trained(async_resumed, range(5, 9))
    for run, step, outcomes in ((async_killed, 4, before), (async_resumed, 8, before + after)):
        found = saved(run, step)
        assert found.calibration.sources == ("toy0", "toy1")
        assert found.calibration.features == ("extra_info.index",)
        index_N = found.calibration.extra_NF[:, 0] * np.std(range(PROMPTS)) + np.mean(range(PROMPTS))
        assert sorted(index_N.round().tolist()) == sorted(index for index, _ in outcomes)
        assert found.calibration.coefficient_F[-1] != 0
        assert sorted(found.calibration.reward_N) == pytest.approx(sorted(reward for _, reward in outcomes))
        assert all(0 <= one.raw <= 1 and one.age >= 0 for one in found.ledger.open.values())
        metrics = run.metrics()[step]
        coefficients = metrics["spo/readout/slope"], metrics["spo/readout/intercept"]
        assert found.calibration.coefficient_F[:2] == pytest.approx(coefficients, abs=2e-3)
        assert coefficients != (1.0, 0.0)


def test_stragglers_are_carried_over_and_scored_by_what_was_frozen(async_killed, async_resumed):
    steps = {**async_killed.metrics(), **async_resumed.metrics()}
    carried = [metrics["spo/late/carried_share"] for metrics in steps.values()]
    assert max(carried) > 0
    assert any(metrics["spo/staleness/max"] >= 1 for metrics in steps.values())
    assert all(metrics["spo/evidence/observed_total"] == 16 for metrics in steps.values())
    assert all(metrics["spo/evidence/duplicate_total"] == 0 for metrics in steps.values())
    slow = [index for index, _ in trained(async_killed, range(1, 3)) if delay(index) > 5]
    everything = trained(async_killed, range(1, 5)) + trained(async_resumed, range(5, 9))
    assert sum(delay(index) > 5 for index, _ in everything) > len(slow)  # they come, later


def test_a_prompt_is_in_flight_once(async_resumed):
    final = saved(async_resumed, 8)
    slots = [one.slot for one in final.ledger.open.values()]
    assert len(slots) == len(set(slots))


def test_failed_rollouts_are_replaced_and_are_no_evidence(async_killed, async_resumed):
    steps = {**async_killed.metrics(), **async_resumed.metrics()}
    assert sum(metrics["spo/rollouts/failed_total"] for metrics in steps.values()) > 0


def test_event_time_keeps_the_policy_version_of_the_dispatch(async_resumed):
    table = saved(async_resumed, 8).table
    assert set(np.unique(table.version_P[table.visits_P > 0])) <= set(range(8))
    assert async_resumed.metrics()[8]["training/rollout_probs_diff_max"] < 1.0


def test_advantages_are_centred_in_the_measure_of_tokens(async_killed, async_resumed):
    """sum(L A) = 0 on the tensors that the actor's loss receives: verl reports their mean over tokens."""
    for metrics in {**async_killed.metrics(), **async_resumed.metrics()}.values():
        assert abs(metrics["critic/advantages/mean"]) < 1e-6
        assert metrics["critic/advantages/max"] > 0.1


def test_stragglers_are_dealt_out_like_all_others_before_and_after_the_resume(async_killed, async_resumed):
    before, first = async_killed.mini_batches()
    after, second = async_resumed.mini_batches()
    place = mini_batches.places([*before, *after])  # what was carried over keeps its place
    steps = mini_batches.by_step(first, prompts=16)
    assert len(steps) >= 4
    mini_batches.check(steps, place, seed=5, first=1)
    steps = mini_batches.by_step(second, prompts=16)
    assert len(steps) == 4
    mini_batches.check(steps, place, seed=5, first=5)
    carried = {uid for batch in before for uid, _ in batch} & {
        uid for step in steps for mini in step for uid, _ in mini
    }
    assert carried  # the order over the restart was put to the test


# ---------------------------------------------------------------------- stopped rollouts, a killed tracker


def test_a_killed_tracker_ends_the_run_and_says_so(orphaned):
    assert orphaned.returncode not in (0, -9)
    assert "the tracker service 'spo_tracker' is gone" in orphaned.log
    assert "trainer.resume_mode=auto" in orphaned.log
    assert set(orphaned.saved()) == {5}
    assert sorted(orphaned.metrics()) == [1, 2, 3, 4, 5]


def test_late_rollouts_are_stopped_and_their_finished_sessions_are_evidence(orphaned):
    """rho = 1: the evidence beyond the prior is the number of verified outcomes, in the loss or not."""
    steps = orphaned.metrics()
    stopped = {step: metrics["spo/rollouts/aborted_total"] for step, metrics in steps.items()}
    assert sum(stopped.values()) > 0
    said = {int(step): int(count) for step, count in re.findall(r"spo: step=(\d+) stopped=(\d+) late", orphaned.log)}
    assert {step: count for step, count in stopped.items() if count} == {
        step: count for step, count in said.items() if count and step in steps
    }
    for step, metrics in steps.items():
        outcomes = metrics["spo/evidence/observed_total"]
        in_loss = len(trained(orphaned, range(step, step + 1)))
        without_training = sum(metrics[f"spo/evidence/{kind}_total"] for kind in ("aborted", "failed", "surplus"))
        assert outcomes == in_loss + without_training
        # Two sessions per prompt. How many had ended, test_records.py compares with the record.
        assert metrics["spo/evidence/aborted_total"] <= 2 * metrics["spo/rollouts/aborted_total"]
    assert sum(metrics["spo/evidence/aborted_total"] for metrics in steps.values()) > 0
    counts = [metrics["spo/evidence/observed_total"] for metrics in steps.values()]
    assert (evidence(orphaned, 5) - 0.5).sum() == pytest.approx(sum(counts), rel=1e-9)


def test_a_batch_is_generated_by_the_version_that_its_baselines_were_frozen_at(orphaned):
    """verl notes which weights generated each trajectory: those of the step, from the first token to the last."""
    for metrics in orphaned.metrics().values():
        assert metrics["spo/staleness/max"] == metrics["spo/late/carried_share"] == 0
        assert metrics["training/off_policy/trajectory_spans/max"] == 1
        assert metrics["training/off_policy/trajectory_staleness_worst/max"] == 0
        assert metrics["training/off_policy/trajectory_staleness/min"] == 0


def test_what_was_stopped_is_replaced_when_the_next_version_is_there(orphaned):
    """Sixteen prompts and the surplus of eight in every step; after the last batch of a version none is open."""
    drawn: dict[int, int] = {}
    for step, count in re.findall(r"spo: step=(\d+) drew=(\d+)", orphaned.log):
        drawn[int(step)] = drawn.get(int(step), 0) + int(count)
    for step, metrics in orphaned.metrics().items():
        assert drawn[step] >= 24
        assert metrics["spo/open_rollouts"] == 0
    assert saved(orphaned, 5).ledger.open == {}


def test_movement_is_measured_where_rollouts_are_asynchronous(orphaned):
    for metrics in orphaned.metrics().values():
        assert metrics["spo/drift/movement_total"] > 0
        assert "spo/divergence/mean" not in metrics or metrics["spo/drift/forwards_total"] == 0


# ---------------------------------------------------------------------- processes of their own


def test_separate_async_trains_and_both_engines_agree(separate):
    assert separate.returncode == 0, separate.log[-3000:]
    metrics = separate.metrics()
    assert sorted(metrics) == [1, 2, 3, 4]
    for step in metrics.values():
        # Nothing was in flight at a weight transfer, so rollout and old log-probs come from the same weights.
        assert step["training/rollout_probs_diff_max"] < 1e-6
        assert step["spo/evidence/observed_total"] == 16
        assert step["spo/staleness/max"] == 0
        # Two updates per version: in the second one the policy has moved from the old policy, which was kept.
        assert step["actor/ppo_kl"] != 0


def test_separate_async_measures_divergence_against_the_old_policy(separate):
    last = separate.metrics()[4]
    assert last["spo/first_visit_share"] < 1
    assert last["spo/divergence/mean"] > 1e-3
    table = saved(separate, 4).table
    assert table.visits_P.sum() == 64
    assert set(np.unique(table.version_P[table.visits_P > 0])) <= {0, 1, 2, 3}
    assert saved(separate, 4).ledger.open == {}
