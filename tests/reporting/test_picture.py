"""The picture shows the aggregates: a line for each run, with the numbers of the record."""

import numpy as np
import pytest

from spo_verl.drawing import COLOURS, MARKERS, new_figure
from spo_verl.record.reading import Record
from spo_verl.reporting import picture
from spo_verl.reporting.aggregates import COLUMNS, aggregates
from tests.support.records import made_run

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, mode in (("sync", "sync"), ("async", "separate_async")):
        made = made_run(folder / name, prompts=60, steps=5, batch=20, mode=mode, dumps=False)
        record = Record.open(made.folder)
        found[name] = aggregates(record.rollouts(COLUMNS), record.steps(), record.prompts())
    return found


@pytest.fixture(scope="module")
def panels(curves, tmp_path_factory):
    """Title -> axis of a drawn picture."""
    drawn, file = [], tmp_path_factory.mktemp("picture") / "picture.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "new_figure", lambda *given: drawn.append(new_figure(*given)) or drawn[-1])
        patch.setattr(picture, "SAVED", {"dpi": 40, "format": "png"})
        picture.draw(curves, file)
    assert file.stat().st_size > 5000
    return {axis.get_title(): axis for axis in drawn[0][1].flat}


def lines_of(axis):
    return [line for line in axis.get_lines() if len(line.get_xdata()) and line.get_color() in COLOURS]


def test_lines_are_the_aggregates(curves, panels):
    assert len(panels) == len(picture.PANELS)
    places = {
        "reward": lambda one: one["reward"]["mean"],
        "value of the prompts that were drawn": lambda one: one["value"]["drawn"],
        "calibration": lambda one: one["calibration"]["all steps"]["reward"],
        "hard prompts (value below 0.4)": lambda one: one["difficulty"]["share"][:2].sum(0),
        "coverage": lambda one: one["coverage"],
        "retention": lambda one: one["rho"]["middle"],
        "divergence": lambda one: one["divergence"]["middle"],
        "variance that the value removes": lambda one: one["advantage"]["removed"],
        "time of a step": lambda one: one["throughput"]["seconds"],
        "throughput": lambda one: one["throughput"]["rollouts"],
    }
    for title, get in places.items():
        for number, (line, one) in enumerate(zip(lines_of(panels[title]), curves.values(), strict=True)):
            np.testing.assert_array_equal(line.get_ydata(), get(one), title)
            assert (line.get_color(), line.get_marker()) == (COLOURS[number], MARKERS[number])
    near = [line.get_ydata() for line in lines_of(panels["rollouts without signal"])]
    wanted = [one["near_zero"][name] for one in curves.values() for name in ("0.02", "group")]
    np.testing.assert_array_equal(near, wanted)
    lengths = [line.get_ydata() for line in lines_of(panels["response length"])]
    groups = [group["tokens"] for one in curves.values() for group in one["late"]["groups"].values()]
    assert len(lengths) == len(groups) > 2
    for drawn, group in zip(lengths, groups, strict=True):
        np.testing.assert_array_equal(drawn, group)


def test_the_legend_names_every_run(curves, panels):
    [legend] = panels["reward"].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(curves)
