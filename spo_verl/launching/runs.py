"""Folders of runs: which one a call works in, what is finished in it, and what it has used so far.

::

    <base>/model-<hash>/            warm-started models, kept for all runs that need the same one
    <base>/spo-seed0-<settings>/    one run; a new one of the same settings (--fresh) ends in -2, -3, ...
        settings.json               what the run is
        data/                       the task, in verl's format
        values.parquet              offline values (values.parquet.parts while they are being estimated)
        checkpoints/                verl's, with the tracker in global_step_N/spo
        attempts/<stage>-<n>/       each launch of verl: command.txt, train.log, metrics.jsonl, attempt.json
        warm_start/                 a warm start that is not finished yet
        result.json, summary.png    what came of it so far; of fewer steps than wanted where the time of a call was over

A call that was interrupted, at whatever moment, leaves a folder that the next call goes on with.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.errors import SpoStateError
from spo_verl.files import content_faults, read_json, text_lines, writing
from spo_verl.launching.launch import METRICS_NAME, Run, read_metrics
from spo_verl.launching.limits import QuickstartError
from spo_verl.small.launches import Settings

RESULT, SETTINGS, ATTEMPT, PLOT = "result.json", "settings.json", "attempt.json", "summary.png"
FORMAT = 1
"""Of ``result.json``; raise it when its entries change."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk; holds nothing but its path."""

    path: Path

    @property
    def values(self) -> Path:
        return self.path / "values.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def value_parts(self) -> list[Path]:
        """Finished parts of an estimation that is not finished as a whole."""
        return sorted(self.path.glob("values.parquet.parts/part-*.parquet"))

    @property
    def warm_start(self) -> Path:
        return self.path / "warm_start"

    @property
    def plot(self) -> Path:
        return self.path / PLOT

    @property
    def finished_step(self) -> int:
        """The last step with an acknowledged checkpoint, 0 before the first."""
        marker = self.checkpoints / "latest_checkpointed_iteration.txt"
        if not os.path.lexists(marker):
            return 0
        again = f"write the number of the last folder {self.checkpoints}/global_step_N into it"
        with content_faults(marker, SpoStateError, again):
            return int(next((line for _, line in text_lines(marker, SpoStateError)), ""))

    def saved_steps(self) -> list[int]:
        """Steps whose checkpoints are there and not ahead of the acknowledged one."""
        found = (re.fullmatch(r"global_step_(\d+)", path.name) for path in self.checkpoints.glob("global_step_*"))
        return sorted(int(match[1]) for match in found if match and int(match[1]) <= self.finished_step)

    def saved_model(self, step: int) -> Path:
        """The actor's weights after ``step``, as transformers reads them."""
        return self.checkpoints / f"global_step_{step}" / "actor" / "huggingface"

    def saved_tracker(self, step: int) -> Path:
        return self.checkpoints / f"global_step_{step}" / "spo"

    def new_attempt(self, stage: str) -> Path:
        """A folder for the next launch of verl."""
        return self.path / "attempts" / f"{stage}-{len(self.attempts(stage)) + 1}"

    def attempts(self, stage: str) -> list[Path]:
        """Folders of the launches of a stage, in their order."""
        found = (re.fullmatch(rf"{stage}-(\d+)", path.name) for path in self.path.glob(f"attempts/{stage}-*"))
        numbers = sorted(int(match[1]) for match in found if match)
        return [self.path / "attempts" / f"{stage}-{number}" for number in numbers]

    def records(self, stage: str) -> list[dict[str, Any]]:
        """verl's metric records of all launches of a stage, in the order of writing.

        A step that was trained, lost in a crash and trained again stands in it twice: both were spent.
        """
        return [record for attempt in self.attempts(stage) for record in read_metrics(attempt / METRICS_NAME)]

    def metrics(self) -> list[dict[str, Any]]:
        """One record per training step; of a repeated step the last one, which is the one that counts."""
        return [record for _, record in sorted({record["step"]: record for record in self.records("training")}.items())]

    def note(self, run: Run) -> None:
        """Keep how a launch ended."""
        outcome = run.outcome
        used = {"status": outcome.status, "seconds": outcome.seconds, "peak_bytes": outcome.peak_bytes}
        write_json(run.folder / ATTEMPT, used)

    def used(self, stage: str) -> dict[str, float]:
        """Seconds of all launches of a stage and the most memory that one of them used, in bytes.

        A launch whose end nobody saw, as this process was killed with it, counts until its last output.
        """
        seconds, peak = 0.0, 0.0
        for attempt in self.attempts(stage):
            if os.path.lexists(attempt / ATTEMPT):
                noted = read_json(attempt / ATTEMPT, SpoStateError)
                with content_faults(attempt / ATTEMPT, SpoStateError, "remove it; its log tells nearly the same"):
                    seconds, peak = seconds + noted["seconds"], max(peak, noted["peak_bytes"])
            elif (attempt / "train.log").exists():
                written = [(attempt / name).stat().st_mtime for name in ("command.txt", "train.log")]
                seconds += written[1] - written[0]
        return {"seconds": seconds, "peak_bytes": peak}

    @property
    def trained_step(self) -> int:
        """The last step that verl reported, saved or not; 0 before the first."""
        return max((record["step"] for record in self.metrics() if "critic/score/mean" in record["data"]), default=0)

    def result(self) -> dict[str, Any] | None:
        """What came of the run, or None while it is not finished.

        Raises:
            QuickstartError: another version of the quickstart wrote it.
            SpoStateError: it cannot be read or is damaged.
        """
        file = self.path / RESULT
        if not os.path.lexists(file):
            return None
        with self.result_faults():
            found = dict(read_json(file, SpoStateError))
            settings = dict(found.get("settings", {}))
        if found.get("format") != FORMAT:
            raise QuickstartError(
                f"{file} was written by another version of the quickstart (its format is {found.get('format')}, not "
                f"{FORMAT}): move {self.path} elsewhere, or name the runs to be compared"
            )
        return None if found.get("steps_done", settings.get("steps")) != settings.get("steps") else found

    def result_faults(self) -> AbstractContextManager[None]:
        """Where what the result holds is used: what Python says against a damaged one becomes a message."""
        again = f"remove it; `--fresh`, or a call with the settings of {self.path.name}, makes one again"
        return content_faults(self.path / RESULT, SpoStateError, again)

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self.path / RESULT, result)


@contextmanager
def open_run(base: Path, settings: Settings, *, fresh: bool) -> Iterator[RunFolder]:
    """The folder to work in: the newest of these settings, or with ``fresh`` a new one. Others are kept out meanwhile.

    Raises:
        QuickstartError: another call is at work in it.
        SpoStateError: the folder cannot be written.
    """
    with writing(base, SpoStateError):
        base.mkdir(parents=True, exist_ok=True)
        name = _name(settings)
        existing = _numbered(base, name)
        number = max(existing, default=0) + (1 if fresh or not existing else 0)
        folder = RunFolder(base / (name if number == 1 else f"{name}-{number}"))
        folder.path.mkdir(exist_ok=True)
        locked = (folder.path / ".lock").open("w")
    with locked as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise QuickstartError(
                f"another call of the quickstart is at work in {folder.path}: wait for it, or start a run of its own "
                "with --fresh or another --seed"
            ) from error
        write_json(folder.path / SETTINGS, settings.as_json())
        yield folder


def has_run(base: Path, settings: Settings) -> bool:
    """Whether an earlier call has made a run of these settings."""
    with writing(base, SpoStateError):
        return base.is_dir() and bool(_numbered(base, _name(settings)))


def _name(settings: Settings) -> str:
    return f"{settings.estimator}-seed{settings.seed}-{settings.identity()}"


def _numbered(base: Path, name: str) -> list[int]:
    found = (re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", path.name) for path in base.iterdir())
    return [int(match[1] or 1) for match in found if match]


def finished_runs(
    base: Path, chosen: tuple[str, ...], *, check: Callable[[dict[str, Any]], object] = lambda result: None
) -> list[dict[str, Any]]:
    """Results of finished runs: those of the folders ``chosen``, or all below ``base``, by name.

    Args:
        base: folder of all runs.
        chosen: folders of runs.
        check: uses a result as the caller will, to find the file that is damaged.

    Raises:
        QuickstartError: a chosen folder holds no finished run, or there is none at all.
        SpoStateError: a result is damaged; names its file.
    """
    folders = [Path(name) for name in chosen] or sorted(path.parent for path in base.glob(f"*/{RESULT}"))
    results = {folder: RunFolder(folder).result() for folder in folders}
    missing = [str(folder) for folder, result in results.items() if result is None]
    if chosen and missing:
        raise QuickstartError(
            f"no finished run in {', '.join(missing)}: a call with the same settings finishes an interrupted run"
        )
    if len(missing) == len(folders):
        raise QuickstartError(
            f"there is no finished run in {base} to compare: run ./quickstart.sh, then for instance "
            "./quickstart.sh --estimator grpo"
        )
    for folder, result in results.items():
        if result is not None:
            with RunFolder(folder).result_faults():
                check(result)
    return [result for result in results.values() if result is not None]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file at once or not at all."""
    scratch = path.with_name(f".{path.name}.writing")
    with writing(path, SpoStateError):
        scratch.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        os.replace(scratch, path)
