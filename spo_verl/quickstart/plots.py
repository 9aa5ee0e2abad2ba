"""The figures of the quickstart, drawn into PNG files without a display."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.errors import SpoStateError
from spo_verl.evaluation.figures import COLOURS, new_figure
from spo_verl.files import replacing
from spo_verl.quickstart.report import offline_trajectories, steps_done
from spo_verl.small.task import LEVELS

BEFORE, AFTER, OFFLINE = "#9aa5b1", COLOURS[0], "#d5dbe1"


@contextmanager
def _figure(path: Path, rows: int, columns: int, inches: tuple[float, float], title: str) -> Iterator[Any]:
    figure, axes = new_figure(rows, columns, inches)
    figure.suptitle(title, fontsize=11)
    for axis in axes.flat:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    yield axes
    with replacing(path, SpoStateError) as stage:
        figure.savefig(stage(), dpi=130, format="png")


def draw_summary(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy by level on both sets, accuracy over what was spent, and the tracker against the truth."""
    settings = result["settings"]
    done, wanted = steps_done(result), settings["steps"]
    so_far = "" if done == wanted else f": {done} of {wanted} steps"
    with _figure(path, 2, 2, (11, 8), f"{result['variant']}, seed {settings['seed']}{so_far}") as axes:
        _levels(axes[0][0], result["held_out"], "held-out prompts", trained=done > 0)
        _levels(axes[0][1], result["train"], "training prompts, uniformly", trained=done > 0)
        _curves(axes[1][0], result)
        if result["tracker"] is None:
            axes[1][1].set_axis_off()
            why = "the group baseline forgets\neach prompt after its step" if done else "no step was trained yet"
            axes[1][1].text(0.5, 0.5, f"no tracker: {why}", ha="center")
        else:
            _truth(axes[1][1], result["tracker"]["prompts"])


def _levels(axis: Any, found: Mapping[str, Any], name: str, *, trained: bool) -> None:
    position_L = np.arange(len(LEVELS))
    axis.bar(position_L - 0.2, found["before_by_level"], 0.4, color=BEFORE, label=f"before: {found['before']:.3f}")
    if trained:
        label = f"after: {found['after']:.3f} (change {found['change']:+.3f} +- {found['standard_error']:.3f})"
        errors = {"yerr": found["standard_error_by_level"], "error_kw": {"elinewidth": 1}}
        axis.bar(position_L + 0.2, found["after_by_level"], 0.4, **errors, color=AFTER, label=label)
    axis.set_xticks(position_L, [level for level, _ in LEVELS], rotation=30, ha="right")
    axis.set_ylim(0, 1)
    axis.set_title(f"accuracy on {found['prompts']} {name}", fontsize=10)
    axis.legend(frameon=False, fontsize=8)


def _curves(axis: Any, result: Mapping[str, Any]) -> None:
    for key, name, colour in (("held_out", "held out", AFTER), ("train", "training prompts, uniformly", COLOURS[1])):
        x, y = curve(result, key)
        axis.plot(x, y, marker="o", markersize=3, color=colour, label=name)
    if offline := offline_trajectories(result):
        axis.axvspan(0, offline, color=OFFLINE, label="offline values")
    _over_trajectories(axis, "accuracy over trajectories")
    axis.legend(frameon=False, fontsize=8)


def _over_trajectories(axis: Any, title: str) -> None:
    axis.set_xlim(left=0)
    axis.set_xlabel("trajectories spent")
    axis.set_title(title, fontsize=10)


def curve(result: Mapping[str, Any], key: str) -> tuple[list[int], list[float]]:
    """Trajectories spent, offline ones first, and accuracy at each checkpoint."""
    offline, per_step = offline_trajectories(result), result["settings"]["trajectories"]
    return [offline + point["step"] * per_step for point in result["curve"]], [point[key] for point in result["curve"]]


def _truth(axis: Any, prompts: Sequence[Mapping[str, Any]]) -> None:
    after_P, value_P, visits_P = zip(*((one["after"], one["value"], one["visits"]) for one in prompts), strict=True)
    points = axis.scatter(after_P, value_P, c=visits_P, s=9, cmap="viridis", alpha=0.7, linewidths=0)
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="true success rate of the final policy", ylabel="value in the tracker")
    axis.set_title("tracker and truth, one point per training prompt", fontsize=10)
    axis.figure.colorbar(points, ax=axis, label="visits")


def draw_comparison(groups: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Accuracy over trajectories spent, both sets: a thin line per run, a thick one for the mean of a variant."""
    names = (("held_out", "held-out prompts"), ("train", "training prompts, uniformly"))
    with _figure(path, 1, 2, (11, 4.5), "accuracy over trajectories spent (offline ones counted)") as axes:
        for axis, (key, name) in zip(axes[0], names, strict=True):
            for index, (variant, results) in enumerate(groups.items()):
                _comparison(axis, variant, results, key, COLOURS[index % len(COLOURS)])
            _over_trajectories(axis, name)
        axes[0][0].legend(frameon=False, fontsize=8)


def _comparison(axis: Any, variant: str, results: Sequence[Mapping[str, Any]], key: str, colour: str) -> None:
    curves = [curve(result, key) for result in results]
    for x, y in curves:
        axis.plot(x, y, color=colour, linewidth=0.8, alpha=0.5 if len(curves) > 1 else 1.0)
    label = f"{variant} ({len(curves)} run{'s' if len(curves) > 1 else ''})"
    # A mean needs equal places; runs that were saved at other steps show as thin lines only.
    if all(x == curves[0][0] for x, _ in curves):
        mean = [sum(values) / len(values) for values in zip(*(y for _, y in curves), strict=True)]
        axis.plot(curves[0][0], mean, color=colour, linewidth=2, marker="o", markersize=3, label=label)
    else:
        axis.plot([], [], color=colour, linewidth=2, label=label)
