"""What hydra does with ``main_ppo``'s command line, in one pass that reports every override it refuses.

hydra itself stops at the first one. The steps here are those of ``hydra._internal.config_loader_impl`` in the same
order; a test compares the result with hydra's own.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spo_verl.conf import chosen_platform, store_groups
from spo_verl.errors import SpoConfigError

STOCK_PATH = "config"
"""``config_path`` of verl's ``main_ppo``, relative to its file."""


@dataclass(frozen=True)
class Places:
    """Where hydra looks for configuration files.

    Attributes:
        config_path: as hydra's ``--config-path``: relative to verl's ``trainer`` folder, absolute, or ``pkg://...``.
        config_dir: as hydra's ``--config-dir``: a further folder, relative to the current one.
        search: folders that come last.
    """

    config_path: str | None = None
    config_dir: Path | None = None
    search: tuple[Path, ...] = ()


@dataclass
class Taken:
    """What hydra makes of overrides.

    Attributes:
        config: the composed configuration, without hydra's own section.
        before: the same before the overrides set values, with hydra's section.
        choices: the chosen file of each config group.
        keys: the keys that overrides set, in their order; config groups and deletions are left out.
        refused: each refused override with hydra's error.
    """

    config: DictConfig
    before: DictConfig
    choices: dict[str, Any]
    keys: list[str] = field(default_factory=list)
    refused: list[tuple[str, Exception]] = field(default_factory=list)


def verl_trainer_folder() -> Path:
    """The folder of ``verl.trainer``, found without the import of verl, which takes ten seconds.

    Raises:
        SpoConfigError: verl is not installed.
    """
    from importlib.util import find_spec

    found = find_spec("verl")
    folders = [] if found is None else [Path(place) / "trainer" for place in found.submodule_search_locations or ()]
    for folder in folders:
        if os.path.isdir(folder / STOCK_PATH):
            return folder
    raise SpoConfigError(
        "verl is not installed in this environment: install it next to spo_verl, and look at `spo-verl doctor`."
    )


def take(overrides: Sequence[str], *, config_name: str, places: Places) -> Taken:
    """Compose ``config_name`` with every override that hydra accepts.

    Raises:
        SpoConfigError: the configuration does not compose even without the overrides; says why.
    """
    from hydra import version
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import CachingConfigRepository
    from hydra._internal.defaults_list import create_defaults_list

    version.setbase(None)  # as main_ppo does
    _register_groups(chosen_platform())
    loader = ConfigLoaderImpl(_search_path(places))
    parsed, refused = _parsed(overrides)
    search = _searched(parsed, places.search)
    repository = CachingConfigRepository(loader.repository)

    def listed(accepted: Sequence[Any]) -> Any:
        return create_defaults_list(
            repo=repository, config_name=config_name, overrides_list=list(accepted), prepend_hydra=True,
            skip_missing=False,
        )  # fmt: skip

    def whole() -> tuple[Any, Any]:
        loader.ensure_main_config_source_available()
        loader._process_config_searchpath(config_name, search, repository)
        defaults = listed(_accepted(listed, parsed, refused))
        return defaults, loader._compose_config_from_defaults_list(defaults.defaults, repository)

    try:
        defaults, config = whole()
    except _reasons() as error:
        raise SpoConfigError(_does_not_compose(config_name, places, error)) from error
    OmegaConf.set_struct(config, True)
    OmegaConf.set_readonly(config.hydra, False)
    before = config
    config, accepted = _applied(before, defaults.config_overrides, refused)
    order = {line: number for number, line in reversed(list(enumerate(overrides)))}
    refused.sort(key=lambda entry: order[entry[0]])
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    OmegaConf.set_struct(config, True)
    keys = [one.key_or_group for one in accepted if not one.is_delete()]
    return Taken(config, before, dict(defaults.overrides.known_choices), keys, refused)


def one_line(error: BaseException) -> str:
    """An error's text on one line, without hydra's account of where it looked."""
    text = str(error).partition("Config search path:")[0].partition("\nSee https://hydra.cc")[0]
    if not text.strip() or text.startswith("Error merging override"):  # hydra's; the cause says more
        text = f"{text} ({error.__cause__})" if error.__cause__ is not None else text
    return " ".join(text.split()).rstrip(".,")


def _reasons() -> tuple[type[Exception], ...]:
    """What hydra raises over overrides and over configuration files that cannot be read."""
    from hydra.errors import HydraException

    return (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError, RecursionError, AssertionError)


@functools.lru_cache(maxsize=1)
def _register_groups(platform: str) -> None:
    """Make the plugin's presets known to hydra, as the import of verl would; again when the platform is another."""
    from hydra.core.config_store import ConfigStore

    store_groups(ConfigStore.instance(), platform)


def _search_path(places: Places) -> Any:
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.utils import validate_config_path

    main = STOCK_PATH if places.config_path is None else places.config_path
    try:
        validate_config_path(main)
    except ValueError as error:
        raise SpoConfigError(
            f"--config-path {main} names a file: give its folder, and the name of the file with --config-name."
        ) from error
    if not main.startswith("pkg://"):
        main = os.path.normpath(verl_trainer_folder() / main)
        if not os.path.isdir(main):
            raise SpoConfigError(
                f"--config-path {places.config_path}: there is no folder {main}. hydra takes a relative path from "
                f"verl's trainer folder, not from here: write {os.path.abspath(str(places.config_path))}, or use "
                "--config-dir, which is relative to the current folder."
            )
    path = create_config_search_path(main)
    if places.config_dir is not None:
        folder = os.path.abspath(places.config_dir)
        if not os.path.isdir(folder):
            raise SpoConfigError(f"--config-dir {places.config_dir}: there is no folder {folder}; check the path.")
        path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    return path


def _searched(parsed: Sequence[Any], search: Sequence[Path]) -> list[Any]:
    """The overrides that name hydra's search path: the user's, or one made of ``search``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from spo_verl.launching.launch import hydra_value

    own = [one for one in parsed if one.get_key_element() == "hydra.searchpath"]
    if own or not search:
        return own
    folders = [f"file://{os.path.realpath(folder)}" for folder in search]
    line = f"hydra.searchpath={hydra_value(folders, resolved=False)}"
    return list(OverridesParser.create().parse_overrides([line]))


def _parsed(overrides: Sequence[str]) -> tuple[list[Any], list[tuple[str, Exception]]]:
    """The overrides that can be read and mean one run, and the others with the reason."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    parser = OverridesParser.create()
    parsed: list[Any] = []
    refused: list[tuple[str, Exception]] = []
    for line in overrides:
        try:
            [one] = parser.parse_overrides([line])
            ConfigLoaderImpl.validate_sweep_overrides_legal([one], RunMode.RUN, from_shell=True)
        except AssertionError:
            refused.append((line, ValueError("an override needs a key: key=value")))
        except _reasons() as error:
            refused.append((line, error))
        else:
            parsed.append(one)
    return parsed, refused


def _accepted(listed: Callable[[Sequence[Any]], Any], parsed: list[Any], refused: list[tuple[str, Exception]]) -> Any:
    """The overrides with which the list of configuration files can be made; the others join ``refused``.

    Only choices of config groups matter here, and a list takes a fraction of a second after the files were read once.
    """
    try:
        listed(parsed)
    except _reasons():
        listed([])  # raises where the configuration itself is at fault
    else:
        return parsed
    accepted: list[Any] = []
    for one in parsed:
        if "." in one.key_or_group and one.package is None:  # sets a value
            accepted.append(one)
            continue
        try:
            listed([*accepted, one])
        except _reasons() as error:
            refused.append((one.input_line, error))
        else:
            accepted.append(one)
    return accepted


def _applied(
    before: DictConfig, overrides: Sequence[Any], refused: list[tuple[str, Exception]]
) -> tuple[DictConfig, list[Any]]:
    """A copy with the values of all overrides that hydra takes, and these; the others join ``refused``."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    config, accepted = copy.deepcopy(before), list[Any]()
    for override in overrides:
        try:
            ConfigLoaderImpl._apply_overrides_to_config([override], config)
        except _reasons() as error:
            refused.append((override.input_line, error))
            config = copy.deepcopy(before)  # a refused override may have changed something already
            ConfigLoaderImpl._apply_overrides_to_config(accepted, config)
        else:
            accepted.append(override)
    return config, accepted


def _does_not_compose(config_name: str, places: Places, error: Exception) -> str:
    where = "verl's folder" if places.config_path is None else f"--config-path {places.config_path}"
    return (
        f"the configuration {config_name!r} does not compose: {one_line(error)}. Take a name from {where} "
        "(verl has ppo_trainer and ppo_megatron_trainer), or name your own with --config-name and its folder with "
        "--config-dir. A configuration outside verl's folder that builds on verl's needs them on its search path: "
        "hydra.searchpath=[pkg://verl.trainer.config]."
    )
