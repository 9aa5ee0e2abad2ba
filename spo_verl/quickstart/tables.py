"""Tables as plain text, the same on every terminal and in a file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 200
"""More than any table needs, so that none is folded; what is shown is as wide as its content."""


def plus_minus(value: float, error: float) -> str:
    """A signed value with its standard error."""
    return f"{value:+.3f} +- {error:.3f}"


def make_table(*columns: str) -> Table:
    """A plain table; the first column stands left, the others right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True, vertical="bottom")
    return table


def rendered(table: Table) -> str:
    """A table as plain text, the same on every terminal."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())
