"""What a run has learned: success rates of policies, computed instead of sampled, and the tracker held against them.

One response earns the reward, so a policy's success rate on a prompt is the probability of that response at
temperature 1, which one forward gives exactly. Only the choice of prompts is left to chance, and differences between
two policies are taken prompt by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spo_verl.launching.progress import VALIDATED
from spo_verl.quickstart.runs import RunFolder
from spo_verl.small.task import LEVELS, Problem, Task, data_source
from spo_verl.small.warmstart import mean_by_level, saved_accuracies

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Policy:
    """Success rates of the policy after ``step`` on every held-out prompt and every training prompt."""

    step: int
    held_out_H: Floats
    train_P: Floats


def policy(step: int, model_folder: Path, task: Task) -> Policy:
    """The policy whose weights lie in a folder."""
    return Policy(step, *saved_accuracies(model_folder, (task.held_out, task.train)))


def policies(run: RunFolder, initial: Policy, task: Task, *, late: Callable[[], bool] = lambda: False) -> list[Policy]:
    """The initial policy and those of the checkpoints, in order; once it is ``late``, only the last checkpoint's."""
    found = [initial]
    for step in reversed(run.saved_steps()):
        if len(found) == 1 or not late():
            found.append(policy(step, run.saved_model(step), task))
    return sorted(found, key=lambda one: one.step)


def validated(record: Mapping[str, Any], *, prompts: int) -> dict[str, float] | None:
    """verl's own validation in one of its metric records: one response to each held-out prompt, by sampling.

    Returns:
        ``step``, ``accuracy`` and its ``standard_error``, that of a mean over equally large levels; None where the step
        was not validated.
    """
    found = {match["source"]: value for key, value in record["data"].items() if (match := VALIDATED.fullmatch(key))}
    by_level = [found.get(data_source(level)) for level in range(1, len(LEVELS) + 1)]
    if None in by_level:
        return None
    mean_L = np.array(by_level, dtype=np.float64)
    variance_L = mean_L * (1 - mean_L) / (prompts / len(LEVELS))
    error = math.sqrt(variance_L.sum()) / len(LEVELS)
    return {"step": record["step"], "accuracy": float(mean_L.mean()), "standard_error": error}


def change(before_N: Floats, after_N: Floats, problems: Sequence[Problem]) -> dict[str, Any]:
    """Mean success rates before and after, overall and by level, with the standard errors of the differences.

    The standard errors are those of a stratified sample of prompts: how far another choice of as many prompts of each
    level would move the difference. That another seed trains another policy is not in them.
    """
    level_N = np.array([problem.level for problem in problems])
    difference_N = after_N - before_N
    variance_of_mean = [
        float(np.var(difference_N[level_N == level], ddof=1) / (level_N == level).sum())
        for level in range(1, len(LEVELS) + 1)
    ]
    return {
        "before": float(before_N.mean()),
        "after": float(after_N.mean()),
        "change": float(difference_N.mean()),
        "standard_error": math.sqrt(sum(variance_of_mean)) / len(LEVELS),
        "before_by_level": list(mean_by_level(before_N, problems)),
        "after_by_level": list(mean_by_level(after_N, problems)),
        "standard_error_by_level": [math.sqrt(variance) for variance in variance_of_mean],
        "prompts": len(problems),
    }


def point(one: Policy, before: Policy, task: Task) -> dict[str, Any]:
    """Mean success rates of a policy on both sets, and the standard errors of their changes, as in :func:`change`."""
    held_out = change(before.held_out_H, one.held_out_H, task.held_out)
    train = change(before.train_P, one.train_P, task.train)
    return {
        "step": one.step,
        "held_out": held_out["after"],
        "held_out_error": held_out["standard_error"],
        "train": train["after"],
        "train_error": train["standard_error"],
    }


def agreement(value_N: Floats, truth_N: Floats) -> dict[str, float]:
    """How close values are to success rates: mean absolute and mean (signed) difference, and correlation.

    ``constant_error`` is the mean absolute difference of the best constant, the median, for scale.
    """
    spread = float(value_N.std() * truth_N.std())
    covariance = float(np.mean((value_N - value_N.mean()) * (truth_N - truth_N.mean())))
    return {
        "prompts": len(truth_N),
        "mean_absolute_error": float(np.abs(value_N - truth_N).mean()),
        "mean_difference": float((value_N - truth_N).mean()),
        "correlation": covariance / spread if spread > 0 else math.nan,
        "constant_error": float(np.abs(truth_N - np.median(truth_N)).mean()),
    }


def tracked(run: RunFolder, task: Task, before_P: Floats, after_P: Floats) -> dict[str, Any]:
    """The tracker of the last checkpoint next to the true success rates of the policy of the same checkpoint.

    Returns:
        ``tracker`` and, with offline values, ``offline``: an :func:`agreement` each, the latter with the initial
        policy; ``prompts``: for every training prompt question, level, visits, offline successes and trials, value, and
        the true rates.
    """
    from spo_verl import core
    from spo_verl.data.data_files import DataFiles
    from spo_verl.data.identity import dataset_keys
    from spo_verl.data.values import OfflineValues
    from spo_verl.tracker import checkpoint
    from spo_verl.tracker.table import match_keys

    keys = dataset_keys(DataFiles([run.path / "data" / "train.parquet"]))
    table = checkpoint.read(run.saved_tracker(run.finished_step)).table
    slot_P = match_keys(table.key_P, keys.key_P)
    alpha_P, beta_P, visits_P = table.alpha_P[slot_P], table.beta_P[slot_P], table.visits_P[slot_P]
    value_P = core.value(alpha_P, beta_P)
    order_P = keys.row_of_slot_P  # rows of the data file are the task's problems
    found: dict[str, Any] = {"tracker": agreement(value_P, after_P[order_P])}
    successes_P, trials_P = np.zeros(len(order_P)), np.zeros(len(order_P), dtype=np.int64)
    if run.values.exists():
        values = OfflineValues.read(run.values)
        row_P = match_keys(values.key_N, keys.key_P)
        successes_P, trials_P = values.successes_N[row_P], values.trials_N[row_P]
        tried_P = trials_P > 0
        rate_P = successes_P[tried_P] / trials_P[tried_P]
        found["offline"] = agreement(rate_P, before_P[order_P][tried_P])
    found["prompts"] = [
        {
            "question": task.train[row].question,
            "level": task.train[row].level,
            "visits": int(visits_P[slot]),
            "successes": float(successes_P[slot]),
            "trials": int(trials_P[slot]),
            "value": float(value_P[slot]),
            "before": float(before_P[row]),
            "after": float(after_P[row]),
        }
        for slot, row in enumerate(order_P.tolist())
    ]
    return found
