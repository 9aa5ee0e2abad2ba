"""The model that a run starts from: built, warm-started, and kept for the runs that need the same one."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from spo_verl.quickstart.errors import QuickstartError
from spo_verl.quickstart.model import build_model, build_tokenizer, save
from spo_verl.quickstart.settings import Settings, digest
from spo_verl.quickstart.task import Task
from spo_verl.quickstart.warmstart import WarmStartReport, warm_start

FORMAT = 1
"""Part of the key of a kept model; raise it when the same settings would give another model."""
REPORT = "warm_start.json"

Say = Callable[[str], None]


def prepare_model(
    settings: Settings, task: Task, folder: Path, say: Say, *, seconds: float = math.inf
) -> tuple[Path, WarmStartReport]:
    """The warm-started model for these settings: kept from before, or trained and put there within ``seconds``.

    An entry is made under a temporary name and renamed when it is complete, so an interrupted warm start leaves none,
    and two runs at once do not see each other's.
    """
    inputs = {
        "format": FORMAT,
        "seed": settings.seed,
        "shape": dataclasses.asdict(settings.shape),
        "warm_start": dataclasses.asdict(settings.warm_start),
        "reserved": digest(sorted(task.reserved))[:12],
    }
    entry = folder / f"model-{digest(inputs)[:12]}"
    if (entry / REPORT).exists():
        report = read_report(entry)
        say(f"  reusing {entry} (accuracy {report.accuracy:.3f})")
        return entry, report
    import torch

    # One thread: the model is too small for two, and on a busy machine a second one mostly waits for the first.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = build_tokenizer()
        model = build_model(tokenizer, settings.shape, seed=settings.seed)
        say(f"  Qwen3 architecture, {sum(p.numel() for p in model.parameters()):,} parameters, one token per character")
        report = warm_start(
            model,
            tokenizer,
            probe=task.probe,
            reserved=task.reserved,
            settings=settings.warm_start,
            seed=settings.seed,
            report=_watched(say, settings.warm_start.target, seconds),
        )
    finally:
        torch.set_num_threads(threads)
    if report.accuracy < settings.warm_start.floor:
        raise QuickstartError(
            f"the warm start ended at accuracy {report.accuracy:.3f} after {report.steps} steps in "
            f"{report.seconds:.0f} s, too low to learn from rewards (at least {settings.warm_start.floor}). On a slow "
            "or busy machine allow more time: --warm-start-seconds 1800 --time-limit 3600"
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
    return entry, report


def read_report(entry: Path) -> WarmStartReport:
    """What the warm start of a kept model reported."""
    saved = json.loads((entry / REPORT).read_text())["report"]
    return WarmStartReport(**{**saved, "accuracy_by_level": tuple(saved["accuracy_by_level"])})


def _watched(say: Say, target: float, limit: float, every: int = 100) -> Callable[[int, float, float], None]:
    def report(step: int, seconds: float, accuracy: float) -> None:
        if seconds > limit:
            raise QuickstartError(
                f"the time of this call (--time-limit) ended in the warm start, after {step} steps at accuracy "
                f"{accuracy:.3f}, and a warm start is not kept in part: allow more time"
            )
        if step % every == 0 or accuracy >= target:
            say(f"  step {step:>5}   {seconds:5.0f} s   accuracy {accuracy:.3f} (target {target})")

    return report
