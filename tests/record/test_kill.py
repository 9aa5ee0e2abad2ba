"""A process that records is killed at random moments: what its last marker names is there, nothing twice.

The process writes a marker of its own after each cut, as verl does after a checkpoint. The next process continues
after the marker.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spo_verl.record import Record
from tests.record.helpers import write

REPOSITORY = Path(__file__).parents[2]
SERVER = """
import os, sys
from pathlib import Path
from tests.record.helpers import rows, write
def record(folder, marker, done):
    writer = write(folder, [], after=done)
    for step in range(done + 1, 100_000):
        writer.append(step, rows(step))
        if step % 3 == 0:
            writer.cut(step)
            assert writer.flush()
            new = marker.with_suffix(".new")
            new.write_text(str(step))
            new.rename(marker)
        writer.append_step(step, {"a": step})
for line in sys.stdin:
    folder, marker, done = line.split()
    if not (child := os.fork()):
        record(Path(folder), Path(marker), int(done))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("over", flush=True)
"""
"""Forks the processes that record, so that each begins at once; it has no threads itself."""


def read(marker: Path) -> int:
    """The step that the process marked last."""
    return int(marker.read_text()) if marker.exists() else 0


@pytest.fixture
def server():
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, cwd=REPOSITORY, **pipes) as process:
        yield process
        process.stdin.close()


def test_what_the_marker_names_is_there_once(tmp_path, server):
    rng, folder, marker = random.Random(0), tmp_path / "record", tmp_path / "marker"
    for _ in range(16):
        done = read(marker)
        print(folder, marker, done, file=server.stdin, flush=True)
        child = int(server.stdout.readline())
        markers, end = rng.randrange(3), time.monotonic() + 20
        while read(marker) < done + 3 * markers and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        assert server.stdout.readline() == "over\n"
        marked = read(marker)
        if not (folder / "run.json").exists():
            assert marked == 0
            continue
        found = Record.open(folder).rollouts(["uid"])["uid"].to_pylist()
        assert len(found) == len(set(found))
        upto = [uid for uid in found if int(uid.split("-")[0]) <= marked]
        assert upto == [f"{step}-{number}" for step in range(1, marked + 1) for number in range(3)]
        # The process that continues counts nothing twice either; the numbers of a marked step follow its marker.
        write(folder, [], after=marked).close()
        assert Record.open(folder).rollouts(["uid"])["uid"].to_pylist() == upto
        steps = Record.open(folder).steps()["step"].to_pylist()
        assert len(steps) == len(set(steps))
        assert set(steps) >= set(range(1, marked)) - unfinished(steps)
    assert read(marker) > 9


def unfinished(steps: list[int]) -> set[int]:
    """Marked steps whose process was killed between the marker and the numbers."""
    return {step for step in range(3, max(steps, default=0) + 3, 3) if step not in steps}
