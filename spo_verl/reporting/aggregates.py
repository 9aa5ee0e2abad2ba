"""A run's record as curves over training steps: what the page and the picture show.

A curve has one point per window of consecutive steps, at most ``MOST_POINTS``: a window is one step until a run has
more steps than that. Points without any number are NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spo_verl.core.evidence import degenerate_probability
from spo_verl.record.schema import ENDINGS

Column = NDArray[np.float64]
Codes = NDArray[np.int64]

MOST_POINTS = 500
VALUE_BINS = 10
DIFFICULTY = ("0 to 0.2 (hard)", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1 (easy)")
"""Equal bands of the value at dispatch."""
NEAR_ZERO = {"1e-4": 1e-4, "0.02": 0.02}
"""Name -> bound on |raw advantage| under which a rollout teaches nothing, figure 3a of the paper."""
GROUP = 8
QUANTILES = {"low": 0.1, "middle": 0.5, "high": 0.9}
MOST_PARTS = 6
"""Categories that a stack shows; the rest are added up as the last one."""
REST = "others"
NO_SOURCE = "(no data source)"
TOKEN_BINS = 24
Z95 = 1.959963984540054
"""Normal quantile of 97.5 %."""
LATE = ("trained, drawn for this step", "trained, drawn for an earlier step", "not trained")
COLUMNS = ("key", "data_source", "step", "version_dispatch", "value", "n_eff", "reward", "raw_advantage", "advantage",
           "divergence", "rho", "ending", "tokens", "seconds")  # fmt: skip

_VALUE_BIN = re.compile(r"spo/value/bin_(\d)")
_PART = re.compile(r"timing_s/([^/]+)")
_OWN_PART = re.compile(r"spo/seconds_total/([^/]+)")
OUTSIDE_STEP = ("testing", "dump_rollout_generations")
"""Parts that verl times next to ``timing_s/step``, not within it."""


@dataclass(frozen=True)
class Windows:
    """Consecutive steps put together.

    Attributes:
        step_W: the last step of each window.
        width: steps in a window.
        all_steps: every step of the run, ascending.
    """

    step_W: Codes
    width: int
    all_steps: Codes

    @classmethod
    def of(cls, steps: Iterable[int], most: int = MOST_POINTS) -> Windows:
        """Windows over these steps, at most so many."""
        found = np.array(sorted(set(steps)), dtype=np.int64)
        width = max(1, -(-len(found) // most))
        ends = [min(start + width, len(found)) - 1 for start in range(0, len(found), width)]
        return cls(found[ends], width, found)

    def __len__(self) -> int:
        return len(self.step_W)

    def number(self, step_N: Codes) -> Codes:
        """(N,) the window of each step."""
        return np.searchsorted(self.step_W, step_N)


def means(window_N: Codes, number_N: Column, count: int) -> tuple[Column, Column, Column]:
    """Mean, standard error and number of what is there in each window; NaN is left out.

    The standard error is NaN below two numbers.
    """
    there_N = np.isfinite(number_N)
    window, number = window_N[there_N], number_N[there_N]
    size_W = np.bincount(window, minlength=count).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_W = np.bincount(window, number, count) / size_W
        square_W = np.bincount(window, (number - mean_W[window]) ** 2, count) / (size_W - 1)
        error_W = np.sqrt(square_W / size_W)
    error_W[size_W < 2] = np.nan
    return np.asarray(mean_W), np.asarray(error_W), size_W


def quantiles(window_N: Codes, number_N: Column, count: int, at: Sequence[float]) -> list[Column]:
    """For each of ``at`` the quantile of every window, interpolated as by ``numpy.quantile``; NaN is left out."""
    there_N = np.isfinite(number_N)
    window, number = window_N[there_N], number_N[there_N]
    number = number[np.lexsort((number, window))]
    size_W = np.bincount(window, minlength=count)
    start_W = np.cumsum(size_W) - size_W
    some_W = size_W > 0
    found = []
    for share in at:
        place_W = share * (size_W[some_W] - 1)
        low_W = np.floor(place_W).astype(np.int64)
        high_W = np.ceil(place_W).astype(np.int64)
        low, high = (number[start_W[some_W] + offset_W] for offset_W in (low_W, high_W))
        result = np.full(count, np.nan)
        result[some_W] = low + (high - low) * (place_W - low_W)
        found.append(result)
    return found


def shares(window_N: Codes, code_N: Codes, count: int, codes: int) -> NDArray[np.float64]:
    """(codes, count): the share of each code in each window; NaN where a window is empty, negative codes left out."""
    kept_N = code_N >= 0
    flat = np.bincount(code_N[kept_N] * count + window_N[kept_N], minlength=codes * count)
    table = flat.reshape(codes, count).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(table / table.sum(0))


def coded(column: Any) -> tuple[Codes, list[str | None]]:
    """An Arrow column of texts as numbers from 0, -1 for null, and what they stand for."""
    import pyarrow as pa

    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(column, pa.ChunkedArray):  # older pyarrow keeps dictionaries apart
        column = column.unify_dictionaries().combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, column.dictionary.to_pylist()


def numbers(column: Any) -> Column:
    """An Arrow column of numbers as float64; null is NaN."""
    return np.asarray(column.to_numpy(), dtype=np.float64)


def steps_of(column: Any) -> Codes:
    return np.asarray(column.to_numpy(), dtype=np.int64)


@dataclass(frozen=True)
class Metrics:
    """The numbers of every step, as curves.

    Attributes:
        windows: of the run.
        by_name: name -> (W,) mean over the steps of each window.
    """

    windows: Windows
    by_name: dict[str, Column]

    @classmethod
    def read(cls, steps: Any, windows: Windows) -> Metrics:
        """From the table of steps: step, name, value."""
        code_N, names = coded(steps["name"])
        place_N = code_N * len(windows) + windows.number(steps_of(steps["step"]))
        mean, _, _ = means(place_N, numbers(steps["value"]), len(names) * len(windows))
        table = mean.reshape(len(names), len(windows))
        return cls(windows, {str(name): table[number] for number, name in enumerate(names)})

    def matching(self, pattern: re.Pattern[str]) -> dict[str, Column]:
        """What the first group of a pattern says -> curve, of names that match as a whole."""
        found = ((pattern.fullmatch(name), curve) for name, curve in self.by_name.items())
        return {match[1]: curve for match, curve in found if match}

    def get(self, name: str) -> Column:
        """A curve; NaN throughout where the run has no such number."""
        return self.by_name.get(name, np.full(len(self.windows), np.nan))


def aggregates(rollouts: Any, steps: Any, prompts: Any) -> dict[str, Any]:
    """Everything that is drawn of one run.

    Args:
        rollouts: Arrow table with ``COLUMNS``, one row per session that ended.
        steps: Arrow table of the numbers per step.
        prompts: Arrow table of the prompts.

    Returns:
        Plain data for JSON, but for numpy arrays and NaN, which :func:`plain` turns into lists and None.
    """
    step_N = steps_of(rollouts["step"])
    windows = Windows.of({*np.unique(step_N).tolist(), *np.unique(steps_of(steps["step"])).tolist()})
    window_N, count = windows.number(step_N), len(windows)
    metrics = Metrics.read(steps, windows)
    columns = {name: numbers(rollouts[name]) for name in
               ("value", "n_eff", "reward", "raw_advantage", "divergence", "rho", "tokens")}  # fmt: skip
    key_N, _ = coded(rollouts["key"])
    ending_N, ending_names = coded(rollouts["ending"])
    ending_N = np.array([ENDINGS.index(str(name)) for name in ending_names], dtype=np.int64)[ending_N]
    trained_N = ending_N == ENDINGS.index("trained")
    once_N = _first_of(step_N, key_N, np.isfinite(columns["rho"]))

    def curve(name: str, where: NDArray[np.bool_] | None = None) -> Column:
        number_N = columns[name] if where is None else np.where(where, columns[name], np.nan)
        return means(window_N, number_N, count)[0]

    def band(name: str, where: NDArray[np.bool_]) -> dict[str, Column]:
        number_N = np.where(where, columns[name], np.nan)
        found = quantiles(window_N, number_N, count, list(QUANTILES.values()))
        return {**dict(zip(QUANTILES, found, strict=True)), "mean": means(window_N, number_N, count)[0]}

    reward_W, error_W, _ = means(window_N, columns["reward"], count)
    return {
        "step": windows.step_W,
        "width": windows.width,
        "steps": len(windows.all_steps),
        "rollouts": len(step_N),
        "trained": int(trained_N.sum()),
        "prompts": prompts.num_rows,
        "drawn": len(np.unique(key_N)),
        "reward": {"mean": reward_W, "error": error_W},
        "value": {"drawn": curve("value"), "all": metrics.get("spo/value/mean"), "n_eff": curve("n_eff")},
        "advantage": {"mean": curve("raw_advantage"), "removed": _removed(window_N, columns, count)},
        "values": _value_bins(metrics, window_N, columns["value"], count),
        "calibration": _calibration(step_N, columns["value"], columns["reward"]),
        "difficulty": {
            "names": DIFFICULTY,
            "share": shares(window_N, _bins(columns["value"], len(DIFFICULTY)), count, len(DIFFICULTY)),
        },
        "sources": _sources(rollouts["data_source"], window_N, columns, count),
        "coverage": _coverage(window_N, key_N, count, prompts.num_rows),
        "draws": _draws(key_N, prompts.num_rows),
        "rho": {**band("rho", once_N), "floor": metrics.get("spo/rho/at_floor_share")},
        "divergence": band("divergence", once_N),
        "near_zero": _near_zero(window_N, columns, count),
        "endings": {"names": ENDINGS, "share": shares(window_N, ending_N, count, len(ENDINGS))},
        "late": _late(rollouts, step_N, window_N, columns, trained_N, count),
        "parts": _parts(metrics),
        "own_parts": metrics.matching(_OWN_PART),
        "throughput": {
            "tokens": metrics.get("perf/throughput"),
            "rollouts": _rate(metrics.get("timing_s/step"), window_N[trained_N], windows),
            "seconds": metrics.get("timing_s/step"),
        },
        "validation": {
            name: metrics.by_name[name] for name in sorted(metrics.by_name, key=_core_first) if name.startswith("val-")
        },
        "metrics": metrics.by_name,
    }


def _core_first(name: str) -> tuple[bool, str]:
    """Sorts what verl counts as the core of a validation first."""
    return not name.startswith("val-core/"), name


def _first_of(step_N: Codes, key_N: Codes, there_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """One row per prompt and step: retention and divergence are of the prompt, not of each of its sessions."""
    place = np.flatnonzero(there_N)
    pair = step_N[place] * (int(key_N.max(initial=0)) + 1) + key_N[place]
    chosen_N = np.zeros(len(step_N), dtype=bool)
    chosen_N[place[np.unique(pair, return_index=True)[1]]] = True
    return chosen_N


def _bins(value_N: Column, bins: int) -> Codes:
    """(N,) the equal part of [0, 1] that holds each value; 1 belongs to the last."""
    return np.minimum((value_N * bins).astype(np.int64), bins - 1)


def _removed(window_N: Codes, columns: Mapping[str, Column], count: int) -> Column:
    """1 - variance of the raw advantage / variance of the reward, of the rollouts that have both."""
    there_N = np.isfinite(columns["raw_advantage"]) & np.isfinite(columns["reward"])
    error_of = {name: means(window_N, np.where(there_N, columns[name], np.nan), count)[1]
                for name in ("raw_advantage", "reward")}  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        removed_W = 1 - (error_of["raw_advantage"] / error_of["reward"]) ** 2
    return np.where(np.isfinite(removed_W), removed_W, np.nan)


def _near_zero(window_N: Codes, columns: Mapping[str, Column], count: int) -> dict[str, Column]:
    """Shares of the trained rollouts under each bound, and of all that a group of ``GROUP`` would have lost."""
    raw_N = columns["raw_advantage"]
    found = {}
    for name, bound in NEAR_ZERO.items():
        under_N = np.where(np.isfinite(raw_N), (np.abs(raw_N) <= bound).astype(float), np.nan)
        found[name] = means(window_N, under_N, count)[0]
    return {**found, "group": means(window_N, degenerate_probability(columns["value"], GROUP), count)[0]}


def _value_bins(metrics: Metrics, window_N: Codes, value_N: Column, count: int) -> dict[str, Any]:
    """Share of prompts (whole tracker) in each tenth of [0, 1]; without that metric, of the dispatched rollouts."""
    found = metrics.matching(_VALUE_BIN)
    if len(found) == VALUE_BINS:
        return {"of": "all prompts", "share": np.array([found[str(number)] for number in range(VALUE_BINS)])}
    return {"of": "rollouts", "share": shares(window_N, _bins(value_N, VALUE_BINS), count, VALUE_BINS)}


def _calibration(step_N: Codes, value_N: Column, reward_N: Column) -> dict[str, Any]:
    """Mean reward by the value that was predicted, over the whole run and over its last quarter of steps."""
    there_N = np.isfinite(reward_N) & np.isfinite(value_N)
    found = {}
    steps = np.unique(step_N)
    since = {"all steps": steps[:1], "last quarter": steps[len(steps) - -(-len(steps) // 4) :][:1]}
    for name, first in since.items():
        kept_N = there_N & (step_N >= (first[0] if len(first) else 0))
        bin_N = _bins(value_N[kept_N], VALUE_BINS)
        value, _, size = means(bin_N, value_N[kept_N], VALUE_BINS)
        reward, _, _ = means(bin_N, reward_N[kept_N], VALUE_BINS)
        gap = np.nansum(size * np.abs(reward - value)) / size.sum() if size.sum() else np.nan
        low, high = wilson(reward, size)
        found[name] = {"value": value, "reward": reward, "low": low, "high": high, "size": size, "gap": float(gap)}
    return found


def wilson(mean: Column, size: Column) -> tuple[Column, Column]:
    """Ends of the 95 % interval (Wilson's score interval) of means of so many numbers in [0, 1]; NaN without any.

    It is meant for successes and failures; numbers between have less variance, so for them it is wider than needed.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        share = Z95**2 / size
        middle = (mean + share / 2) / (1 + share)
        half = np.sqrt(mean * (1 - mean) * share + share**2 / 4) / (1 + share)
    return middle - half, middle + half


def _leading(weight: Column, most: int) -> list[int]:
    """The heaviest ones, heaviest first."""
    return [int(number) for number in np.argsort(-weight, kind="stable")[:most] if weight[number] > 0]


def _sources(column: Any, window_N: Codes, columns: Mapping[str, Column], count: int) -> dict[str, Any]:
    """Share of the rollouts and mean reward of each data source; of many the largest."""
    code_N, names = coded(column)
    names = [NO_SOURCE if name is None else str(name) for name in (*names, None)]
    code_N = np.where(code_N < 0, len(names) - 1, code_N)
    kept = _leading(np.bincount(code_N, minlength=len(names)).astype(float), MOST_PARTS)
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    shown = [names[number] for number in kept]
    if len(kept) < int((np.bincount(code_N, minlength=len(names)) > 0).sum()):
        shown.append(REST)
    source_N = place[code_N]
    reward = [means(window_N, np.where(source_N == number, columns["reward"], np.nan), count)[0]
              for number in range(len(shown))]  # fmt: skip
    return {"names": shown, "share": shares(window_N, source_N, count, len(shown)), "reward": reward}


def _coverage(window_N: Codes, key_N: Codes, count: int, prompts: int) -> Column:
    """Share of the prompts that a rollout has ended of, up to each window; NaN where the prompts are not known."""
    if not prompts:
        return np.full(count, np.nan)
    order = np.argsort(window_N, kind="stable")
    _, first = np.unique(key_N[order], return_index=True)
    return np.asarray(np.cumsum(np.bincount(window_N[order][first], minlength=count)) / prompts)


def _draws(key_N: Codes, prompts: int) -> dict[str, Any]:
    """How many prompts have how many rollouts: 0, 1, 2, 3 to 4, 5 to 8..."""
    drawn = np.bincount(key_N) if len(key_N) else np.zeros(0, dtype=np.int64)
    edges = [0, 1, 2]
    while edges[-1] < drawn.max(initial=0):
        edges.append(2 * edges[-1])
    place = np.searchsorted(edges, drawn)
    size = np.bincount(place, minlength=len(edges)).astype(float)
    size[0] += max(0, prompts - len(drawn))
    names = [str(high) if high - low <= 1 else f"{low + 1} to {high}"
             for low, high in zip([-1, *edges[:-1]], edges, strict=True)]  # fmt: skip
    return {"names": names, "prompts": size}


def _late(
    rollouts: Any,
    step_N: Codes,
    window_N: Codes,
    columns: Mapping[str, Column],
    trained_N: NDArray[np.bool_],
    count: int,
) -> dict[str, Any]:
    """Response tokens and rewards of rollouts that were in time, that were carried over, and that were not trained."""
    fresh_N = trained_N & (steps_of(rollouts["version_dispatch"]) >= step_N - 1)
    groups = dict(zip(LATE, (fresh_N, trained_N & ~fresh_N, ~trained_N), strict=True))
    tokens_N = columns["tokens"]
    there_N = np.isfinite(tokens_N)
    top = float(tokens_N[there_N].max()) if there_N.any() else 1.0
    edges = np.linspace(0, max(top, 1.0), TOKEN_BINS + 1)
    found: dict[str, Any] = {"edges": edges, "groups": {}}
    for name, group_N in groups.items():
        kept_N = group_N & there_N
        if not kept_N.any():
            continue
        size = np.histogram(tokens_N[kept_N], edges)[0]
        found["groups"][name] = {
            "tokens": means(window_N, np.where(kept_N, tokens_N, np.nan), count)[0],
            "reward": means(window_N, np.where(group_N, columns["reward"], np.nan), count)[0],
            "share": size / size.sum(),
            "rollouts": int(group_N.sum()),
            "mean": float(tokens_N[kept_N].mean()),
        }
    return found


def _parts(metrics: Metrics) -> dict[str, Any]:
    """Seconds of the parts of a step as verl times them; what no part claims is the rest of the step."""
    found = metrics.matching(_PART)
    step_W = found.pop("step", None)
    if not found:
        return {"names": [], "seconds": []}
    names = list(found)
    table = np.nan_to_num(np.array([found[name] for name in names]))
    inside = table[[name not in OUTSIDE_STEP for name in names]].sum(0)
    kept = _leading(table.sum(1), MOST_PARTS)
    rest_W = table.sum(0) - table[kept].sum(0)
    if step_W is not None:
        rest_W = rest_W + np.clip(np.nan_to_num(step_W) - inside, 0, None)
    shown, seconds = [names[number] for number in kept], [table[number] for number in kept]
    if rest_W.max(initial=0) > 1e-9:
        shown.append(REST)
        seconds.append(rest_W)
    return {"names": shown, "seconds": seconds}


def _rate(seconds_W: Column, window_N: Codes, windows: Windows) -> Column:
    """Trained rollouts per second of step."""
    steps_W = np.bincount(windows.number(windows.all_steps), minlength=len(windows))
    with np.errstate(invalid="ignore", divide="ignore"):
        rate_W = np.bincount(window_N, minlength=len(windows)) / steps_W / seconds_W
    return np.where(np.isfinite(rate_W), rate_W, np.nan)


def plain(data: Any, digits: int = 5) -> Any:
    """Lists, dictionaries and numbers that JSON has: so many significant digits, None for NaN and infinity."""
    if isinstance(data, np.ndarray):
        return plain(data.tolist(), digits)
    if isinstance(data, Mapping):
        return {str(name): plain(value, digits) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value, digits) for value in data]
    if isinstance(data, float):
        rounded = float(f"{data:.{digits}g}")
        return rounded if np.isfinite(rounded) else None
    return data
