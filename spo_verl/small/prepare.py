"""The model that a run starts from: built, warm-started, and kept for the runs that need the same one."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spo_verl.errors import SpoError, SpoStateError
from spo_verl.files import content_faults, read_json, replacing
from spo_verl.launching.limits import OutOfTime, RunError
from spo_verl.launching.runs import write_json
from spo_verl.small.launches import Settings, digest
from spo_verl.small.model import build_model, build_tokenizer, save
from spo_verl.small.task import Task
from spo_verl.small.warmstart import WarmStartReport, warm_start

FORMAT = 1
"""Part of the key of a kept model; raise it when the same settings would give another model."""
REPORT, STATE = "warm_start.json", "state.pt"
SHOWN_EVERY, KEEP_EVERY_S = 100, 30.0

Say = Callable[[str], None]


def prepare_model(
    settings: Settings, task: Task, folder: Path, say: Say, *, partial: Path, seconds: float = math.inf
) -> tuple[Path, WarmStartReport]:
    """The warm-started model for these settings: kept from before, or trained and put there within ``seconds``.

    A model is made in ``partial`` and renamed when it is complete, so an interrupted warm start leaves nothing else,
    and two runs at once do not see each other's.

    Args:
        partial: folder of this run alone, on the file system of ``folder``, where an unfinished warm start is kept and
            continued.

    Raises:
        OutOfTime: the seconds are over; ``partial`` holds the model so far, and its report.
        RunError: it has learned too little in ``max_steps``.
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

    state, wanted = partial / STATE, settings.warm_start
    saved = _state(state) if state.exists() else None
    if saved is not None and saved["inputs"] != inputs:
        saved = None  # of another version of this module
    # One thread: the model is too small for two, and on a busy machine a second one mostly waits for the first.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = build_tokenizer()
        model = build_model(tokenizer, settings.shape, seed=settings.seed)
        started = kept = time.monotonic()

        def watch(step: int, spent: float, accuracy: float, snapshot: Callable[[], dict[str, Any]]) -> None:
            nonlocal kept
            if step % SHOWN_EVERY == 0 or accuracy >= wanted.target:
                say(f"  step {step:>5}   {spent:5.0f} s   accuracy {accuracy:.3f} (target {wanted.target})")
            now = time.monotonic()
            over = now - started > seconds and accuracy < wanted.target and step < wanted.max_steps
            if over or now - kept > KEEP_EVERY_S:
                _keep(model, tokenizer, {**snapshot(), "inputs": inputs}, partial)
                kept = now
            if over:
                raise OutOfTime(
                    f"in the warm start, after {step} steps at accuracy {accuracy:.3f} (target {wanted.target}). They "
                    "are kept"
                )

        say(f"  Qwen3 architecture, {sum(p.numel() for p in model.parameters()):,} parameters, one token per character")
        report = warm_start(
            model,
            tokenizer,
            probe=task.probe,
            reserved=task.reserved,
            settings=wanted,
            seed=settings.seed,
            report=watch,
            resume=saved,
        )
    finally:
        torch.set_num_threads(threads)
    if report.accuracy < wanted.floor:
        raise RunError(
            f"the warm start ended at accuracy {report.accuracy:.3f} after {report.steps} steps in "
            f"{report.seconds:.0f} s, too low to learn from rewards (at least {wanted.floor}); take another --seed"
        )
    folder.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, partial)
    write_json(partial / REPORT, {"inputs": inputs, "report": dataclasses.asdict(report)})
    state.unlink(missing_ok=True)
    try:
        partial.rename(entry)
    except OSError:
        if not (entry / REPORT).exists():
            raise
        shutil.rmtree(partial)  # another run finished the same model first
    return entry, report


def _keep(model: Any, tokenizer: Any, state: dict[str, Any], folder: Path) -> None:
    """Write an unfinished warm start, as a model that can be evaluated and as the state that it continues from."""
    import torch

    save(model, tokenizer, folder)
    report = WarmStartReport(state["step"], state["seconds"], state["accuracy"], state["by_level"], reached=False)
    write_json(folder / REPORT, {"report": dataclasses.asdict(report)})
    with replacing(folder / STATE, SpoStateError) as stage:
        torch.save(state, stage())


def _state(file: Path) -> dict[str, Any]:
    """An unfinished warm start.

    Raises:
        SpoStateError: the file is damaged.
    """
    import torch

    again = f"remove {file.parent}; the warm start begins again"
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
