"""Runs that are found by their processes, and whether they live."""

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from spo_verl.history import running
from spo_verl.history.live import Watched
from spo_verl.history.running import Running, ray_token, running_at, running_here, starting_here, state_of
from tests.support.records import made_run

NOW = datetime.now(UTC).isoformat()
HERE = {"host": socket.gethostname(), "ended": None}


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch, request):
    """Other runs of this machine are not asked."""
    if "clusters" not in request.node.name:
        monkeypatch.setattr(running, "_cluster_addresses", set)


def rewritten(folder, **changes):
    path = folder / "record" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def run(tmp_path):
    """A run of three steps that is under way, in ``checkpoints/mine/first`` as verl names it by default."""
    return made_run(
        tmp_path / "work" / "checkpoints" / "mine" / "first", prompts=40, steps=3, batch=10, checkpoint_every=2,
        ended=False,
    ).folder  # fmt: skip


@pytest.fixture
def trainer(tmp_path, run):
    """Starts a process that looks like verl's trainer in the working directory, and says it is the run's."""
    started = []

    def start(*overrides):
        words = [sys.executable, "-c", "input()", "-m", "verl.trainer.main_ppo", *overrides]
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE, cwd=tmp_path / "work"))
        rewritten(run, pid=started[-1].pid, starts=[{"time": datetime.now(UTC).isoformat()}], **HERE)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def found(tmp_path):
    """Runs below the test's own folder: others may train on this machine."""
    return [one.root for one in running_here() if one.root is not None and tmp_path in one.root.parents]


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.default_local_dir=checkpoints/mine/first"],
        ["++trainer.default_local_dir='checkpoints/mine/first'"],
        ["trainer.project_name=mine", "trainer.experiment_name=first"],
        ["trainer.default_local_dir=checkpoints/${trainer.project_name}/first"],
        ["--config-name=own"],
    ],
)
def test_a_run_is_found_by_the_command_line_of_its_trainer(tmp_path, run, trainer, overrides):
    process = trainer(*overrides)
    assert found(tmp_path) == [run]
    process.kill()
    process.wait()
    assert found(tmp_path) == []
    assert state_of(json.loads((run / "record" / "run.json").read_text())) == "crashed"


def test_a_trainer_without_a_record_is_starting(tmp_path, run, trainer):
    values = tmp_path / "work" / "values.parquet"
    process = trainer("+spo=paper", "spo.estimate.output='values.parquet'")
    other = trainer("--config-name", "my_recipe", "spo.estimate.output=${oc.env:X}/a.parquet")
    (tmp_path / "work" / "values.parquet.parts").mkdir()
    for part in range(3):
        (tmp_path / "work" / "values.parquet.parts" / f"part-{part:06d}.parquet").touch()
    assert [one for one in starting_here() if tmp_path in one["folder"].parents] == [
        {"pid": process.pid, "folder": tmp_path / "work", "values": values, "parts": 3},
        {"pid": other.pid, "folder": tmp_path / "work", "values": None, "parts": 0},
    ]


def test_what_starts_a_trainer_is_none(tmp_path, run):
    words = ["timeout", "60", sys.executable, "-c", "input()", "-m", "verl.trainer.main_ppo", "+spo=paper"]
    wrapper = subprocess.Popen(words, stdin=subprocess.PIPE, cwd=tmp_path / "work")
    try:
        while not (listed := [one for one in starting_here() if tmp_path in one["folder"].parents]):
            assert wrapper.poll() is None
        assert len(listed) == 1
        assert listed[0]["pid"] != wrapper.pid
    finally:
        wrapper.communicate(b"\n")


def test_a_process_of_another_program_is_no_trainer(tmp_path, run, trainer):
    rewritten(run, pid=os.getpid(), starts=[{"time": NOW}], **HERE)
    assert found(tmp_path) == []
    assert running_at(run).root == run


@pytest.mark.parametrize(
    ("run", "state"),
    [
        ({**HERE, "pid": os.getpid(), "starts": [{"time": NOW}]}, "running"),
        ({**HERE, "pid": os.getpid(), "starts": [{"time": NOW}], "ended": NOW}, "ended"),
        ({**HERE, "pid": 2**22 + 1, "starts": [{"time": NOW}]}, "crashed"),
        # The number was given to another process after the run had died.
        ({**HERE, "pid": os.getpid(), "starts": [{"time": "2001-01-01T00:00:00+00:00"}]}, "crashed"),
        ({**HERE, "pid": None, "starts": []}, "crashed"),
        ({"host": "elsewhere", "pid": os.getpid(), "ended": None}, "unknown"),
    ],
)
def test_whether_a_run_lives(run, state):
    assert state_of(run) == state


def test_a_frame_is_what_the_record_says(run):
    with Watched(running_at(run)) as watched:
        frame = watched.frame()
        assert frame["state"] == "unknown"
        assert frame["service_error"] == "the record does not name its Ray cluster"
        assert (frame["source"], frame["step"], frame["mode"]) == ("record", 3, "sync")
        assert frame["steps"]["step"] == [1, 2, 3]
        assert frame["prompts"]["prompts"] == 40
        assert sum(frame["value_histogram"]) == 40
        assert frame["timing"]["step"] == 13
        rewritten(run, ended=NOW)
        assert watched.frame()["state"] == "ended"


def test_a_frame_follows_the_record(run):
    from spo_verl.record.writing import RecordWriter

    with Watched(running_at(run), service=False) as watched:
        assert watched.frame()["step"] == 3
        writer = RecordWriter(run / "record", 2**30)
        writer.resume(3)
        writer.append_step(4, {"timing_s/step": 7.0})
        writer.close()
        assert watched.frame()["timing"]["step"] == 7


def test_the_token_of_a_cluster_is_that_of_the_runs_driver(run):
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a=b"}
    code = "print(1, flush=True); import time; time.sleep(60)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env={**os.environ, **own, "OTHER": "x"}, stdout=subprocess.PIPE) as driver:
        assert driver.stdout.readline() == b"1\n"
        rewritten(run, pid=driver.pid)
        assert ray_token(running_at(run)) == own
        driver.kill()
    assert ray_token(running_at(run)) == {}  # it has gone
    assert ray_token(Running(None, None, "127.0.0.1:1", "spo_tracker", "spo-1")) == {}


def test_a_service_that_does_not_answer_in_time_is_said(run, monkeypatch):
    class Silent:
        latest, error = None, None

        def __init__(self, *_):
            pass

        def wait(self, seconds):
            assert seconds == 20

        def close(self):
            pass

    monkeypatch.setattr("spo_verl.history.live.Observer", Silent)
    here = {"pid": os.getpid(), "host": socket.gethostname(), "starts": [{"time": NOW}], "ended": None}
    rewritten(run, ray_address="127.0.0.1:1", tracker={"name": "spo_tracker", "namespace": "spo-1"}, **here)
    with Watched(running_at(run)) as watched:
        assert watched.frame()["service_error"] is None
        watched.wait_for_service()
        frame = watched.frame()
        assert (frame["source"], frame["service_error"]) == ("record", "no answer within 20 s")
        assert frame["state"] == "running"


def test_a_run_without_a_record_is_what_its_service_says(monkeypatch):
    class Said:
        latest, error = {"metrics": {"prompts": 5.0, "coverage": 1.0}, "value_histogram": [5] + [0] * 19}, None

        def __init__(self, *_):
            pass

        def wait(self, seconds):
            pass

        def close(self):
            self.closed = True

    monkeypatch.setattr("spo_verl.history.live.Observer", Said)
    with Watched(Running(None, None, "127.0.0.1:1", "spo_tracker", "spo-1")) as watched:
        frame = watched.frame()
        assert (frame["state"], frame["source"], frame["prompts"]["prompts"]) == ("running", "service", 5)
        assert frame["run"] == "spo-1 at 127.0.0.1:1"
        monkeypatch.setattr(Said, "error", "it has gone")
        assert watched.frame()["state"] == "ended"


def test_clusters_are_found_by_their_raylets(monkeypatch, tmp_path):
    for pid, words in {
        "7": ["/x/raylet", "--gcs-address=10.0.0.1:6379", "--other=1"],
        "8": ["python", "raylet"],
    }.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes(b"\0".join(word.encode() for word in words))
    (tmp_path / "meminfo").write_text("")
    monkeypatch.setattr(running, "PROC", tmp_path)
    asked = []
    monkeypatch.setattr(
        running, "services_at", lambda address: asked.append(address) or [{"name": "t", "namespace": "spo-9"}]
    )
    assert running_here() == [Running(None, None, "10.0.0.1:6379", "t", "spo-9")]
    assert asked == ["10.0.0.1:6379"]
