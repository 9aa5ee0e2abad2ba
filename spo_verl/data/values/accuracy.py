"""Datasets that carry the success rate of a known policy with each row, such as Polaris."""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from spo_verl.config import RewardConfig
from spo_verl.data.columns import column_batches, table_of
from spo_verl.data.identity import DatasetKeys
from spo_verl.data.unit_reward import number, unit_reward
from spo_verl.data.values.match_report import MatchReport
from spo_verl.data.values.prompt_texts import counted, identified, rows_without
from spo_verl.data.values.values_table import OfflineValues, provenance
from spo_verl.errors import SpoConfigError, SpoRewardError

logger = logging.getLogger(__name__)

_MOST_DIGITS = 9
"""Of a number of trials; more would not be counted in 64 bits when files are merged."""


def from_accuracy_column(
    dataset: Any,
    column: str,
    trials: int | None = None,
    *,
    keys: DatasetKeys | None = None,
    policy: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    date: str | None = None,
) -> tuple[OfflineValues, MatchReport]:
    """Read the accuracy that each row has: a number in [0, 1], or a text such as "5/8" or "0.625".

    Args:
        dataset: As in `from_reference_json`.
        column: Its name; ``"extra_info.accuracy"`` names a member of a column.
        trials: Trials that each accuracy is the mean of, a whole number >= 1. A fraction such as "5/8" brings its own,
            and must agree with this where it is given.
        keys: As in `from_reference_json`.
        policy, sampling, date: For the provenance, as in `provenance`.

    Returns:
        The values, and what matched; an entry is a row with an accuracy. Rows without one (missing, None, NaN, empty
        text) give none. Where several rows hold one prompt, the first accuracy counts; differing ones are noted.

    Raises:
        SpoConfigError: No row has an accuracy there, or ``trials`` is missing or not a whole number >= 1.
        SpoRewardError: An accuracy is outside [0, 1] or no number, or a fraction disagrees with ``trials``.
    """
    if trials is not None and (trials != int(trials) or trials < 1):
        raise SpoConfigError(f"trials={trials}, but it must be a whole number >= 1")
    keys = identified(dataset, keys)
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    rows = differing = 0
    for row, raw in enumerate(_column(dataset, column)):
        if (parsed := _accuracy(raw, trials, f"row {row} of the dataset, {column!r}")) is None:
            continue
        rows += 1
        slot = int(keys.slot_of_row_N[row])
        if slot not in counts:
            sums[slot], counts[slot] = parsed
        else:
            differing += parsed != (sums[slot], counts[slot])
    if not rows:
        names = sorted(getattr(table_of(dataset), "column_names", ()))
        raise SpoConfigError(
            f"no row of the dataset has an accuracy under {column!r} (columns: {', '.join(names) or 'unknown'}): name "
            'the column that holds them, a member of a column as "extra_info.accuracy"'
        )
    note = f"{differing} rows repeat a prompt with another accuracy than its first row, which counts"
    report = MatchReport(
        source=f"accuracy column {column!r}",
        prompts=keys.prompts,
        matched=len(counts),
        entry="row",
        entries=rows,
        unmatched_row_U=rows_without(keys, counts),
        notes=(note,) if differing else (),
    )
    logger.info("%s", report)
    source = provenance("accuracy_column", policy=policy, sampling=sampling, date=date, column=column)
    return counted(keys, sums, counts, source), report


def _column(dataset: Any, column: str) -> Iterator[Any]:
    table = table_of(dataset)
    if table is None:
        for row in range(len(dataset)):
            yield _member(dataset[row], column)
        return
    head, _, tail = column.partition(".")
    if column in table.column_names:
        head, tail = column, ""
    for _, batch in column_batches(table, [head], {head: [tail.partition(".")[0]]} if tail else {}):
        if head in batch:
            yield from (_member(value, tail) if tail else value for value in batch[head])


def _member(value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        return None
    if path in value:
        return value[path]
    head, _, tail = path.partition(".")
    return _member(value.get(head), tail) if tail else None


def _accuracy(raw: Any, trials: int | None, where: str) -> tuple[float, int] | None:
    """Successes and trials, or None where nothing is stated."""
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return None
    if isinstance(raw, str) and "/" in raw:
        return _fraction(raw, trials, where)
    try:
        stated = float(raw) if isinstance(raw, str) else number(raw)
    except ValueError:
        stated = None
    if stated is not None and math.isnan(stated):
        return None
    try:
        accuracy = unit_reward(stated, RewardConfig(), where, "accuracy")
    except SpoRewardError:
        raise SpoRewardError(
            f"{where} is {_shown(raw)}; an accuracy is a number in [0, 1] (divide percentages by 100) or a "
            "fraction such as 5/8"
        ) from None
    if trials is None:
        raise SpoConfigError(f"{where} is {raw!r}, which does not tell how many trials it is the mean of: state trials")
    return accuracy * trials, trials


def _fraction(raw: str, trials: int | None, where: str) -> tuple[float, int]:
    top, _, bottom = (part.strip() for part in raw.partition("/"))
    digits = all(part.isdecimal() and len(part) <= _MOST_DIGITS for part in (top, bottom))
    if not (digits and 0 <= int(top) <= int(bottom) != 0):
        raise SpoRewardError(f"{where} is {_shown(raw)}; write successes/trials, e.g. 5/8")
    if trials is not None and int(bottom) != trials:
        raise SpoRewardError(f"{where} is {raw!r}, which is of {bottom} trials and not of {trials}: leave trials out")
    return float(int(top)), int(bottom)


def _shown(raw: Any) -> str:
    try:
        text = repr(raw)
    except ValueError:  # Python writes no whole number of so many digits
        text = f"a {type(raw).__name__} of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
