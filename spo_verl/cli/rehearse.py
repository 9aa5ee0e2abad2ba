"""``spo-verl rehearse``: a recipe run for two real steps, small, before it takes accelerators."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spo_verl.cli.output import Debug, Json, Outcome, verb

if TYPE_CHECKING:
    from rich.console import Console

    from spo_verl.rehearsal.rehearse import Rehearsal

SHORT_HELP = "Try a run: two real steps with a small model."
HELP = """Try a run: train two real steps with a small model instead of the run's, on rows of its data, and judge
the result. Every key that differs from the run's is printed with the reason.

RUN is a recipe (a name of `spo-verl recipes ls`, or a YAML file) with overrides such as model_engine=megatron, or your
own command line, with or without `python -m verl.trainer.main_ppo`."""


@verb
def rehearse(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="A recipe and overrides, or a command line.")],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE", help="Training rows in verl's columns; default: the run's files."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="New folder for the result; default: one in runs/rehearsals."
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "gpu"],
        typer.Option("--device", help="Device to run on; auto: gpu if there is one (never tried on a GPU)."),
    ] = "auto",
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Total number of training processes.")] = 1,
    tp: Annotated[
        int, typer.Option("--tp", min=1, help="Processes that share each layer, tensor-parallel (Megatron).")
    ] = 1,
    pp: Annotated[
        int, typer.Option("--pp", min=1, help="Processes that share the layers, pipeline-parallel (Megatron).")
    ] = 1,
    sp: Annotated[int, typer.Option("--sp", min=1, help="Processes that share a sequence (FSDP, not on a CPU).")] = 1,
    time_limit: Annotated[
        float | None,
        typer.Option(
            "--time-limit", min=1, help="Seconds that verl may take; default: 400, plus 200 per further rank."
        ),
    ] = None,
    memory_limit: Annotated[
        float | None,
        typer.Option("--memory-limit", min=1, help="GiB that verl may take; default: 12, plus 4 per further rank."),
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.launching.recipes import find_run
    from spo_verl.rehearsal import rehearse as rehearsing
    from spo_verl.rehearsal.split import Split

    source, overrides = find_run(run)
    folder = output or _new_folder(source.name.replace(" ", "_"))
    found = rehearsing.rehearse(
        source,
        overrides,
        data=data or [],
        folder=folder,
        device=("gpu" if rehearsing.accelerators() else "cpu") if device == "auto" else device,
        split=Split(ranks, tp, pp, sp),
        limits=replace(
            rehearsing.LIMITS,
            seconds=time_limit or 400.0 + 200.0 * (ranks - 1),
            memory_gib=memory_limit or 12.0 + 4.0 * (ranks - 1),
        ),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return Outcome(found.as_json(), lambda console: _show(console, found), status=0 if found.passed else 1)


def _new_folder(name: str) -> Path:
    base = Path("runs") / "rehearsals" / name
    number = 1
    while (base / str(number)).exists():
        number += 1
    return base / str(number)


def _show(console: Console, found: Rehearsal) -> None:
    from rich.text import Text

    if found.changes:
        console.print("Different from the run:" if found.recipe == "command line" else "Different from the recipe:")
    for why in dict.fromkeys(change.why for change in found.changes):
        console.print(Text(f"  {why}"), soft_wrap=True)
        for change in found.changes:
            if change.why == why:
                line = f"    {change.key}   {_short(change.recipe)} -> {_short(change.rehearsal)}"
                console.print(Text(line), soft_wrap=True)
    for check in found.checks:
        console.print(Text(f"  {'ok  ' if check.ok else 'FAIL'}  {check.name:<18}{check.found}"), soft_wrap=True)
    console.print(Text(verdict(found)), soft_wrap=True)
    console.print(Text(f"everything is in {found.folder}"), soft_wrap=True)


def verdict(found: Rehearsal) -> str:
    """The last sentence."""
    from spo_verl.rehearsal.split import Split

    split = Split(found.ranks, found.tp, found.pp, found.sp).text()
    what = f"{found.recipe} ({', '.join(filter(None, (found.engine, found.mode, split, found.kind)))})"
    if found.stopped is not None:
        reached = ", ".join(stage.name for stage in found.stages)
        return f"NOT REHEARSED: {what} got as far as: {reached}. Why it stops: {found.stopped}"
    cost = f"{found.seconds:.0f} s, at most {found.peak_gib or 0.0:.1f} GiB"
    if found.passed:
        return f"REHEARSED: {what} in {cost}"
    failed = ", ".join(check.name for check in found.checks if not check.ok)
    return f"FAILED: {what} in {cost}: {failed}"


def _short(value: Any) -> str:
    text = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"...{text[-57:]}"
