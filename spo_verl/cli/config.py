"""``spo-verl config``: the configuration of a run before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spo_verl.cli.output import Debug, Json, Outcome, verb
from spo_verl.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

SHORT_HELP = "Check the configuration of a run before it is started."
HELP = """Compose verl's configuration as `python -m verl.trainer.main_ppo OVERRIDES` would, and check it.

Shows each setting of SPO and where it comes from, verl's keys that differ from the paper, and all problems at once.
Exit status 1 if there are problems."""


@verb
def config(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="OVERRIDES", help="As on main_ppo's command line.")
    ] = None,
    config_name: Annotated[str, typer.Option(help="As hydra's --config-name.")] = "ppo_trainer",
    config_dir: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder with configuration files of your own."),
    ] = None,
    verl: Annotated[
        bool, typer.Option("--verl", help="Run verl's own check too; it needs the whole command line of the run.")
    ] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.launching.composition import compose, examine, setting_values, unknown_settings, verl_problem
    from spo_verl.training.checks import differences_to_paper

    composed = compose(overrides or [], config_name=config_name, config_dir=config_dir)
    examined = examine(composed)
    problems = list(examined.problems)
    if verl and (problem := verl_problem(composed.config)):
        problems.append(problem)
    values = {**setting_values(composed.config), **unknown_settings(composed.config)}
    data = {
        "config_name": config_name,
        "preset": composed.preset,
        "settings": {key: {"value": value, "source": composed.source(key)} for key, value in values.items()},
        "differs_from_paper": [
            {"key": key, "value": _plain(actual), "paper": paper, "source": composed.source(key)}
            for key, actual, paper in differences_to_paper(composed.config)
        ],
        "warnings": examined.warnings,
        "problems": problems,
    }
    return Outcome(data, lambda console: _show(console, data), status=1 if problems else 0)


def _plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _show(console: Console, data: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    settings = Table("setting", "value", "from", box=box.SIMPLE, pad_edge=False)
    for key, entry in data["settings"].items():
        style = "" if entry["source"] == "default" else "bold"
        settings.add_row(*(Text(visible(text), style) for text in (key, _yaml(entry["value"]), entry["source"])))
    console.print(settings)

    if data["differs_from_paper"]:
        differing = Table("verl's key", "this run", "paper", "from", box=box.SIMPLE, pad_edge=False)
        for entry in data["differs_from_paper"]:
            cells = (entry["key"], _yaml(entry["value"]), _yaml(entry["paper"]), entry["source"])
            differing.add_row(*(Text(visible(text)) for text in cells))
        console.print("Different from the paper:")
        console.print(differing)
    else:
        console.print("verl's own keys are those of the paper.")
    for warning in data["warnings"]:
        console.print(Text(f"warning: {warning}", "yellow"), soft_wrap=True)
    if not data["problems"]:
        console.print(Text("no problems", "green"))
        return
    noun = "problem" if len(data["problems"]) == 1 else "problems"
    console.print(Text(f"{len(data['problems'])} {noun}:", "bold red"))
    for number, problem in enumerate(data["problems"], 1):
        console.print(Text(f"  {number}. {problem}"), soft_wrap=True)


def _yaml(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, default=str)
