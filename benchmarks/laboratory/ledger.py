"""Cells, and the file of their results: one JSON line per finished cell, appended and flushed at once."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEEDS = (1, 2, 3, 4, 5)
"""Seeds of the figures, paired over methods."""
TUNING_SEEDS = (101, 102)
"""Seeds of the learning rates. Rule: the rate of the grid with the largest mean area under the held-out curve over
these seeds, for each method, task and batch; no training of the seeds of the figures is read. Both share warm-started
models and held-out problems, of which there are three or five per task."""


@dataclass(frozen=True, order=True)
class Cell:
    """One training. Cells of one seed share the warm start, the problems and, where methods allow, the draws."""

    task: str
    method: str
    seed: int
    batch: int = 64
    steps: int = 240
    rate: float = 1e-4
    train: int = 1024

    @property
    def key(self) -> str:
        return f"{self.task}/{self.method}/b{self.batch}/s{self.steps}/lr{self.rate:g}/p{self.train}/seed{self.seed}"


def read(path: Path) -> list[dict[str, Any]]:
    """The finished cells, each once (the first). A last line that a killed run left torn is left out."""
    if not path.exists():
        return []
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.setdefault(entry["key"], entry)
    return list(found.values())


def missing(cells: list[Cell], path: Path) -> list[Cell]:
    """Those without a line, in their order, each once."""
    done = {entry["key"] for entry in read(path)}
    return [cell for cell in dict.fromkeys(cells) if cell.key not in done]


def append(path: Path, cell: Cell, result: dict[str, Any]) -> None:
    """Add a line, on disk when this returns. After a torn line it begins a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"key": cell.key, **asdict(cell), **result}) + "\n"
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
