"""A record as one file: Parquet, CSV or JSON lines, with all columns or some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from spo_verl.files import check_output, replacing
from spo_verl.history.places import HistoryError, Place

What = Literal["rollouts", "steps", "prompts"]
SUFFIXES = (".parquet", ".csv", ".jsonl")
_ROWS_AT_A_TIME = 20_000


def chosen_table(place: Place, what: What, columns: Sequence[str]) -> pa.Table:
    """The rows of one table of a record; dictionaries become plain texts.

    Args:
        place: with a record; of a named checkpoint the rows after its step are left out.
        what: which table.
        columns: those to keep, in this order; all without any.

    Raises:
        HistoryError: there is no record, or no column of this name.
    """
    record = place.require_record()
    read = {"rollouts": record.rollouts, "steps": record.steps, "prompts": record.prompts}[what]
    table = read()
    unknown = [name for name in columns if name not in table.column_names]
    if unknown:
        raise HistoryError(f"{what} have no column {', '.join(unknown)}: choose among {', '.join(table.column_names)}.")
    if place.named_checkpoint and "step" in table.column_names:
        step = int(place.require_checkpoint().parent.name.rpartition("_")[2])
        table = table.filter(pa.compute.less_equal(table["step"], step))
    table = table.select(list(columns)) if columns else table
    return table.cast(pa.schema([_plain(field) for field in table.schema]))


def check_target(path: Path) -> None:
    """Refuse a file that cannot be written, or whose ending names no format; raises :class:`HistoryError`."""
    if path.suffix not in SUFFIXES:
        raise HistoryError(f"{path}: the ending names the format; give one of {', '.join(SUFFIXES)}.")
    check_output(path, HistoryError)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table in the format that the file's ending names, at once or not at all.

    Raises:
        HistoryError: the ending names no format, or the file cannot be written.
    """
    check_target(path)
    with replacing(path, HistoryError) as stage:
        staged = stage()
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(table, staged, compression="zstd")
        elif path.suffix == ".csv":
            import pyarrow.csv as csv

            csv.write_csv(table, staged)
        else:
            with staged.open("w", encoding="utf-8") as file:
                for batch in table.to_batches(_ROWS_AT_A_TIME):
                    file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in batch.to_pylist())


def _plain(field: Any) -> Any:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
