"""What a run is made of: a recipe, a YAML file or a command line, found and composed as its launch would.

A recipe is a hydra configuration ``<experiment>/<name>.yaml`` with a defaults list, on top of verl's ``ppo_trainer``.
Parts that several recipes share are one folder deeper and are not recipes. The recipes of the paper travel with the
package: in a checkout they are the folder ``recipes``, in an installed wheel ``spo_verl/recipes``.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import spo_verl
from spo_verl.errors import SpoConfigError
from spo_verl.files import read_yaml, require_file, writing

if TYPE_CHECKING:
    from spo_verl.launching.composition import Composed

ROOT_VARIABLE = "SPO_RECIPES_DIR"
ROOT_NAME = "recipes"
LAUNCHER = "run.sh"
"""Is in every folder of recipes."""
STOCK = "ppo_trainer"
COMMAND_LINE = "command line"
SECTIONS = {"actor_rollout_ref", "algorithm", "critic", "data", "reward", "spo", "trainer"}
"""A plain file has at least one of them."""

_MAIN = re.compile(r"(?:.*[./])?main_ppo(?:\.py)?")
_FLAGS = {"--config-name": "name", "-cn": "name", "--config-dir": "dir", "-cd": "dir", "--config-path": "path",
          "-cp": "path"}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A recipe that is there.

    Attributes:
        root: where recipes of other experiments are found, on which some build; on hydra's search path.
        name: ``<experiment>/<name>``, the file below the root.
        plain: whether the file has no defaults list; it is composed on top of verl's :data:`STOCK`.
    """

    root: Path
    name: str
    plain: bool = False

    @property
    def path(self) -> Path:
        """The file; its folder is hydra's configuration folder, its stem the configuration's name."""
        return self.root / f"{self.name}.yaml"

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.path)

    def options(self) -> list[str]:
        """What chooses this recipe after ``python -m verl.trainer.main_ppo``."""
        return ["--config-dir", str(self.path.parent), "--config-name", self.path.stem]

    def base_overrides(self) -> list[str]:
        """Overrides that belong to every launch of it, before those of the user."""
        from spo_verl.launching.launch import hydra_value

        searched = hydra_value([f"file://{self.root}"], resolved=False)
        return [f"hydra.searchpath={searched}", f"++recipes_dir={hydra_value(str(self.root))}"]

    def command(self, overrides: Sequence[str], python: str) -> list[str]:
        """What starts verl with this recipe."""
        main = [python, "-m", "verl.trainer.main_ppo"]
        return [*main, *self.options(), *self.base_overrides(), *overrides]

    def launchable(self, folder: Path) -> Recipe:
        """Itself, or for a plain file a copy in ``folder`` that names verl's configuration as its base."""
        if not self.plain:
            return self
        from omegaconf import OmegaConf

        name = f"{re.sub(r'[^A-Za-z0-9_-]', '_', self.path.stem)}_on_{STOCK}"
        base = f"# @package _global_\ndefaults: [{STOCK}, _self_]\n"
        own = OmegaConf.to_yaml(OmegaConf.create(read_yaml(self.path, SpoConfigError)))
        with writing(folder / f"{name}.yaml", SpoConfigError):
            (folder / f"{name}.yaml").write_text(base + own, encoding="utf-8")
        return Recipe(folder, name)

    def compose(self, overrides: Sequence[str] = ()) -> Composed:
        """The configuration with where its values come from; refused overrides are listed, not raised.

        Raises:
            SpoConfigError: the recipe itself does not compose.
        """
        from spo_verl.launching import composition
        from spo_verl.launching.launch import hydra_value

        own = f"++recipes_dir={hydra_value(str(self.root))}"
        with tempfile.TemporaryDirectory() as folder:
            file = self.launchable(Path(folder)).path
            return composition.compose(
                [own, *overrides], config_name=file.stem, config_dir=file.parent, search=[self.root]
            )


@dataclass(frozen=True)
class CommandLine:
    """What may follow ``python -m verl.trainer.main_ppo``, instead of a recipe.

    Attributes:
        config_name: of hydra's ``--config-name``.
        config_dir, config_path: folders of hydra's options with these names.
    """

    config_name: str = STOCK
    config_dir: Path | None = None
    config_path: Path | None = None
    name: str = COMMAND_LINE
    where: str = "the command line"

    def options(self) -> list[str]:
        """hydra's options, with absolute folders."""
        found = [] if self.config_name == STOCK else ["--config-name", self.config_name]
        for flag, folder in (("--config-dir", self.config_dir), ("--config-path", self.config_path)):
            found += [] if folder is None else [flag, os.path.realpath(folder)]
        return found

    def base_overrides(self) -> list[str]:
        """None: all overrides are the user's."""
        return []

    def launchable(self, folder: Path) -> CommandLine:
        """Itself."""
        return self

    def compose(self, overrides: Sequence[str] = ()) -> Composed:
        """As :meth:`Recipe.compose`."""
        from spo_verl.launching import composition

        folders = [folder for folder in (self.config_path, self.config_dir) if folder is not None]
        return composition.compose(
            overrides, config_name=self.config_name, config_dir=next(iter(folders), None), search=folders[1:]
        )


Source = Recipe | CommandLine


def packaged_root() -> Path:
    """The recipes that came with the package."""
    package = Path(spo_verl.__file__).parent
    inside = package / ROOT_NAME
    return inside if (inside / LAUNCHER).is_file() else package.parent / ROOT_NAME


def recipe_roots() -> list[Path]:
    """Where a name is looked for, in this order: ``SPO_RECIPES_DIR`` alone, or ``./recipes`` and the package's."""
    named = os.environ.get(ROOT_VARIABLE)
    if named:
        return [Path(os.path.realpath(named))]
    roots = [Path(os.path.realpath(root)) for root in (ROOT_NAME, packaged_root())]
    return list(dict.fromkeys(root for root in roots if os.path.isdir(root)))


def recipes_in(root: Path) -> list[str]:
    """The names of all recipes below ``root``, sorted."""
    found = (path for path in root.glob("*/*.yaml") if _has_defaults(path))
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in found)


def known_recipes() -> dict[str, Path]:
    """Every recipe that a name finds, with the root that it is found in."""
    found: dict[str, Path] = {}
    for root in recipe_roots():
        for name in recipes_in(root):
            found.setdefault(name, root)
    return dict(sorted(found.items()))


def find_recipe(recipe: str) -> Recipe:
    """The recipe that ``<experiment>/<name>`` means below :func:`recipe_roots`, or the file that a path names.

    The root of a file is the nearest folder above it that is called ``recipes`` or has its launcher, else the file's
    own folder.

    Raises:
        SpoConfigError: there is no such file.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        return _recipe_file(path)
    if path.suffix == ".sh":
        raise SpoConfigError(
            f"{recipe} is a script, which `spo-verl convert` alone reads: give what follows main_ppo, or a recipe."
        )
    for root in recipe_roots():
        if os.path.isfile(root / f"{recipe}.yaml"):
            return Recipe(root, recipe)
    known = ", ".join(known_recipes())
    advice = f"there are: {known}" if known else f"name the folder of the recipes with {ROOT_VARIABLE}, or give a path"
    searched = " or ".join(map(str, recipe_roots())) or "no folder of recipes"
    raise SpoConfigError(
        f"there is no recipe {recipe!r} in {searched}; {advice}. A command line of yours begins with an override "
        "(key=value)."
    )


def find_run(words: Sequence[str]) -> tuple[Source, list[str]]:
    """What words name: a recipe and its overrides, or a command line of verl.

    Args:
        words: ``RECIPE OVERRIDES...``; or what follows ``main_ppo``, with or without ``python -m
            verl.trainer.main_ppo`` before it; all of that may be one text.

    Returns:
        The source, and the overrides that belong to its launch.

    Raises:
        SpoConfigError: there is no such recipe, or an option is not one of hydra's that choose a configuration.
    """
    rest, main = split_at_main(words)
    if main is not None:
        return _command_line(rest[main + 1 :])
    if rest and Path(rest[0]).name == LAUNCHER and len(rest) > 1:
        root = Path(os.path.realpath(rest[0])).parent
        if not os.path.isfile(root / f"{rest[1]}.yaml"):
            raise SpoConfigError(f"there is no recipe {rest[1]!r} in {root}; there are: {', '.join(recipes_in(root))}.")
        return Recipe(root, rest[1]), _overrides(rest[2:])
    if not rest or rest[0][:1] in ("+", "~", "-") or ("=" in rest[0] and not os.path.isfile(rest[0])):
        return _command_line(rest)
    return find_recipe(rest[0]), _overrides(rest[1:])


def split_at_main(words: Sequence[str]) -> tuple[list[str], int | None]:
    """The words of a command, of which one may be the whole command as a text, and the place of ``main_ppo`` in them.

    Returns:
        The words, and None where none of them is ``main_ppo``.

    Raises:
        SpoConfigError: a text with a quote that is not closed.
    """
    rest: list[str] = []
    for word in words:
        if re.search(r"main_ppo(?:\.py)?\s", word) and not any(map(_MAIN.fullmatch, rest)):
            try:
                rest += shlex.split(word.replace("\\\n", " "))
            except ValueError as reason:
                raise SpoConfigError(f"the command line is not complete ({reason}): close its quotes.") from reason
        else:
            rest.append(word)
    return rest, next((number for number, word in enumerate(rest) if _MAIN.fullmatch(word)), None)


def accepted(source: Source, overrides: Sequence[str]) -> Composed:
    """A source composed with overrides.

    Raises:
        SpoConfigError: it does not compose, or hydra refuses overrides; lists all of them.
    """
    composed = source.compose(overrides)
    if composed.problems:
        what = "the command line" if isinstance(source, CommandLine) else f"the recipe {source.name}"
        raise SpoConfigError(f"{what} refuses:\n  - " + "\n  - ".join(composed.problems))
    return composed


def _recipe_file(path: Path) -> Recipe:
    if not os.path.lexists(path):
        example = next(iter(known_recipes()), "gsm8k_qwen3_0_6b/spo")
        raise SpoConfigError(
            f"there is no recipe file {path}: give the path of a YAML file, or a name such as {example}."
        )
    require_file(path, SpoConfigError)
    if path.suffix == ".yml":
        raise SpoConfigError(f"hydra reads files that end in .yaml: rename {path}.")
    path = Path(os.path.realpath(path))
    root = next((folder for folder in path.parents if _is_root(folder)), path.parent)
    name = path.relative_to(root).with_suffix("").as_posix()
    if _has_defaults(path):
        return Recipe(root, name)
    content = read_yaml(path, SpoConfigError)
    if not isinstance(content, dict) or not SECTIONS & content.keys():
        raise SpoConfigError(
            f"{path} holds no section of verl's configuration ({', '.join(sorted(SECTIONS))}): give another YAML file."
        )
    return Recipe(root, name, plain=True)


def _is_root(folder: Path) -> bool:
    return folder.name == ROOT_NAME or os.path.isfile(folder / LAUNCHER)


def _command_line(words: Sequence[str]) -> tuple[CommandLine, list[str]]:
    overrides, chosen, waiting = [], {}, ""
    for word in words:
        flag, sign, value = word.partition("=")
        if waiting:
            chosen[_FLAGS[waiting]], waiting = word, ""
        elif flag in _FLAGS and sign:
            chosen[_FLAGS[flag]] = value
        elif flag in _FLAGS:
            waiting = flag
        else:
            overrides.append(word)
    if waiting:
        raise SpoConfigError(f"{waiting} names nothing: give a value after it.")
    folder = chosen.get("dir")
    source = CommandLine(
        chosen.get("name", STOCK),
        None if folder is None else _folder(Path(folder), "--config-dir"),
        None if "path" not in chosen else _config_path(Path(chosen["path"])),
    )
    return source, _overrides(overrides)


def _config_path(path: Path) -> Path:
    # hydra takes it relative to the file of main_ppo.
    if not path.is_absolute():
        import verl

        path = Path(verl.__file__).parent / "trainer" / path
    return _folder(path, "--config-path")


def _folder(path: Path, flag: str) -> Path:
    if not os.path.isdir(path):
        raise SpoConfigError(f"{flag}: there is no folder {path}; hydra takes a relative --config-path from main_ppo's "
                             "own folder, so give an absolute one.")  # fmt: skip
    return path


def _overrides(words: Sequence[str]) -> list[str]:
    for word in words:
        if word.startswith("-"):
            raise SpoConfigError(f"there is no option {word}: see --help. hydra's --config-name, --config-dir and "
                                 "--config-path belong to a command line without a recipe.")  # fmt: skip
    return list(words)


def _has_defaults(path: Path) -> bool:
    # As run.sh sees it. Not parsed: one damaged file, or one nested so deep that it ends the process that parses it,
    # must not hide the others.
    try:
        return path.is_file() and re.search(rb"^defaults:", path.read_bytes(), re.MULTILINE) is not None
    except OSError:  # whoever composes it says so
        return False
