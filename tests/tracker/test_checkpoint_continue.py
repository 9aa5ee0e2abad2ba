"""Save, load, continue: bit-equal with the run that never stopped."""

import json
import os

import numpy as np
import pytest

from spo_verl.errors import SpoCheckpointError, SpoStateError
from spo_verl.tracker import Tracker, TrackerSettings, ledger, memory
from spo_verl.tracker.checkpoint.folder import MANIFEST
from spo_verl.tracker.checkpoint.schema import PROMPTS, RESPONSES, ROLLOUTS

from .helpers import CONSTANT, folder_bytes, keys, observe_one, responses, train_step

REFERENCES = ("acting", "updated")


@pytest.mark.parametrize("sampling_mode", ["prioritized", "uniform"])
@pytest.mark.parametrize("forgetting_mode", ["kl", "constant", "version", "drift"])
def test_continues_as_if_it_had_never_stopped(tmp_path, monkeypatch, sampling_mode, forgetting_mode):
    monkeypatch.setattr(memory, "COMPACT_ABOVE_TOKENS", 256)
    monkeypatch.setattr(memory, "CHUNK_TOKENS", 50)
    settings = TrackerSettings(
        sampling_mode=sampling_mode,
        forgetting_mode=forgetting_mode,
        gamma=0.7,
        references=REFERENCES,
        max_tokens=20,
        seed=11,
    )
    steady = Tracker.create(keys(60), settings)
    for version in range(25):
        train_step(steady, version, 9, references=REFERENCES)
    steady.dispatch(["held", "half"], [3, 4], 25)
    steady.observe(["half"], [0], [1.0], [np.nan])

    written = steady.snapshot().write(tmp_path / "spo", step=25)
    resumed, report = Tracker.load(tmp_path / "spo", keys(60), settings)
    assert report.digest == written.digest == resumed.digest() == steady.digest()
    assert (report.matched, report.new, report.vanished, report.returned, report.aside) == (60, 0, 0, 0, 0)
    assert (report.settings_changed, report.responses_dropped, report.step) == ({}, 0, 25)
    assert resumed.metrics()["open"] == 2

    for version in range(26, 60):
        drawn = [train_step(tracker, version, 9, references=REFERENCES).tolist() for tracker in (steady, resumed)]
        assert drawn[0] == drawn[1]
    for tracker in (steady, resumed):
        assert tracker.observe(["held", "half"], [0, 0], [0.0, 0.0], [0.1, 0.1]).duplicate == 1
        tracker.settle(["held", "half"])
    assert resumed.digest() == steady.digest()
    assert {k: v for k, v in resumed.metrics().items() if k != "memory_bytes"} == {
        k: v for k, v in steady.metrics().items() if k != "memory_bytes"
    }


def test_late_repeat_is_recognised_after_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "RECENT_LIMIT", 2)
    tracker = Tracker.create(keys(3), CONSTANT)
    for number in range(3):
        observe_one(tracker, f"u{number}", 0, number, 1.0)
        tracker.settle([f"u{number}"])
    tracker.snapshot().write(tmp_path / "spo")
    resumed, _ = Tracker.load(tmp_path / "spo", keys(3), CONSTANT)
    assert resumed.observe(["u1", "u2"], [0, 0], [1.0, 1.0], [np.nan] * 2).duplicate == 2
    observe_one(resumed, "u3", 0, 3, 1.0)
    resumed.settle(["u3"])  # the oldest, u1, is forgotten first
    with pytest.raises(SpoStateError, match="'u1' is unknown"):
        resumed.observe(["u1"], [0], [1.0], [np.nan])


def test_a_version_discounted_before_the_save_is_not_discounted_again(tmp_path):
    tracker = Tracker.create(keys(1), CONSTANT)
    tracker.dispatch(["a", "b"], [0, 0], 7)
    tracker.observe(["a"], [0], [1.0], [np.nan])  # (1.25, 0.25)
    tracker.snapshot().write(tmp_path / "spo")
    resumed, _ = Tracker.load(tmp_path / "spo", keys(1), CONSTANT)
    resumed.observe(["b"], [0], [1.0], [np.nan])
    assert [column.tolist() for column in resumed.evidence()] == [[2.25], [0.25]]


def test_every_prompt_column_comes_back_over_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("spo_verl.tracker.checkpoint.snapshot.BATCH_ROWS", 7)
    tracker = Tracker.create(keys(30), TrackerSettings())
    for version in range(12):
        train_step(tracker, version, 6)
    tracker.snapshot().write(tmp_path / "spo")
    resumed, _ = Tracker.load(tmp_path / "spo", keys(30), TrackerSettings())
    for (name, before), (_, after) in zip(tracker._table.columns(), resumed._table.columns(), strict=True):
        assert before.tobytes() == after.tobytes(), name
        assert len(np.unique(before)) > 1, name


def test_extra_comes_back_and_must_be_json(tmp_path):
    tracker = Tracker.create(keys(2), CONSTANT)
    extra = {"curriculum": {"batches": 17}, "name": "fünf", "list": [1, 2.5, None]}
    tracker.snapshot().write(tmp_path / "spo", step=4, extra=extra)
    _, report = Tracker.load(tmp_path / "spo", keys(2), CONSTANT)
    assert (report.extra, report.step) == (extra, 4)
    before = folder_bytes(tmp_path)
    for bad in ({"x": np.zeros(2)}, {"x": float("nan")}, {1: "x"}, {"x": (1, 2)}):
        with pytest.raises(SpoStateError, match="extra"):
            tracker.snapshot().write(tmp_path / "spo", extra=bad)
    assert folder_bytes(tmp_path) == before


def test_no_pickle_and_no_leftovers(tmp_path):
    tracker = Tracker.create(keys(40), TrackerSettings())
    for version in range(5):
        train_step(tracker, version, 9)
    report = tracker.snapshot().write(tmp_path / "run" / "global_step_5" / "spo")
    step_folder = tmp_path / "run" / "global_step_5"
    assert [path.name for path in step_folder.iterdir()] == ["spo"]
    contents = folder_bytes(step_folder / "spo")
    assert set(contents) == {PROMPTS, RESPONSES, ROLLOUTS, MANIFEST}
    assert report.nbytes == sum(len(content) for content in contents.values())
    for name, content in contents.items():
        assert content.startswith(b"{" if name == MANIFEST else b"ARROW1\0\0"), name
    json.loads(contents[MANIFEST])


def test_an_existing_folder_is_replaced_whole(tmp_path):
    tracker = Tracker.create(keys(20), TrackerSettings())
    tracker.snapshot().write(tmp_path / "spo", step=1)
    (tmp_path / "spo" / "stray").write_text("of a save that nobody acknowledged")
    (tmp_path / ".spo.writing-0123").mkdir()
    (tmp_path / ".spo.writing-0123" / PROMPTS).write_text("of a writer that was killed")
    train_step(tracker, 0, 5)
    written = tracker.snapshot().write(tmp_path / "spo", step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["spo"]
    assert set(folder_bytes(tmp_path / "spo")) == {PROMPTS, RESPONSES, ROLLOUTS, MANIFEST}
    resumed, report = Tracker.load(tmp_path / "spo", keys(20), TrackerSettings())
    assert (report.step, resumed.digest()) == (2, written.digest)


@pytest.mark.parametrize(("call", "fails_at"), [("os.fsync", 1), ("os.rename", 1), ("os.rename", 2)])
def test_a_failing_disk_is_reported_and_what_stood_there_stays(tmp_path, monkeypatch, call, fails_at):
    tracker = Tracker.create(keys(5), CONSTANT)
    tracker.snapshot().write(tmp_path / "spo")
    before = folder_bytes(tmp_path / "spo")
    function, calls = getattr(os, call.removeprefix("os.")), []

    def full(*args):
        calls.append(args)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        return function(*args)

    monkeypatch.setattr(call, full)
    train_step(tracker, 0, 2)
    with pytest.raises(SpoCheckpointError, match=r"spo failed: .*No space left on device.*make room"):
        tracker.snapshot().write(tmp_path / "spo")
    assert folder_bytes(tmp_path / "spo") == before
    tracker.snapshot().write(tmp_path / "spo")
    assert [path.name for path in tmp_path.iterdir()] == ["spo"]


def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spo_verl.tracker.checkpoint.folder.HashingFile.write", full)
    with pytest.raises(SpoCheckpointError, match="No space left on device"):
        Tracker.create(keys(5), CONSTANT).snapshot().write(tmp_path / "spo")
    assert list(tmp_path.iterdir()) == []


def test_present_settings_hold_and_the_difference_is_reported(tmp_path):
    tracker = Tracker.create(keys(30), TrackerSettings(references=REFERENCES))
    for version in range(8):
        train_step(tracker, version, 10, references=REFERENCES)
    tracker.snapshot().write(tmp_path / "spo")
    stored = int(tracker.metrics()["stored_responses"])

    now = TrackerSettings(references=("updated",), half_life=0.03, max_tokens=4, forgetting_mode="constant", rho=0.5)
    resumed, report = Tracker.load(tmp_path / "spo", keys(30), now)
    assert report.settings_changed == {
        "references": (["acting", "updated"], ["updated"]),
        "half_life": (0.06, 0.03),
        "max_tokens": (None, 4),
        "forgetting_mode": ("kl", "constant"),
        "rho": (0.875, 0.5),
    }
    assert "half_life was 0.06, is now 0.03" in str(report)
    assert report.responses_dropped == 0
    assert observe_one(resumed, "a", 0, 100, 1.0, divergence=0.9).rho_B.tolist() == [0.5]

    # What is stored was cut to four tokens and lost the other column; nothing else about it changed.
    uids = [f"slot-{slot}" for slot in range(30)]
    for each in (tracker, resumed):
        each.dispatch(uids, range(30), 101)
    before, after = tracker.recall(uids).stored, resumed.recall(uids).stored
    assert len(before) == len(after) == stored
    assert list(after.log_prob) == ["updated"]
    assert before.prompt_hash_B.tolist() == after.prompt_hash_B.tolist()
    for entry in range(stored):
        start, end = before.offset_B[entry], min(before.offset_B[entry + 1], before.offset_B[entry] + 4)
        cut = slice(after.offset_B[entry], after.offset_B[entry + 1])
        assert after.token_N[cut].tolist() == before.token_N[start:end].tolist()
        assert after.mask_N[cut].tolist() == before.mask_N[start:end].tolist()
        assert after.log_prob["updated"][cut].tolist() == before.log_prob["updated"][start:end].tolist()


def test_a_log_prob_column_that_was_not_saved_costs_the_responses(tmp_path):
    tracker = Tracker.create(keys(5), TrackerSettings())
    tracker.dispatch(["a", "b"], [0, 1], 0)
    tracker.remember(["a", "b"], responses([3, 4]))
    tracker.snapshot().write(tmp_path / "spo")
    resumed, report = Tracker.load(tmp_path / "spo", keys(5), TrackerSettings(references=REFERENCES))
    assert report.responses_dropped == 2
    assert resumed.metrics()["stored_responses"] == 0
    resumed.remember(["a"], responses([3], references=REFERENCES))
    assert resumed.metrics()["stored_responses"] == 1


def test_another_seed_starts_the_generator_anew(tmp_path):
    tracker = Tracker.create(keys(50), TrackerSettings(seed=1))
    tracker.draw(10)
    tracker.snapshot().write(tmp_path / "spo")
    resumed, report = Tracker.load(tmp_path / "spo", keys(50), TrackerSettings(seed=2))
    assert report.settings_changed == {"seed": (1, 2)}
    fresh = Tracker.create(keys(50), TrackerSettings(seed=2))
    assert resumed.draw(10).slot_B.tolist() == fresh.draw(10).slot_B.tolist()
