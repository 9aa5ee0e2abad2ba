"""Folders of the quickstart: what a run is, and its result.

::

    <base>/model-<hash>/            warm-started models, kept for all runs that need the same one
    <base>/spo-seed0-<settings>/    one run, as :mod:`spo_verl.launching.runs` lays it out, and:
        settings.json               what the run is
        data/                       the task, in verl's format
        warm_start/                 a warm start that is not finished yet
        result.json, summary.png    the result so far; of fewer steps than wanted where the time of a call was over
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from spo_verl.errors import SpoStateError
from spo_verl.files import content_faults, read_json
from spo_verl.launching.limits import RunError
from spo_verl.launching.runs import VerlRun, claimed, numbers_of, write_json
from spo_verl.small.launches import Settings

RESULT, SETTINGS = "result.json", "settings.json"
FORMAT = 2
"""Of ``result.json``; raise it when its entries change."""


class RunFolder(VerlRun):
    """One run of the quickstart."""

    @property
    def warm_start(self) -> Path:
        return self.path / "warm_start"

    @property
    def plot(self) -> Path:
        return self.path / "summary.png"

    def result(self) -> dict[str, Any] | None:
        """The result of the run, or None while it is not finished.

        Raises:
            RunError: another version of the quickstart wrote it.
            SpoStateError: it cannot be read or is damaged.
        """
        file = self.path / RESULT
        if not os.path.lexists(file):
            return None
        with self.result_faults():
            found = dict(read_json(file, SpoStateError))
            settings = dict(found.get("settings", {}))
        if found.get("format") != FORMAT:
            raise RunError(
                f"{file} was written by another version of the quickstart (its format is {found.get('format')}, not "
                f"{FORMAT}): move {self.path} elsewhere, or name the runs to be compared"
            )
        return None if found.get("steps_done", settings.get("steps")) != settings.get("steps") else found

    def result_faults(self) -> AbstractContextManager[None]:
        """Within it, Python's error about a damaged result becomes a message."""
        again = f"remove it; `--fresh`, or a call with the settings of {self.path.name}, makes one again"
        return content_faults(self.path / RESULT, SpoStateError, again)

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self.path / RESULT, result)


@contextmanager
def open_run(base: Path, settings: Settings, *, fresh: bool) -> Iterator[RunFolder]:
    """The folder to work in: the newest of these settings, or with ``fresh`` a new one.

    Raises:
        RunError: another call is at work in it.
        SpoStateError: the folder cannot be written.
    """
    with claimed(base, _name(settings), fresh=fresh) as path:
        write_json(path / SETTINGS, settings.as_json())
        yield RunFolder(path)


def has_run(base: Path, settings: Settings) -> bool:
    """Whether an earlier call has made a run of these settings."""
    return bool(numbers_of(base, _name(settings)))


def _name(settings: Settings) -> str:
    return f"{settings.estimator}-seed{settings.seed}-{settings.identity()}"


def finished_runs(
    base: Path, chosen: tuple[str, ...], *, check: Callable[[dict[str, Any]], object] = lambda result: None
) -> list[dict[str, Any]]:
    """Results of finished runs: those of the folders ``chosen``, or all below ``base``, by name.

    ``check`` uses a result as the caller will, which finds the file that is damaged.

    Raises:
        RunError: a chosen folder holds no finished run, or nothing is there.
        SpoStateError: a result is damaged; names its file.
    """
    folders = [Path(name) for name in chosen] or sorted(path.parent for path in base.glob(f"*/{RESULT}"))
    results = {folder: found for folder in folders if (found := RunFolder(folder).result()) is not None}
    missing = [str(folder) for folder in folders if folder not in results]
    if chosen and missing:
        raise RunError(
            f"no finished run in {', '.join(missing)}: a call with the same settings finishes an interrupted run"
        )
    if not results:
        raise RunError(
            f"there is no finished run in {base} to compare: run ./quickstart.sh, then for instance "
            "./quickstart.sh --estimator grpo"
        )
    for folder, result in results.items():
        with RunFolder(folder).result_faults():
            check(result)
    return list(results.values())
