"""Forgetting by the policy's summed movement: no forward, one coordinate for all prompts and one per prompt."""

import json

import numpy as np
import pyarrow as pa
import pytest

from spo_verl.errors import SpoCheckpointVersionError, SpoStateError
from spo_verl.tracker import Tracker, TrackerSettings
from spo_verl.tracker.checkpoint.folder import MANIFEST
from spo_verl.tracker.checkpoint.schema import PROMPTS

from .helpers import CONSTANT, keys, observe_one, rewrite_manifest, train_step

# 0.06 of movement is one half-life, and twice that with a scale of 2; every factor is an exact binary fraction.
DRIFT = TrackerSettings(forgetting_mode="drift", half_life=0.0625, rho_min=0.125, rho_max=0.75, references=())


def evidence_of(tracker, slot):
    alpha, beta = tracker.evidence([slot])
    return float(alpha[0]), float(beta[0])


def test_history_of_one_prompt_by_hand():
    tracker = Tracker.create(keys(2), DRIFT)
    assert tracker.movement == 0.0
    tracker.advance(1.0)  # before the first visit: nothing to move away from, rho = rho_max = 3/4
    report = observe_one(tracker, "a", 0, 0, 1.0)
    assert evidence_of(tracker, 0) == (1.375, 0.375)
    assert (report.rho_B.tolist(), report.divergence_B.tolist()) == ([0.75], [0.0])
    # 1/32 + 1/32 since: one half-life. A divergence that is passed plays no part.
    tracker.advance(0.03125)
    tracker.advance(0.03125)
    report = observe_one(tracker, "b", 0, 1, 0.0, divergence=9.0)
    assert evidence_of(tracker, 0) == (0.6875, 1.1875)
    assert (report.rho_B.tolist(), report.divergence_B.tolist()) == ([0.5], [0.0625])
    # nothing moved: 2^0, clipped to 3/4; a second outcome of the version only adds
    observe_one(tracker, "c", 0, 2, 1.0, 1.0)
    assert evidence_of(tracker, 0) == (0.515625 + 2, 0.890625)
    # far: clipped to 1/8
    tracker.advance(5.0)
    assert observe_one(tracker, "d", 0, 3, 1.0).rho_B.tolist() == [0.125]
    # the other prompt has been moved away from all the while, but had never been visited
    assert observe_one(tracker, "e", 1, 3, 1.0).rho_B.tolist() == [0.75]
    assert tracker.movement == 6.0625


def test_the_movement_of_a_step_counts_from_the_next_step_on():
    tracker = Tracker.create(keys(1), DRIFT)
    observe_one(tracker, "a", 0, 0, 1.0)
    tracker.dispatch(["b"], [0], 1)
    report = tracker.finish_step(["b"], [0], [1.0], [np.nan], movement=0.0625).observe
    assert report.rho_B.tolist() == [0.75]
    assert observe_one(tracker, "c", 0, 2, 1.0).rho_B.tolist() == [0.5]


def test_the_scale_multiplies_the_movement():
    tracker = Tracker.create(keys(1), TrackerSettings(**{**DRIFT.as_json(), "drift_scale": 2.0}))
    observe_one(tracker, "a", 0, 0, 1.0)
    tracker.advance(0.0625)
    report = observe_one(tracker, "b", 0, 1, 1.0)
    assert (report.rho_B.tolist(), report.divergence_B.tolist()) == ([0.25], [0.125])


def test_a_late_outcome_adds_and_does_not_move_the_prompts_coordinate():
    tracker = Tracker.create(keys(1), DRIFT)
    tracker.dispatch(["late"], [0], 0)
    observe_one(tracker, "a", 0, 1, 1.0)
    tracker.advance(0.0625)
    before = evidence_of(tracker, 0)
    assert tracker.observe(["late"], [0], [0.0], [np.nan]).rho_B.tolist() == [1.0]
    assert evidence_of(tracker, 0) == (before[0], before[1] + 1)
    assert observe_one(tracker, "b", 0, 2, 1.0).rho_B.tolist() == [0.5]  # still since version 1


@pytest.mark.parametrize("movement", [-0.1, np.nan, np.inf])
def test_impossible_movement_changes_nothing(movement):
    tracker = Tracker.create(keys(1), DRIFT)
    tracker.dispatch(["a"], [0], 0)
    before = tracker.digest()
    for action in (
        lambda: tracker.advance(movement),
        lambda: tracker.finish_step(["a"], [0], [1.0], [np.nan], movement=movement),
    ):
        with pytest.raises(SpoStateError, match=r"is not a finite number >= 0"):
            action()
    assert tracker.digest() == before


def test_movement_is_refused_where_it_would_do_nothing():
    tracker = Tracker.create(keys(1), CONSTANT)
    with pytest.raises(SpoStateError, match="plays no part in forgetting_mode=constant"):
        tracker.finish_step([], [], [], [], movement=0.1)
    assert tracker.movement is None
    tracker.finish_step([], [], [], [])


# ---------------------------------------------------------------------- checkpoints


def moving_steps(tracker, versions):
    for version in versions:
        train_step(tracker, version, 5, references=())
        tracker.advance(0.01 * (1 + version % 3))


def test_continues_bit_for_bit_and_with_another_dataset(tmp_path):
    steady = Tracker.create(keys(20), DRIFT)
    moving_steps(steady, range(12))
    steady.snapshot().write(tmp_path / "spo")
    resumed, report = Tracker.load(tmp_path / "spo", keys(20), DRIFT)
    assert report.digest == resumed.digest() == steady.digest()
    assert resumed.movement == steady.movement > 0
    for tracker in (steady, resumed):
        moving_steps(tracker, range(12, 20))
    assert resumed.digest() == steady.digest()

    steady.snapshot().write(tmp_path / "spo")
    order = [*range(19, 4, -1), 100]
    other, report = Tracker.load(tmp_path / "spo", keys(order), DRIFT)
    assert (report.matched, report.new, report.vanished) == (15, 1, 5)
    np.testing.assert_array_equal(other._table.moved_P[:15], steady._table.moved_P[19:4:-1])
    assert other._table.moved_P[15] == 0.0
    np.testing.assert_array_equal(np.sort(other._table.moved_P[16:]), np.sort(steady._table.moved_P[:5]))


def test_the_column_and_the_clock_are_there_in_this_mode_only(tmp_path):
    for settings, clock in ((DRIFT, {"movement": 0.25}), (TrackerSettings(), None)):
        tracker = Tracker.create(keys(5), settings)
        if clock:
            tracker.advance(0.25)
        tracker.snapshot().write(tmp_path / "spo")
        with pa.memory_map(str(tmp_path / "spo" / PROMPTS)) as source, pa.ipc.open_file(source) as reader:
            assert ("moved" in reader.schema.names) == (clock is not None)
        assert json.loads((tmp_path / "spo" / MANIFEST).read_text()).get("clock") == clock


@pytest.mark.parametrize("mode", ["kl", "constant", "version"])
def test_from_another_mode_movement_begins_with_the_resume_and_back(tmp_path, mode):
    settings = TrackerSettings(forgetting_mode=mode, references=())
    before = Tracker.create(keys(3), settings)
    observe_one(before, "a", 0, 3, 1.0)
    before.settle(["a"])
    before.snapshot().write(tmp_path / "spo")
    after, _ = Tracker.load(tmp_path / "spo", keys(3), DRIFT)
    after.advance(0.0625)
    assert observe_one(after, "b", 0, 4, 1.0).rho_B.tolist() == [0.5]
    after.settle(["b"])
    after.snapshot().write(tmp_path / "spo")
    back, _ = Tracker.load(tmp_path / "spo", keys(3), settings)
    assert back.movement is None
    assert back._table.moved_P is None
    np.testing.assert_array_equal(back.evidence(), after.evidence())
    twin = Tracker.create(keys(3), settings)
    assert list(dict(back._table.columns())) == list(dict(twin._table.columns()))


def test_an_unknown_clock_is_refused(tmp_path):
    Tracker.create(keys(3), DRIFT).snapshot().write(tmp_path / "spo")
    rewrite_manifest(tmp_path / "spo", clock={"movement": 0.0, "tide": 1})
    with pytest.raises(SpoCheckpointVersionError, match=r"clock in manifest.json .*differ in tide"):
        Tracker.load(tmp_path / "spo", keys(3), DRIFT)


def test_versions_of_one_request_share_the_one_movement():
    tracker = Tracker.create(keys(1), DRIFT)
    observe_one(tracker, "first", 0, 0, 1.0)  # (1.375, 0.375)
    tracker.advance(0.0625)
    tracker.dispatch(["a"], [0], 3)
    tracker.dispatch(["b"], [0], 5)
    report = tracker.observe(["b", "a"], [0, 0], [0.0, 1.0], [np.nan] * 2)
    assert evidence_of(tracker, 0) == (1.6875, 1.1875)
    assert (report.rho_B.tolist(), report.divergence_B.tolist()) == ([0.5, 1.0], [0.0625, 0.0])
    # in two requests the second is a visit of its own: no movement since, hence rho_max
    tracker.advance(0.0625)
    assert observe_one(tracker, "c", 0, 6, 1.0).rho_B.tolist() == [0.5]
    assert observe_one(tracker, "d", 0, 7, 1.0).rho_B.tolist() == [0.75]
