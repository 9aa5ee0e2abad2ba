"""The prepared file: verl's columns as Parquet, in row groups, under another name until it is complete."""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spo_verl.data.prepare.errors import SpoDataError

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


def check_target(target: Path, *, force: bool) -> None:
    """Refuse what could not or must not be written, before anything is read.

    Raises:
        SpoDataError: a folder, another ending than .parquet, or a file that is there already and may not be replaced.
    """
    if target.is_dir():
        raise SpoDataError(f"{target} is a folder: name a file, e.g. {target}/train.parquet.")
    if target.suffix != ".parquet":
        raise SpoDataError(f"{target}: prepared data are Parquet; let the name end with .parquet.")
    if target.exists() and not force:
        raise SpoDataError(f"{target} is there already: choose another name, or replace it with --force.")


@contextmanager
def replacing(target: Path) -> Iterator[Callable[[], Path]]:
    """Yield a function that names a new temporary file beside the target; the last one named becomes the target.

    All of it, or nothing: on an error every temporary file is removed and the target is what it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staged: list[Path] = []

    def stage() -> Path:
        staged.append(target.with_name(f".{target.name}.writing-{uuid.uuid4().hex[:12]}"))
        return staged[-1]

    try:
        yield stage
        with staged[-1].open("rb") as file:
            os.fsync(file.fileno())
        os.replace(staged[-1], target)
        _sync_folder(target.parent)
    finally:
        for file_name in staged:
            file_name.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
