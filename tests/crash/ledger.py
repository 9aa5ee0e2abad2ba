"""Lines of the two ledgers: what happened to processes, and to real launches."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass
class ProcessCase:
    """What happened to a training process, and what was found afterwards.

    Attributes:
        run, case: numbers; with the seed of the campaign they name it, see :func:`tests.crash.plan.run`.
        hit: what the process was doing when it died: trainer, then writers of tracker and record where they were busy.
        end: ``killed``, or the class of the error that ended it.
        step: that the run continued from.
        lost: steps that had been trained and were made again.
        seconds: until it had begun to train, and from the error's cause until its end.
        problems: what was wrong; empty.
    """

    run: int
    case: int
    kind: str
    hit: str
    end: str
    step: int
    lost: int
    seconds: float
    problems: str = ""


@dataclass
class LaunchCase:
    """What happened to a real launch.

    Attributes:
        moment: seconds after the launch's first marker.
        seconds: from the kill until the command had ended, or further steps were trained.
        outcome: the error that ended the command, ``goes on``, or ``killed`` for the command itself.
        loaded: step that this launch continued from, 0 from scratch.
        step: that the next one will continue from.
        lost: steps that had been trained and will be made again.
        problems: what was wrong; empty.
    """

    case: int
    seed: int
    mode: str
    victim: str
    moment: float
    seconds: float
    outcome: str
    loaded: int
    step: int
    lost: int
    problems: list[str]


def read_processes(path: Path) -> list[ProcessCase]:
    if not path.exists():
        return []
    types = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [
            ProcessCase(**{one.name: types[str(one.type)](row[one.name]) for one in fields(ProcessCase)})
            for row in csv.DictReader(file)
        ]


def add_processes(path: Path, cases: Sequence[ProcessCase]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [one.name for one in fields(ProcessCase)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(asdict(case) for case in cases)


def read_launches(path: Path) -> list[LaunchCase]:
    return [LaunchCase(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def add_launch(path: Path, case: LaunchCase) -> None:
    with path.open("a") as file:
        file.write(json.dumps(asdict(case)) + "\n")
