"""What the quickstart shows while verl trains: one line per phase of the start, then one per step."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spo_verl.quickstart.accuracy import read_accuracy

PHASES = (
    ("Started a local Ray instance", "Ray is up; loading the model into the training engine"),
    ("model engine initialized", "training engine ready; starting vLLM"),
    ("checkpoint engine manager initialized", "vLLM ready; answering the held-out prompts before training"),
    ("Initial validation metrics", "training"),
)
"""Text in verl's log, and what it means."""

SHOWN = (
    ("reward", "critic/score/mean"),
    ("value", "spo/value/mean"),
    ("seen", "spo/coverage"),
)
"""Label and verl metric of what a step line shows, where the run reports it."""


ESTIMATE_PHASES = (
    PHASES[0],
    PHASES[1],
    ("checkpoint engine manager initialized", "vLLM ready; sampling"),
)
_ESTIMATED = re.compile(r"Offline values: .*?\| (\d+)/(\d+) ")


class _Phases:
    """Says each phase once, when its mark has come; a mark may arrive in pieces."""

    def __init__(self, phases: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
        self._phases, self._say = phases, say
        self._next, self.recent = 0, ""
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        self.recent = (self.recent + text)[-10_000:]
        for position in range(self._next, len(self._phases)):
            marker, meaning = self._phases[position]
            if marker in self.recent:
                self._next = position + 1
                self.say(meaning)

    def say(self, meaning: str) -> None:
        self._say(f"  {time.monotonic() - self._started:5.0f} s  {meaning}")


class EstimateProgress:
    """The same while offline values are estimated: one line per part that is finished."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self._phases, self._done = _Phases(ESTIMATE_PHASES, say), 0

    def __call__(self, text: str) -> None:
        self._phases(text)
        for done, total in _ESTIMATED.findall(self._phases.recent):
            if int(done) > self._done:
                self._done = int(done)
                self._phases.say(f"{done} of {total} prompts")


class Progress:
    """Callable for ``run_main_ppo(on_text=...)``. Holds only what is needed to print; a restart begins anew."""

    def __init__(self, metrics_path: Path, *, steps: int, prompts: int, say: Callable[[str], None] = print) -> None:
        self._path, self._steps, self._prompts, self._say = metrics_path, steps, prompts, say
        self._phases, self._offset = _Phases(PHASES, say), 0

    def __call__(self, text: str) -> None:
        self._phases(text)
        self.update()

    def update(self) -> None:
        """Show the metric records that have been written since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._say(self._line(json.loads(line)))

    def _line(self, record: dict[str, Any]) -> str:
        step, data = record["step"], record["data"]
        parts = [f"  step {step:>4}/{self._steps}"]
        parts += [f"{label} {data[key]:.3f}" for label, key in SHOWN if key in data]
        if "timing_s/step" in data:
            parts.append(f"{data['timing_s/step']:.1f} s")
        accuracy = read_accuracy(record, prompts=self._prompts)
        if accuracy is not None:
            parts.append(f"held-out accuracy {accuracy.mean:.3f}")
        return "   ".join(parts)
