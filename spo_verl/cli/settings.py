"""``spo-verl settings``: every setting in one table."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from spo_verl.cli.layout import table
from spo_verl.cli.output import Debug, Json, Outcome, verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from spo_verl.cli.settings_table import Setting

SHORT_HELP = "List every setting with its meaning."
HELP = "List every setting with its type, default, allowed values and meaning."

COLUMNS = ("setting", "type", "default", "values", "meaning")

_PAGE = """# Settings

Each with its default and range. Without a preset (`+spo=paper`) hydra needs a plus sign:
`+spo.forgetting.half_life=0.1`.

{entries}
"""


@verb
def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/settings.md.")] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.cli.settings_table import settings_of
    from spo_verl.config import SpoConfig

    rows = list(settings_of(SpoConfig))

    def show(console: Console) -> None:
        if markdown:
            print(markdown_page(rows), end="")
        else:
            cells = [tuple(text.replace("``", "") for text in asdict(row).values()) for row in rows]
            table(console, COLUMNS, cells)

    return Outcome([asdict(row) for row in rows], show)


def markdown_page(rows: Sequence[Setting]) -> str:
    """The page ``docs/settings.md``."""
    return _PAGE.format(entries="\n".join(map(_entry, rows)))


def _entry(row: Setting) -> str:
    """``- `name=default` (range): meaning``, with the type where the default does not show it."""
    kind, nullable, _ = row.type.partition(" or null")
    limits = [kind, row.values] if row.default == "null" else [row.values, "or null" if nullable else ""]
    shown = ", ".join(filter(None, limits))
    return f"- `{row.name}={row.default}`{f' ({shown})' if shown else ''}: {row.meaning}".replace("``", "`")
