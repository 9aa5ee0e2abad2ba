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
    table = record.rollouts() if what == "rollouts" else record.steps() if what == "steps" else record.prompts()
    unknown = [name for name in columns if name not in table.column_names]
    if unknown:
        raise HistoryError(f"{what} have no column {', '.join(unknown)}: choose among {', '.join(table.column_names)}.")
    if place.named_checkpoint and "step" in table.column_names:
        step = int(place.require_checkpoint().parent.name.rpartition("_")[2])
        table = table.filter(pa.compute.less_equal(table["step"], step))
    table = table.select(list(columns)) if columns else table
    return table.cast(pa.schema([_plain(field) for field in table.schema]))


def write_values(place: Place, path: Path) -> dict[str, Any]:
    """Write the values of the place's checkpoint as offline values; returns their description.

    Raises:
        HistoryError: there is no checkpoint, or the file's name does not end in .parquet.
        SpoValuesError, SpoCheckpointError: the checkpoint cannot be read, or the file not be written.
    """
    folder = place.require_checkpoint()
    check_target(path, place, SUFFIXES[:1])
    from spo_verl.data.values import from_tracker

    values, _ = from_tracker(folder)
    values.write(path)
    described: dict[str, Any] = values.describe()
    return described | {"checkpoint": str(folder)}


def check_target(path: Path, place: Place, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Refuse a file that cannot be written, is part of what is read, or whose ending names no format.

    Raises:
        HistoryError: says which.
    """
    if path.suffix not in suffixes:
        raise HistoryError(f"{path}: the ending names the format; let it be {', '.join(suffixes)}.")
    for folder in (place.checkpoint, place.record.path if place.record is not None else None):
        if folder is not None and folder.resolve() in path.resolve().parents:
            raise HistoryError(f"{path} is in {folder}, which is read: name a file elsewhere.")
    check_output(path, HistoryError)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table in the format that the file's ending names, at once or not at all.

    Raises:
        HistoryError: the file cannot be written.
    """
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
