"""Files of recipes: which experiments build on which, and copies for the user to change."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spo_verl.errors import SpoConfigError
from spo_verl.files import read_yaml, writing
from spo_verl.launching.recipes import LAUNCHER, ROOT_NAME, known_recipes, recipe_roots, recipes_in


@dataclass(frozen=True)
class Copied:
    """What :func:`copy_experiment` did, as paths below the target."""

    target: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]
    """Folders and files of other experiments that were there already; they are left as they are."""


def described(root: Path, name: str) -> str:
    """The sentence in a recipe's file that describes it: its first comment, without the lines that launch it."""
    lines: list[str] = []
    for line in (root / f"{name}.yaml").read_text(encoding="utf-8", errors="replace").splitlines():
        text = line.removeprefix("#").strip()
        if line.startswith("# @package"):
            continue
        if not line.startswith("#") or text.startswith("recipes/run.sh") or (lines and lines[-1].endswith(".")):
            break
        lines.append(text)
    return re.split(r"(?<=\.) ", " ".join(lines), maxsplit=1)[0].rstrip(".")


def experiment_of(name: str) -> tuple[Path, str]:
    """The root and the folder of an experiment, named by itself or by one of its recipes.

    Raises:
        SpoConfigError: there is no such experiment.
    """
    for recipe, root in known_recipes().items():
        if name.strip("/") in (recipe, recipe.partition("/")[0]):
            return root, recipe.partition("/")[0]
    experiments = ", ".join(dict.fromkeys(recipe.partition("/")[0] for recipe in known_recipes()))
    roots = " or ".join(map(str, recipe_roots())) or "no folder of recipes"
    raise SpoConfigError(f"there is no recipe or experiment {name!r} in {roots}; experiments: {experiments or 'none'}.")


def files_of(root: Path, recipe: str) -> list[Path]:
    """The files below ``root`` that a recipe is made of, itself first, then what its defaults list names, and so on.

    Of a group whose member is chosen on the command line (``strategy: ${model_engine}``), all members.
    """
    found = [root / f"{recipe}.yaml"]
    for file in found:
        content = read_yaml(file, SpoConfigError)
        entries = content.get("defaults", []) if isinstance(content, dict) else []
        for entry in entries if isinstance(entries, list) else []:
            named = _below(root, file.parent, entry)
            found += [path for path in named if path not in found]
    return found


def _below(root: Path, folder: Path, entry: object) -> list[Path]:
    """The files of one entry of a defaults list; verl's and spo_verl's own configurations are not below the root."""
    if isinstance(entry, dict) and len(entry) == 1:
        [(group, member)] = entry.items()
        name = f"{str(group).removeprefix('override ')}/{member}"
    else:
        name = str(entry)
    base = root if name.startswith("/") else folder
    pattern = re.sub(r"\$\{[^}]*\}", "*", name.strip("/").removesuffix(".yaml"))
    if not re.fullmatch(r"[\w./*-]+", pattern):
        return []
    return sorted(base.glob(f"{pattern}.yaml"))


def builds_on(root: Path, experiment: str) -> list[str]:
    """The experiment and all whose files its files name, each before those that it needs.

    A name counts wherever it occurs as ``/<experiment>/``: in a defaults list or in a path.
    """
    names = sorted({name.partition("/")[0] for name in recipes_in(root)})
    found = [experiment]
    for folder in found:
        text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in _files(root / folder)
                         if file.suffix == ".yaml")  # fmt: skip
        found += [name for name in names if name not in found and f"/{name}/" in text]
    return found


def copy_experiment(name: str, target: Path | None = None) -> Copied:
    """Copy an experiment's folder, the folders that it builds on and the launcher into ``target`` (``./recipes``).

    Raises:
        SpoConfigError: there is no such experiment, or ``target`` has it already; nothing was written.
    """
    root, experiment = experiment_of(name)
    target = Path(ROOT_NAME) if target is None else target
    if os.path.lexists(target / experiment):
        raise SpoConfigError(
            f"{target / experiment} is there already and would be overwritten: name another folder, or remove it."
        )
    if os.path.lexists(target) and not os.path.isdir(target):
        raise SpoConfigError(f"{target} is no folder: name another one.")
    written: list[str] = []
    kept: list[str] = []
    with writing(target, SpoConfigError):
        target.mkdir(parents=True, exist_ok=True)
        for folder in builds_on(root, experiment):
            if os.path.lexists(target / folder):
                kept.append(folder)
                continue
            for file in _files(root / folder):
                copy = target / file.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                written.append(copy.relative_to(target).as_posix())
        if os.path.lexists(target / LAUNCHER):
            kept.append(LAUNCHER)
        else:
            shutil.copy(root / LAUNCHER, target / LAUNCHER)
            (target / LAUNCHER).chmod(0o755)
            written.append(LAUNCHER)
    return Copied(target, tuple(written), tuple(kept))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
