"""The main curves of one run or several as one PNG, from the same aggregates as the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.drawing import COLOURS, MARKERS, SAVED, new_figure
from spo_verl.reporting.aggregates import DIFFICULTY

COLUMNS, PANEL = 3, (3.6, 2.7)
"""Panels in a row, and inches of one."""
STYLES = ("-", "--", ":", "-.")
SMALL, NORMAL = 8, 9
"""Sizes of text, in points."""
MOST_MARKERS = 9
HARD = 2
"""Bands of difficulty that count as hard."""

Line = tuple[str, Any, Any]
"""What the legend adds to the run's name, and the numbers along both axes."""
Lines = Callable[[Mapping[str, Any]], list[Line]]


def _plain(*path: str, name: str = "") -> Lines:
    def lines(curves: Mapping[str, Any]) -> list[Line]:
        found: Any = curves
        for part in path:
            found = found[part]
        return [(name, curves["step"], found)]

    return lines


def _calibration(curves: Mapping[str, Any]) -> list[Line]:
    found = curves["calibration"]["all steps"]
    return [("", found["value"], found["reward"])]


def _hard(curves: Mapping[str, Any]) -> list[Line]:
    return [("", curves["step"], np.asarray(curves["difficulty"]["share"])[:HARD].sum(0))]


def _near_zero(curves: Mapping[str, Any]) -> list[Line]:
    found = curves["near_zero"]
    return [("SPO, 0.02", curves["step"], found["0.02"]), ("groups of 8", curves["step"], found["group"])]


def _lengths(curves: Mapping[str, Any]) -> list[Line]:
    return [(name, curves["step"], group["tokens"]) for name, group in curves["late"]["groups"].items()]


PANELS: tuple[tuple[str, str, str, Lines, tuple[float | None, float | None]], ...] = (
    ("reward", "step", "mean reward", _plain("reward", "mean"), (None, None)),
    ("value of the prompts that were drawn", "step", "mean value", _plain("value", "drawn"), (0, 1)),
    ("calibration", "value at dispatch", "mean reward", _calibration, (0, 1)),
    (f"hard prompts (value below {HARD / len(DIFFICULTY):g})", "step", "share of rollouts", _hard, (0, None)),
    ("coverage", "step", "share of prompts drawn", _plain("coverage"), (0, 1)),
    ("retention", "step", "median", _plain("rho", "middle"), (None, None)),
    ("divergence", "step", "median, nats per token", _plain("divergence", "middle"), (0, None)),
    ("rollouts without signal", "step", "share", _near_zero, (0, 1)),
    ("variance that the value removes", "step", "share", _plain("advantage", "removed"), (None, None)),
    ("response length", "step", "mean tokens", _lengths, (0, None)),
    ("time of a step", "step", "seconds", _plain("throughput", "seconds"), (0, None)),
    ("throughput", "step", "trained rollouts per second", _plain("throughput", "rollouts"), (0, None)),
)
"""Title, label of both axes, lines, and ends of the vertical axis; None lets the numbers decide."""


def draw(runs: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the panels into a PNG file.

    Args:
        runs: name -> what :func:`spo_verl.reporting.aggregates.aggregates` found.
        path: the file.

    Raises:
        SpoPlottingError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    rows = -(-len(PANELS) // COLUMNS)
    figure, axes = new_figure(rows, COLUMNS, (PANEL[0] * COLUMNS, PANEL[1] * rows + 0.3 * len(runs)))
    handles: dict[str, Any] = {}
    for axis, (title, across, up, lines, ends) in zip(axes.flat, PANELS, strict=True):
        axis.set_title(title, fontsize=NORMAL)
        axis.set_xlabel(across, fontsize=SMALL)
        axis.set_ylabel(up, fontsize=SMALL)
        axis.tick_params(labelsize=SMALL)
        if across != "step":
            axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
        kinds = _draw_lines(axis, runs, lines, handles)
        axis.set_ylim(*ends)
        if len(kinds) > 1:
            _name_kinds(axis, kinds, len(runs))
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=min(4, len(runs)),
                  fontsize=NORMAL, frameon=False)  # fmt: skip
    figure.savefig(path, **SAVED)


def _draw_lines(axis: Any, runs: Mapping[str, Mapping[str, Any]], lines: Lines, handles: dict[str, Any]) -> list[str]:
    """Draw every run: a colour and a marker for a run, a style of line for a kind; returns the kinds."""
    kinds: list[str] = []
    for number, (name, curves) in enumerate(runs.items()):
        for kind, x, y in lines(curves):
            x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            if not np.isfinite(y).any():
                continue
            kinds += [] if kind in kinds else [kind]
            [line] = axis.plot(
                x,
                y,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markevery=max(1, len(x) // MOST_MARKERS),
                markersize=4,
                linewidth=1.5,
                linestyle=STYLES[kinds.index(kind) % len(STYLES)],
            )
            handles.setdefault(name, line)
    if not kinds:
        axis.text(0.5, 0.5, "no such numbers", ha="center", transform=axis.transAxes, fontsize=SMALL)
    return kinds


def _name_kinds(axis: Any, kinds: Sequence[str], runs: int) -> None:
    """A legend of the styles of line, in grey where they are those of several runs."""
    colour = COLOURS[0] if runs == 1 else "#55606b"
    for number, kind in enumerate(kinds):
        axis.plot([], [], color=colour, linewidth=1.5, linestyle=STYLES[number % len(STYLES)], label=kind)
    axis.legend(fontsize=SMALL - 1, frameon=False)
