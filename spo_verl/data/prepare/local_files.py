"""JSON and CSV files as Arrow batches with the values exactly as they are written.

The readers of `datasets` guess types: in CSV ``007`` becomes 7 and ``None`` an empty field, in JSON a column of numbers
and texts loses the difference between the text ``"[1, 2]"`` and a list. Here a field of CSV is a text, and a column of
JSON that has no single type is held as JSON.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from spo_verl.data.prepare.data_errors import SpoDataError
from spo_verl.files import opened, read_json, read_json_lines, require_rows, text_lines

SEPARATORS = {".csv": ",", ".tsv": "\t"}
EXACT = (".json", ".jsonl", *SEPARATORS)
"""Endings of the files that this module reads."""

_LONGEST_FIELD = 1 << 24
_OTHER_SEPARATORS = (";", "\t", "|", ",")


def require_exact(file: Path) -> None:
    """Refuse a file that has no rows or cannot be read, before anything is made of it.

    Raises:
        SpoDataError: names file and line.
    """
    if file.suffix in SEPARATORS:
        if next(_csv_rows(file), None) is None:
            raise SpoDataError(f"{file} holds no row below its header: was its writer stopped?")
    else:
        require_rows(file, SpoDataError)


def exact_batches(files: Sequence[Path], size: int) -> Iterator[pa.Table]:
    """The rows of JSON or CSV files, as Arrow tables of up to ``size`` rows.

    Raises:
        SpoDataError: a row cannot be read; names file and line.
    """
    rows = itertools.chain.from_iterable(map(_rows, files))
    while batch := list(itertools.islice(rows, size)):
        yield _table(batch)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix in SEPARATORS:
        return _csv_rows(file)
    if _is_one_list(file):
        return iter(read_json(file, SpoDataError))
    return (row for _, row in read_json_lines(file, SpoDataError))


def _is_one_list(file: Path) -> bool:
    """Whether a JSON file is one list of rows instead of a row per line."""
    _, line = next(text_lines(file, SpoDataError))
    return line.lstrip().startswith("[")


def _csv_rows(file: Path) -> Iterator[dict[str, Any]]:
    next(text_lines(file, SpoDataError), None)  # refuses what is compressed, or in another encoding
    csv.field_size_limit(_LONGEST_FIELD)
    with opened(file, SpoDataError) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=SEPARATORS[file.suffix], strict=True)
        try:
            names = next((row for row in reader if row), [])
            _check_names(file, names)
            for row in reader:
                if len(row) == len(names):
                    yield dict(zip(names, row, strict=True))
                elif row:  # an empty line is no row
                    raise SpoDataError(
                        f"{file}, line {reader.line_num}: {len(row)} fields, and the header has {len(names)}: put "
                        "fields with separators into double quotation marks"
                    )
        except csv.Error as reason:
            raise SpoDataError(
                f"{file}, line {reader.line_num}: not readable CSV ({reason}): correct the row"
            ) from reason
        except UnicodeDecodeError as reason:
            raise SpoDataError(
                f"{file}, near line {reader.line_num + 1}: not UTF-8: convert the file, e.g. with "
                "`iconv -f LATIN1 -t UTF-8`"
            ) from reason


def _check_names(file: Path, names: Sequence[str]) -> None:
    if not names:
        raise SpoDataError(f"{file} is empty: was its writer stopped?")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpoDataError(f"{file} has the column {', '.join(twice)} twice: keep one of each name")
    other = [mark for mark in _OTHER_SEPARATORS if mark in names[0] and mark != SEPARATORS[file.suffix]]
    if len(names) == 1 and other:
        raise SpoDataError(
            f"{file} has one column, {names[0]!r}: .csv files are separated by commas and .tsv files by tabs, not by "
            f"{other[0]!r}: save it that way"
        )


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: Iterable[Any]) -> pa.Array:
    """The values with their one type, or as JSON where they have several."""
    given = list(values)
    kinds = {_kind(value) for value in given} - {None}
    if len(kinds) <= 1:
        try:
            return pa.array(given)
        except (pa.ArrowException, OverflowError, UnicodeError):  # inner types that differ, numbers above 64 bits
            pass
    texts = [None if value is None else json.dumps(value) for value in given]
    return pa.array(texts, pa.json_())


def _kind(value: Any) -> type | None:
    return None if value is None else type(value)
