"""The model that a run starts from: built, warm-started, and kept for the runs that need the same one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spo_verl.errors import SpoError, SpoStateError
from spo_verl.files import content_faults, read_json
from spo_verl.launching.limits import OutOfTime, QuickstartError
from spo_verl.small.launches import Settings, digest
from spo_verl.small.model import build_model, build_tokenizer, save
from spo_verl.small.task import Task
from spo_verl.small.warmstart import WarmStartReport, WarmStartSettings, warm_start

FORMAT = 1
"""Part of the key of a kept model; raise it when the same settings would give another model."""
REPORT, STATE = "warm_start.json", "state.pt"
SHOWN_EVERY, KEEP_EVERY_S = 100, 30.0

Say = Callable[[str], None]


def prepare_model(
    settings: Settings, task: Task, folder: Path, say: Say, *, partial: Path, seconds: float = math.inf
) -> tuple[Path, WarmStartReport]:
    """The warm-started model for these settings: kept from before, or trained and put there within ``seconds``.

    An entry is made under a temporary name and renamed when it is complete, so an interrupted warm start leaves none,
    and two runs at once do not see each other's.

    Args:
        partial: folder of this run alone, where an unfinished warm start is kept and gone on with.

    Raises:
        OutOfTime: the seconds are over; ``partial`` holds the model so far, and its report.
        QuickstartError: it has learned too little in ``max_steps``.
    """
    inputs = {
        "format": FORMAT,
        "seed": settings.seed,
        "shape": dataclasses.asdict(settings.shape),
        "warm_start": dataclasses.asdict(settings.warm_start),
        "reserved": digest(sorted(task.reserved))[:12],
    }
    entry = folder / f"model-{digest(inputs)[:12]}"
    if os.path.lexists(entry / REPORT):
        report = read_report(entry)
        say(f"  reusing {entry} (accuracy {report.accuracy:.3f})")
        return entry, report
    import torch

    state = partial / STATE
    saved = _state(state) if state.exists() else None
    if saved is not None and saved["inputs"] != inputs:
        saved = None  # of another version of the quickstart
    # One thread: the model is too small for two, and on a busy machine a second one mostly waits for the first.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = build_tokenizer()
        model = build_model(tokenizer, settings.shape, seed=settings.seed)
        watch = _Watch(
            say, settings.warm_start, seconds, inputs, partial, lambda folder: save(model, tokenizer, folder)
        )
        say(f"  Qwen3 architecture, {sum(p.numel() for p in model.parameters()):,} parameters, one token per character")
        report = warm_start(
            model,
            tokenizer,
            probe=task.probe,
            reserved=task.reserved,
            settings=settings.warm_start,
            seed=settings.seed,
            report=watch,
            resume=saved,
        )
    finally:
        torch.set_num_threads(threads)
    if report.accuracy < settings.warm_start.floor:
        raise QuickstartError(
            f"the warm start ended at accuracy {report.accuracy:.3f} after {report.steps} steps in "
            f"{report.seconds:.0f} s, too low to learn from rewards (at least {settings.warm_start.floor}); take "
            "another --seed"
        )
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".model-", dir=folder))
    save(model, tokenizer, scratch)
    record = {"inputs": inputs, "report": dataclasses.asdict(report)}
    (scratch / REPORT).write_text(json.dumps(record, indent=2) + "\n")
    try:
        scratch.rename(entry)
    except OSError:
        if not (entry / REPORT).exists():
            raise
        shutil.rmtree(scratch)  # another run finished the same model first
    shutil.rmtree(partial, ignore_errors=True)
    return entry, report


def _state(file: Path) -> dict[str, Any]:
    """An unfinished warm start.

    Raises:
        SpoStateError: the file is damaged.
    """
    import torch

    again = f"remove {file.parent}; the warm start begins anew"
    try:
        with content_faults(file, SpoStateError, again):
            found: dict[str, Any] = torch.load(file, weights_only=False)
            if not isinstance(found["inputs"], dict):
                raise TypeError("no inputs in it")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as reason:
        if isinstance(reason, SpoError):
            raise
        raise SpoStateError(f"{file} cannot be read ({type(reason).__name__}): {again}") from reason
    return found


def read_report(entry: Path) -> WarmStartReport:
    """What the warm start of a kept model reported.

    Raises:
        SpoStateError: the file is damaged.
    """
    file = entry / REPORT
    content = read_json(file, SpoStateError)
    with content_faults(file, SpoStateError, f"remove the folder {entry}; the model is made again"):
        saved = content["report"]
        report = WarmStartReport(**{**saved, "accuracy_by_level": tuple(saved["accuracy_by_level"])})
        float(report.accuracy) + float(report.seconds)
    return report


class _Watch:
    """Shows how a warm start goes, keeps it every half minute, and ends it when its seconds are over."""

    def __init__(
        self,
        say: Say,
        settings: WarmStartSettings,
        limit: float,
        inputs: dict[str, Any],
        partial: Path,
        save_model: Callable[[Path], None],
    ) -> None:
        self._say, self._settings, self._inputs = say, settings, inputs
        self._partial, self._save_model = partial, save_model
        self._ends = time.monotonic() + limit
        self._kept = time.monotonic()

    def __call__(self, step: int, seconds: float, accuracy: float, snapshot: Callable[[], dict[str, Any]]) -> None:
        target = self._settings.target
        if step % SHOWN_EVERY == 0 or accuracy >= target:
            self._say(f"  step {step:>5}   {seconds:5.0f} s   accuracy {accuracy:.3f} (target {target})")
        now = time.monotonic()
        over = now > self._ends and accuracy < target and step < self._settings.max_steps
        if over or now - self._kept > KEEP_EVERY_S:
            self._keep(snapshot())
            self._kept = now
        if over:
            raise OutOfTime(
                f"in the warm start, after {step} steps at accuracy {accuracy:.3f} (target {target}). They are kept"
            )

    def _keep(self, state: dict[str, Any]) -> None:
        import torch

        self._partial.mkdir(parents=True, exist_ok=True)
        self._save_model(self._partial)
        report = WarmStartReport(state["step"], state["seconds"], state["accuracy"], state["by_level"], reached=False)
        (self._partial / REPORT).write_text(json.dumps({"report": dataclasses.asdict(report)}, indent=2) + "\n")
        scratch = self._partial / f".{STATE}.writing"
        torch.save({**state, "inputs": self._inputs}, scratch)
        scratch.replace(self._partial / STATE)
