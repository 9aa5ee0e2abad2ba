"""Folders of runs: which one a call works in, and what is read from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spo_verl.launching.launch import Run
from spo_verl.launching.limits import RunError
from spo_verl.launching.supervise import CommandEnd
from spo_verl.quickstart.runs import FORMAT, RunFolder, finished_runs, open_run
from spo_verl.small.launches import Settings


def opened(base: Path, settings: Settings, *, fresh: bool = False) -> Path:
    with open_run(base, settings, fresh=fresh) as folder:
        return folder.path


def test_the_same_settings_mean_the_same_folder_and_fresh_a_new_one(tmp_path: Path) -> None:
    first = opened(tmp_path, Settings())
    assert opened(tmp_path, Settings()) == first
    assert opened(tmp_path, Settings(seed=1)) != first
    assert opened(tmp_path, Settings(overrides=("spo.sampling.mode=uniform",))) != first
    second = opened(tmp_path, Settings(), fresh=True)
    assert second.name == f"{first.name}-2"
    assert opened(tmp_path, Settings()) == second  # the newest is gone on with
    assert opened(tmp_path, Settings(), fresh=True).name == f"{first.name}-3"
    assert Settings.from_json(json.loads((second / "settings.json").read_text())) == Settings()


def test_a_fresh_first_run_has_no_number(tmp_path: Path) -> None:
    assert opened(tmp_path, Settings(), fresh=True).name == opened(tmp_path, Settings()).name


def test_a_folder_in_use_is_refused_and_free_when_its_owner_is_gone(tmp_path: Path) -> None:
    holder = (
        "import sys, time\nfrom pathlib import Path\n"
        "from spo_verl.quickstart.runs import open_run\nfrom spo_verl.small.launches import Settings\n"
        "with open_run(Path(sys.argv[1]), Settings(), fresh=False):\n    print('in', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    with pytest.raises(RunError, match=r"another call .* at work in .*--fresh"):
        opened(tmp_path, Settings())
    opened(tmp_path, Settings(seed=1))
    other.kill()
    other.wait()
    opened(tmp_path, Settings())


def test_only_acknowledged_checkpoints_count(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert (run.finished_step, run.saved_steps()) == (0, [])
    for step in (10, 20, 30):
        (run.checkpoints / f"global_step_{step}").mkdir(parents=True)
    assert run.saved_steps() == []
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("20")
    assert (run.finished_step, run.saved_steps()) == (20, [10, 20])  # 30 was being written


def attempt(run: RunFolder, records: list[tuple[int, float]], seconds: float | None, peak: int = 0) -> None:
    folder = run.new_attempt("training")
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, "data": {"reward": reward}}) + "\n" for step, reward in records]
    (folder / "metrics.jsonl").write_text("".join(lines))
    for name, written in (("command.txt", 1000), ("train.log", 1007)):
        (folder / name).write_text("")
        os.utime(folder / name, (written, written))
    if seconds is not None:
        run.note(Run(CommandEnd("finished", 0, seconds, peak), folder, ()))


def test_records_of_several_launches_are_joined(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    # Killed after step 3 with a checkpoint of step 2; step 3 was trained again.
    attempt(run, [(1, 0.1), (2, 0.2), (3, 0.3)], seconds=None)
    attempt(run, [(3, 0.35), (4, 0.4)], seconds=20.0, peak=5)
    assert [path.name for path in run.attempts("training")] == ["training-1", "training-2"]
    assert [record["data"]["reward"] for record in run.metrics()] == [0.1, 0.2, 0.35, 0.4]
    assert [record["step"] for record in run.records("training")] == [1, 2, 3, 3, 4]
    # Of the killed launch the files tell 7 s.
    assert run.used("training") == {"seconds": 27.0, "peak_bytes": 5}
    assert run.used("values") == {"seconds": 0.0, "peak_bytes": 0.0}


def test_finished_runs_are_found_and_others_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run in"):
        finished_runs(tmp_path, ())
    for name in ("b", "a", "unfinished"):
        (tmp_path / name).mkdir()
        if name != "unfinished":
            RunFolder(tmp_path / name).write_result({"format": FORMAT, "name": name})
    assert [result["name"] for result in finished_runs(tmp_path, ())] == ["a", "b"]
    assert finished_runs(tmp_path, (str(tmp_path / "b"),)) == [{"format": FORMAT, "name": "b"}]
    # What a call whose time was over has shown is no finished run, and the next call goes on.
    part = RunFolder(tmp_path / "unfinished")
    part.write_result({"format": FORMAT, "settings": {"steps": 50}, "steps_done": 47})
    assert part.result() is None
    assert len(finished_runs(tmp_path, ())) == 2
    part.write_result({"format": FORMAT, "settings": {"steps": 50}, "steps_done": 50})
    assert len(finished_runs(tmp_path, ())) == 3
    (part.path / "result.json").unlink()
    with pytest.raises(RunError, match=r"no finished run in .*unfinished"):
        finished_runs(tmp_path, (str(tmp_path / "b"), str(tmp_path / "unfinished")))


def test_a_result_of_another_version_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "result.json").write_text('{"trajectories": 12800}')
    with pytest.raises(RunError, match=r"old/result.json was written by another version .* move .*/old elsewhere"):
        finished_runs(tmp_path, ())
