"""``spo-verl config``: the configuration of a run before it is started."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from spo_verl.cli.layout import paragraph, table
from spo_verl.cli.output import Debug, Json, Outcome, verb
from spo_verl.errors import SpoConfigError

if TYPE_CHECKING:
    from rich.console import Console

SHORT_HELP = "Check the configuration of a run before it is started."
HELP = """Compose verl's configuration as `python -m verl.trainer.main_ppo OVERRIDES` would, and check it.

Shows all problems and warnings. Without problems it also shows each setting of SPO with its origin, and verl's keys
that differ from the paper.

OVERRIDES is what follows main_ppo, with hydra's --config-path, --config-name and --config-dir if you use them. The
whole command line from `python -m verl.trainer.main_ppo` works too; variables before it (NAME=VALUE) are set for the
check. Exit status 1 if there are problems."""

_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_WITH_VALUE = ("--config-name", "-cn", "--config-dir", "-cd", "--config-path", "-cp")


class WholeLine(TyperCommand):
    """Takes the command line of a run as its user has it, up to ``main_ppo`` with all that starts Python."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from spo_verl.launching.recipes import split_at_main

        try:
            words, main = split_at_main(args)
        except SpoConfigError as error:
            raise typer.BadParameter(str(error)) from error
        if main is None:
            return super().parse_args(ctx, args)
        begin = 0
        while words[begin].startswith("-"):  # options of this verb
            begin += 2 if words[begin] in _WITH_VALUE else 1
        variables = takewhile(bool, (_VARIABLE.fullmatch(word) for word in words[begin:main] if word != "env"))
        ctx.call_on_close(_set_for_now({found[1]: found[2] for found in variables if found}))
        return super().parse_args(ctx, [*words[:begin], *words[main + 1 :]])


def _set_for_now(variables: Mapping[str, str]) -> Callable[[], None]:
    """Set variables of the environment; returns what undoes it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)

    def undo() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return undo


def _only_hydras(name: str, why: str) -> Callable[[Any], Any]:
    """The callback of an option of hydra that does not start one training run."""

    def refuse(given: Any) -> Any:
        if given:
            raise typer.BadParameter(f"{name} {why}")
        return given

    return refuse


def _hydras(*names: str, why: str) -> Any:
    callback = _only_hydras(names[0], f"is an option of main_ppo that {why}")
    return typer.Option(
        *names, hidden=True, is_eager=True, callback=callback, help="An option of main_ppo that is refused here."
    )


_SEVERAL = "starts several runs; check the command line of each without it"
_PRINTS = "prints something and trains nothing; leave it out"


@verb
def config(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OVERRIDES", help="What follows main_ppo on the command line of the run, or the whole line."
        ),
    ] = None,
    config_name: Annotated[
        str, typer.Option("--config-name", "-cn", help="Name of the configuration file, as hydra's --config-name.")
    ] = "ppo_trainer",
    config_dir: Annotated[
        Path | None,
        typer.Option("--config-dir", "-cd", help="One more folder of configuration files, as hydra's --config-dir."),
    ] = None,
    config_path: Annotated[
        str | None,
        typer.Option(
            "--config-path",
            "-cp",
            help="Folder of the configuration, instead of verl's, as hydra's --config-path: absolute, or relative "
            "to verl's folder `trainer`.",
        ),
    ] = None,
    verl: Annotated[
        bool,
        typer.Option("--verl", help="Also run verl's own check, which needs the complete command line of the run."),
    ] = False,
    files: Annotated[
        bool,
        typer.Option("--files/--no-files", help="Check that the files named by the configuration are on this machine."),
    ] = True,
    show_all: Annotated[bool, typer.Option("--all", help="Show the settings even if there are problems.")] = False,
    run: Annotated[
        bool, typer.Option("--run", "-r", hidden=True, help="An option of main_ppo that changes nothing.")
    ] = False,
    multirun: Annotated[bool, _hydras("--multirun", "-m", why=_SEVERAL)] = False,
    cfg: Annotated[str | None, _hydras("--cfg", "-c", why=_PRINTS)] = None,
    package: Annotated[str | None, _hydras("--package", "-p", why=_PRINTS)] = None,
    info: Annotated[bool, _hydras("--info", "-i", why=_PRINTS)] = False,
    resolve: Annotated[bool, _hydras("--resolve", why=_PRINTS)] = False,
    hydra_help: Annotated[bool, _hydras("--hydra-help", why=_PRINTS)] = False,
    shell_completion: Annotated[bool, _hydras("--shell-completion", "-sc", why=_PRINTS)] = False,
    rerun: Annotated[
        str | None,
        _hydras("--experimental-rerun", why="takes a finished configuration and no overrides; give the overrides"),
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.launching.composition import (
        compose,
        examine,
        examine_files,
        rollout_warnings,
        setting_values,
        unknown_settings,
        verl_problem,
    )
    from spo_verl.training.checks import differences_to_paper

    composed = compose(overrides or [], config_name=config_name, config_dir=config_dir, config_path=config_path)
    found = [examine(composed)]
    if files:
        found.append(examine_files(composed, whole=verl))
    problems = [problem for one in found for problem in one.problems]
    warnings = [warning for one in found for warning in one.warnings]
    if verl:
        if problem := verl_problem(composed.config):
            problems.append(problem)
        else:
            warnings += rollout_warnings(composed.config)
    values = {**setting_values(composed.config), **unknown_settings(composed.config)}
    data = {
        "config_name": config_name,
        "preset": composed.preset,
        "problems": problems,
        "warnings": warnings,
        "settings": {key: {"value": value, "source": composed.source(key)} for key, value in values.items()},
        "differs_from_paper": [
            {"key": key, "value": _plain(actual), "paper": paper, "source": composed.source(key)}
            for key, actual, paper in differences_to_paper(composed.readable)
        ],
    }
    return Outcome(data, lambda console: _show(console, data, show_all=show_all), status=1 if problems else 0)


def _plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _show(console: Console, data: dict[str, Any], *, show_all: bool) -> None:
    problems = data["problems"]
    for number, problem in enumerate(problems, 1):
        if number == 1:
            paragraph(console, f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}:", style="bold red")
        paragraph(console, problem, first=f"  {number}. ")
    for warning in data["warnings"]:
        paragraph(console, warning, first="warning: ", style="yellow")
    if problems and not show_all:
        paragraph(console, "The settings are shown where there are no problems, or with --all.")
        return
    settings = data["settings"]
    rows = [(key, _yaml(entry["value"]), entry["source"]) for key, entry in settings.items()]
    styles = ["" if entry["source"] == "default" else "bold" for entry in settings.values()]
    table(console, ("setting", "value", "from"), rows, styles=styles)
    if data["differs_from_paper"]:
        paragraph(console, "Different from the paper:")
        differing = [
            (entry["key"], _yaml(entry["value"]), _yaml(entry["paper"]), entry["source"])
            for entry in data["differs_from_paper"]
        ]
        table(console, ("verl's key", "this run", "paper", "from"), differing)
    else:
        paragraph(console, "verl's own keys are those of the paper.")
    if not problems:
        paragraph(console, "no problems", style="green")


def _yaml(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, default=str)
