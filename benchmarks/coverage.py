"""Writes the two tables of docs/coverage.md from what really ran on a CPU.

    spo-verl rehearse gsm8k_qwen3_0_6b/spo --data rows.parquet
    python benchmarks/coverage.py runs/rehearsals

    SPO_MATRIX=matrix.jsonl ./test.sh -m system
    python benchmarks/coverage.py --matrix matrix.jsonl

Rehearsals: every recipe has its row; a cell without a rehearsal in the given folders keeps what it says, a new one is
"not run", and of several rehearsals the newest counts. Launches of the tests: one row per combination, of which the
last one in the file counts; a row that is not in the file stays as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "coverage.md"
COLUMNS = ("dp", "dp, 2 ranks", "megatron", "megatron, 2 ranks")
"""Rehearsals by engine and training processes."""
NOT_RUN = "not run"
FAILED = "failed"
COMBINATION = ("engine", "mode", "ranks", "layout", "family", "feature")
MODES = ("sync", "colocate_async", "separate_async", "estimate")


def _header(names: Iterable[str]) -> str:
    names = list(names)
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"


HEADER = _header(("recipe", *COLUMNS))
MATRIX_HEADER = _header((*COMBINATION, "s", "GiB", "log-prob difference"))

Cells = Mapping[tuple[str, str], str]
"""(recipe, column) -> what the cell says."""


def recipes() -> list[str]:
    """Names of all recipes, as the command line takes them."""
    files = sorted((REPOSITORY / "recipes").glob("*/*.yaml"))
    return [f"{file.parent.name}/{file.stem}" for file in files if "# @package _global_" in file.read_text()]


def measured(folders: Sequence[Path]) -> dict[tuple[str, str], str]:
    """Seconds and GiB of the newest rehearsal below these folders that passed on a CPU, by recipe and column."""
    files = [file for folder in folders for file in folder.rglob("rehearsal.json")]
    found = {}
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        one = json.loads(file.read_text())
        column = "megatron" if one["engine"] == "megatron" else "dp"
        ranks = one.get("ranks", 1)
        column += f", {ranks} ranks" if ranks > 1 else ""
        if one["passed"] and one["device"] == "cpu" and column in COLUMNS:
            found[one["recipe"], column] = f"{one['seconds']:.0f}, {one['peak_gib']:.1f}"
    return found


def rewritten(page: str, names: Sequence[str], cells: Cells) -> str:
    """The page with one row per recipe: its new cells, else those that it has."""
    before, rows, after = _table(page, HEADER)
    former = {(row[0], column): cell for row in rows for column, cell in zip(COLUMNS, row[1:], strict=True)}
    table = [(name, *(cells.get((name, c), former.get((name, c), NOT_RUN)) for c in COLUMNS)) for name in names]
    return before + HEADER + _lines(table) + after


def launched(lines: Iterable[str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Combination -> seconds, GiB and difference of its last launch among these lines of JSON."""
    found = {}
    for line in lines:
        one = json.loads(line)
        found[tuple(str(one[name]) for name in COMBINATION)] = _cost(one)
    return found


def with_launches(page: str, found: Mapping[tuple[str, ...], tuple[str, ...]]) -> str:
    """The page with one row per combination that it has or that was launched."""
    before, rows, after = _table(page, MATRIX_HEADER)
    width = len(COMBINATION)
    table = {tuple(row[:width]): tuple(row[width:]) for row in rows} | dict(found)
    return before + MATRIX_HEADER + _lines((*key, *table[key]) for key in sorted(table, key=_place)) + after


def _cost(one: Mapping[str, Any]) -> tuple[str, str, str]:
    difference = one["log_prob_difference"]
    said = "" if difference is None else f"{difference:.0e}".replace("e-0", "e-")
    return f"{one['seconds']:.0f}", f"{one['peak_gib']:.1f}", said if one["passed"] else FAILED


def _place(key: tuple[str, ...]) -> tuple[Any, ...]:
    engine, mode, ranks, *others = key
    return engine, MODES.index(mode), int(ranks), *others


def _table(page: str, header: str) -> tuple[str, list[list[str]], str]:
    """What is before a table with this header, its rows, and what follows, from the empty line on."""
    if header not in page:
        raise ValueError(f"the page has no table with the header {header.splitlines()[0]!r}")
    before, _, rest = page.partition(header)
    if rest.startswith("\n"):  # no rows
        return before, [], rest
    table, _, after = rest.partition("\n\n")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
    return before, rows, "\n" + after


def _lines(rows: Iterable[Iterable[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(arguments: Sequence[str] | None = None, page: Path = PAGE) -> None:
    parser = argparse.ArgumentParser(description="Write the tables of docs/coverage.md.")
    parser.add_argument("folders", nargs="*", type=Path, help="of rehearsals")
    parser.add_argument("--matrix", type=Path, metavar="FILE", help="that SPO_MATRIX named when the tests ran")
    given = parser.parse_args(arguments)
    text = rewritten(page.read_text(), recipes(), measured(given.folders))
    if given.matrix:
        text = with_launches(text, launched(given.matrix.read_text().splitlines()))
    page.write_text(text)


if __name__ == "__main__":
    main()
