"""What every picture of the package has in common: colours, markers, and a figure that needs no display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spo_verl.errors import SpoPlottingError

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which people with any colour vision tell apart; a run also has its own marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
SAVED: dict[str, Any] = {"dpi": 200, "format": "png", "facecolor": "white"}
"""How figures are saved: sharp at twice the width of a page, readable on dark pages."""


def load_plotting() -> tuple[type[Figure], type[FigureCanvasAgg]]:
    """What figures are drawn with, loaded when it is first asked for.

    Raises:
        SpoPlottingError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SpoPlottingError("plots need matplotlib: pip install 'spo-verl[plots]'") from error
    return Figure, FigureCanvasAgg


def new_figure(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure of so many inches, wide and high, and its axes (rows, columns).

    Raises:
        SpoPlottingError: matplotlib is not installed.
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
