"""Tables, plots and Parquet from a ledger: means over seeds, and paired bootstrap intervals against references."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl import core

from .ledger import SEEDS, TUNING_SEEDS, read

Entry = dict[str, Any]
Setting = tuple[str, int, int, float, int]
"""Task, batch, steps, learning rate, prompts."""
Kind = tuple[str, str, int, int, int]
"""Task, method, batch, steps, prompts."""
REFERENCES = ("no_baseline", "grpo", "spo")
DRAWN = (
    "grpo",
    "dapo",
    "no_baseline",
    "reinforce_pp",
    "spo",
    "spo_offline",
    "spo_calibrated",
    "spo_negative_tokens",
    "plus_plus",
    "oracle",
)
"""Methods of the plots; the tables have all."""
POINT = ("step", "trajectories", "tokens", "accuracy")
COLLAPSE = 0.5
"""A training has collapsed where it ends below this share of its own best held-out accuracy, or below its start."""


def area_by_steps(entry: Entry) -> float:
    """Mean held-out accuracy over the training steps."""
    curve = np.array([(point[0], point[3]) for point in entry["curve"]])
    return float(np.trapezoid(curve[:, 1], curve[:, 0]) / (curve[-1, 0] - curve[0, 0]))


def area_by_trajectories(entry: Entry) -> float:
    """Mean held-out accuracy over the first batch * steps trajectories, those before the training included."""
    budget = entry["batch"] * entry["steps"]
    spent, accuracy = (np.array([point[column] for point in entry["curve"]], dtype=float) for column in (1, 3))
    spent, accuracy = np.concatenate([[0.0], spent]), np.concatenate([[accuracy[0]], accuracy])
    inside = spent < budget
    end = np.interp(budget, spent, accuracy)
    return float(np.trapezoid([*accuracy[inside], end], [*spent[inside], budget]) / budget)


def trajectories_to(entry: Entry, target: float, column: int = 1) -> float | None:
    """Trajectories (tokens with column 2) until the held-out accuracy reaches a target, interpolated; None if never."""
    before: Sequence[float] | None = None
    for point in entry["curve"]:
        if point[3] >= target:
            if before is None or before[3] >= point[3]:
                return float(point[column])
            share = (target - before[3]) / (point[3] - before[3])
            return float(before[column] + share * (point[column] - before[column]))
        before = point
    return None


def collapsed(entry: Entry) -> bool:
    accuracy = [point[3] for point in entry["curve"]]
    return accuracy[-1] < max(COLLAPSE * max(accuracy), accuracy[0])


def paired(mine: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, float, float, int]:
    """Mean difference over the common seeds with its 95 % bootstrap interval, and the number of pairs."""
    seeds = sorted(set(mine) & set(other))
    if not seeds:
        return (float("nan"),) * 3 + (0,)
    found = core.bootstrap_difference([mine[seed] for seed in seeds], [other[seed] for seed in seeds])
    return found.mean, found.low, found.high, len(seeds)


def groups(entries: Sequence[Entry]) -> dict[Setting, dict[str, dict[int, Entry]]]:
    """Entries by setting, method and seed."""
    found: dict[Setting, dict[str, dict[int, Entry]]] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        setting = (entry["task"], entry["batch"], entry["steps"], entry["rate"], entry["train"])
        found[setting][entry["method"]][entry["seed"]] = entry
    return found


def tuned(entries: Sequence[Entry]) -> dict[Kind, float]:
    """Learning rate: largest mean area over the tuning seeds, which both must be there, among the rates that are."""
    best: dict[Kind, tuple[float, float]] = {}
    for (task, batch, steps, rate, prompts), methods in groups(entries).items():
        for method, by_seed in methods.items():
            if not set(TUNING_SEEDS) <= set(by_seed):
                continue
            area = float(np.mean([area_by_steps(by_seed[seed]) for seed in TUNING_SEEDS]))
            key = (task, method, batch, steps, prompts)
            if key not in best or area > best[key][0]:
                best[key] = (area, rate)
    return {key: rate for key, (_, rate) in best.items()}


def _difference(values: tuple[float, float, float, int]) -> str:
    mean, low, high, pairs = values
    return "" if pairs == 0 else f"{mean:+.5f} [{low:+.5f}, {high:+.5f}]"


def table(methods: Mapping[str, Mapping[int, Entry]], seeds: Sequence[int] | None = None) -> list[str]:
    """Markdown rows of learning, best area first."""
    kept = {
        name: {seed: one for seed, one in by_seed.items() if seeds is None or seed in seeds}
        for name, by_seed in methods.items()
    }
    kept = {name: by_seed for name, by_seed in kept.items() if by_seed}
    area = {name: {seed: area_by_steps(one) for seed, one in by.items()} for name, by in kept.items()}
    spent = {name: {seed: area_by_trajectories(one) for seed, one in by.items()} for name, by in kept.items()}
    grpo_end = {seed: one["curve"][-1][3] for seed, one in kept.get("grpo", {}).items()}
    rows = [
        "| method | seeds | area | end | area at equal trajectories | area over no_baseline | over grpo | over spo "
        "| share of GRPO's trajectories to its end | tokens per response | signal | collapses |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(kept, key=lambda name: -np.mean(list(area[name].values()))):
        by_seed = kept[name]
        share = [
            None
            if (reached := trajectories_to(one, grpo_end[seed])) is None
            else reached / (one["batch"] * one["steps"])
            for seed, one in by_seed.items()
            if seed in grpo_end
        ]
        known = [one for one in share if one is not None]
        shares = (
            ""
            if not share
            else f"{np.mean(known):.2f}"
            if len(known) == len(share)
            else f"{len(known)} of {len(share)}"
        )
        ends = np.mean([one["curve"][-1][3] for one in by_seed.values()])
        length = np.mean(
            [one["tokens"] / one["trajectories"] for one in by_seed.values() if "tokens" in one] or [np.nan]
        )
        signal = np.mean([one.get("signal", np.nan) for one in by_seed.values()])
        over = [_difference(paired(area[name], area.get(other, {}))) if name != other else "" for other in REFERENCES]
        rows.append(
            f"| {name} | {len(by_seed)} | {np.mean(list(area[name].values())):.4f} | {ends:.4f} "
            f"| {np.mean(list(spent[name].values())):.4f} | {' | '.join(over)} | {shares} | {length:.2f} "
            f"| {signal:.2f} | {sum(map(collapsed, by_seed.values()))} |"
        )
    return rows


def error_table(methods: Mapping[str, Mapping[int, Entry]]) -> list[str]:
    """Markdown rows of the errors of frozen values."""
    rows = [
        "| visits of | seeds | raw: mse | bias | calibrated: mse | bias | calibrated / raw, mse | mean of eight: mse |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, by_seed in sorted(methods.items()):
        tracked = {seed: one for seed, one in by_seed.items() if one.get("errors")}
        if not tracked:
            continue
        part = {
            (kind, what): np.array([one["errors"][kind][what] for one in tracked.values()])
            for kind in ("raw", "calibrated")
            for what in ("mse", "bias")
        }
        ratio = core.bootstrap_interval(part["calibrated", "mse"] / part["raw", "mse"])
        group = np.mean([one["group_of_eight"] for one in tracked.values()])
        rows.append(
            f"| {name} | {len(tracked)} | {part['raw', 'mse'].mean():.4f} | {part['raw', 'bias'].mean():+.4f} "
            f"| {part['calibrated', 'mse'].mean():.4f} | {part['calibrated', 'bias'].mean():+.4f} "
            f"| {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] | {group:.4f} |"
        )
    return rows


def from_parquet(folder: Path) -> list[Entry]:
    """The entries of a ledger from the two files that :func:`summarize` wrote of it."""
    import pyarrow.parquet as pq

    curves: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for row in pq.read_table(folder / "curves.parquet").to_pylist():
        curves[row["key"]].append(tuple(row[name] for name in POINT))
    entries = pq.read_table(folder / "cells.parquet").to_pylist()
    for entry in entries:
        entry["curve"] = curves[entry["key"]]
        errors = {kind: {what: entry[f"{kind}_{what}"] for what in ("mse", "bias")} for kind in ("raw", "calibrated")}
        entry["errors"] = errors if entry["raw_mse"] is not None else {}
    return entries


def summarize(path: Path, output: Path) -> None:
    """Write ``summary.md``, ``cells.parquet``, ``curves.parquet`` and a plot per setting.

    Args:
        path: a ledger, or a folder of the two Parquet files.
    """
    entries = from_parquet(path) if path.is_dir() else read(path)
    output.mkdir(parents=True, exist_ok=True)
    lines = [f"# {len(entries)} cells of {path.name}", ""]
    ordered = sorted(groups(entries).items())
    for setting, methods in ordered:
        task, batch, steps, rate, prompts = setting
        title = f"{task}, batch {batch}, {steps} steps, learning rate {rate:g}, {prompts} prompts"
        rows = table(methods, [seed for seed in range(1000) if seed not in TUNING_SEEDS])
        if len(rows) > 2:
            lines += [f"## {title}", "", *rows, ""]
        errors = error_table({name: _figures(by_seed) for name, by_seed in methods.items()})
        if len(errors) > 2:
            lines += ["Errors of the frozen values:", "", *errors, ""]
        _plot(output / f"{task}_b{batch}_lr{rate:g}_p{prompts}.png", title, methods)
    lines += _tuned_lines(entries)
    (output / "summary.md").write_text("\n".join(lines) + "\n")
    _parquet(entries, output)


def _figures(by_seed: Mapping[int, Entry]) -> dict[int, Entry]:
    return {seed: one for seed, one in by_seed.items() if seed not in TUNING_SEEDS}


def _tuned_lines(entries: Sequence[Entry]) -> list[str]:
    """Each method at its own learning rate, by the rule of :mod:`.ledger`."""
    rates = tuned(entries)
    chosen: dict[tuple[str, int, int, int], dict[str, dict[int, Entry]]] = defaultdict(dict)
    for (task, batch, steps, rate, prompts), methods in groups(entries).items():
        for method, by_seed in methods.items():
            if rates.get((task, method, batch, steps, prompts)) == rate and (kept := _figures(by_seed)):
                chosen[task, batch, steps, prompts][method] = kept
    lines: list[str] = []
    for (task, *sizes), methods in sorted(chosen.items()):
        batch, steps, prompts = sizes
        listed = ", ".join(f"{name} {rates[task, name, batch, steps, prompts]:g}" for name in sorted(methods))
        lines += [f"## {task}, batch {batch}, {steps} steps, each method at its own learning rate", "", listed, ""]
        lines += [*table(methods, SEEDS), ""]
    return lines


def _plot(path: Path, title: str, methods: Mapping[str, Mapping[int, Entry]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    drawn = [(name, by) for name in DRAWN if name in methods and (by := _figures(methods[name]))]
    for name, by_seed in drawn:
        points = min(len(one["curve"]) for one in by_seed.values())
        curve = np.mean([[point[1:4:2] for point in one["curve"][:points]] for one in by_seed.values()], axis=0)
        axes.plot(curve[:, 0], curve[:, 1], label=name, linewidth=1)
    axes.set(xlabel="trajectories, offline ones counted", ylabel="held-out accuracy", title=title)
    if drawn:
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _parquet(entries: Sequence[Entry], output: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells, points = [], []
    for entry in entries:
        plain = {name: entry[name] for name in ("key", "task", "method", "seed", "batch", "steps", "rate", "train")}
        errors = {
            f"{kind}_{what}": found.get(what)
            for kind in ("raw", "calibrated")
            for found in [entry["errors"].get(kind, {})]
            for what in ("mse", "bias")
        }
        own = {"area": area_by_steps(entry), "area_at_equal_trajectories": area_by_trajectories(entry)}
        rest = {
            name: entry.get(name) for name in ("trajectories", "tokens", "signal", "group_of_eight", "stack_seconds")
        }
        cells.append({**plain, **own, "end": entry["curve"][-1][3], "collapsed": collapsed(entry), **errors, **rest})
        points += [{"key": entry["key"], **dict(zip(POINT, point, strict=True))} for point in entry["curve"]]
    for name, rows in (("cells", cells), ("curves", points)):
        pq.write_table(pa.Table.from_pylist(rows), output / f"{name}.parquet")
