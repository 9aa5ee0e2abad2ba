"""Further features of the prompts for the calibrated read-out (``spo.value.features``), read when a run starts."""

from __future__ import annotations

import logging
import re
from decimal import Decimal
from typing import Any

import numpy as np

from spo_verl.config import SpoConfig
from spo_verl.data.columns import column_batches, rows_of, table_of
from spo_verl.data.identity import DatasetKeys
from spo_verl.errors import SpoConfigError, SpoStateError
from spo_verl.tracker.features import MOST_FEATURES, PromptFeatures, numbers
from spo_verl.training.functions import load_function

logger = logging.getLogger(__name__)

SETTING = "spo.value.features"
EXAMPLE = "my_project.difficulty:digits"
FAR = 100.0
"""Standard deviations from the mean beyond which a number is named: it leaves the others almost alike."""
SHOWN = 60
"""Characters of a value in a message."""
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def require_functions(spo: SpoConfig) -> None:
    """Load what ``spo.value.features`` names as functions, so that a wrong name ends a run before it begins.

    Raises:
        SpoConfigError: one cannot be loaded. A name with a colon may also be that of a column: it is not looked at.
    """
    for given in spo.value.features or ():
        if _MODULE.fullmatch(given):
            load_function(SETTING, given, EXAMPLE)


def read_features(spo: SpoConfig, dataset: Any, keys: DatasetKeys) -> PromptFeatures | None:
    """The features that ``spo.value.features`` names, standardised over the prompts; None without any.

    Args:
        spo: settings.
        dataset: verl's training dataset of N rows.
        keys: its prompts; of a prompt with several rows the first one counts.

    Raises:
        SpoConfigError: a column or function is not there, or gives something else than a finite number per row; a
            feature is the same for all prompts; there are more than ``MOST_FEATURES``.
    """
    names: list[str] = []
    columns: list[np.ndarray] = []
    for given in spo.value.features or ():
        table = table_of(dataset)
        if ":" in given and (table is None or given not in table.column_names):
            number_PF = _of_function(given, dataset)[keys.row_of_slot_P]
        else:
            number_PF = _of_column(given, dataset, keys.row_of_slot_P)[:, None]
        several = number_PF.shape[1] > 1
        names += [f"{given}[{number}]" if several else given for number in range(number_PF.shape[1])]
        columns.append(number_PF)
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
    largest_F = np.abs(features.feature_PF).max(axis=0)
    for name, (mean, sd), largest in zip(names, features.scales, largest_F.tolist(), strict=True):
        far = f", one as far as {largest:.0f} standard deviations: most prompts hardly differ" if largest > FAR else ""
        what = "spo: feature %s of the calibrated read-out: mean %.4g, standard deviation %.4g%s"
        logger.info(what, name, mean, sd, far)
    return features


def _of_column(name: str, dataset: Any, row_P: np.ndarray) -> np.ndarray:
    """Numbers of a column of the dataset's table, or of a member of a struct, for these rows, (P,) float64."""
    table = table_of(dataset)
    if table is None:
        raise _unusable(name, f"a dataset of type {type(dataset).__name__} has no table of columns")
    column, *members = [name] if name in table.column_names else name.split(".")
    if column not in table.column_names:
        raise _unusable(name, f"the training data has no such column, only {sorted(table.column_names)}")
    wanted_N = np.zeros(len(table), dtype=bool)
    wanted_N[row_P] = True
    number_N = np.full(len(table), np.nan)
    for start, batch in column_batches(table, [column], {}):
        for place in np.flatnonzero(wanted_N[start : start + len(batch[column])]).tolist():
            row = start + place
            value = batch[column][place]
            for member in members:
                if not isinstance(value, dict):
                    raise _unusable(name, f"row {row} has {_short(value)} where {member!r} is looked for")
                if member not in value:
                    raise _unusable(name, f"row {row} has no {member!r} there, only {sorted(value)}")
                value = value[member]
            number_N[row] = _number(name, value, row)
    return np.asarray(number_N[row_P])


def _number(name: str, value: Any, row: int) -> float:
    if isinstance(value, bool | int | float | Decimal):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _unusable(name, f"row {row} has {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _of_function(name: str, dataset: Any) -> np.ndarray:
    """What a function gives for the rows of the dataset, (N, F) float64."""
    rows = rows_of(dataset)
    function = load_function(SETTING, name, EXAMPLE)
    try:
        given = function(dataset)
    except Exception as error:
        raise _unusable(
            name, f"it was called once with the whole dataset and raised {type(error).__name__}: {error}"
        ) from error
    try:
        number_NF = numbers("what it returned", given)
    except SpoStateError as error:
        raise _unusable(name, str(error)) from error
    shape = number_NF.shape
    number_NF = number_NF[:, None] if number_NF.ndim == 1 else number_NF
    if number_NF.ndim != 2 or len(number_NF) != rows or not number_NF.shape[1]:
        raise _unusable(name, f"it returned the shape {shape}, not ({rows},) or ({rows}, F)")
    return number_NF


def _unusable(name: str, why: str) -> SpoConfigError:
    return SpoConfigError(
        f"{SETTING}: {name!r} gives no finite number for every prompt: {why}. Name a numeric column of the training "
        "data (members of structs after dots), or as module:function a function that takes the dataset and returns a "
        "number (or F numbers) for each of its rows."
    )
