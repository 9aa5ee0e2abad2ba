"""What is shown while verl runs: a line per phase of its start, then one per step, and per part of an estimation."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from spo_verl.launching.launch import read_metrics

_START = (
    ("Started a local Ray instance", "Ray is up; loading the model into the training engine"),
    ("model engine initialized", "training engine ready; starting vLLM"),
)
_VLLM = "checkpoint engine manager initialized"
TRAINING = (
    *_START,
    (_VLLM, "vLLM ready; answering the held-out prompts before training"),
    ("Initial validation metrics", "training"),
)
"""Text in verl's log, and what it means."""
VALUES_FIRST = (
    *_START,
    (_VLLM, "vLLM ready; sampling offline values"),
    ("spo: wrote", "offline values ready; answering the held-out prompts before training"),
    TRAINING[-1],
)
"""The same where offline values are sampled first."""

SHOWN = (("reward", "critic/score/mean"), ("value", "spo/value/mean"), ("seen", "spo/coverage"))
"""Label and verl metric of what a step line shows, where the run reports it."""

COLUMNS = {
    "reward": "share of the step's responses that are right; the sampler prefers prompts that are right half the time",
    "value": "the tracker's estimate of the success rate, mean over all training prompts",
    "seen": "share of the training prompts that were drawn so far",
    "s": "seconds that the step took",
    "held-out accuracy": "verl's validation: one sampled response to each held-out prompt",
}
"""What is shown of a step, explained."""

VALIDATED = re.compile(r"val-core/(?P<source>[^/]+)/acc/mean@\d+")
"""verl's metric of the accuracy on the held-out prompts of one data source."""

_ESTIMATED = re.compile(r"Offline values: .*?\| (\d+)/(\d+) ")


class Phases:
    """Callable for ``run_main_ppo(on_text=...)``: prints each phase once; its text may come in pieces."""

    def __init__(self, phases: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
        self._phases, self._say = phases, say
        self._next, self._recent = 0, ""
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        self._recent = (self._recent + text)[-10_000:]
        for position in range(self._next, len(self._phases)):
            marker, meaning = self._phases[position]
            if marker in self._recent:
                self._next = position + 1
                self._timed(meaning)

    def _timed(self, meaning: str) -> None:
        self._say(f"  {time.monotonic() - self._started:5.0f} s  {meaning}")


class Progress(Phases):
    """A training: also a line per step, and per part of the offline values where these are sampled first.

    Holds only what is needed to print; a restart begins again.
    """

    def __init__(
        self, metrics_path: Path, *, steps: int, values_first: bool = False, say: Callable[[str], None] = print
    ) -> None:
        super().__init__(VALUES_FIRST if values_first else TRAINING, say)
        self._path, self._steps, self._shown, self._estimated = metrics_path, steps, 0, 0

    def __call__(self, text: str) -> None:
        self._recent = (self._recent + text)[-10_000:]
        for done, total in _ESTIMATED.findall(self._recent):
            if int(done) > self._estimated:
                self._estimated = int(done)
                self._part(self._estimated, int(total))
        super().__call__("")  # after the parts: the last of them comes together with the phase that follows
        self.update()

    def _part(self, done: int, total: int) -> None:
        self._timed(f"{done} of {total} prompts")

    def update(self) -> None:
        """Show the metric records that have been written since the last call."""
        records = read_metrics(self._path)
        for record in records[self._shown :]:
            self._step(record["step"], shown(record["data"]))
        self._shown = len(records)

    def _step(self, step: int, values: dict[str, float]) -> None:
        parts = [f"  step {step:>4}/{self._steps}"]
        parts += [f"{value:.1f} s" if name == "s" else f"{name} {value:.3f}" for name, value in values.items()]
        self._say("   ".join(parts))


def shown(data: dict[str, Any]) -> dict[str, float]:
    """Of verl's metrics of a step those that are shown, by the names in :data:`COLUMNS`."""
    found = {label: float(data[key]) for label, key in SHOWN if key in data}
    if "timing_s/step" in data:
        found["s"] = float(data["timing_s/step"])
    if validated := [value for key, value in data.items() if VALIDATED.fullmatch(key)]:
        found["held-out accuracy"] = fmean(validated)
    return found
