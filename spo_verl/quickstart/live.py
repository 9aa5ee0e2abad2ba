"""What is shown while verl runs: a display that changes in a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spo_verl.launching.progress import COLUMNS, Progress

Say = Callable[[str], None]
ROWS = 8
"""Steps that a terminal shows at once."""


@contextmanager
def training_progress(
    path: Path, *, steps: int, done: int, values_first: bool, say: Say, console: Console | None = None
) -> Iterator[Progress]:
    """The display of a training, which reads verl's log.

    Args:
        path: its metrics.
        done: steps of earlier launches.
        values_first: whether it samples offline values before the first step.
    """
    console = console or Console()
    if not console.is_terminal:
        yield PlainTraining(path, steps=steps, values_first=values_first, say=say)
        return
    progress = LiveTraining(path, steps=steps, done=done, values_first=values_first, say=say)
    with Live(progress, console=console, refresh_per_second=2):
        yield progress


class PlainTraining(Progress):
    """A training as a line per step, after what the numbers of a line mean."""

    _explained = False

    def _step(self, step: int, values: dict[str, float]) -> None:
        if not self._explained:
            self._explained = True
            self._say("  what a line says of its step:")
            for name, what in COLUMNS.items():
                self._say(f"    {name:<19}{what}")
        super()._step(step, values)


class _Remaining:
    """Seconds to the end, by the time since the first part that was seen to be done."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def bar(self, done: int, total: int, unit: str) -> RenderableType:
        """A bar, how much is done, and an estimate of how long the rest takes."""
        if done and self._first is None:
            self._first = time.monotonic(), done
        left = ""
        if self._first is not None and self._first[1] < done < total:
            began, before = self._first
            seconds = (time.monotonic() - began) / (done - before) * (total - done)
            left = f", about {seconds:.0f} s left"
        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(total=total, completed=done, width=20), f"{done} of {total} {unit}{left}")
        return line


class LiveTraining(Progress):
    """A bar of the offline values, then a training as a table of its last steps, what the columns mean, and a bar."""

    def __init__(self, path: Path, *, steps: int, done: int, values_first: bool, say: Say) -> None:
        super().__init__(path, steps=steps, values_first=values_first, say=say)
        self._left, self._done = _Remaining(), done
        self._prompts_left, self._prompts = _Remaining(), (0, 0)
        self._rows: deque[tuple[int, dict[str, float]]] = deque(maxlen=ROWS)

    def _part(self, done: int, total: int) -> None:
        self._prompts = done, total

    def _step(self, step: int, values: dict[str, float]) -> None:
        self._rows.append((step, values))
        self._done = max(self._done, step)

    def __rich__(self) -> RenderableType:
        if not self._rows:
            done, total = self._prompts
            return self._prompts_left.bar(done, total, "prompts") if 0 < done < total else Text("")
        table = Table(box=None, padding=(0, 2), header_style="bold")
        table.add_column("step", justify="right")
        names = [name for name in COLUMNS if any(name in values for _, values in self._rows)]
        for name in names:
            table.add_column(name, justify="right")
        for step, values in self._rows:
            table.add_row(str(step), *(_cell(name, values.get(name)) for name in names))
        explained = Table.grid(padding=(0, 2))
        for name in names:
            explained.add_row(Text(f"  {name}", style="dim"), Text(COLUMNS[name], style="dim"))
        return Group(table, explained, self._left.bar(self._done, self._steps, "steps"))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if name == "s" else f"{value:.3f}"
