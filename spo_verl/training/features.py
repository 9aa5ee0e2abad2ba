"""Further features of the prompts for the calibrated read-out (``spo.value.features``), read when a run starts."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from spo_verl.config import SpoConfig
from spo_verl.data.columns import column_batches, rows_of, table_of
from spo_verl.data.identity import DatasetKeys
from spo_verl.errors import SpoConfigError, SpoStateError
from spo_verl.tracker.features import MOST_FEATURES, PromptFeatures
from spo_verl.training.functions import load_function

logger = logging.getLogger(__name__)

SETTING = "spo.value.features"


def read_features(spo: SpoConfig, dataset: Any, keys: DatasetKeys) -> PromptFeatures | None:
    """The features that ``spo.value.features`` names, standardised over the prompts; None without any.

    Args:
        spo: settings.
        dataset: verl's training dataset of N rows.
        keys: its prompts; a prompt with several rows takes the row that it is trained with.

    Raises:
        SpoConfigError: a column or function is not there, or gives something else than a finite number per row; a
            feature is the same for all prompts; there are more than ``MOST_FEATURES``.
    """
    names: list[str] = []
    columns: list[np.ndarray] = []
    for given in spo.value.features or ():
        number_NF = _of_function(given, dataset) if ":" in given else _of_column(given, dataset)[:, None]
        several = number_NF.shape[1] > 1
        names += [f"{given}[{number}]" if several else given for number in range(number_NF.shape[1])]
        columns.append(number_NF[keys.row_of_slot_P])
    if not names:
        return None
    if len(names) > MOST_FEATURES:
        raise SpoConfigError(f"{SETTING} are {len(names)} features; at most {MOST_FEATURES} are fitted.")
    number_PF = np.concatenate(columns, axis=1)
    finite_PF = np.isfinite(number_PF)
    if not finite_PF.all():
        slot, number = np.argwhere(~finite_PF)[0]
        raise _unusable(names[number], f"row {keys.row_of_slot_P[slot]} has {number_PF[slot, number]}")
    try:
        features = PromptFeatures.standardised(tuple(names), number_PF)
    except SpoStateError as error:
        raise SpoConfigError(f"{SETTING}: {error}") from error
    logger.info("spo: the calibrated read-out has %d features of yours: %s", len(names), ", ".join(names))
    return features


def _of_column(name: str, dataset: Any) -> np.ndarray:
    """Numbers of a column of the dataset's table, or of a member of a struct, (N,) float64."""
    table = table_of(dataset)
    if table is None:
        raise _unusable(name, f"a dataset of type {type(dataset).__name__} has no table of columns")
    column, *members = name.split(".")
    number_N = np.empty(len(table))
    found = False
    for start, batch in column_batches(table, [column], {column: members[:1]} if members else {}):
        found = column in batch
        for place, value in enumerate(batch.get(column, ())):
            number_N[start + place] = _number(name, _member(value, members), start + place)
    if not found:
        raise _unusable(name, f"the training data has no such column, only {sorted(table.column_names)}")
    return number_N


def _member(value: Any, members: list[str]) -> Any:
    for member in members:
        value = value.get(member) if isinstance(value, dict) else None
    return value


def _number(name: str, value: Any, row: int) -> float:
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _unusable(name, f"row {row} has {str(value)[:40]!r}")


def _of_function(name: str, dataset: Any) -> np.ndarray:
    """What a function gives for the rows of the dataset, (N, F) float64."""
    rows = rows_of(dataset)
    given = load_function(SETTING, name, "my_project.difficulty:digits")(dataset)
    try:
        number_NF = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _unusable(name, f"it returned no numbers ({error})") from error
    number_NF = number_NF[:, None] if number_NF.ndim == 1 else number_NF
    if number_NF.ndim != 2 or len(number_NF) != rows or not number_NF.shape[1]:
        raise _unusable(name, f"it returned the shape {np.shape(given)}, not ({rows},) or ({rows}, F)")
    return number_NF


def _unusable(name: str, why: str) -> SpoConfigError:
    return SpoConfigError(
        f"{SETTING}: {name!r} gives no finite number for every prompt: {why}. Name a numeric column of the training "
        "data, or as module:function a function that takes the dataset and returns a number (or F numbers) per row."
    )
