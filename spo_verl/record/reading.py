"""Reads the record of a run: of one that has ended, that is under way, or that crashed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spo_verl.errors import SpoRecordError, SpoRecordVersionError
from spo_verl.files import parquet_reasons, read_json
from spo_verl.record.schema import (
    FOLDER,
    PROMPTS,
    PROMPTS_FILE,
    RUN,
    SCHEMA_VERSION,
    SCHEMAS,
    VERSION_KEY,
    Kind,
    parts_in,
    uncovered,
)

logger = logging.getLogger(__name__)

_TRIES = 20
"""A part may be merged between the moment it is listed and the moment it is read; then the list is read again."""


class Record:
    """The record in a folder; every call reads what is there now.

    Attributes:
        path: the record's own folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: set[str] = set()

    @classmethod
    def open(cls, folder: str | Path) -> Record:
        """
        Args:
            folder: of the run (``trainer.default_local_dir``), or the folder ``record`` in it.

        Raises:
            SpoRecordError: there is no record.
            SpoRecordVersionError: it was written by a newer version.
        """
        folder = Path(folder)
        for path in (folder / FOLDER, folder):
            if (path / RUN).is_file():
                record = cls(path)
                _require_version(record.run.get("schema_version"), path / RUN)
                return record
        found = "is not there" if not folder.exists() else f"holds no {FOLDER}/{RUN}"
        raise SpoRecordError(
            f"{folder} {found}: name the folder of a run (trainer.default_local_dir). A run has a record from "
            "its first step on, unless spo.record=off."
        )

    @property
    def run(self) -> dict[str, Any]:
        """What ``run.json`` says, see :meth:`RecordWriter.describe`."""
        run = read_json(self.path / RUN, SpoRecordError)
        if not isinstance(run, dict):
            raise SpoRecordError(f"{self.path / RUN} is not a JSON object: restore it from a copy.")
        return run

    @cached_property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.path.parent

    def rollouts(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of ``ROLLOUTS`` in the order in which the tracker observed them.

        Args:
            columns: names of the only columns to read.

        Raises:
            SpoRecordError: there is no such column, or the folder cannot be read.
            SpoRecordVersionError: a part was written by a newer version.
        """
        return self._table("rollouts", columns)

    def steps(self) -> pa.Table:
        """The rows of ``STEPS``; errors as of :meth:`rollouts`."""
        return self._table("steps", None)

    def prompts(self) -> pa.Table:
        """The rows of ``PROMPTS``, none while they have not been written; errors as of :meth:`rollouts`."""
        path = self.path / PROMPTS_FILE
        if not path.is_file():
            return PROMPTS.empty_table()
        return _read(path, PROMPTS)

    def _table(self, kind: Kind, columns: Sequence[str] | None) -> pa.Table:
        schema = SCHEMAS[kind]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in _known(columns, schema.names)])
        for _ in range(_TRIES):
            try:
                parts = uncovered(parts_in(self.path, kind))
                tables = [self._part(self.path / part.name, schema) for part in parts]
            except FileNotFoundError:
                continue
            except SpoRecordError:
                raise
            except OSError as reason:
                raise SpoRecordError(
                    f"{self.path} cannot be read ({reason.strerror}): check who may read it."
                ) from reason
            return pa.concat_tables([schema.empty_table(), *tables]).unify_dictionaries()
        raise SpoRecordError(f"the parts in {self.path} change faster than they can be read: try again.")

    def _part(self, path: Path, schema: pa.Schema) -> pa.Table:
        """The rows of a part; none, and a warning, where it is damaged."""
        try:
            return _read(path, schema)
        except SpoRecordVersionError:
            raise
        except SpoRecordError as reason:
            if path.name not in self._said:
                logger.warning("spo: left out of the record: %s", reason)
            self._said.add(path.name)
            return schema.empty_table()


def _known(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    columns = list(columns)
    if unknown := [name for name in columns if name not in names]:
        raise SpoRecordError(f"the record has no column {', '.join(map(repr, unknown))}; it has {', '.join(names)}.")
    return columns


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    """These columns of a file; columns that a file of this version lacks are null."""
    try:
        with path.open("rb") as raw:
            file = pq.ParquetFile(raw)
            _require_version((file.schema_arrow.metadata or {}).get(VERSION_KEY), path)
            present = [name for name in schema.names if name in file.schema_arrow.names]
            table = file.read(columns=present)
    except (FileNotFoundError, SpoRecordError):
        raise
    except parquet_reasons() as reason:
        raise SpoRecordError(f"{path} cannot be read as Parquet ({reason}): restore it from a copy.") from reason
    arrays = [
        table[field.name].cast(field.type) if field.name in present else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _require_version(found: Any, path: Path) -> None:
    try:
        version = int(found)
    except (TypeError, ValueError) as reason:
        raise SpoRecordError(f"{path} does not say the version of its schema: it is no file of a record.") from reason
    if version > SCHEMA_VERSION:
        raise SpoRecordVersionError(
            f"{path} has version {version} of the record's schema, and this spo_verl reads up to {SCHEMA_VERSION}: "
            "update spo_verl (`pip install -U spo-verl`)."
        )
