"""Folders of runs: which one a call works in, what is finished in it, and what it has used so far.

::

    <base>/<name>/                  one run; a new one of the same name ends in -2, -3, ...
        values.parquet              offline values (values.parquet.parts while they are being estimated)
        checkpoints/                verl's, with the tracker in global_step_N/spo
        attempts/<stage>-<n>/       each launch of verl: command.txt, train.log, metrics.jsonl, attempt.json

A call that was interrupted, at whatever moment, leaves a folder that the next call continues with.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.errors import SpoStateError
from spo_verl.files import content_faults, read_json, replacing, text_lines, writing
from spo_verl.launching.launch import COMMAND_NAME, LOG_NAME, METRICS_NAME, Run, read_metrics
from spo_verl.launching.limits import RunError

ATTEMPT = "attempt.json"
REWARD = "critic/score/mean"
"""verl's metric that every training step reports, and no validation before the first one."""


@dataclass(frozen=True)
class VerlRun:
    """One run on disk: the launches of verl that it took, and what they left. Holds nothing but its path."""

    path: Path

    @property
    def values(self) -> Path:
        return self.path / "values.parquet"

    @property
    def value_files(self) -> list[Path]:
        """The offline values, or the finished parts of an estimation that is not finished as a whole."""
        parts = sorted(self.path.glob("values.parquet.parts/part-*.parquet"))
        return [self.values] if self.values.exists() else parts

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def finished_step(self) -> int:
        """The last step with an acknowledged checkpoint, 0 before the first."""
        marker = self.checkpoints / "latest_checkpointed_iteration.txt"
        if not os.path.lexists(marker):
            return 0
        again = f"write the number of the last folder {self.checkpoints}/global_step_N into it"
        with content_faults(marker, SpoStateError, again):
            return int(next((line for _, line in text_lines(marker, SpoStateError)), ""))

    @property
    def trained_step(self) -> int:
        """The last step that verl reported, saved or not; 0 before the first."""
        return max((record["step"] for record in self.metrics() if REWARD in record["data"]), default=0)

    def saved_steps(self) -> list[int]:
        """Steps whose checkpoints are there and not ahead of the acknowledged one."""
        steps = _numbers(self.checkpoints, r"global_step_(\d+)")
        return [step for step in steps if step <= self.finished_step]

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
        folder = self.path / "attempts"
        return [folder / f"{stage}-{number}" for number in _numbers(folder, rf"{stage}-(\d+)")]

    def records(self, stage: str) -> list[dict[str, Any]]:
        """verl's metric records of all launches of a stage, in the order of writing.

        A step that was trained, lost in a crash and trained again is in it twice: both were spent.
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
            elif (attempt / LOG_NAME).exists():
                began, ended = ((attempt / name).stat().st_mtime for name in (COMMAND_NAME, LOG_NAME))
                seconds += ended - began
        return {"seconds": seconds, "peak_bytes": peak}


def finished_prompts(folder: VerlRun) -> int:
    """Prompts whose offline values are on disk."""
    from spo_verl.data.values import OfflineValues

    return sum(len(OfflineValues.read(file)) for file in folder.value_files)


def spent(folder: VerlRun) -> dict[str, dict[str, int]]:
    """Trajectories and tokens of a run, offline ones in a line of their own; steps that a crash undid are counted."""
    found: dict[str, dict[str, int]] = {}
    if files := folder.value_files:
        from spo_verl.data.values import OfflineValues

        sources = [source for file in files for source in OfflineValues.read(file).source]
        found["offline values"] = {
            "trajectories": sum(source["responses"] for source in sources),
            "response_tokens": sum(source["response_tokens"] for source in sources),
            "prompt_tokens": sum(source["prompt_tokens"] for source in sources),
        }
    training = {"trajectories": 0, "response_tokens": 0, "prompt_tokens": 0}
    for record in folder.records("training"):
        data = record["data"]
        if "perf/total_num_tokens" not in data:
            continue  # a validation before the first step
        prompt, response = data["prompt_length/mean"], data["response_length/mean"]
        trajectories = round(data["perf/total_num_tokens"] / (prompt + response))
        training["trajectories"] += trajectories
        training["response_tokens"] += round(trajectories * response)
        training["prompt_tokens"] += round(trajectories * prompt)
    found["training"] = training
    found["total"] = {key: sum(used[key] for used in found.values()) for key in training}
    return found


@contextmanager
def claimed(base: Path, name: str, *, fresh: bool) -> Iterator[Path]:
    """The newest folder of a run's name, or with ``fresh`` a new one. Other calls are kept out meanwhile.

    Raises:
        RunError: another call is at work in it.
        SpoStateError: the folder cannot be written.
    """
    with writing(base, SpoStateError):
        base.mkdir(parents=True, exist_ok=True)
        existing = numbers_of(base, name)
        number = max(existing, default=0) + (1 if fresh or not existing else 0)
        folder = base / (name if number == 1 else f"{name}-{number}")
        folder.mkdir(exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another call is at work in {folder}: wait for it, or start a run of its own with --fresh or another "
                "--seed"
            ) from error
        yield folder


def numbers_of(base: Path, name: str) -> list[int]:
    """The numbers of the folders of a run's name; the first has none, and counts as 1."""
    with writing(base, SpoStateError):
        return _numbers(base, rf"{re.escape(name)}(?:-(\d+))?")


def _numbers(folder: Path, pattern: str) -> list[int]:
    """The number that ``pattern`` finds in each name that it matches, 1 where it finds none; in order."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1] or 1) for match in (re.fullmatch(pattern, name) for name in names) if match)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file at once or not at all."""
    with replacing(path, SpoStateError) as stage:
        stage().write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
