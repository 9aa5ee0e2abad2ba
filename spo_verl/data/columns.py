"""Columns of a dataset's table, in batches of plain Python values, without decoding any media."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spo_verl.data.libraries import python_values
from spo_verl.errors import SpoConfigError

_ROWS_PER_BATCH = 4096
# A batch is held in memory whole, and embedded media take up to megabytes per row.
_ROWS_PER_MEDIA_BATCH = 64


def rows_of(dataset: Any) -> int:
    """The dataset's number of rows.

    Raises:
        SpoConfigError: The dataset is not map-style.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise SpoConfigError(
            f"a dataset of type {type(dataset).__name__} cannot be indexed by row number: prompts are drawn "
            "from the whole dataset, which needs a map-style dataset with __len__ and __getitem__, not an "
            "iterable one"
        )
    return len(dataset)


def table_of(dataset: Any) -> Any | None:
    """The Hugging Face table that serves the dataset's rows one to one, or None without one.

    verl's RLHFDataset holds it in ``.dataframe``; a bare `datasets.Dataset` is one itself.
    """
    candidate = getattr(dataset, "dataframe", dataset)
    is_table = all(hasattr(candidate, name) for name in ("column_names", "select_columns", "with_format"))
    return candidate if is_table and len(candidate) == len(dataset) else None


def column_batches(
    table: Any, names: Iterable[str], members: Mapping[str, Sequence[str]]
) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """Read the named columns batch by batch.

    Values are the stored ones: an embedded picture stays ``{"bytes": ..., "path": ...}``. Arrow's JSON type,
    which `datasets` uses for fields of mixed types, is parsed: it then equals the same content in a struct.

    Args:
        table: A Hugging Face `datasets.Dataset`.
        names: Columns to read; those that the table lacks are left out.
        members: Column -> the only members of interest where that column is a struct; a struct without any of
            them is left out.

    Yields:
        Number of the batch's first row, and column -> list of values in row order.
    """
    kinds = {field.name: field.type for field in table.features.arrow_schema}
    present = [name for name in names if name in kinds and _has_members(kinds[name], members.get(name))]
    stored = table.select_columns(present).with_format("arrow")
    media = any(_contains(kinds[name], _is_bytes) for name in present)
    size = _ROWS_PER_MEDIA_BATCH if media else _ROWS_PER_BATCH
    for start in range(0, len(stored), size):
        batch = stored[start : start + size]
        yield start, {name: _values(batch[name], members.get(name), name, start) for name in present}


def _values(column: pa.ChunkedArray, members: Sequence[str] | None, name: str, start: int) -> list[Any]:
    # Converting one array is several times faster than converting many chunks. More than 2 GB stay chunked.
    array = column.combine_chunks()
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    values: list[Any] = []
    for chunk in chunks:
        values += _values_of_chunk(chunk, members, name, start + len(values))
    return values


def _values_of_chunk(array: pa.Array, members: Sequence[str] | None, name: str, start: int) -> list[Any]:
    if members is not None and pa.types.is_struct(array.type):
        array = _with_members(array, members)
    values = python_values(array, name, lambda text: SpoConfigError(f"rows from {start} on of the dataset: {text}"))
    if _contains(array.type, _is_json):
        return [_parse_json(value, array.type) for value in values]
    return values


def _has_members(kind: pa.DataType, members: Sequence[str] | None) -> bool:
    if members is None or not pa.types.is_struct(kind):
        return True
    return any(kind.get_field_index(name) >= 0 for name in members)


def _with_members(array: pa.StructArray, members: Sequence[str]) -> pa.StructArray:
    """The struct with these members only; where the whole struct was null, they are null."""
    kept = [name for name in members if array.type.get_field_index(name) >= 0]
    return pa.StructArray.from_arrays([pc.struct_field(array, name) for name in kept], names=kept)


def _parse_json(value: Any, kind: pa.DataType) -> Any:
    """Replace the texts that Arrow's JSON type stores by what they say, at every depth."""
    if value is None:
        return None
    if _is_json(kind):
        return json.loads(value)
    if pa.types.is_struct(kind):
        return {field.name: _parse_json(value[field.name], field.type) for field in kind}
    if _is_list(kind):
        return [_parse_json(element, kind.value_type) for element in value]
    return value


def _contains(kind: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    if test(kind):
        return True
    if pa.types.is_struct(kind):
        return any(_contains(field.type, test) for field in kind)
    return _is_list(kind) and _contains(kind.value_type, test)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_json(kind: pa.DataType) -> bool:
    return getattr(kind, "extension_name", None) == "arrow.json"


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
