"""The prepared file: verl's columns as Parquet, in row groups, under another name until it is complete."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spo_verl.data.prepare.data_errors import SpoDataError
from spo_verl.files import check_output

ROWS_PER_GROUP = 2048

SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [("index", pa.int64()), ("split", pa.string()), ("source_id", pa.string()), ("problem", pa.string())]
            ),
        ),
    ]
)


class GroupWriter:
    """Collects rows and writes a row group whenever there are enough."""

    def __init__(self, file: Any) -> None:
        self._writer = pq.ParquetWriter(file, SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add one row of `SCHEMA`."""
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write what is left, and the file's metadata."""
        self._flush()
        self._writer.add_key_value_metadata(dict(metadata))

    def __enter__(self) -> "GroupWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows.clear()


def check_target(target: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse what could not or must not be written, before anything is read.

    Raises:
        SpoDataError: a folder or a place that cannot be written to, another ending than .parquet, one of ``inputs``, or
            a file that is there already and may not be replaced.
    """
    check_output(target, SpoDataError, inputs=inputs)
    if target.suffix != ".parquet":
        raise SpoDataError(f"{target}: prepared data are Parquet; let the name end with .parquet.")
    if os.path.lexists(target) and not force:
        raise SpoDataError(f"{target} is there already: choose another name, or replace it with --force.")
