"""The arguments of a command of verl: hydra's options and overrides, with the place where each is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spo_verl.converting.tracing import Launch
from spo_verl.converting.values import Field, Value, Via, cut, is_known, text_of
from spo_verl.errors import SpoConfigError

_OVERRIDE = re.compile(r"(\+\+|\+|)([A-Za-z_][\w./@:-]*)=(.*)", re.DOTALL)
_OPTIONS = {
    "--config-path": "path", "-cp": "path", "--config-name": "name", "-cn": "name", "--config-dir": "dir", "-cd": "dir",
}  # fmt: skip
_HYDRAS = (
    *_OPTIONS, "--cfg", "--experimental-rerun", "--help", "--hydra-help", "--info", "--multirun", "--package",
    "--resolve", "--run", "--shell-completion", "--version",
)  # fmt: skip
"""The options of ``main_ppo``. As there, a beginning is enough."""
STOCK_NAMES = frozenset({"ppo_trainer", *(f"ppo_{engine}_trainer" for engine in ("megatron", "veomni", "torchtitan"))})


@dataclass(frozen=True)
class Override:
    """``key=value`` with hydra's prefix (``+``, ``++`` or none)."""

    prefix: str
    key: str
    value: Value
    field: Field

    @property
    def text(self) -> str:
        return text_of(self.value)

    @property
    def known(self) -> bool:
        return is_known(self.value)

    @property
    def carrier(self) -> tuple[Via, ...]:
        """The variables that the whole override came through, such as an array of overrides."""
        return self.field.value[0].via


@dataclass(frozen=True)
class Arguments:
    """The arguments of one command.

    Attributes:
        overrides: in their order.
        deletions: as ``~key``.
        options: hydra's ``path``, ``name`` and ``dir`` of the configuration.
        unknown: words that are only known when the script runs.
        multirun: hydra's ``--multirun``.
        before: the word that the first override follows: verl's module, or the last option.
    """

    overrides: tuple[Override, ...]
    deletions: tuple[str, ...]
    options: dict[str, str]
    unknown: tuple[str, ...]
    multirun: bool
    before: Field

    @property
    def own_configuration(self) -> bool:
        """Whether the command names another configuration than verl's own."""
        return (
            self.options.get("name", "ppo_trainer").removesuffix(".yaml") not in STOCK_NAMES or "path" in self.options
        )

    def effective(self) -> dict[str, Override]:
        """Of repeated keys the last, as in hydra."""
        return {one.key: one for one in self.overrides}


def read_arguments(launch: Launch) -> Arguments:
    """Sort a command's arguments.

    Raises:
        SpoConfigError: an option that hydra does not have.
    """
    overrides: list[Override] = []
    deletions: list[str] = []
    options: dict[str, str] = {}
    unknown: list[str] = []
    multirun, before = False, launch.module
    fields: Sequence[Field] = launch.arguments
    number = 0
    while number < len(fields):
        one = fields[number]
        text = one.text
        number += 1
        name, equals, value = text.partition("=")
        if name in _OPTIONS:
            if not equals and number < len(fields):
                value = fields[number].text
                one = fields[number]
                number += 1
            options[_OPTIONS[name]] = value
        elif text in ("--multirun", "-m"):
            multirun = True
        elif name.startswith("--") and is_known(one.value) and not any(flag.startswith(name) for flag in _HYDRAS):
            raise SpoConfigError(
                f"{text} is no option of main_ppo: correct it, or leave it out (`spo-verl convert --help` lists "
                "those of convert)"
            )
        elif found := _OVERRIDE.fullmatch(text):
            overrides.append(Override(found[1], found[2], cut(one.value, found.start(3)), one))
        elif text.startswith("~"):
            deletions.append(text)
        elif not is_known(one.value):
            unknown.append(text)
        if text.startswith("-") and not overrides:
            before = one
    return Arguments(tuple(overrides), tuple(deletions), options, tuple(unknown), multirun, before)
