"""`datasets` and pyarrow over files of users: which exceptions mean that a file is damaged, and what they say."""

from __future__ import annotations

import glob
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from spo_verl.errors import SpoError
from spo_verl.files import parquet_reasons

_BUILT_IN: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
    StopIteration,
)


def library_faults() -> tuple[type[Exception], ...]:
    """What `datasets` raises, directly or out of pyarrow, pandas and its hub client, over files that it cannot read.

    It documents none of this.
    """
    import datasets

    faults = [*_BUILT_IN, datasets.exceptions.DatasetsError, pa.ArrowException]
    with suppress(ImportError):  # the hub's client uses it since version 1
        import httpx

        faults.append(httpx.HTTPError)
    return tuple(faults)


def python_values(column: pa.Array | pa.ChunkedArray, name: str, error: Callable[[str], SpoError]) -> list[Any]:
    """The values of a column as Python objects.

    Raises:
        error: Python cannot hold a value, such as a text that is not UTF-8 or a day beyond the year 9999; names
            column and row, counted from 0 in what was given.
    """
    try:
        values: list[Any] = column.to_pylist()
    except parquet_reasons():
        for row in range(len(column)):
            try:
                column[row].as_py()
            except parquet_reasons() as reason:
                raise error(
                    f"column {name}, row {row} of its batch: its {column.type} cannot be read ({reason_of(reason)}): "
                    "correct the row, or store the column as text or numbers"
                ) from reason
        raise
    return values


def reason_of(error: BaseException) -> str:
    """What a library's error says, on one line and without what the library says about itself."""
    reason = error.__cause__ if isinstance(error.__cause__, Exception) else error
    text = " ".join(str(reason).split())
    return (text if len(text) <= 300 else f"{text[:297]}...") or type(reason).__name__


def literally(file: Path) -> str:
    """A path as `datasets` takes it: not as a pattern."""
    return glob.escape(str(file.absolute()))
