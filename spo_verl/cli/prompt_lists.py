"""What several verbs print about prompts: numbers and lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spo_verl.cli.layout import table

if TYPE_CHECKING:
    from rich.console import Console

KEY_DIGITS = 10
_SHOWN = 140


def short_key(key: str) -> str:
    """The first digits of a key, which `spo-verl tracker prompt` takes for the whole."""
    return key[:KEY_DIGITS]


def short_text(text: str | None) -> str:
    """A text on one line; of a long one the beginning."""
    line = " ".join((text or "").split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 4].rstrip()} ..."


def number(value: float | None, digits: int = 3) -> str:
    """A number for a reader; a dash for none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None or value != value else f"{100 * value:.1f} %"


def prompts_table(
    console: Console, prompts: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, int]]
) -> None:
    """Print prompts: key, row where known, ``columns`` (heading, name of a number, digits), text where known."""
    rows_known = any(one.get("row") is not None for one in prompts)
    texts_known = any(one.get("text") for one in prompts)
    headings = ["key", *(["row"] if rows_known else []), *(heading for heading, *_ in columns)]
    lines = []
    for one in prompts:
        row = ["-" if one.get("row") is None else str(one["row"])] if rows_known else []
        line = [short_key(one["key"]), *row, *(number(one[name], digits) for _, name, digits in columns)]
        lines.append([*line, short_text(one.get("text"))] if texts_known else line)
    table(console, [*headings, "text"] if texts_known else headings, lines)
