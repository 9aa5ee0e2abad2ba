"""pass@k over k with its intervals, one panel per benchmark and one line per run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spo_verl.core.evaluation import Interval
from spo_verl.drawing import COLOURS, MARKERS, SAVED, new_figure
from spo_verl.evaluation.benchmarks import in_order, title
from spo_verl.evaluation.scores import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 2
INCHES = 7.0
"""Width of a figure in inches: in a README (700 pixels) a font of 9 points is 12.5 pixels high."""


def plot(evaluation: Evaluation, path: Path) -> None:
    """Draw pass@k with its intervals into a PNG file.

    Raises:
        SpoPlottingError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    draw(evaluation).savefig(path, **SAVED)


def draw(evaluation: Evaluation) -> Figure:
    """The figure of `plot`: one panel per benchmark, one line with a band per run, one legend.

    Raises:
        SpoPlottingError: matplotlib is not installed.
    """
    sources = in_order({source for run in evaluation.runs for source in run.benchmarks})
    columns = min(COLUMNS, len(sources))
    rows = -(-len(sources) // columns)
    figure, axes = new_figure(rows, columns, (INCHES, 2.7 * rows + 0.5))
    handles: dict[str, Any] = {}
    for axis, source in zip(axes.flat, sources, strict=False):
        ticks: set[int] = set()
        for number, run in enumerate(evaluation.runs):
            if source in run.benchmarks:
                curve = run.benchmarks[source].pass_curve
                ticks |= set(curve)
                handles[run.name] = _line(axis, number, curve)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        axis.minorticks_off()
        axis.set_title(title(source), fontsize=10)
        axis.set_xlabel("responses per prompt, k", fontsize=9)
        axis.set_ylabel("pass@k, percent", fontsize=9)
        axis.tick_params(labelsize=9)
    for axis in list(figure.axes)[len(sources) :]:
        axis.set_visible(False)
    level = f"{evaluation.settings.level:.0%}".replace("%", " %")
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=min(3, len(handles)),
        fontsize=9,
        frameon=False,
        title=f"band: {level} bootstrap interval over prompts",
        title_fontsize=9,
    )
    return figure


def _line(axis: Any, number: int, curve: Mapping[int, Interval]) -> Any:
    """One run's line with its band; returns what the legend shows."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    k_K = list(curve)
    low_K, mean_K, high_K = ([100 * getattr(one, name) for one in curve.values()] for name in ("low", "mean", "high"))
    axis.fill_between(k_K, low_K, high_K, color=colour, alpha=0.18, linewidth=0)
    [line] = axis.plot(k_K, mean_K, marker=marker, markersize=4.5, linewidth=1.5, color=colour)
    return line
