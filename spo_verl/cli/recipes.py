"""``spo-verl recipes``: the recipes that come with the package, listed, shown and copied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spo_verl.cli.layout import command, paragraph, table
from spo_verl.cli.output import Debug, Json, Outcome, verb
from spo_verl.errors import SpoConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

SHORT_HELP = "List, show or copy the recipes that come with the package."
HELP = """List, show or copy recipes: those of the package and of ./recipes. If SPO_RECIPES_DIR is set, only
those of that folder.

`spo-verl plan` and `spo-verl rehearse` take the names that `ls` prints."""
LS_HELP = "List every recipe with its purpose."
SHOW_HELP = "Show what a recipe trains, the command that starts it, and its files."
CP_HELP = """Copy an experiment into FOLDER, for you to change: its folder, what it builds on, and run.sh.

Nothing is overwritten: an experiment that is already there is refused."""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

_SHOWN = {
    "estimator": "algorithm.adv_estimator",
    "model": "actor_rollout_ref.model.path",
    "training data": "data.train_files",
    "validation data": "data.val_files",
    "offline values": "spo.initial.values",
    "prompts per step": "data.train_batch_size",
    "responses per prompt": "actor_rollout_ref.rollout.n",
    "prompts per update": "actor_rollout_ref.actor.ppo_mini_batch_size",
    "tokens of a prompt": "data.max_prompt_length",
    "tokens of a response": "data.max_response_length",
    "steps": "trainer.total_training_steps",
    "mode": "trainer.v1.trainer_mode",
    "training engine": "actor_rollout_ref.actor.strategy",
    "rollout engine": "actor_rollout_ref.rollout.name",
    "nodes": "trainer.nnodes",
    "GPUs per node": "trainer.n_gpus_per_node",
    "checkpoints": "trainer.default_local_dir",
}


@app.command("ls", help=LS_HELP, short_help=LS_HELP)
@verb
def list_recipes(json_output: Json = False, debug: Debug = False) -> Outcome:
    from spo_verl.launching.recipe_files import described
    from spo_verl.launching.recipes import ROOT_VARIABLE, known_recipes

    known = known_recipes()
    if not known:
        raise SpoConfigError(f"no recipes were found: name their folder with {ROOT_VARIABLE}.")
    found = [{"name": name, "folder": str(root), "what": described(root, name)} for name, root in known.items()]

    def show(console: Console) -> None:
        for root in dict.fromkeys(entry["folder"] for entry in found):
            paragraph(console, f"in {root}:")
            table(
                console,
                ("recipe", "what it is for"),
                [(entry["name"], entry["what"]) for entry in found if entry["folder"] == root],
            )

    return Outcome({"recipes": found}, show)


@app.command("show", help=SHOW_HELP, short_help="Show what a recipe trains, and its files.")
@verb
def show_recipe(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name of `spo-verl recipes ls`, or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="OVERRIDES", help="Overrides of the recipe, as on main_ppo's command line."),
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.launching.recipe_files import described, files_of
    from spo_verl.launching.recipes import accepted, find_recipe

    found = find_recipe(recipe)
    config = accepted(found, overrides or []).config
    files = [str(file) for file in files_of(found.root, found.name)] if not found.plain else [found.where]
    data: dict[str, Any] = {
        "name": found.name,
        "what": described(found.root, found.name),
        "start": [f"{found.root}/run.sh", found.name, *(overrides or [])] if (found.root / "run.sh").is_file() else
        found.command(overrides or [], "python"),
        "trains": {label: _value(config, key) for label, key in _SHOWN.items()},
        "keys": _SHOWN,
        "files": files,
    }  # fmt: skip

    def show(console: Console) -> None:
        paragraph(console, f"{data['name']}: {data['what']}")
        rows = [
            (label, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            for label, value in data["trains"].items()
            if value is not None
        ]
        table(console, ("it trains", "value"), rows)
        command(console, data["start"], first="start:  ")
        paragraph(console, "files:")
        for file in data["files"]:
            paragraph(console, file, first="  ")

    return Outcome(data, show)


@app.command("cp", help=CP_HELP, short_help="Copy an experiment, for you to change.")
@verb
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An experiment, or one of its recipes.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="The folder to copy into; default: ./recipes.")
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.launching.recipe_files import copy_experiment

    copied = copy_experiment(name, folder)
    data = {"folder": str(copied.target), "written": list(copied.written), "kept": list(copied.kept)}

    def show(console: Console) -> None:
        for file in copied.written:
            paragraph(console, f"{copied.target}/{file}")
        for kept in copied.kept:
            paragraph(console, f"kept as it is: {copied.target}/{kept}")
        paragraph(console, f"start one with: {copied.target}/run.sh <experiment>/<name> OVERRIDES")

    return Outcome(data, show)


def _value(config: DictConfig, key: str) -> Any:
    from omegaconf import OmegaConf

    value = OmegaConf.select(config, key, default=None, throw_on_resolution_failure=False)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
