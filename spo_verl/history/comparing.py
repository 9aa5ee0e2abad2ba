"""Two runs or checkpoints: settings that differ, values per prompt, coverage, and outcomes over steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spo_verl.history.places import Place, configuration
from spo_verl.history.states import PromptStates, hex_of
from spo_verl.history.steps import per_step
from spo_verl.tracker.table import match_keys

STRETCHES = 10
"""Rows of the table of outcomes at most."""


def compare(first: tuple[Place, PromptStates], second: tuple[Place, PromptStates], largest: int) -> dict[str, Any]:
    """How two runs or checkpoints differ, as plain data.

    Args:
        first, second: place and states of each.
        largest: prompts to list, those whose values differ most.

    Returns:
        ``steps``: of both; ``settings``: name -> both values, where they differ; ``prompts``: ``common``,
        ``only_first``, ``only_second``; ``values``, over the common prompts: ``mean`` of both, ``mean_difference``
        (second - first), ``mean_distance``, ``correlation`` (None where one does not vary); ``largest``: prompts with
        ``key``, ``values``, ``n_eff``, ``difference``; ``coverage``: of both; ``outcomes``: see :func:`outcomes`, None
        unless both have a record.
    """
    (place_a, states_a), (place_b, states_b) = first, second
    at_P = match_keys(states_b.key_P, states_a.key_P)
    slot_a_P = np.flatnonzero(at_P >= 0)
    slot_b_P = at_P[slot_a_P]
    value_a_P, value_b_P = states_a.value_P[slot_a_P], states_b.value_P[slot_b_P]
    difference_P = value_b_P - value_a_P
    order_P = np.argsort(-np.abs(difference_P), kind="stable")[:largest]
    return {
        "steps": [states_a.step, states_b.step],
        "settings": differing(settings_of(place_a, states_a), settings_of(place_b, states_b)),
        "prompts": {
            "common": len(slot_a_P),
            "only_first": len(states_a) - len(slot_a_P),
            "only_second": len(states_b) - len(slot_a_P),
        },
        "values": _values(value_a_P, value_b_P),
        "largest": [
            {
                "key": key,
                "values": [float(value_a_P[at]), float(value_b_P[at])],
                "n_eff": [float(states_a.n_eff_P[slot_a_P[at]]), float(states_b.n_eff_P[slot_b_P[at]])],
                "difference": float(difference_P[at]),
            }
            for key, at in zip(hex_of(states_a.key_P[slot_a_P[order_P]]), order_P, strict=True)
            if difference_P[at]
        ],
        "coverage": [float((states.draws_P > 0).mean()) for states in (states_a, states_b)],
        "outcomes": outcomes(place_a, states_a.step, place_b, states_b.step),
    }


def _values(value_a_P: NDArray[np.float64], value_b_P: NDArray[np.float64]) -> dict[str, Any] | None:
    if not len(value_a_P):
        return None
    difference_P = value_b_P - value_a_P
    varies = bool(np.ptp(value_a_P) > 0 and np.ptp(value_b_P) > 0)
    return {
        "mean": [float(value_a_P.mean()), float(value_b_P.mean())],
        "mean_difference": float(difference_P.mean()),
        "mean_distance": float(np.abs(difference_P).mean()),
        "correlation": float(np.corrcoef(value_a_P, value_b_P)[0, 1]) if varies else None,
    }


def settings_of(place: Place, states: PromptStates) -> dict[str, Any]:
    """Settings by dotted name: the configuration in the record, otherwise those of the tracker (``tracker.``)."""
    return flattened(configuration(place.record)) or flattened({"tracker": states.settings})


def flattened(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Name -> both values, by name, where they differ; None where one has no such setting."""
    return {
        name: [first.get(name), second.get(name)]
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    }


def outcomes(place_a: Place, step_a: int, place_b: Place, step_b: int) -> list[dict[str, Any]] | None:
    """Mean rewards and baselines over stretches of steps; None unless both have a record.

    Returns:
        For each of at most ``STRETCHES`` stretches: ``from``, ``to`` (steps), and lists with one entry for each run:
        ``outcomes``, ``reward`` and ``value`` (None without an outcome).
    """
    if place_a.record is None or place_b.record is None:
        return None
    tables = [
        per_step(place.record, upto=step if place.named_checkpoint else None)
        for place, step in ((place_a, step_a), (place_b, step_b))
        if place.record is not None
    ]
    steps = np.unique(np.concatenate([table["step"] for table in tables]))
    if not len(steps):
        return []
    rows = []
    for part in np.array_split(steps, min(STRETCHES, len(steps))):
        low, high = int(part[0]), int(part[-1])
        row: dict[str, Any] = {"from": low, "to": high, "outcomes": [], "reward": [], "value": []}
        for table in tables:
            inside = (table["step"] >= low) & (table["step"] <= high) & (table["outcomes"] > 0)
            count_N = table["outcomes"][inside]
            total = int(count_N.sum())
            row["outcomes"].append(total)
            for name in ("reward", "value"):
                row[name].append(float((table[name][inside] * count_N).sum() / total) if total else None)
        rows.append(row)
    return rows
