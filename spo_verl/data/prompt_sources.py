"""The data source of every prompt: verl's column ``data_source``, read alone, for quotas and the read-out of values."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from spo_verl.data.columns import column_batches, rows_of, table_of
from spo_verl.errors import SpoConfigError
from spo_verl.tracker.quota import PromptSources

COLUMN = "data_source"

_WAY_OUT = "Correct the data, or set spo.sampling.quota=null to draw without regard to data sources."


def prompt_sources(dataset: Any, row_of_slot_P: np.ndarray | None = None) -> PromptSources:
    """The data source of each prompt slot: what its row says under ``data_source``.

    For verl's RLHFDataset and for a bare `datasets.Dataset` that column alone is read, in batches, from the table
    underneath; nothing is tokenized or decoded. The rows of any other dataset are read with ``dataset[row]``.

    Args:
        dataset: Map-style dataset of N rows.
        row_of_slot_P: (P,) integers in [0, N): the row of each slot (`DatasetKeys.row_of_slot_P`). Default: each row is
            a slot of its own.

    Returns:
        PromptSources of the P prompts.

    Raises:
        SpoConfigError: The dataset cannot be indexed, there is no such column, or a prompt's row holds no text there;
            names the row.
    """
    rows = rows_of(dataset)
    row_P = np.arange(rows) if row_of_slot_P is None else np.asarray(row_of_slot_P)
    table = table_of(dataset)
    if table is None:
        return PromptSources.of(_labels_of_rows(dataset, row_P))
    if COLUMN not in table.column_names:
        raise _missing(f"the training data has no column {COLUMN!r}, only {sorted(table.column_names)}")
    return PromptSources.of(_labels_of_table(table, row_P, _checked))


def stated_sources(dataset: Any, row_of_slot_P: np.ndarray) -> PromptSources | None:
    """The data sources as far as the table of the dataset has them: "" for a prompt without; None without the column.

    A dataset without a table is not read: its own code may do anything when a row is.

    Args:
        dataset, row_of_slot_P: as for `prompt_sources`.
    """
    table = table_of(dataset)
    if table is None or COLUMN not in table.column_names:
        return None
    return PromptSources.of(
        _labels_of_table(table, row_of_slot_P, lambda label, _: "" if label is None else str(label))
    )


def _labels_of_table(table: Any, row_P: np.ndarray, name_of: Callable[[Any, int], str]) -> Iterator[str]:
    wanted_N = np.zeros(len(table), dtype=bool)
    wanted_N[row_P] = True
    # A number per row: ten million texts of their own would take a gigabyte.
    number_of: dict[str, int] = {}
    number_N = np.zeros(len(table), dtype=np.int32)
    for start, columns in column_batches(table, [COLUMN], {}):
        labels = columns[COLUMN]
        for place in np.flatnonzero(wanted_N[start : start + len(labels)]).tolist():
            label = name_of(labels[place], start + place)
            number_N[start + place] = number_of.setdefault(label, len(number_of))
    names = list(number_of)
    yield from (names[number] for number in number_N[row_P].tolist())


def _labels_of_rows(dataset: Any, row_P: np.ndarray) -> Iterator[str]:
    for row in row_P.tolist():
        item = dataset[row]
        if not isinstance(item, Mapping) or COLUMN not in item:
            held = f"only {sorted(map(str, item))}" if isinstance(item, Mapping) else f"but is a {type(item).__name__}"
            raise _missing(f"row {row} of the training data has no {COLUMN!r}, {held}")
        yield _checked(item[COLUMN], row)


def _checked(label: Any, row: int) -> str:
    if isinstance(label, str) and label:
        return str(label)
    raise SpoConfigError(
        f"spo.sampling.quota: {COLUMN} of row {row} of the training data is {label!r}; every prompt needs a text "
        f"there. {_WAY_OUT}"
    )


def _missing(what: str) -> SpoConfigError:
    return SpoConfigError(f"spo.sampling.quota needs the data source of every prompt, but {what}. {_WAY_OUT}")
