"""Writes the table of docs/coverage.md from rehearsals that passed on a CPU.

    spo-verl rehearse gsm8k_qwen3_0_6b/spo --data rows.parquet
    python benchmarks/coverage.py runs/rehearsals

Every recipe has its row. A recipe without a rehearsal in the given folders keeps what its row says, a new one is "not
run". Of several rehearsals of a recipe the newest counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "coverage.md"
HEADER = "| recipe | rehearsed with dp: s, GiB |\n|---|---|\n"
NOT_RUN = "not run"


def recipes() -> list[str]:
    """Names of all recipes, as the command line takes them."""
    files = sorted((REPOSITORY / "recipes").glob("*/*.yaml"))
    return [f"{file.parent.name}/{file.stem}" for file in files if "# @package _global_" in file.read_text()]


def measured(folders: Sequence[Path]) -> dict[str, str]:
    """Recipe -> seconds and GiB of its newest rehearsal below these folders that passed on a CPU, without Megatron."""
    files = [file for folder in folders for file in folder.rglob("rehearsal.json")]
    found = {}
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        one = json.loads(file.read_text())
        if one["passed"] and one["device"] == "cpu" and one["engine"] != "megatron":
            found[one["recipe"]] = f"{one['seconds']:.0f}, {one['peak_gib']:.1f}"
    return found


def rewritten(page: str, names: Sequence[str], cells: Mapping[str, str]) -> str:
    """The page with one row per recipe: its new cell, else the one it has."""
    before, _, rest = page.partition(HEADER)
    table, _, after = rest.partition("\n\n")
    former = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in table.splitlines()}
    rows = [f"| {name} | {cells.get(name, former.get(name, NOT_RUN))} |" for name in names]
    return before + HEADER + "\n".join(rows) + "\n\n" + after


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(), recipes(), measured([Path(name) for name in sys.argv[1:]])))
