"""Real rows for a rehearsal: the first ones of a recipe's own files, or of files that are named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.errors import SpoConfigError
from spo_verl.files import parquet_file, parquet_rows

MEDIA = ("images", "videos", "audios")
NEEDED = ("data_source", "prompt", "reward_model")


@dataclass(frozen=True)
class Rows:
    """Rows of a rehearsal, and where they were read."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    files: tuple[Path, ...]

    def prompts(self) -> list[list[dict[str, str]]]:
        """Chat messages of all rows."""
        return [row["prompt"] for row in (*self.train, *self.held_out)]


def take_rows(files: Sequence[Path], *, train: int, held_out: int) -> Rows:
    """The first ``train`` and the next ``held_out`` rows with different prompts, of all files in turn.

    Raises:
        SpoConfigError: a file is not there, is no Parquet file of prepared data, or all have too few rows.
    """
    missing = [str(file) for file in files if not os.path.lexists(file)]
    if missing or not files:
        raise SpoConfigError(
            f"a rehearsal runs on real rows, and {', '.join(missing) or 'no data file'} is not there: make it with "
            "`spo-verl data prepare` (each recipe's README has the line), name its folder with data_dir=FOLDER or "
            "SPO_DATA_DIR, or give any prepared file with --data FILE."
        )
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for row in _rows(files):
        if str(row["prompt"]) not in seen:
            seen.add(str(row["prompt"]))
            found.append(row)
        if len(found) == train + held_out:
            return Rows(found[:train], found[train:], tuple(files))
    raise SpoConfigError(
        f"a rehearsal of this recipe needs {train + held_out} different prompts; {len(found)} are in "
        f"{', '.join(map(str, files))}. Name further files with --data."
    )


def _rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    from spo_verl.data.prepare.checking import check_row
    from spo_verl.data.prepare.data_errors import RowError

    for file in files:
        with parquet_file(file, SpoConfigError) as table:
            names = table.schema_arrow.names
        if absent := [name for name in NEEDED if name not in names]:
            raise SpoConfigError(
                f"{file} has no column {', '.join(absent)}, which verl reads: make it with `spo-verl data prepare`."
            )
        for number, row in parquet_rows(file, None, SpoConfigError):
            try:
                check_row(number, row)
            except RowError as error:
                raise SpoConfigError(
                    f"{file}, {error} Correct the row; `spo-verl data check` lists all of them."
                ) from error
            if media := [name for name in MEDIA if row.get(name)]:
                raise SpoConfigError(
                    f"{file}, row {number}: it has {' and '.join(media)}, and a rehearsal's stand-in reads text only: "
                    "name rows of text with --data FILE."
                )
            yield row
