"""Tables as plain text, the same on every terminal and in a file."""

from __future__ import annotations

from collections.abc import Sequence


def plus_minus(value: float, error: float) -> str:
    """A signed value with its standard error."""
    return f"{value:+.3f} +- {error:.3f}"


def table(columns: Sequence[str], *sections: Sequence[Sequence[str]]) -> str:
    """Sections of rows under the names of their columns, which may have two lines; the first column is left-aligned."""
    names = [name.split("\n") for name in columns]
    height = max(map(len, names))
    head = list(zip(*([""] * (height - len(name)) + name for name in names), strict=True))
    rows = [*head, *(row for section in sections for row in section)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *others = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        return " " + "   ".join([row[0].ljust(len(first)), *others]).rstrip()

    lines = ["", *map(line, head), " " + "─" * (sum(widths) + 3 * (len(widths) - 1))]
    for section in sections:
        lines += [*map(line, section), ""]
    return "\n".join(lines)
