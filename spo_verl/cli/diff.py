"""``spo-verl diff``: two runs or checkpoints compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spo_verl.cli.output import Debug, Json, Outcome, verb

if TYPE_CHECKING:
    from rich.console import Console

SHORT_HELP = "Compare two runs or checkpoints."
HELP = """Compare two runs or checkpoints: settings that differ, values of each prompt, coverage, and outcomes over
steps if both have a record.

A and B are checkpoints (global_step_N), or folders of runs, of which the newest complete checkpoint is taken. Prompts
are matched by key."""


@verb
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run or checkpoint.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another run or checkpoint.")],
    top: Annotated[int, typer.Option(min=0, max=1000, help="Number of prompts to list, those that differ most.")] = 10,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", metavar="FILE", help="Training data with the prompts' texts, if no record has them; repeatable."
        ),
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.history import comparing, places, states
    from spo_verl.history.texts import Texts

    found = [places.find(path) for path in (first, second)]
    sides = [(place, states.states_of(place)) for place in found]
    answer: dict[str, Any] = {"paths": [str(first), str(second)], **comparing.compare(sides[0], sides[1], top)}
    record = next((place.record for place in found if place.record is not None), None)
    said = Texts(record, data or []).of(one["key"] for one in answer["largest"])
    answer["largest"] = [
        one | {"row": said[one["key"]].row, "text": said[one["key"]].text} for one in answer["largest"]
    ]
    return Outcome(answer, lambda console: _show(console, answer))


def _show(console: Console, answer: dict[str, Any]) -> None:
    from spo_verl.cli.layout import paragraph, table
    from spo_verl.cli.prompt_lists import number, prompts_table, share
    from spo_verl.cli.tracker_text import labelled

    for letter, path, step in zip("AB", answer["paths"], answer["steps"], strict=True):
        paragraph(console, f"{path}, step {step}", first=f"{letter}: ")
    paragraph(console, "settings that differ", style="bold")
    if answer["settings"]:
        rows = [(name, _short(a), _short(b)) for name, (a, b) in answer["settings"].items()]
        table(console, ("setting", "A", "B"), rows)
    else:
        paragraph(console, "none", first="  ")
    counts, values = answer["prompts"], answer["values"]
    only = f"{counts['only_first']:,} only in A, {counts['only_second']:,} only in B"
    entries = {
        "prompts": f"{counts['common']:,} in both, {only}",
        "coverage": f"A {share(answer['coverage'][0])}, B {share(answer['coverage'][1])}",
    }
    if values is not None:
        entries["value"] = f"mean A {number(values['mean'][0])}, B {number(values['mean'][1])}, over those in both"
        entries["distance"] = (
            f"mean |B - A| {number(values['mean_distance'])}, correlation {number(values['correlation'])}"
        )
    labelled(console, entries)
    if answer["largest"]:
        paragraph(console, "largest differences of the value", style="bold")
        flat = [
            one | {"a": one["values"][0], "b": one["values"][1], "na": one["n_eff"][0], "nb": one["n_eff"][1]}
            for one in answer["largest"]
        ]
        columns = [("A", "a", 3), ("B", "b", 3), ("n_eff A", "na", 1), ("n_eff B", "nb", 1)]
        prompts_table(console, flat, columns)
    if answer["outcomes"]:
        paragraph(console, "mean reward (mean baseline) by step", style="bold")
        rows = [(_steps(one), _rate(one, 0), _rate(one, 1)) for one in answer["outcomes"]]
        table(console, ("steps", "A", "B"), rows)
    elif answer["outcomes"] is None:
        paragraph(console, "Outcomes over steps need the record of both runs.", style="dim")


def _steps(row: dict[str, Any]) -> str:
    return str(row["from"]) if row["from"] == row["to"] else f"{row['from']} to {row['to']}"


def _rate(row: dict[str, Any], side: int) -> str:
    from spo_verl.cli.prompt_lists import number

    reward = row["reward"][side]
    return "-" if reward is None else f"{number(reward)} ({number(row['value'][side])})"


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."
