"""Adding up tables of offline values: shards of one estimate, or several estimates of one policy."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from spo_verl.data.identity import slots_of_keys
from spo_verl.data.values.values_table import OfflineValues
from spo_verl.errors import SpoValuesError


def merge(*values: OfflineValues, mixed_policies: bool = False) -> OfflineValues:
    """Add the counts of every prompt over several tables; prompts keep the order of their first appearance.

    Args:
        values: At least one table.
        mixed_policies: Whether tables of different policies may be added. An unknown policy (None) differs from
            every known one.

    Raises:
        SpoValuesError: Policies differ and ``mixed_policies`` is False, the same table was given twice, or none.
    """
    if not values:
        raise SpoValuesError("there is nothing to merge: give at least one table of offline values")
    policies = list(dict.fromkeys(policy for table in values for policy in table.policies))
    if len(policies) > 1 and not mixed_policies:
        named = ", ".join("an unknown one" if policy is None else repr(policy) for policy in policies)
        raise SpoValuesError(
            f"these offline values are of {len(policies)} policies ({named}), and a success rate holds for one policy "
            "only: merge those of the model that you train, state the policy when importing, or allow mixed policies"
        )
    _refuse_repeats(values)
    key_N = np.concatenate([table.key_N for table in values])
    slot_N, first_row_P = slots_of_keys(key_N) if len(key_N) else (np.empty(0, np.int64), np.empty(0, np.int64))
    trials_P = np.zeros(len(first_row_P), dtype=np.int64)
    np.add.at(trials_P, slot_N, np.concatenate([table.trials_N for table in values]))
    successes_N = np.concatenate([table.successes_N for table in values])
    successes_P = np.bincount(slot_N, weights=successes_N, minlength=len(first_row_P)).astype(np.float64)
    return OfflineValues(
        key_N[first_row_P],
        successes_P,
        trials_P,
        tuple(_distinct(entry for table in values for entry in table.source)),
    )


def _refuse_repeats(values: Sequence[OfflineValues]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for position, table in enumerate(values, 1):
        if not table.trials_N.any():
            continue
        mark = (table.digest(), json.dumps(table.source, sort_keys=True))
        if mark in seen:
            raise SpoValuesError(
                f"tables {seen[mark]} and {position} are the same, so each of their trials would count twice: leave "
                "one of them out"
            )
        seen[mark] = position


def _distinct(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(entry, sort_keys=True): entry for entry in entries}.values())
