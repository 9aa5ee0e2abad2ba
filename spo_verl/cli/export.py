"""``spo-verl export``: a record as one file, or the values of its prompts as offline values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spo_verl.cli.output import Debug, Json, Outcome, verb
from spo_verl.errors import SpoConfigError

if TYPE_CHECKING:
    from rich.console import Console

SHORT_HELP = "Write a run's record, or the values of its prompts, to one file."
HELP = """Write the record of RUN to one Parquet, CSV or JSONL file, by the ending of its name.

--what values writes the values of the newest checkpoint as offline values (Parquet), which another run reads with
spo.initial.values. It needs no record."""

What = Literal["rollouts", "steps", "prompts", "values"]


@verb
def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's folder, or one of its checkpoints, for the run up to that step."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .parquet, .csv or .jsonl to write.")
    ],
    what: Annotated[
        What, typer.Option(help="What to write: rollouts, numbers of each step, prompts, or offline values.")
    ] = "rollouts",
    columns: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Columns to write, separated by commas; default: all.")
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.history import exporting, places

    names = [] if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    if columns is not None and not names:
        raise SpoConfigError("--columns names no column: give names with commas, e.g. --columns step,key,reward.")
    place = places.find(run)
    answer: dict[str, Any] = {"file": str(output), "what": what}
    if what == "values":
        if names:
            raise SpoConfigError("offline values have columns of their own: leave out --columns.")
        answer |= exporting.write_values(place, output)
        return Outcome(answer, lambda console: _show_values(console, answer))
    exporting.check_target(output, place)
    table = exporting.chosen_table(place, what, names)
    exporting.write_table(table, output)
    answer |= {"rows": table.num_rows, "columns": table.column_names}
    return Outcome(answer, lambda console: _show(console, answer))


def _show(console: Console, answer: dict[str, Any]) -> None:
    from spo_verl.cli.layout import paragraph

    columns = ", ".join(answer["columns"])
    paragraph(console, f"wrote {answer['file']}: {answer['rows']:,} rows of {answer['what']} ({columns})")


def _show_values(console: Console, answer: dict[str, Any]) -> None:
    from spo_verl.cli.values_text import show_description

    show_description(console, answer)
    console.print(f"written; train with ++spo.initial.values={answer['file']}", markup=False, soft_wrap=True)
