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

SHORT_HELP = "Every setting with its meaning."
HELP = "Every setting with its type, default, allowed values and meaning."

COLUMNS = ("setting", "type", "default", "values", "meaning")

_PAGE = """# Settings

With a preset (`+spo=paper`) a key is set as `spo.forgetting.half_life=0.1`, without one hydra needs the plus sign:
`+spo.forgetting.half_life=0.1`. `spo-verl config <overrides>` shows what a run would use.

Written by `spo-verl settings --markdown` from `spo_verl/config.py`.

{table}
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
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = (f"`{row.name}`", row.type, f"`{row.default}`", row.values, row.meaning)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return _PAGE.format(table="\n".join(lines))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")
