"""A writer that is killed at any moment leaves the old checkpoint, the new one, or none, and never a part of one."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from spo_verl.tracker import Tracker
from spo_verl.tracker.checkpoint.folder import MANIFEST

from .helpers import CONSTANT, keys

pytestmark = pytest.mark.long

# One process imports everything once and forks a writer per kill point. A writer counts the system calls that change
# the disk (every fourth write, fsyncs, renames, removals) and kills itself with SIGKILL before or after the one it was
# told.
SCRIPT = """
    import json, os, signal, sys
    from pathlib import Path
    import numpy as np
    from spo_verl.errors import SpoCheckpointError
    from spo_verl.tracker import Tracker
    from spo_verl.tracker.checkpoint import folder
    from tests.tracker.helpers import CONSTANT, keys, observe_one

    target, overwrite, after = Path(sys.argv[1]) / "spo", sys.argv[2] == "overwrite", sys.argv[3] == "after"
    old, new = Tracker.create(keys(50), CONSTANT), Tracker.create(keys(50), CONSTANT)
    observe_one(new, "a", 7, 0, 1.0)
    names = {old.digest(): "old", new.digest(): "new"}

    def kill_at(point):
        done = 0
        def counted(function, every=1):
            calls = 0
            def wrapper(*args, **kwargs):
                nonlocal done, calls
                calls += 1
                if calls % every:
                    return function(*args, **kwargs)
                done += 1
                if done == point and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = function(*args, **kwargs)
                if done == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return wrapper
        os.fsync, os.rename, os.rmdir = counted(os.fsync), counted(os.rename), counted(os.rmdir)
        folder.HashingFile.write = counted(folder.HashingFile.write, every=4)

    def found():
        try:
            tracker, _ = Tracker.load(target, keys(50), CONSTANT)
        except SpoCheckpointError as error:
            return "none" if type(error) is SpoCheckpointError else f"{type(error).__name__}: {error}"
        return names[tracker.digest()]

    seen, point = [], 0
    while not seen or seen[-1][0] == signal.SIGKILL:
        point += 1
        if overwrite:
            old.snapshot().write(target)
        child = os.fork()
        if child == 0:
            kill_at(point)
            new.snapshot().write(target)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        seen.append((os.WTERMSIG(status), found()))
        if not overwrite and target.exists():
            import shutil
            shutil.rmtree(target)
    new.snapshot().write(target)
    print(json.dumps({"seen": seen, "end": found(), "left": sorted(p.name for p in target.parent.iterdir())}))
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("start", ["fresh", "overwrite"])
def test_killed_writer(tmp_path, start, moment, pytestconfig):
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), start, moment],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    signals, states = zip(*result["seen"], strict=True)
    assert signals[-1] == 0, "the last writer outlived its kill point"
    assert len(states) > 15, "writes, fsyncs and renames are all kill points"
    # Once the new checkpoint is there it stays: the order of states never goes back.
    order = {"old": 0, "none": 1, "new": 2}
    assert set(states) <= set(order), states
    ranks = [order[state] for state in states]
    assert ranks == sorted(ranks)
    assert states[0] == ("old" if start == "overwrite" else "none")
    # Nothing is missing for longer than the instant between the two renames.
    if start == "overwrite":
        assert states.count("none") <= 1
    assert states.count("new") >= 2
    # The next save clears what the killed ones left.
    assert result["end"] == "new"
    assert result["left"] == ["spo"]


def test_everything_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    """A power cut is no process that dies: what the rename shows must be on the disk already."""
    log = []

    def name_of(descriptor: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))

    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (log.append(name_of(descriptor)), fsync(descriptor)))
    monkeypatch.setattr(os, "rename", lambda old, new: (log.append("rename"), rename(old, new)))
    Tracker.create(keys(3), CONSTANT).snapshot().write(tmp_path / "run" / "spo")
    *files, manifest, staging, renamed, parent, grandparent = log
    assert sorted(files) == ["prompts.arrow", "responses.arrow", "rollouts.arrow"]
    assert (manifest, renamed, parent, grandparent) == (MANIFEST, "rename", "run", tmp_path.name)
    assert staging.startswith(".spo.writing-")
