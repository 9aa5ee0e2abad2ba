"""``spo-verl watch``: a run as it is now, from its tracker service or its record, without any effect on it."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spo_verl.cli.output import Debug, Json, Outcome, verb
from spo_verl.errors import SpoStateError

if TYPE_CHECKING:
    from rich.console import Console

    from spo_verl.history.live import Watched

SHORT_HELP = "Show a run live while it trains."
HELP = """Show a run while it trains: outcomes and baselines by step, values, coverage, endings, time.

Without RUN the run on this machine is shown; if there are several, they are listed. Watching never changes the run. If
its Ray cluster cannot be joined, only the record is read. A terminal shows a picture that is renewed until the run ends
or you press Ctrl-C; a file or pipe gets one line per step."""


@verb
def watch(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="The run's folder; default: the run on this machine.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the present state once and end, as --json does.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two updates.")] = 2.0,
    record_only: Annotated[
        bool, typer.Option("--record-only", help="Read only the record; do not join the Ray cluster.")
    ] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.history.live import Watched
    from spo_verl.history.running import running_at, running_here, starting_here

    found = [running_at(run)] if run is not None else running_here()
    if not found and (starting := starting_here()):
        raise SpoStateError(_of_starting(starting))
    if not found:
        raise SpoStateError(
            "no run with SPO is under way on this machine: start one, or name the folder of a run "
            "(trainer.default_local_dir), also of one on another machine that shares the folder."
        )
    if len(found) > 1:
        frames = []
        for one in found:
            with Watched(one, service=one.record is None and not record_only) as watched:
                watched.wait_for_service()
                frames.append(watched.frame())
        return Outcome({"runs": frames}, lambda console: _list(console, frames))
    watched = Watched(found[0], service=not record_only)
    if not once and not json_output:
        return Outcome(None, lambda console: _follow(console, watched, interval))
    with watched:
        watched.wait_for_service()
        frame = watched.frame()
    return Outcome({"runs": [frame]}, lambda console: _show(console, frame))


def _of_starting(starting: list[dict[str, Any]]) -> str:
    """Why there is nothing to show of trainers that live."""
    lines = []
    for one in starting:
        parts = f"; finished parts of {one['values']}: {one['parts']}" if one["values"] is not None else ""
        lines.append(f"process {one['pid']} in {one['folder']}{parts}")
    return (
        f"a trainer of verl is at work and has recorded nothing of SPO yet ({', '.join(lines)}). With SPO, it loads "
        "its model or samples offline values: call watch again once it trains. Another estimator keeps no record."
    )


def _show(console: Console, frame: dict[str, Any]) -> None:
    from spo_verl.cli.watch_text import print_frame

    print_frame(console, frame)


def _list(console: Console, frames: list[dict[str, Any]]) -> None:
    from spo_verl.cli.watch_text import print_list

    print_list(console, frames)


def _follow(console: Console, watched: Watched, interval: float) -> None:
    """Until the run is over or the reader has seen enough."""
    try:
        with watched:
            watched.wait_for_service()
            (_redraw if console.is_terminal else _log)(console, watched, interval)
    except KeyboardInterrupt:
        return


def _redraw(console: Console, watched: Watched, interval: float) -> None:
    from rich.console import Console as Plain
    from rich.live import Live
    from rich.text import Text

    from spo_verl.cli.watch_text import print_frame
    from spo_verl.visible import visible

    def drawn(frame: dict[str, Any]) -> Text:
        stream = io.StringIO()
        # A terminal's width, and no colours: the text is put into another console's picture.
        inner = Plain(file=stream, width=console.width, force_terminal=True, no_color=True, color_system=None)
        print_frame(inner, frame)
        return Text(visible(stream.getvalue()))

    frame = watched.frame()
    with Live(drawn(frame), console=console, auto_refresh=False) as live:
        while frame["state"] not in ("ended", "crashed"):
            time.sleep(interval)
            frame = watched.frame()
            live.update(drawn(frame), refresh=True)


def _log(console: Console, watched: Watched, interval: float) -> None:
    from spo_verl.cli.watch_text import print_frame, print_step

    frame = watched.frame()
    print_frame(console, frame)
    last = frame["step"] or 0
    while frame["state"] not in ("ended", "crashed"):
        time.sleep(interval)
        frame = watched.frame()
        for step in frame["steps"].get("step", []):
            if step > last:
                print_step(console, frame, step)
                last = step
    print_step_end(console, frame)


def print_step_end(console: Console, frame: dict[str, Any]) -> None:
    """Say how the run ended."""
    console.print(f"the run has {'ended' if frame['state'] == 'ended' else 'crashed'}", markup=False)
