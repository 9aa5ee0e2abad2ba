"""The figure of pass@k: what is drawn is what was measured, with its intervals, and it can be read."""

import itertools

import pytest

from spo_verl import drawing
from spo_verl.evaluation import figures
from spo_verl.evaluation.generations import read_generations
from spo_verl.evaluation.scores import EvaluationSettings, evaluate
from tests.evaluation.files import sampled, write_lines


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for name, rate, seed in (("spo", 0.6, 1), ("grpo", 0.4, 2)):
        lines = [line for source in ("aime_2024", "mine", "other") for line in sampled(source, 12, 4, rate, seed)]
        runs.append(read_generations(write_lines(folder / f"{name}.jsonl", lines), name))
    return evaluate(runs, EvaluationSettings(resamples=200, level=0.9))


def test_lines_and_bands_are_the_measured_values(evaluation):
    figure = figures.draw(evaluation)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ["AIME 24", "mine", "other"]
    for axis, source in zip(panels, ("aime_2024", "mine", "other"), strict=True):
        for run, line, band in zip(evaluation.runs, axis.get_lines(), axis.collections, strict=True):
            curve = run.benchmarks[source].pass_curve
            assert list(line.get_xdata()) == [1, 2, 4]
            assert list(line.get_ydata()) == pytest.approx([100 * one.mean for one in curve.values()])
            heights = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices}
            for k, one in curve.items():
                assert {(k, round(100 * one.low, 6)), (k, round(100 * one.high, 6))} <= heights
            assert curve[1].low < curve[1].mean < curve[1].high
        assert axis.get_xlabel() == "responses per prompt, k"
        assert axis.get_ylabel() == "pass@k, percent"
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["spo", "grpo"]
    assert legend.get_title().get_text() == "band: 90 % bootstrap interval over prompts"


def test_it_can_be_read_where_a_readme_shows_it(evaluation, tmp_path):
    figure = figures.draw(evaluation)
    pixels_per_point = 700 / figure.get_size_inches()[0] / 72
    texts = [
        text
        for axis in figure.axes
        if axis.get_visible()
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label, *axis.get_xticklabels(), *axis.get_yticklabels())
    ]
    assert min(text.get_fontsize() for text in (*texts, *figure.legends[0].get_texts())) * pixels_per_point >= 12
    figures.plot(evaluation, tmp_path / "pass.png")
    from matplotlib.image import imread

    image = imread(tmp_path / "pass.png")
    assert image.shape[1] == 1400
    assert (image[0, 0, :3] == 1).all()  # white, and opaque
    assert image.shape[2] == 3 or image[..., 3].min() == 1


def seen(colour, lost):
    """A colour as somebody sees it who lacks one kind of cones (Vienot, Brettel and Mollon 1999), linear light."""
    linear = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear)
    mixed = 0.11238 * red + 0.88762 * green if lost == "long" else 0.29275 * red + 0.70725 * green
    last = 0.00401 * (red - green) + blue if lost == "long" else 0.02234 * (green - red) + blue
    return mixed, last, 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("lost", ["long", "medium"])
def test_colours_of_any_two_runs_differ_without_red_or_green(lost):
    for one, other in itertools.combinations(drawing.COLOURS, 2):
        distance = sum((a - b) ** 2 for a, b in zip(seen(one, lost), seen(other, lost), strict=True)) ** 0.5
        assert distance > 0.05, (one, other, distance)
    assert len(set(drawing.MARKERS)) == len(drawing.MARKERS) == len(drawing.COLOURS)
