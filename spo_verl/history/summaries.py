"""Numbers over all prompts, and lists of prompts by a measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spo_verl.history.states import Column, PromptStates

VALUE_BINS = 10
Ranking = Literal["hardest", "most_uncertain", "most_drifted", "never_drawn"]
RANKINGS: tuple[Ranking, ...] = ("hardest", "most_uncertain", "most_drifted", "never_drawn")
DRIFT_IS = {
    "divergence": "divergence of its stored response at its last visit, nats per token",
    "movement": "movement of the policy since its last visit, nats per token",
    "age": "policy versions since its last visit",
}


def uncertainty(value_P: Column, n_eff_P: Column) -> Column:
    """Standard deviation of the Beta distribution of the evidence, sqrt(v (1 - v) / (N_eff + 1)); in [0, 0.5]."""
    return np.sqrt(np.clip(value_P * (1 - value_P), 0, None) / (n_eff_P + 1))


def ranked(states: PromptStates, ranking: Ranking, count: int) -> NDArray[np.int64]:
    """The first ``count`` slots of a list, worst first; equal ones by slot.

    | ranking | prompts | order |
    |---|---|---|
    | ``hardest`` | with evidence | value ascending, then effective sample size descending |
    | ``most_uncertain`` | with evidence | :func:`uncertainty` descending |
    | ``most_drifted`` | with a measure of drift | ``drift_P`` descending |
    | ``never_drawn`` | without a draw | slot |
    """
    if ranking == "never_drawn":
        return np.flatnonzero(states.draws_P == 0)[:count]
    if ranking == "most_drifted":
        slot_N = np.flatnonzero(np.isfinite(states.drift_P))
        order_N = np.argsort(-states.drift_P[slot_N], kind="stable")
    else:
        slot_N = np.flatnonzero(states.known_P)
        value_N, n_eff_N = states.value_P[slot_N], states.n_eff_P[slot_N]
        keys = (-n_eff_N, value_N) if ranking == "hardest" else (-uncertainty(value_N, n_eff_N),)
        order_N = np.lexsort(keys)
    return slot_N[order_N[:count]]


def histogram(number_P: NDArray[Any], edges: Sequence[float]) -> list[int]:
    """How many lie in each interval between edges; each holds its lower edge, the last one its upper edge too."""
    return [int(count) for count in np.histogram(number_P, bins=np.asarray(edges, dtype=np.float64))[0]]


def value_histogram(value_P: Column, bins: int = VALUE_BINS) -> list[int]:
    """How many values lie in each of ``bins`` equal parts of [0, 1]."""
    return [int(count) for count in np.histogram(value_P, bins=bins, range=(0.0, 1.0))[0]]


def doubling(number_P: NDArray[Any]) -> list[dict[str, int]]:
    """A histogram of whole numbers >= 0 in the classes 0, 1, 2-3, 4-7, ...: ``from``, ``to``, ``prompts``."""
    most = int(number_P.max(initial=0))
    edges = [0, *(2**power for power in range(most.bit_length() + 1))]
    counts: NDArray[Any] = np.histogram(number_P, bins=edges)[0]
    # The last interval of numpy holds its upper edge, which no number reaches here.
    return [
        {"from": low, "to": high - 1, "prompts": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def summary(states: PromptStates) -> dict[str, Any]:
    """Numbers over all prompts, as plain data.

    Shares are of the prompts of the dataset. ``value_mean`` is over all prompts, ``value_mean_known`` over those with
    evidence; None where there are none.
    """
    size, drawn = len(states), int((states.draws_P > 0).sum())
    value_P, n_eff_P = states.value_P, states.n_eff_P
    answer: dict[str, Any] = {
        "step": states.step,
        "source": states.source,
        "prompts": size,
        "prompts_aside": states.aside,
        "open": states.open,
        "drawn_once": drawn,
        "coverage": drawn / size,
        "draws": int(states.draws_P.sum()),
        "most_draws": int(states.draws_P.max(initial=0)),
        "visits": int(states.visits_P.sum()),
        "with_evidence": int(states.known_P.sum()),
        "value_mean": float(value_P.mean()),
        "value_mean_known": _mean(value_P[states.known_P]),
        "value_near_0": float((value_P < 0.05).mean()),
        "value_near_1": float((value_P > 0.95).mean()),
        "n_eff_mean": float(n_eff_P.mean()),
        "n_eff_median": float(np.median(n_eff_P)),
        "value_histogram": value_histogram(value_P),
        "draws_histogram": doubling(states.draws_P),
        "n_eff_histogram": doubling(np.floor(n_eff_P)),
        "drift_is": states.drift,
        "drift_mean": _mean(states.drift_P[np.isfinite(states.drift_P)]),
        "counters": states.counters,
        "settings": states.settings,
    }
    if states.initial_P is not None:
        moved_P = value_P - states.initial_P
        answer["value_change_mean"] = _mean(moved_P[np.isfinite(moved_P)])
    if states.source_P is not None:
        answer["sources"] = by_source(states)
    return answer


def by_source(states: PromptStates) -> dict[str, dict[str, Any]]:
    """Data source -> ``prompts``, ``coverage``, ``draws``, ``value_mean``; empty without a record."""
    if states.source_P is None:
        return {}
    names = np.array(["" if name is None else str(name) for name in states.source_P])
    different, of_P = np.unique(names, return_inverse=True)
    return {
        str(name): {
            "prompts": int(part_P.sum()),
            "coverage": float((states.draws_P[part_P] > 0).mean()),
            "draws": int(states.draws_P[part_P].sum()),
            "value_mean": float(states.value_P[part_P].mean()),
        }
        for number, name in enumerate(different)
        for part_P in [of_P == number]
    }


def _mean(number_N: NDArray[Any]) -> float | None:
    return float(number_N.mean()) if len(number_N) else None
