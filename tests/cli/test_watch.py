"""``spo-verl watch``: from the record, in a terminal and as lines; what the service adds is in tests/history."""

import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from spo_verl.cli import watch
from spo_verl.history import running
from spo_verl.record.writing import RecordWriter
from tests.cli.helpers import run, run_json
from tests.support.records import made_run


@pytest.fixture
def made(tmp_path):
    return made_run(tmp_path / "run", prompts=40, steps=3, batch=10, checkpoint_every=2, ended=False)


def test_once_is_the_frame_for_a_reader_and_in_json(made):
    (frame,) = run_json("watch", made.folder)["runs"]
    assert frame["run"] == str(made.folder)
    assert (frame["state"], frame["step"], frame["source"]) == ("unknown", 3, "record")
    printed = run("watch", made.folder, "--once").stdout
    assert "3 is over, the record grew" in printed
    assert f"{frame['steps']['reward'][-1]:.3f}" in printed
    assert "a step      13.0 s: gen 6.0 s, update_actor 5.5 s" in printed
    assert "From the record alone (tracker service: the record does not name its Ray cluster)." in printed


def test_a_run_that_ended_is_shown_and_left(tmp_path):
    made = made_run(tmp_path / "run", prompts=20, steps=2, batch=5)
    printed = run("watch", made.folder).stdout
    assert "ended; run sync" in printed
    assert printed.endswith("the run has ended\n")


def later(folder):
    """Adds a step to a record at each ``next``: steps 4 and 5, then the run ends."""
    writer = RecordWriter(folder / "record", 2**30)
    writer.resume(3)
    for step in (4, 5):
        rows = {
            "uid": [f"later-{step}"], "session": [0], "key": ["0" * 32], "slot": [0], "row": [0], "data_source": ["x"],
            "version_dispatch": [step - 1], "version_first": [step - 1], "version_last": [step - 1], "value": [0.25],
            "n_eff": [1.0], "reward": [1.0], "raw_advantage": [0.75], "advantage": [1.0], "divergence": [0.5],
            "rho": [0.5], "ending": ["trained"], "tokens": [3], "seconds": [0.5],
        }  # fmt: skip
        writer.append(step, rows)
        writer.append_step(step, {"spo/tracker/coverage": 0.5})
        yield writer.flush()
    yield writer.close(ended="2026-01-02T04:00:00+00:00")


def test_without_a_terminal_each_step_is_a_line(made, monkeypatch):
    """The run grows while the watcher sleeps."""
    growing = later(made.folder)
    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=lambda seconds: next(growing)))
    lines = run("watch", made.folder).stdout.splitlines()
    steps = [line for line in lines if line.startswith("step ") and "reward" in line]
    assert steps == [
        f"step {step}  reward 1.000  value 0.250  rho 0.500  outcomes 1  coverage 50.0 %" for step in (4, 5)
    ]
    assert lines[-1] == "the run has ended"


def test_in_a_terminal_the_picture_is_renewed(made):
    """A pseudo-terminal of 60 columns."""
    import pty

    main, other = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "spo_verl.cli", "watch", str(made.folder), "--interval", "0.2"],
        stdout=other, stderr=other, stdin=other, env={**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "60"},
    )  # fmt: skip
    os.close(other)
    text = b""
    begun = False
    try:
        while part := os.read(main, 65536):
            text += part
            if not begun and b"3 is over" in text:
                begun = True
                threading.Thread(target=list, args=[later(made.folder)]).start()
    except OSError:  # the other side is closed: the child has ended
        pass
    assert child.wait() == 0
    os.close(main)
    assert b"5 is over" in text
    assert b"ended; run sync" in text
    assert b"\x1b[31m" not in text


def test_several_runs_are_listed(made, tmp_path, monkeypatch):
    other = made_run(tmp_path / "other", prompts=20, steps=2, batch=5)
    monkeypatch.setattr(running, "running_here", lambda: [running.running_at(one.folder) for one in (made, other)])
    found = run_json("watch")["runs"]
    assert [one["run"] for one in found] == [str(made.folder), str(other.folder)]
    printed = run("watch").stdout
    assert "2 runs are under way on this machine; name one for more:" in printed
    assert str(other.folder) in printed


def test_without_a_run_the_message_says_what_to_name(monkeypatch):
    monkeypatch.setattr(running, "running_here", list)
    monkeypatch.setattr(running, "starting_here", list)
    done = run("watch")
    assert done.exit_code == 2
    assert "no run with SPO is under way on this machine: start one, or name the folder of a run" in done.stderr
    assert json.loads(run("watch", "--json").stdout)["error"]["type"] == "SpoStateError"


def test_a_run_that_has_recorded_nothing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "running_here", list)
    started = {"pid": 17, "folder": tmp_path, "values": tmp_path / "values.parquet", "parts": 3}
    monkeypatch.setattr(running, "starting_here", lambda: [started])
    done = run("watch")
    assert done.exit_code == 2
    assert f"process 17 in {tmp_path}; finished parts of {tmp_path / 'values.parquet'}: 3" in done.stderr
    assert "samples offline values: call watch again once it trains" in done.stderr


def test_a_folder_without_a_record_cannot_be_watched(made, tmp_path):
    done = run("watch", made.folder / "global_step_2", "--once")
    assert done.exit_code == 0  # a checkpoint of a run leads to the run
    (tmp_path / "empty").mkdir()
    assert run("watch", tmp_path / "empty").exit_code == 2
