"""Tables and paragraphs at any width: lines break between words, and nothing is cut."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spo_verl.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

_GAP = "  "
_INDENT = "    "
_NARROWEST = 24
"""Characters that the last column of a table needs; with less, rows become lists."""


def paragraph(console: Console, text: str, *, first: str = "", rest: str | None = None, style: str = "") -> None:
    """Print a text that continues under its beginning, on one line where stdout is no terminal of a known width.

    Args:
        first: what is printed before the first line.
        rest: what is printed before the others; by default as many blanks.
    """
    rest = " " * len(first) if rest is None else rest
    whole = visible(text)
    lines = [first + whole] if not _has_width(console) else _wrapped(whole, console.width, first, rest)
    for line in lines:
        _print(console, line, style)


def command(console: Console, words: Sequence[str], *, first: str = "") -> None:
    """Print a command line so that it can be pasted: where it needs several lines, all but the last end in a backslash.

    Args:
        words: of the command, as a program gets them.
        first: printed before it.
    """
    lines, begun = [first], False
    for word in (visible(shlex.quote(word)) for word in words):
        longer = f"{lines[-1]}{' ' if begun else ''}{word}"
        if begun and _has_width(console) and _cells(longer) + 2 > console.width:
            lines[-1] += " \\"
            lines.append(f"{_INDENT}{word}")
        else:
            lines[-1] = longer
        begun = True
    for line in lines:
        _print(console, line, "")


def table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    styles: Sequence[str] = (),
    numbers: bool = False,
) -> None:
    """Print rows under headings; where the width is too small, each row as a list.

    Args:
        rows: texts, as many as headings.
        styles: one for each row.
        numbers: every column but the first ends at the right, and none wraps.
    """
    cells = [[visible(text) for text in row] for row in rows]
    widths = [max(map(_cells, column)) for column in zip(headings, *cells, strict=True)]
    before = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    last = console.width - before
    longest = max((_cells(word) for row in cells for word in row[-1].split()), default=0)
    styles = styles or [""] * len(rows)
    if last < (widths[-1] if numbers else min(widths[-1], max(_NARROWEST, longest))):
        for row, style in zip(cells, styles, strict=True):
            _as_list(console, headings, row, style)
        return
    if numbers:
        headings, *cells = (_to_the_right(row, widths) for row in (headings, *cells))
    _print(console, _line(headings, widths), "bold")
    for row, style in zip(cells, styles, strict=True):
        start = _line([*row[:-1], ""], widths)
        first, *more = [row[-1]] if numbers else _wrapped(row[-1], last, "", "") or [""]
        for line in (f"{start}{first}", *(" " * before + other for other in more)):
            _print(console, line.rstrip(), style)


def bars(console: Console, rows: Sequence[tuple[str, int]], *, first: str = "  ") -> None:
    """Print a histogram: label, count, and a bar that is as long as the width allows and 40 characters at most."""
    most = max((count for _, count in rows), default=0)
    widths = [max((_cells(row[0]) for row in rows), default=0), max((len(f"{row[1]:,}") for row in rows), default=0)]
    room = max(1, min(40, console.width - len(first) - sum(widths) - 2 * len(_GAP)))
    for label, count in rows:
        bar = "#" * -(-room * count // most) if most else ""
        padded = label + " " * (widths[0] - _cells(label))
        _print(console, f"{first}{padded}{_GAP}{count:>{widths[1]},}{_GAP}{bar}".rstrip(), "")


_BLOCKS, _SIGNS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


def sparkline(
    console: Console, numbers: Sequence[float | None], *, low: float = 0.0, high: float = 1.0, room: int = 60
) -> str:
    """Numbers as a line of small blocks, in the last ``room`` columns that the width leaves; a gap for what is missing.

    With more numbers than columns each block is the mean of its stretch. Where the stream has no blocks, ASCII signs.
    """
    room = max(1, min(room, console.width - 20))
    size = min(room, len(numbers))
    signs = _BLOCKS if (console.encoding or "").lower().replace("-", "").startswith("utf8") else _SIGNS
    line = ""
    for place in range(size):
        part = numbers[place * len(numbers) // size : (place + 1) * len(numbers) // size]
        known = [number for number in part if number is not None and number == number]
        if not known:
            line += " "
            continue
        share = (sum(known) / len(known) - low) / (high - low) if high > low else 0.5
        line += signs[min(len(signs) - 1, max(0, int(share * len(signs))))]
    return line


def _to_the_right(texts: Sequence[str], widths: Sequence[int]) -> list[str]:
    padded = [" " * (width - _cells(text)) + text for text, width in zip(texts, widths, strict=True)]
    return [texts[0], *padded[1:]]


def _as_list(console: Console, headings: Sequence[str], row: Sequence[str], style: str) -> None:
    for line in _wrapped(row[0], console.width, "", "  "):
        _print(console, line, style)
    for heading, text in zip(headings[1:], row[1:], strict=True):
        if text:
            for line in _wrapped(f"{heading}: {text}", console.width, "  ", "      "):
                _print(console, line, "")


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    *before, last = texts
    padded = [text + " " * (width - _cells(text)) for text, width in zip(before, widths, strict=False)]
    return _GAP.join([*padded, last])


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, max(width, 20), initial_indent=first, subsequent_indent=rest, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _has_width(console: Console) -> bool:
    return console.is_terminal or os.environ.get("COLUMNS", "").isdigit()


def _cells(text: str) -> int:
    """Columns of a terminal that a text takes."""
    from rich.cells import cell_len

    return cell_len(text)


def _print(console: Console, line: str, style: str) -> None:
    from rich.text import Text

    console.print(Text(line, style), soft_wrap=True)
