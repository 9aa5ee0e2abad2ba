"""What must hold in the real trainer: SPO inside stock verl, checkpoints, a kill, a resume."""

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.group_signal import read_run
from benchmarks.reward_curves import read_curve
from spo_verl.tracker import Tracker, TrackerSettings
from spo_verl.training.metrics import METRICS, PREFIX, pattern_of
from tests.support.scripted_agent import fails, outcome, several_outputs
from tests.system import mini_batches
from tests.system.harness import PROMPTS, Run, tensorboard_of, toy_keys

pytestmark = [pytest.mark.system, pytest.mark.timeout(5400)]

RHO = 0.9


def tail(run: Run) -> str:
    return f"{run.name} ended with {run.returncode}:\n{run.log[-3000:]}"


def test_grpo_runs_with_the_plugin_installed_and_knows_nothing_of_spo(grpo):
    assert grpo.returncode == 0, tail(grpo)
    metrics = grpo.metrics()
    assert set(metrics) == {1, 2}
    assert not [key for step in metrics.values() for key in step if key.startswith(PREFIX)]
    assert "spo:" not in grpo.log
    assert not (grpo.checkpoints / "global_step_2" / "spo").exists()
    # What benchmarks/ compute for docs/reproduction.md, from the rollouts that verl dumps.
    signals = read_run(grpo.rollouts)
    assert [(one.step, one.samples) for one in signals] == [(1, 32), (2, 32)]
    assert all(one.degenerate is not None and 0 <= one.degenerate <= 1 for one in signals)
    logged = [metrics[step]["critic/score/mean"] for step in (1, 2)]
    assert read_curve(grpo.rollouts) == pytest.approx(logged, abs=1e-3)


def test_spo_continues_from_a_checkpoint_of_another_estimator_and_says_so(spo):
    assert spo.returncode == 0, tail(spo)
    assert "was saved by another estimator" in spo.log
    assert set(spo.metrics()) == {3, 4, 5, 6}  # weights and step count continue at 2
    assert spo.loaded() == {}
    assert set(spo.saved()) == {4, 6}
    assert (spo.checkpoints / "latest_checkpointed_iteration.txt").read_text() == "6"


def test_every_metric_that_a_run_logs_is_explained_and_the_expected_ones_are_there(spo):
    logged = {key.removeprefix(PREFIX) for step in spo.metrics().values() for key in step if key.startswith(PREFIX)}
    named = {pattern_of(name) for name in logged}
    late = {"late/carried_tokens_mean", "late/evicted_tokens_mean"}  # nothing is late in sync
    # Movement belongs to mode=drift; values are read calibrated in tests/system/test_async_run.py.
    assert METRICS.keys() - named == {*late, "drift/movement_total", "readout/slope", "readout/intercept"}
    assert named <= METRICS.keys()


def test_histograms_and_samples_are_in_tensorboard(spo):
    events = EventAccumulator(
        str(tensorboard_of(spo.checkpoints.parent, spo.name)), {"histograms": 0, "tensors": 0}
    ).Reload()
    texts = events.Tensors("spo/samples/text_summary")
    assert [one.step for one in texts] == [4, 6]  # every second step
    for one in texts:
        text = one.tensor_proto.string_val[0].decode()
        assert text.count("**row ") == 8
        assert len(re.findall(r"\d\+1=", text)) >= 8  # the prompts of the toy data
    for name in ("value", "n_eff", "raw_advantage", "retention"):
        assert [one.step for one in events.Histograms(f"spo/histogram/{name}")] == [4, 6]
    assert events.Histograms("spo/histogram/value")[0].histogram_value.num == PROMPTS
    assert "took no histograms and samples" not in spo.log


def test_an_early_warning_is_said_once(spo):
    said = re.findall("spo: early warning, ([^.]*)[.]", spo.log)
    assert len(said) == len(set(said))


def test_quotas_hold_in_every_batch(spo):
    for metrics in spo.metrics().values():
        assert metrics["spo/source/toy0/drawn_share"] == 0.25
        assert metrics["spo/source/toy1/drawn_share"] == 0.75


def test_divergence_is_measured_on_stored_responses_of_revisited_prompts_only(spo):
    metrics = spo.metrics()
    first, last = metrics[3], metrics[6]
    assert first["spo/first_visit_share"] == 1.0
    assert "spo/divergence/mean" not in first
    assert first["spo/rho/mean"] == pytest.approx(0.96)  # D = 0
    # acting: nothing stored yet, no forward; updated: the new responses are scored after the update
    assert first["spo/drift/forwards_total"] == 1.0
    assert last["spo/drift/forwards_total"] == 3.0
    assert last["spo/first_visit_share"] < 1.0
    # 1e-3 is a large learning rate: the policy moved, by both readings
    assert last["spo/divergence_acting/mean"] > 1e-3
    assert last["spo/divergence_updated/mean"] > 1e-3
    assert last["spo/divergence/mean"] == last["spo/divergence_acting/mean"]  # the preset's reference


def test_rollout_and_training_engine_agree(spo):
    for step in spo.metrics().values():
        assert step["training/rollout_probs_diff_max"] < 1e-6


def test_a_step_observes_its_whole_batch_once(spo):
    for step in spo.metrics().values():
        assert step["spo/evidence/observed_total"] == 16.0
        assert step["spo/evidence/duplicate_total"] == 0.0
        assert step["spo/rollouts/failed_total"] == 0.0
        assert step["spo/open_rollouts"] == 0.0


# ---------------------------------------------------------------------- scripted outcomes


def rows(run: Run) -> dict[int, dict[int, set[int]]]:
    """Step -> prompt -> sessions that came back, from verl's own dump of the rollouts."""
    seen: dict[int, dict[int, set[int]]] = {}
    for path in sorted(run.rollouts.glob("*.jsonl")):
        step = seen.setdefault(int(path.stem), {})
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["uid"].startswith("pad"):
                continue
            index = int(re.search(r"(\d+)\+1=", record["input"]).group(1))
            step.setdefault(index, set()).add(int(record["uid"].split("_")[1]))
    return seen


def evidence(run: Run, step: int) -> dict[int, tuple[float, float]]:
    """Prompt -> (alpha, beta) in the checkpoint of a step."""
    settings = TrackerSettings(forgetting_mode="constant", rho=RHO, references=(), seed=11)
    tracker, report = Tracker.load(run.checkpoints / f"global_step_{step}" / "spo", toy_keys(), settings)
    assert (report.matched, report.new, report.vanished) == (PROMPTS, 0, 0)
    alpha_P, beta_P = tracker.evidence()
    return {index: (alpha_P[index], beta_P[index]) for index in range(PROMPTS)}


def by_hand(seen: dict[int, dict[int, set[int]]], last: int) -> dict[int, tuple[float, float]]:
    """The same by a loop: one discount per prompt and step, then its sessions' outcomes, mapped from [-1, 1]."""
    state = dict.fromkeys(range(PROMPTS), (0.5, 0.5))
    for step in range(1, last + 1):
        for index, sessions in seen[step].items():
            alpha, beta = state[index]
            rewards = [(outcome(index, step, session) + 1) / 2 for session in sessions]
            state[index] = (RHO * alpha + sum(rewards), RHO * beta + sum(1 - reward for reward in rewards))
    return state


def test_evidence_equals_a_loop_over_what_verl_dumped(killed):
    seen = rows(killed)
    assert set(seen) == set(range(1, 11))
    expected, found = by_hand(seen, 10), evidence(killed, 10)
    for index in range(PROMPTS):
        assert found[index] == pytest.approx(expected[index], rel=1e-12), f"prompt {index}"
    assert len({index for step in seen.values() for index in step}) > 16  # more than one batch's prompts


def test_the_scripted_run_had_all_its_odd_cases(killed):
    seen = rows(killed)
    drawn = {index for step in seen.values() for index in step}
    assert any(several_outputs(index) for index in drawn)
    assert any(fails(index, 1) and not fails(index, 0) for index in drawn)
    metrics = killed.metrics()
    assert set(metrics) == set(range(1, 11))
    assert sum(step["spo/rollouts/failed_total"] for step in metrics.values()) > 0
    for number, step in metrics.items():
        sessions = sum(len(found) for found in seen[number].values())
        assert step["spo/evidence/observed_total"] == sessions
        assert step["spo/rollouts/failed_total"] == 16 - len(seen[number])
        assert "spo/drift/forwards_total" not in step  # constant retention: no forward
        assert step["spo/rho/mean"] == pytest.approx(RHO)
        assert 0.0 <= step["spo/reward/mean"] <= 1.0
    # a prompt that fails twice leaves rows that do not fill a mini-batch of 8 prompts x 2: verl pads
    assert "synthetic padding samples" in killed.log


def test_the_killed_run_was_killed(killed):
    assert killed.returncode == -9, tail(killed)
    assert set(killed.saved()) == {5, 10}
    assert (killed.checkpoints / "global_step_10" / "spo" / "manifest.json").exists()


def test_the_loaded_tracker_is_the_saved_one(killed, resumed):
    assert resumed.returncode == 0, tail(resumed)
    assert resumed.loaded() == {5: killed.saved()[5]}


def test_after_the_resume_six_steps_are_drawn_as_they_were_without_it(killed, resumed):
    draws = killed.draws()
    assert {step: draws[step] for step in range(6, 12)} == resumed.draws()
    assert len(set(draws.values())) == 11


def test_after_the_resume_the_tracker_equals_the_uninterrupted_one(killed, resumed):
    assert evidence(resumed, 10) == evidence(killed, 10)  # exactly, not approximately
    assert evidence(killed, 10) != evidence(killed, 5)


def test_the_actor_receives_mini_batches_by_seed_step_and_order_of_dispatch(killed):
    """Noted in the worker: sessions that failed, several outputs, padding, other numbers of rollouts, all included."""
    dispatched, trained = killed.mini_batches()
    dispatched = dispatched[:10]  # the eleventh step was not trained on
    assert {len(mini) for mini in trained} == {16}
    # Of each step only its own dispatch: prompts of which nothing came back are not among the trained ones.
    known = {uid: step for step, batch in enumerate(dispatched, 1) for uid, _ in batch}
    steps = [[] for _ in range(10)]
    for mini in map(mini_batches.real, trained):
        [step] = {known[uid] for uid, _ in mini}
        steps[step - 1].append(mini)
    mini_batches.check(steps, mini_batches.places(dispatched), seed=11, first=1)
    padding = [sum(uid.startswith("pad") for uid, _, _ in mini) for mini in trained]
    assert sum(padding) > 0
    assert max(padding) < 16


def test_after_the_resume_the_same_rollouts_meet_in_the_same_mini_batches(killed, resumed):
    def of(run):
        dispatched, trained = run.mini_batches()
        steps = {uid: step for step, batch in enumerate(dispatched) for uid, _ in batch}
        grouped = [[] for _ in dispatched]
        for mini in map(mini_batches.real, trained):
            grouped[steps[mini[0][0]]].append(mini)
        return mini_batches.by_prompt(grouped, dispatched)

    steps = of(resumed)
    assert len(steps) == 6
    assert steps[:5] == of(killed)[5:10]


def test_duplicate_rows_were_counted(killed):
    assert "65 rows hold 60 distinct prompts (5 duplicates)" in killed.log


def test_no_pickle_in_the_tracker_folder(killed):
    for path in Path(killed.checkpoints / "global_step_10" / "spo").iterdir():
        assert path.suffix in {".json", ".arrow"}, path.name
        assert not path.read_bytes().startswith(b"\x80")  # the pickle opcode
