"""pass@k over k, one panel per benchmark and one line per run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spo_verl.evaluation.benchmarks import in_order, title
from spo_verl.evaluation.generations import EvaluationError
from spo_verl.evaluation.scores import Evaluation

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

COLOURS = ("#1f6fb2", "#d1622b", "#3c8d5a", "#8a5fb0", "#b0913f", "#5b6770")
COLUMNS = 3


def load_plotting() -> tuple[type[Figure], type[FigureCanvasAgg]]:
    """What figures are drawn with, loaded when it is first asked for.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError("plots need matplotlib: pip install 'spo-verl[plots]'") from error
    return Figure, FigureCanvasAgg


def new_figure(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure of so many inches, wide and high, and its axes (rows, columns).

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    # Without pyplot: no global state, and no display is looked for.
    figure_type, canvas = load_plotting()
    figure = figure_type(figsize=inches, layout="constrained")
    canvas(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(color="#e3e7eb", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def plot(evaluation: Evaluation, path: Path) -> None:
    """Draw pass@k into a PNG file.

    Raises:
        EvaluationError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    sources = in_order({source for run in evaluation.runs for source in run.benchmarks})
    columns = min(COLUMNS, len(sources))
    rows = -(-len(sources) // columns)
    figure, axes = new_figure(rows, columns, (3.6 * columns + 0.6, 3.0 * rows))
    for axis, source in zip(axes.flat, sources, strict=False):
        ticks: set[int] = set()
        for run, colour in zip(evaluation.runs, COLOURS * len(evaluation.runs), strict=False):
            if source in run.benchmarks:
                curve = run.benchmarks[source].pass_curve
                ticks |= set(curve)
                axis.plot(list(curve), [100 * y for y in curve.values()], "o-", ms=3.5, color=colour, label=run.name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        axis.minorticks_off()
        axis.set_title(title(source), fontsize=10)
        axis.set_xlabel("k")
        axis.set_ylabel("pass@k, percent")
        axis.legend(fontsize=8, frameon=False)
    for axis in list(figure.axes)[len(sources) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=130, format="png")
