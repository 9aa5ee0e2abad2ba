"""``spo-verl report`` and ``spo-verl plot``: runs as one HTML page, and their main curves as a picture."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spo_verl.cli.layout import paragraph
from spo_verl.cli.output import Debug, Json, Outcome, verb

if TYPE_CHECKING:
    from rich.console import Console

SHORT_HELP = "Make an HTML page of runs: curves, samples, history of each prompt."
HELP = """Make one HTML page of a run, or of several to compare. The page needs no network and no other file.

RUN is a run's folder (trainer.default_local_dir); the run may still train or have crashed. NAME=RUN shows it as NAME.
Up to --limit megabytes the page gets curves and prompts, then samples of rollouts, then histories of prompts. What it
got is printed."""
PLOT_SHORT_HELP = "Draw the main curves of runs into a PNG."
PLOT_HELP = """Draw the main curves of a run, or of several to compare, into one PNG. Needs spo-verl[plots].

RUN is a run's folder (trainer.default_local_dir); the run may still train or have crashed. NAME=RUN shows it as NAME.
--json also prints the numbers of the curves."""

Runs = Annotated[list[str], typer.Argument(metavar="[NAME=]RUN...", help="Folders of runs with a record.")]


@verb
def report(
    runs: Runs,
    output: Annotated[Path, typer.Option(metavar="FILE.html", help="HTML file to write.")] = Path("report.html"),
    limit: Annotated[
        float, typer.Option(min=1, max=1000, metavar="MB", help="Largest size of the page, in megabytes.")
    ] = 16,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.files import check_output, replacing
    from spo_verl.reporting.page import lines_about, make_page
    from spo_verl.reporting.sources import ReportError, open_runs

    check_output(output, ReportError)
    sources = open_runs(_named(runs))
    page, embedded = make_page(
        sources, f"{datetime.now():%Y-%m-%d %H:%M}", int(limit * 1e6), lambda line: print(line, file=sys.stderr)
    )
    with replacing(output, ReportError) as stage:
        stage().write_text(page, encoding="utf-8")
    size = len(page.encode())
    answer = {"output": str(output), "bytes": size, "runs": [asdict(one) for one in embedded]}

    def show(console: Console) -> None:
        for line in lines_about(embedded):
            paragraph(console, line)
        paragraph(console, f"{output}: {size / 1e6:.1f} MB; open it in a browser")

    return Outcome(answer, show)


@verb
def plot(
    runs: Runs,
    output: Annotated[Path, typer.Option(metavar="FILE.png", help="PNG file to write.")] = Path("curves.png"),
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.drawing import load_plotting
    from spo_verl.files import check_output, replacing
    from spo_verl.reporting.aggregates import COLUMNS, aggregates, plain
    from spo_verl.reporting.picture import draw
    from spo_verl.reporting.sources import ReportError, open_runs

    check_output(output, ReportError)
    load_plotting()
    curves = {}
    for source in open_runs(_named(runs)):
        with source.faults():
            curves[source.name] = aggregates(*source.tables(COLUMNS))
    with replacing(output, ReportError) as stage:
        draw(curves, stage())
    answer = {"output": str(output), "runs": {name: plain(found) for name, found in curves.items()}}
    return Outcome(answer, lambda console: paragraph(console, f"{output}: {', '.join(curves)}"))


def _named(runs: list[str]) -> list[tuple[str | None, Path]]:
    """Name, where one was given, and path of each run."""
    from spo_verl.cli.evaluate import named

    found = [named(text) for text in runs]
    return [
        (None if str(path) == str(Path(text)) else name, path) for text, (name, path) in zip(runs, found, strict=True)
    ]
