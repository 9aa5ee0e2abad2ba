"""Where a recipe lies, and verl's configuration as its launch would compose it.

A recipe is a hydra configuration ``<experiment>/<name>.yaml`` with a defaults list, on top of verl's ``ppo_trainer``.
Parts that several recipes share lie one folder deeper and are none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spo_verl.errors import SpoConfigError
from spo_verl.files import require_file
from spo_verl.launching.launch import hydra_value

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from spo_verl.launching.composition import Composed

ROOT_VARIABLE = "SPO_RECIPES_DIR"
ROOT_NAME = "recipes"


@dataclass(frozen=True)
class Recipe:
    """A recipe that is there.

    Attributes:
        root: where recipes of other experiments are found, on which some build; on hydra's search path.
        name: ``<experiment>/<name>``, the file below the root.
    """

    root: Path
    name: str

    @property
    def path(self) -> Path:
        """The file; its folder is hydra's configuration folder, its stem the configuration's name."""
        return self.root / f"{self.name}.yaml"

    def options(self) -> list[str]:
        """What chooses this recipe behind ``python -m verl.trainer.main_ppo``."""
        return ["--config-dir", str(self.path.parent), "--config-name", self.path.stem]

    def base_overrides(self) -> list[str]:
        """Overrides that belong to every launch of it, before those of the user."""
        searched = hydra_value([f"file://{self.root}"], resolved=False)
        return [f"hydra.searchpath={searched}", f"++recipes_dir={hydra_value(str(self.root))}"]

    def command(self, overrides: Sequence[str], python: str) -> list[str]:
        """What starts verl with this recipe."""
        main = [python, "-m", "verl.trainer.main_ppo"]
        return [*main, *self.options(), *self.base_overrides(), *overrides]


def default_root() -> Path:
    """``SPO_RECIPES_DIR``, or the folder ``recipes`` of the current one."""
    return Path(os.environ.get(ROOT_VARIABLE) or ROOT_NAME)


def recipes_in(root: Path) -> list[str]:
    """The names of all recipes below ``root``, sorted."""
    found = (path for path in root.glob("*/*.yaml") if _has_defaults(path))
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in found)


def find_recipe(recipe: str) -> Recipe:
    """The recipe that ``<experiment>/<name>`` means below :func:`default_root`, or the file that a path names.

    The root of a file is the nearest folder above it that is called ``recipes``, else the file's own folder.

    Raises:
        SpoConfigError: there is no such file.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not os.path.lexists(path):
            raise SpoConfigError(f"there is no recipe file {recipe}: give the path of a YAML file, or a name such as "
                                 f"{_example()}.")  # fmt: skip
        require_file(path, SpoConfigError)
        path = Path(os.path.realpath(path))
        root = next((folder for folder in path.parents if folder.name == ROOT_NAME), path.parent)
        return Recipe(root, path.relative_to(root).with_suffix("").as_posix())
    root = Path(os.path.realpath(default_root()))
    if not os.path.isfile(root / f"{recipe}.yaml"):
        known = ", ".join(recipes_in(root)) if os.path.isdir(root) else ""
        advice = (
            f"there are: {known}" if known else f"name the folder of the recipes with {ROOT_VARIABLE}, or give a path"
        )
        raise SpoConfigError(f"there is no recipe {recipe!r} in {root}; {advice}.")
    return Recipe(root, recipe)


def compose(recipe: Recipe, overrides: Sequence[str] = ()) -> Composed:
    """The configuration with where its values come from; refused overrides are listed, not raised.

    Raises:
        SpoConfigError: the recipe itself does not compose.
    """
    from spo_verl.launching import composition

    own = f"++recipes_dir={hydra_value(str(recipe.root))}"
    return composition.compose(
        [own, *overrides], config_name=recipe.path.stem, config_dir=recipe.path.parent, search=[recipe.root]
    )


def compose_recipe(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """verl's whole configuration of a recipe, as its launch with these hydra overrides composes it.

    Args:
        recipe: ``<experiment>/<name>`` below ``./recipes`` (or ``SPO_RECIPES_DIR``), or the path of a YAML file.
        overrides: as after ``recipes/run.sh <experiment>/<name>``.

    Returns:
        The configuration without hydra's own section, interpolations not resolved.

    Raises:
        SpoConfigError: there is no such recipe, or hydra refuses it or an override; lists all refused overrides.
    """
    composed = compose(find_recipe(recipe), overrides)
    if composed.problems:
        raise SpoConfigError(f"the recipe {recipe} refuses:\n  - " + "\n  - ".join(composed.problems))
    return composed.config


def _has_defaults(path: Path) -> bool:
    # As run.sh tells it. Not parsed: one damaged file, or one nested so deep that it ends the process that parses it,
    # must not hide the others.
    try:
        return path.is_file() and re.search(rb"^defaults:", path.read_bytes(), re.MULTILINE) is not None
    except OSError:  # told by who composes it
        return False


def _example() -> str:
    known = recipes_in(default_root())
    return known[0] if known else "gsm8k_qwen3_0_6b/spo"
