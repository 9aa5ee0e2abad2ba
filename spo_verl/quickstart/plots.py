"""The figures of the quickstart, drawn into PNG files without a display: legible at 830 pixels, on white."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.drawing import COLOURS, MARKERS, new_figure
from spo_verl.errors import SpoStateError
from spo_verl.files import replacing
from spo_verl.quickstart.report import offline_trajectories, steps_done
from spo_verl.small.task import LEVELS

BEFORE, AFTER, OFFLINE = "#a9b3bd", COLOURS[0], "#e3e7eb"
SMALL, NORMAL = 8, 9
"""Sizes of text, in points."""
TITLE_WIDTH = 60


@contextmanager
def _figure(path: Path, rows: int, columns: int, inches: tuple[float, float], title: str) -> Iterator[Any]:
    figure, axes = new_figure(rows, columns, inches)
    figure.suptitle(title, fontsize=NORMAL + 1)
    for axis in axes.flat:
        axis.tick_params(labelsize=SMALL)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    yield axes
    with replacing(path, SpoStateError) as stage:
        figure.savefig(stage(), dpi=160, format="png", facecolor="white")


def draw_summary(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy by level on both sets, accuracy over what was spent, and the tracker against the truth."""
    settings = result["settings"]
    done, wanted = steps_done(result), settings["steps"]
    so_far = "" if done == wanted else f": {done} of {wanted} steps"
    name = textwrap.shorten(result["variant"], TITLE_WIDTH, placeholder=" ...")
    with _figure(path, 2, 2, (8.3, 6.4), f"{name}, seed {settings['seed']}{so_far}") as axes:
        _levels(axes[0][0], result["held_out"], "held-out prompts", trained=done > 0)
        _levels(axes[0][1], result["train"], "training prompts", trained=done > 0)
        _curves(axes[1][0], result)
        if result["tracker"] is None:
            axes[1][1].set_axis_off()
            why = "the group baseline forgets\neach prompt after its step" if done else "no step was trained yet"
            axes[1][1].text(0.5, 0.5, f"no tracker: {why}", ha="center", fontsize=NORMAL)
        else:
            _truth(axes[1][1], result["tracker"]["prompts"])


def _levels(axis: Any, found: Mapping[str, Any], name: str, *, trained: bool) -> None:
    position_L = np.arange(len(LEVELS))
    axis.bar(position_L - 0.2, found["before_by_level"], 0.4, color=BEFORE, label=f"before: {found['before']:.3f}")
    if trained:
        label = f"after: {found['after']:.3f} ({found['change']:+.3f} ± {found['standard_error']:.3f})"
        errors = {"yerr": found["standard_error_by_level"], "error_kw": {"elinewidth": 1.2}, "capsize": 2}
        axis.bar(position_L + 0.2, found["after_by_level"], 0.4, **errors, color=AFTER, label=label)
    axis.set_xticks(position_L, [level for level, _ in LEVELS], rotation=35, ha="right")
    axis.set_ylim(0, 1.25)  # with room for the legend
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.set_ylabel("accuracy", fontsize=NORMAL)
    axis.set_title(f"{found['prompts']} {name}, by level", fontsize=NORMAL)
    axis.legend(frameon=False, fontsize=SMALL)


def _curves(axis: Any, result: Mapping[str, Any]) -> None:
    if offline := offline_trajectories(result):
        axis.axvspan(0, offline, facecolor=OFFLINE, edgecolor=BEFORE, label="offline values")
    sets = (("held_out", "held out", AFTER), ("train", "training prompts", COLOURS[1]))
    for (key, name, colour), marker in zip(sets, MARKERS, strict=False):
        x, y, error = curve(result, key)
        axis.fill_between(x, y - error, y + error, color=colour, alpha=0.2, linewidth=0)
        axis.plot(x, y, marker=marker, markersize=4, color=colour, label=name)
    _over_trajectories(axis, "all levels, band: ± standard error")
    axis.set_ylabel("accuracy", fontsize=NORMAL)
    axis.legend(frameon=False, fontsize=SMALL, loc="upper left")


def _over_trajectories(axis: Any, title: str) -> None:
    axis.set_xlim(left=0)
    axis.set_xlabel("trajectories sampled", fontsize=NORMAL)
    axis.set_title(title, fontsize=NORMAL)


def curve(result: Mapping[str, Any], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trajectories sampled, offline ones first, accuracy at each checkpoint, and the standard error of its change.

    A result that states only the last standard error has it at the last checkpoint, and 0 before.
    """
    offline, per_step = offline_trajectories(result), result["settings"]["trajectories"]
    points = result["curve"]
    last = result[key]["standard_error"]
    error = [point.get(f"{key}_error", last if point is points[-1] and len(points) > 1 else 0.0) for point in points]
    return (
        np.array([offline + point["step"] * per_step for point in points]),
        np.array([float(point[key]) for point in points]),
        np.array([float(one) for one in error]),
    )


def _truth(axis: Any, prompts: Sequence[Mapping[str, Any]]) -> None:
    after_P, value_P, visits_P = zip(*((one["after"], one["value"], one["visits"]) for one in prompts), strict=True)
    points = axis.scatter(after_P, value_P, c=visits_P, s=9, cmap="cividis", alpha=0.8, linewidths=0)
    axis.plot([0, 1], [0, 1], color="black", linewidth=1)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.set_xlabel("true success rate after training", fontsize=NORMAL)
    axis.set_ylabel("the tracker's value", fontsize=NORMAL)
    axis.set_title("a point per training prompt", fontsize=NORMAL)
    bar = axis.figure.colorbar(points, ax=axis)
    bar.set_label("times drawn", fontsize=NORMAL)
    bar.ax.tick_params(labelsize=SMALL)


def draw_comparison(groups: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Accuracy over trajectories sampled, a panel per set with the same scale: a colour and a marker per group.

    Args:
        groups: runs that differ in their seed only, by the name that the legend shows.

    Of several runs the mean is drawn, at the places that all have, with a thin line per run. The band is the standard
    error: over runs, or of a single run over prompts.
    """
    names = (("held_out", "held-out prompts"), ("train", "training prompts"))
    legend_rows = len(groups)
    with _figure(path, 1, 2, (8.3, 3.6 + 0.2 * legend_rows), "accuracy; band: ± standard error") as axes:
        for axis, (key, name) in zip(axes[0], names, strict=True):
            for index, (label, results) in enumerate(groups.items()):
                _comparison(axis, label, results, key, index)
            _over_trajectories(axis, name)
        axes[0][1].sharey(axes[0][0])
        axes[0][0].autoscale(axis="y")
        axes[0][0].set_ylabel("accuracy", fontsize=NORMAL)
        lines, labels = axes[0][0].get_legend_handles_labels()
        shown = [textwrap.shorten(label, 2 * TITLE_WIDTH, placeholder=" ...") for label in labels]
        axes[0][0].figure.legend(lines, shown, frameon=False, fontsize=SMALL, loc="outside lower center")


def _comparison(axis: Any, label: str, results: Sequence[Mapping[str, Any]], key: str, index: int) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    curves = [curve(result, key) for result in results]
    x, mean, error = joint_curve(curves)
    if len(curves) > 1:
        for one_x, one_y, _ in curves:
            axis.plot(one_x, one_y, color=colour, linewidth=0.7, alpha=0.6)
    axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    name = f"{label} ({len(curves)} run{'s' if len(curves) > 1 else ''})"
    axis.plot(x, mean, color=colour, linewidth=1.8, marker=marker, markersize=4, label=name)


def joint_curve(
    curves: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places that all curves have, the mean there, and its standard error over curves; a single one keeps its own."""
    if len(curves) == 1:
        return curves[0]
    x = np.array(sorted(set.intersection(*({int(place) for place in one_x} for one_x, _, _ in curves))))
    values = [dict(zip(one_x.tolist(), one_y.tolist(), strict=True)) for one_x, one_y, _ in curves]
    at = [[value[place] for value in values] for place in x.tolist()]
    mean = np.array([statistics.fmean(found) for found in at])
    error = np.array([statistics.stdev(found) / math.sqrt(len(found)) for found in at])
    return x, mean, error
