"""Whether a rehearsal did what the recipe is for: steps, metrics, checkpoint, dumps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.launching.launch import Run
from spo_verl.rehearsal.reduction import HELD_OUT, STEPS, Files, Kind

LOSS = "actor/pg_loss"
OURS = ("spo/reward/mean", "spo/value/batch_mean", "spo/advantage/raw_variance", "spo/coverage")
"""Metrics that every SPO run has from its first step on."""


@dataclass(frozen=True)
class Check:
    """One question to a rehearsal, its answer and what was found."""

    name: str
    ok: bool
    found: str


def judge(run: Run, files: Files, kind: Kind, *, spo: bool, tools: bool, validation_n: int) -> list[Check]:
    """All checks of a launch that ended by itself.

    Args:
        spo: whether the estimator is SPO's.
        tools: whether the agent loop calls tools.
        validation_n: responses per held-out prompt.
    """
    if kind == "training":
        called = [_called(run)] if tools else []
        return [*_training(run, spo=spo), *called, *_checkpoint(files.folder / "checkpoints", spo=spo)]
    if kind == "offline values":
        return [_estimated(files)]
    return [_validated(run, step=0), _dumped(files.dumps, HELD_OUT * validation_n)]


def _training(run: Run, *, spo: bool) -> Iterator[Check]:
    losses = run.series(LOSS)
    done = sorted(step for step in losses if step > 0)
    yield Check("steps", done == list(range(1, STEPS + 1)), f"{len(done)} of {STEPS} with a loss ({LOSS})")
    odd = sorted({name for name, value in _numbers(run.metrics) if not math.isfinite(value)})
    count = sum(1 for _ in _numbers(run.metrics))
    yield Check("metrics finite", count > 0 and not odd, ", ".join(odd) or f"all {count} numbers")
    if spo:
        absent = [name for name in OURS if len(run.series(name)) != STEPS]
        there = {name for record in run.metrics for name in record["data"] if name.startswith("spo/")}
        yield Check(
            "metrics of SPO", not absent, f"absent: {', '.join(absent)}" if absent else f"{len(there)} of spo/*"
        )
    yield _validated(run, step=STEPS)


def _validated(run: Run, *, step: int) -> Check:
    found = [
        name for record in run.metrics if record["step"] == step for name in record["data"] if name.startswith("val-")
    ]
    return Check("validation", bool(found), f"{len(found)} metrics at step {step}")


def _called(run: Run) -> Check:
    """A rollout without a call has two turns: the prompt and the answer."""
    turns = max(run.series("num_turns/max").values(), default=0.0)
    return Check("tool calls", turns > 2, f"at most {turns:.0f} turns in a rollout")


def _checkpoint(folder: Path, *, spo: bool) -> Iterator[Check]:
    marker = folder / "latest_checkpointed_iteration.txt"
    step = folder / f"global_step_{STEPS}"
    marked = marker.exists() and marker.read_text().strip() == str(STEPS)
    wanted = ["actor", *(["spo/manifest.json"] if spo else [])]
    absent = [name for name in wanted if not (step / name).exists()]
    found = f"{step.name}: {', '.join(wanted)}" if not absent else f"{step.name} lacks {', '.join(absent)}"
    yield Check("checkpoint", marked and not absent, found if marked else "no marker of the last step")


def _estimated(files: Files) -> Check:
    from spo_verl.data.values import OfflineValues

    if not files.estimated.exists():
        return Check("offline values", False, f"no {files.estimated.name}")
    values = OfflineValues.read(files.estimated)
    return Check("offline values", len(values) > 0, f"{len(values)} prompts, {int(values.trials_N.sum())} trials")


def _dumped(folder: Path, expected: int) -> Check:
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    scored = [line for line in lines if "score" in json.loads(line)]
    return Check("dumped responses", len(scored) == expected, f"{len(scored)} of {expected} with a score")


def _numbers(metrics: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    for record in metrics:
        for name, value in record["data"].items():
            if isinstance(value, (int, float)):
                yield name, float(value)
