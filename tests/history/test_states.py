"""States of prompts: from a checkpoint, from a record alone, and what both must agree on."""

import numpy as np
import pytest

from spo_verl.errors import SpoCheckpointDamagedError
from spo_verl.history.places import HistoryError, find
from spo_verl.history.states import from_record, hex_of, keys_of, match_rows, states_of
from spo_verl.record import Record
from spo_verl.tracker import Tracker, TrackerSettings
from tests.support.records import made_run, prompt_keys
from tests.tracker.helpers import train_step


@pytest.mark.parametrize("forgetting", ["kl", "constant", "version"])
@pytest.mark.parametrize(("mode", "sessions"), [("sync", 1), ("separate_async", 2)])
def test_checkpoint_and_record_tell_what_the_tracker_knows(tmp_path, forgetting, mode, sessions):
    run = {"mode": mode, "sessions": sessions, "forgetting": forgetting, "prompts": 80, "steps": 6, "batch": 30}
    made = made_run(tmp_path / "run", checkpoint_every=6, **run)
    tracker = made.tracker
    from_checkpoint, alone = states_of(find(made.folder)), from_record(Record.open(made.folder))
    for states in (from_checkpoint, alone):
        assert hex_of(states.key_P) == hex_of(prompt_keys(80))
        assert states.step == 6
        assert states.row_P.tolist() == list(range(0, 160, 2))
        assert states.source_P.tolist() == ["openai/gsm8k", "math_dapo"] * 40
        assert np.allclose(states.initial_P, 0.5)
        assert states.visits_P.sum() == sum(row["reward"] is not None for row in made.rows)
        assert (states.known_P == (states.visits_P > 0)).all()
    assert np.allclose(from_checkpoint.value_P, tracker.values(), rtol=1e-12)
    assert np.allclose(alone.value_P, tracker.values(), rtol=1e-9)
    dispatched = np.bincount([row["slot"] for row in {row["uid"]: row for row in made.rows}.values()], minlength=80)
    assert alone.draws_P.tolist() == dispatched.tolist()
    assert from_checkpoint.draws_P.sum() == tracker.counters["drawn"]
    if forgetting != "version":  # in event time evidence decays further between the last outcome and now
        alpha_P, beta_P = tracker.evidence()
        assert np.allclose(from_checkpoint.n_eff_P, alpha_P + beta_P)
        assert np.allclose(alone.n_eff_P, alpha_P + beta_P, rtol=1e-9)


def test_drift_is_the_last_divergence_of_each_prompt_where_a_record_has_it(tmp_path):
    made = made_run(tmp_path / "run", prompts=60, steps=8, batch=20)
    for name, upto in ((".", 8), ("global_step_4", 4)):
        measured = [(row["slot"], row["divergence"]) for row in made.rows if row["step"] <= upto and row["divergence"]]
        states = states_of(find(made.folder / name))
        assert states.drift == "divergence"
        found = {slot: states.drift_P[slot] for slot in np.flatnonzero(np.isfinite(states.drift_P)).tolist()}
        assert found == {slot: number for slot, number in measured if number == number}


def checkpoint_of(tracker, folder, step):
    tracker.snapshot().write(folder, step=step, extra={"identity_version": 1})
    return find(folder)


def test_a_checkpoint_alone_knows_the_age_of_evidence(tmp_path):
    tracker = Tracker.create(prompt_keys(30), TrackerSettings(forgetting_mode="constant", rho=0.5, references=()))
    seen = {}
    for version in range(5):
        drawn = tracker.draw(6)
        uids = [f"{version}-{number}" for number in range(6)]
        tracker.dispatch(uids, drawn.slot_B, version)
        tracker.observe(uids, np.zeros(6, dtype=int), np.ones(6))
        tracker.settle(uids)
        seen |= dict.fromkeys(drawn.slot_B.tolist(), version)
    states = states_of(checkpoint_of(tracker, tmp_path / "moved" / "spo", 5))
    assert states.drift == "age"
    assert {slot: states.drift_P[slot] for slot in np.flatnonzero(np.isfinite(states.drift_P))} == {
        slot: 4 - version for slot, version in seen.items()
    }
    assert states.row_P is None
    assert states.open == 0
    assert states.counters["drawn"] == 30


def test_under_drift_it_is_the_movement_since_the_last_visit(tmp_path):
    settings = TrackerSettings(forgetting_mode="drift", references=())
    tracker = Tracker.create(prompt_keys(3), settings)
    for version, (slot, movement) in enumerate([(0, 0.25), (1, 0.5), (0, 1.0)]):
        tracker.dispatch([str(version)], [slot], version)
        tracker.observe([str(version)], [0], [1.0])
        tracker.settle([str(version)])
        tracker.advance(movement)
    states = states_of(checkpoint_of(tracker, tmp_path / "spo", 3))
    assert states.drift == "movement"
    assert np.allclose(states.drift_P, [1.0, 1.5, np.nan], equal_nan=True)


def test_initial_values_are_evidence_and_prompts_kept_aside_are_left_out(tmp_path):
    alpha_P, beta_P = np.array([0.5, 3.0, 0.5]), np.array([0.5, 1.0, 0.5])
    tracker = Tracker.create(prompt_keys(3), TrackerSettings(references=()), alpha_P=alpha_P, beta_P=beta_P)
    tracker.snapshot().write(tmp_path / "a", step=1)
    smaller, _ = Tracker.load(tmp_path / "a", prompt_keys(3)[1:], TrackerSettings(references=()))
    states = states_of(checkpoint_of(smaller, tmp_path / "b" / "spo", 2))
    assert states.known_P.tolist() == [True, False]
    assert states.value_P.tolist() == [0.75, 0.5]
    assert states.aside == 1


def test_stored_responses_are_not_read_and_damage_in_the_prompts_is_seen(tmp_path):
    tracker = Tracker.create(prompt_keys(20), TrackerSettings())
    train_step(tracker, 0, 10)
    place = checkpoint_of(tracker, tmp_path / "spo", 1)
    expected = states_of(place)
    responses = tmp_path / "spo" / "responses.arrow"
    raw = bytearray(responses.read_bytes())
    raw[len(raw) // 2] ^= 1
    responses.write_bytes(raw)
    assert (states_of(place).value_P == expected.value_P).all()
    prompts = tmp_path / "spo" / "prompts.arrow"
    raw = bytearray(prompts.read_bytes())
    raw[len(raw) // 2] ^= 1
    prompts.write_bytes(raw)
    with pytest.raises(SpoCheckpointDamagedError, match=r"prompts\.arrow has the checksum"):
        states_of(place)


def test_keys_that_are_no_keys_are_refused():
    import pyarrow as pa

    assert match_rows(prompt_keys(3), pa.chunked_array([pa.array([], pa.string())])).tolist() == []
    column = pa.chunked_array([pa.array([hex_of(prompt_keys(3))[2], "00" * 16, hex_of(prompt_keys(3))[2]])])
    assert match_rows(prompt_keys(3), column).tolist() == [2, -1, 2]
    with pytest.raises(HistoryError, match="32 hexadecimal digits"):
        keys_of(pa.chunked_array([pa.array(["xyz"])]))
