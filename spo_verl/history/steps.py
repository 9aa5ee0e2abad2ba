"""Numbers per step of a record, and values against outcomes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spo_verl.history.states import Column, floats, integers, names_in
from spo_verl.record.reading import Record
from spo_verl.record.schema import ENDINGS

NEAR_ZERO = 0.02
"""A raw advantage of at most this magnitude carries next to no signal; as the metric of this name."""
_MEANS = ("value", "reward", "raw_advantage", "rho", "divergence", "tokens", "n_eff", "seconds")


def per_step(record: Record, upto: int | None = None) -> dict[str, NDArray[Any]]:
    """Columns with one entry per step of the record, ascending.

    Args:
        record: the record.
        upto: the last step to look at; None for all.

    Returns:
        ``step`` and ``rollouts`` (int64); ``outcomes``, rollouts with a reward; the names in ``ENDINGS``, rollouts by
        ending; ``prompts``, different prompts; ``value``, ``reward``, ``raw_advantage``, ``rho``, ``divergence``,
        ``tokens``, ``n_eff``, ``seconds``: means over the rollouts that have one, NaN where none has; ``error``, mean
        of reward - value; ``near_zero``, share of ``|raw_advantage| <= NEAR_ZERO`` among those that have one.
    """
    rollouts = record.rollouts(["step", "key", "ending", *_MEANS])
    step_N = integers(rollouts["step"])
    if upto is not None:
        rollouts, step_N = rollouts.filter(step_N <= upto), step_N[step_N <= upto]
    step_B, at_N = np.unique(step_N, return_inverse=True)
    size = len(step_B)

    def mean(number_N: Column) -> Column:
        there_N = np.isfinite(number_N)
        count_B = np.bincount(at_N[there_N], minlength=size)
        total_B = np.bincount(at_N[there_N], weights=number_N[there_N], minlength=size)
        return np.asarray(np.divide(total_B, count_B, out=np.full(size, np.nan), where=count_B > 0))

    columns = {name: floats(rollouts[name]) for name in _MEANS}
    ending_N = names_in(rollouts["ending"])
    advantage_N = columns["raw_advantage"]
    near_N = np.where(np.isfinite(advantage_N), (np.abs(advantage_N) <= NEAR_ZERO).astype(np.float64), np.nan)
    key_N = rollouts["key"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    different = int(key_N.max(initial=0)) + 1
    pair_N = np.unique(at_N * different + key_N)
    return {
        "step": step_B,
        "rollouts": np.bincount(at_N, minlength=size),
        "outcomes": np.bincount(at_N[np.isfinite(columns["reward"])], minlength=size),
        **{kind: np.bincount(at_N[ending_N == kind], minlength=size) for kind in ENDINGS},
        "prompts": np.bincount(pair_N // different, minlength=size),
        **{name: mean(number_N) for name, number_N in columns.items()},
        "error": mean(columns["reward"] - columns["value"]),
        "near_zero": mean(near_N),
    }


def calibration(record: Record, bins: int = 10, upto: int | None = None) -> list[dict[str, Any]]:
    """Frozen values against outcomes: what was expected, and what happened.

    Returns:
        For each of ``bins`` equal parts of [0, 1] with an outcome: ``from``, ``to``, ``rollouts``, ``value`` and
        ``reward`` (means), and ``error``, the standard error of the mean reward.
    """
    rollouts = record.rollouts(["step", "value", "reward"])
    value_N, reward_N = floats(rollouts["value"]), floats(rollouts["reward"])
    there_N = np.isfinite(value_N) & np.isfinite(reward_N)
    if upto is not None:
        there_N &= integers(rollouts["step"]) <= upto
    value_N, reward_N = value_N[there_N], reward_N[there_N]
    bin_N = np.minimum((value_N * bins).astype(np.int64), bins - 1)
    return [
        {
            "from": number / bins,
            "to": (number + 1) / bins,
            "rollouts": int(part_N.sum()),
            "value": float(value_N[part_N].mean()),
            "reward": float(reward_N[part_N].mean()),
            "error": float(reward_N[part_N].std() / np.sqrt(part_N.sum())),
        }
        for number in range(bins)
        for part_N in [bin_N == number]
        if part_N.any()
    ]


def metric(record: Record, name: str) -> dict[int, float]:
    """Step -> one metric of verl or SPO, as the record of steps has it; empty where there is none of this name."""
    steps = record.steps()
    chosen = steps.filter([one == name for one in steps["name"].to_pylist()])
    return dict(zip(chosen["step"].to_pylist(), chosen["value"].to_pylist(), strict=True))


def latest_metrics(record: Record) -> dict[str, float]:
    """The metrics of the newest step in the record."""
    steps = record.steps()
    step_N = integers(steps["step"])
    chosen = steps.filter(step_N == step_N.max(initial=-1))
    return dict(zip(chosen["name"].to_pylist(), chosen["value"].to_pylist(), strict=True))


def grouped(step_B: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """Indices of at most ``most`` stretches of successive steps, as equal in number as can be."""
    return [part for part in np.array_split(np.arange(len(step_B)), min(most, max(1, len(step_B)))) if len(part)]
