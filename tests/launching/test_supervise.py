"""A supervised command is bounded in time and in silence, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from spo_verl.launching.supervise import CommandEnd, Segments, end_session, session_members, supervise

pytestmark = pytest.mark.long


def run(script: str, tmp_path: Path, **limits: float) -> CommandEnd:
    return supervise(
        ["bash", "-c", script],
        log_path=tmp_path / "log",
        env=dict(os.environ),
        cwd=tmp_path,
        **{"time_limit_s": 20.0, "silence_limit_s": 20.0, "poll_s": 0.05, "grace_s": 1.0, **limits},
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_success_and_failure(tmp_path: Path) -> None:
    pieces: list[str] = []
    done = supervise(
        ["bash", "-c", "echo one; sleep 0.3; echo two >&2"],
        log_path=tmp_path / "log",
        env=dict(os.environ),
        cwd=tmp_path,
        time_limit_s=20,
        silence_limit_s=20,
        on_text=pieces.append,
        poll_s=0.05,
    )
    assert (done.status, done.returncode) == ("finished", 0)
    assert "".join(pieces) == (tmp_path / "log").read_text() == "one\ntwo\n"
    failed = run("echo words; exit 3", tmp_path)
    assert (failed.status, failed.returncode) == ("failed", 3)


def test_a_command_that_hangs_is_ended_after_its_silence(tmp_path: Path) -> None:
    done = run("echo start; sleep 60", tmp_path, silence_limit_s=0.5)
    assert (done.status, done.returncode) == ("silent", None)
    assert done.seconds < 10


def test_output_puts_the_silence_off_but_not_the_time_limit(tmp_path: Path) -> None:
    done = run("while true; do echo tick; sleep 0.1; done", tmp_path, silence_limit_s=0.6, time_limit_s=1.5)
    assert done.status == "time limit"
    assert 1.5 <= done.seconds < 10


def test_a_command_that_ignores_being_asked_is_killed(tmp_path: Path) -> None:
    done = run("trap '' TERM; echo $$ > pid; while true; do sleep 0.1; done", tmp_path, time_limit_s=0.7)
    assert done.status == "time limit"
    assert gone(int((tmp_path / "pid").read_text()))


def test_children_in_process_groups_of_their_own_are_ended_too(tmp_path: Path) -> None:
    # As Ray's workers do; and an orphan, as after a worker's parent died.
    script = """
    set -m
    sleep 300 & echo $! > group
    (sleep 301 & echo $! > orphan)
    set +m
    echo ready; exit {status}
    """
    for status in (0, 1):
        done = run(script.format(status=status), tmp_path, grace_s=0.3)
        assert done.returncode == status
        for name in ("group", "orphan"):
            assert gone(int((tmp_path / name).read_text())), name


def test_other_sessions_are_left_alone(tmp_path: Path) -> None:
    neighbour = subprocess.Popen(["sleep", "300"], start_new_session=True)
    ours = subprocess.Popen(["sleep", "300"])
    try:
        run("sleep 60", tmp_path, time_limit_s=0.3)
        assert neighbour.poll() is None
        assert ours.poll() is None
        assert session_members(neighbour.pid) == [neighbour.pid]
    finally:
        for process in (neighbour, ours):
            process.kill()
            process.wait()


def test_an_exception_here_ends_the_command(tmp_path: Path) -> None:
    def fail(text: str) -> None:
        raise RuntimeError("no disk left")

    with pytest.raises(RuntimeError, match="no disk left"):
        supervise(
            ["bash", "-c", "echo $$ > pid; echo text; sleep 60"],
            log_path=tmp_path / "log",
            env=dict(os.environ),
            cwd=tmp_path,
            time_limit_s=20,
            silence_limit_s=20,
            on_text=fail,
            poll_s=0.05,
            grace_s=1.0,
        )
    assert gone(int((tmp_path / "pid").read_text()))


def test_the_command_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from spo_verl.launching.supervise import supervise
        supervise(["bash", "-c", "echo $$ > pid; exec sleep 300"], log_path=Path("log"), env=dict(os.environ),
                  cwd=Path.cwd(), time_limit_s=200, silence_limit_s=200)
        """
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child = int((tmp_path / "pid").read_text())
        assert alive(child)
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
        assert gone(child)
    finally:
        supervisor.kill()
        supervisor.wait()


def test_memory_is_measured_and_bounded(tmp_path: Path) -> None:
    hold = f'{sys.executable} -c "import time; block = bytearray(200_000_000); time.sleep({{}})"'
    # Started by a shell of its own: the session counts, not the process.
    fine = run(f"({hold.format(1)}) & wait", tmp_path, memory_poll_s=0.1)
    assert fine.status == "finished"
    assert 200e6 < fine.peak_bytes < 400e6
    ended = run(f"({hold.format(30)}) & wait", tmp_path, memory_poll_s=0.1, memory_limit_bytes=100e6)
    assert ended.status == "memory limit"
    assert ended.returncode is None
    assert ended.seconds < 15


def test_pages_that_processes_share_are_counted_once(tmp_path: Path) -> None:
    script = (
        "import os, time; block = bytearray(200_000_000); "
        "pids = [os.fork() for _ in range(1)]; time.sleep(1.5); pids[0] or os._exit(0); os.wait()"
    )
    shared = run(f'{sys.executable} -c "{script}"', tmp_path, memory_poll_s=0.1)
    assert shared.status == "finished"
    assert 200e6 < shared.peak_bytes < 300e6


def segment_script(then: str) -> str:
    """Makes a segment of shared memory without a resource tracker to tidy up, writes its name down, and goes on."""
    return (
        f'{sys.executable} -c "from multiprocessing import resource_tracker, shared_memory as m; '
        "resource_tracker.register = lambda *a: None; s = m.SharedMemory(create=True, size=4096); "
        f"open('name', 'w').write(s.name); import os, time; {then}\""
    )


@pytest.mark.parametrize(
    "then",
    [
        "time.sleep(0.7); os.kill(os.getpid(), 9)",  # a worker that is killed while the run goes on
        "time.sleep(60)",  # one that is ended with the run
        "open('/proc/self/oom_score_adj').read(); time.sleep(0.7); os._exit(0)",  # one that ends without tidying up
    ],
)
def test_no_segment_of_shared_memory_is_left_behind(then: str, tmp_path: Path) -> None:
    done = run(f"{segment_script(then)}; sleep 0.2", tmp_path, time_limit_s=4.0, memory_poll_s=0.1)
    assert done.seconds < 15
    assert not (Path("/dev/shm") / (tmp_path / "name").read_text()).exists()


def test_segments_of_others_stay(tmp_path: Path) -> None:
    before = SharedMemory(create=True, size=4096)
    time.sleep(0.05)
    try:
        attach = (
            f'{sys.executable} -c "from multiprocessing import resource_tracker, shared_memory as m; import time; '
            f"resource_tracker.register = lambda *a: None; s = m.SharedMemory('{{name}}'); time.sleep(0.7)\""
        )
        # One that was there before and is used by the run; another process may still need it.
        run(attach.format(name=before.name), tmp_path, memory_poll_s=0.1)
        assert (Path("/dev/shm") / before.name).exists()
        # One that the run made, which another process has taken over.
        supervisor = threading.Thread(
            target=run, args=(segment_script("time.sleep(2.5)"), tmp_path), kwargs={"memory_poll_s": 0.1}
        )
        supervisor.start()
        deadline = time.monotonic() + 20
        while not (tmp_path / "name").exists() or not (tmp_path / "name").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        taken = SharedMemory((tmp_path / "name").read_text())
        supervisor.join()
        assert (Path("/dev/shm") / taken.name).exists()
        taken.close()
        taken.unlink()
    finally:
        before.close()
        before.unlink()


def test_a_segment_that_has_taken_a_name_over_is_another_one(tmp_path: Path) -> None:
    child = subprocess.Popen(["bash", "-c", segment_script("time.sleep(60)")], cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        segments = Segments(child.pid)
        while not segments._seen:
            assert time.monotonic() < deadline
            segments.look()
            time.sleep(0.05)
        [path] = segments._seen
        Path(path).unlink()
        Path(path).write_bytes(b"of somebody else")
    finally:
        end_session(child, grace_s=0.2)
    segments.remove()
    assert Path(path).read_bytes() == b"of somebody else"
    Path(path).unlink()
