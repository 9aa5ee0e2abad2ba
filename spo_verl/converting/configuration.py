"""What a converted command composes to, what own configurations set, and how many rows the training data has."""

from __future__ import annotations

import os
import re
from pathlib import Path

from spo_verl.converting.command_arguments import Arguments
from spo_verl.converting.rules import RunValues
from spo_verl.errors import SpoConfigError, SpoValuesError
from spo_verl.files import parquet_file
from spo_verl.launching.composition import Composed, compose, leaves
from spo_verl.launching.launch import hydra_value

STOCK = "ppo_trainer"


def _where(arguments: Arguments) -> tuple[str, Path | None]:
    """Name and folder of a command's configuration; verl's own where no other is named.

    hydra takes a relative ``--config-path`` from verl's folder ``trainer``, where ``config`` is verl's own.
    """
    name = arguments.options.get("name", STOCK).removesuffix(".yaml")
    folder = arguments.options.get("path") or arguments.options.get("dir")
    if folder is None or re.fullmatch(r"(\./)?config/?", folder):
        return name, None
    return name, Path(folder)


def base_values(arguments: Arguments) -> dict[str, str]:
    """The values in which a configuration of one's own differs from verl's, as overrides have them.

    Raises:
        SpoConfigError: there is no such configuration here, or it does not compose.
    """
    if not arguments.own_configuration:
        return {}
    name, folder = _where(arguments)
    if folder is not None and not folder.is_dir():
        raise SpoConfigError(f"the folder {folder} of the configuration is not here: run this where it is")
    own = compose([], config_name=name, config_dir=folder)
    stock = dict(leaves(compose([], config_name=STOCK).config))
    differing = {key: hydra_value(value) for key, value in leaves(own.config) if stock.get(key) != value}
    return differing if own.preset is None else {**differing, "spo": own.preset}


def composed(arguments: Arguments) -> tuple[Composed, list[str]]:
    """The configuration of a converted command, and the overrides that are only known when the script runs."""
    name, folder = _where(arguments)
    known = [f"{one.prefix}{one.key}={one.text}" for one in arguments.overrides if one.known]
    left_out = [f"{one.key}={one.text}" for one in arguments.overrides if not one.known]
    return compose([*known, *arguments.deletions], config_name=name, config_dir=folder), left_out


def training_rows(run: RunValues) -> int | None:
    """The rows of the training data, where all its files are Parquet and are here."""
    text = run.given.get("data.train_files", run.base.get("data.train_files"))
    if text is None or "data.train_files" in run.unknown:
        return None
    names = [name.strip().strip("'\"") for name in text.strip().strip("'\"").strip("[]").split(",")]
    paths = [Path(os.path.expanduser(name)) for name in names if name]
    if not paths or any(path.suffix != ".parquet" or not os.path.isfile(path) for path in paths):
        return None
    total = 0
    for path in paths:
        with parquet_file(path, SpoValuesError) as file:
            total += file.metadata.num_rows
    return total
