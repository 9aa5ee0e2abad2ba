"""What is said and drawn about finished runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spo_verl.quickstart import plots
from spo_verl.quickstart.compare import by_variant, compare, group_means, labels_of
from spo_verl.quickstart.plots import curve, draw_summary, joint_curve
from spo_verl.quickstart.report import panel, summary
from spo_verl.quickstart.runs import RunFolder
from tests.quickstart.results import result

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_summary_answers_what_a_newcomer_asks() -> None:
    text = summary(result())
    assert "+0.100 +- 0.010" in text
    assert "10.0 standard errors, beyond the noise" in text
    # 16 steps of 256, and 8,192 offline.
    for number in ("4,096", "8,192", "12,288"):
        assert number in text
    assert "8.0 minutes (warm start 60 s, offline values and training 420 s); memory at most 6.5 GiB" in text
    assert "mean absolute error 0.050 (the best constant: 0.300)" in text
    assert "3 of 8" in text
    for place in ("/runs/spo-seed0", "summary.png", "--estimator grpo", "--compare"):
        assert place in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_result_read_from_its_file_is_shown_as_it_was_at_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_result(result())
    assert summary(run.result() or {}) == summary(result())


def test_a_change_within_the_noise_is_not_called_one() -> None:
    assert "2.0 standard errors, not beyond the noise" in summary(result(after=0.42))
    worse = summary(result(after=0.3))
    assert "worse by 0.100" in worse


def test_an_unfinished_run_says_how_far_it_came_and_how_to_go_on() -> None:
    text = summary({**result(), "steps_done": 13})
    assert text.startswith("This run is not finished: 13 of 16 steps.")
    assert "+0.100 +- 0.010" in text
    assert "the same call again" in text.split("How to continue")[1]
    assert "What to try next" not in text
    for finished in (result(), {**result(), "steps_done": 16}):
        assert "How to continue" not in summary(finished)
        assert "not finished" not in summary(finished)


def test_before_the_first_step_there_is_only_before() -> None:
    found = {**result(after=0.4), "steps_done": 0, "offline_prompts": 512, "tracker": None, "sampled": []}
    found["warm_start"] = {"steps": 250, "accuracy": 0.12}
    text = summary(found)
    assert "0 of 16 steps" in text
    assert "warm start: 250 steps, accuracy 0.120 of its problems (target 0.37)" in text
    assert "offline values: 512 of 1024 prompts" in text
    assert text.count("0.400") >= 2
    table = text.split("computed exactly")[1].split("What it cost")[0]
    assert not any(word in table for word in ("after", "change", "better", "worse"))


@pytest.mark.parametrize("steps", [(), (0,), (0, 8), (0, 8, 13)])
def test_verls_validations_are_those_that_there_are(steps: tuple[int, ...]) -> None:
    sampled = [{"step": step, "accuracy": 0.4 + step / 1000, "standard_error": 0.02} for step in steps]
    text = summary({**result(), "steps_done": 13, "sampled": sampled})
    assert ("verl's own validation" in text) == bool(steps)
    if steps:
        assert f"{0.4 + steps[-1] / 1000:.3f} after step {steps[-1]} (standard error 0.020)" in text
    if len(steps) > 1:
        assert "0.400 after step 0, " in text


def test_the_group_baseline_has_no_tracker_to_show() -> None:
    text = summary(result(estimator="grpo", offline=0))
    assert "tracker" not in text.replace("spo/ the tracker", "")
    assert "offline values  " not in text.split("What it cost")[1].split("minutes")[0]
    assert "--estimator spo" in text


def test_the_panel_is_the_first_prompt_of_each_level() -> None:
    prompts = result()["tracker"]["prompts"]
    assert [prompt["question"] for prompt in panel(prompts)] == [f"q{number}" for number in range(8)]


def test_curves_begin_after_the_offline_trajectories() -> None:
    x, y, error = curve(result(offline=8192), "held_out")
    assert x.tolist() == [8192, 8192 + 8 * 256, 8192 + 16 * 256]
    assert y.tolist() == pytest.approx([0.4, 0.408, 0.416])
    # An older result states the standard error of the last point only.
    assert error.tolist() == [0, 0, 0.01]
    with_errors = result()
    for point, stated in zip(with_errors["curve"], (0.0, 0.003, 0.004), strict=True):
        point["held_out_error"] = stated
    assert curve(with_errors, "held_out")[2].tolist() == [0.0, 0.003, 0.004]
    assert curve(result(estimator="grpo", offline=0), "held_out")[0].tolist() == [0, 2048, 4096]


def test_the_mean_of_runs_is_drawn_where_all_were_saved_with_its_standard_error() -> None:
    one = (np.array([0, 10, 17, 20]), np.array([0.4, 0.5, 0.52, 0.6]), np.zeros(4))
    two = (np.array([0, 10, 20]), np.array([0.4, 0.46, 0.5]), np.zeros(3))
    x, mean, error = joint_curve([one, two])
    assert x.tolist() == [0, 10, 20]
    assert mean.tolist() == pytest.approx([0.4, 0.48, 0.55])
    # Of two values the standard error is half their difference.
    assert error.tolist() == pytest.approx([0.0, 0.02, 0.05])
    assert joint_curve([one]) is one


def test_a_comparison_has_one_colour_per_variant_and_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    stock = plots.new_figure
    monkeypatch.setattr(plots, "new_figure", lambda *given: figures.append(stock(*given)) or figures[-1])
    groups = {"spo": [result(seed=0), result(seed=1)], "grpo": [result(estimator="grpo", offline=0)]}
    plots.draw_comparison(groups, tmp_path / "compare.png")
    [(figure, axes)] = figures
    left, right = axes[0]
    assert left.get_ylim() == right.get_ylim()
    shown = [[line.get_color() for line in axis.lines] for axis in (left, right)]
    # Of spo a line per run and the mean, of grpo its one run.
    assert shown[0] == shown[1] == [plots.COLOURS[0]] * 3 + [plots.COLOURS[1]]
    assert [len(axis.collections) for axis in (left, right)] == [2, 2]  # bands
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["spo (2 runs)", "grpo (1 run)"]
    assert (tmp_path / "compare.png").stat().st_size < 200_000


@pytest.mark.parametrize("estimator", ["spo", "grpo"])
def test_the_plot_is_a_png(estimator: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.png"
    draw_summary(result(estimator=estimator, offline=8192 if estimator == "spo" else 0), path)
    assert path.read_bytes().startswith(PNG)
    assert list(tmp_path.iterdir()) == [path]
    draw_summary({**result(after=0.4), "steps_done": 0, "tracker": None, "curve": result()["curve"][:1]}, path)
    assert path.read_bytes().startswith(PNG)


def test_runs_that_differ_in_seed_only_are_put_together(tmp_path: Path) -> None:
    results = [
        result(seed=1, after=0.55),
        result(estimator="grpo", offline=0, after=0.45),
        result(seed=0, after=0.5),
        result(offline_trials=0, offline=0),
        result(overrides=("spo.sampling.mode=uniform",)),
    ]
    groups = by_variant(results)
    assert {name: [one["settings"]["seed"] for one in group] for name, group in groups.items()} == {
        "grpo": [0],
        "spo": [0, 1],
        "spo, no offline values": [0],
        "spo, spo.sampling.mode=uniform": [0],
    }
    means = group_means(groups["spo"])
    # Changes 0.10 and 0.15: mean 0.125, standard deviation 0.05 / sqrt(2), of the mean 0.025.
    assert means["held_out"]["change"] == pytest.approx(0.125)
    assert means["held_out"]["standard_error_over_runs"] == pytest.approx(0.025)
    assert group_means(groups["grpo"])["held_out"]["standard_error_over_runs"] is None
    found = compare(results, tmp_path)
    assert (tmp_path / "compare.png").read_bytes().startswith(PNG)
    assert (tmp_path / "compare.json").exists()
    assert len(found["runs"]) == 5
    assert "mean of 2" in found["text"]
    assert "+0.125 +- 0.025" in found["text"]
    assert "12,288 (8,192)" in found["text"]
    assert max(len(line) for line in found["text"].splitlines()) <= 140


def test_a_comparison_names_what_differs_and_once_what_all_have(tmp_path: Path) -> None:
    shared = ("trainer.save_freq=1", "actor_rollout_ref.rollout.val_kwargs.temperature=0.7")
    results = [
        result(steps=4, train_prompts=128, trajectories=64, overrides=shared),
        result(steps=4, train_prompts=128, trajectories=64, overrides=(*shared, "spo.sampling.mode=uniform")),
        result(estimator="grpo", offline=0, steps=4, train_prompts=128, trajectories=64, overrides=shared),
    ]
    labels, common = labels_of(by_variant(results))
    assert sorted(labels.values()) == ["grpo", "spo", "spo, spo.sampling.mode=uniform"]
    assert common == ["steps 4", "trajectories 64", "train prompts 128", *shared]
    text = compare(results, tmp_path)["text"]
    for part in common:
        assert " ".join(text.split()).count(part) == 1
    table = text.split("In common")[0]
    assert max(len(line) for line in table.splitlines()) <= 130
    # One run alone differs from nothing.
    alone = compare(results[:1], tmp_path)["text"]
    assert "In common: steps 4" in alone
    assert "In common" not in compare([result()], tmp_path)["text"]


def test_a_run_is_compared_by_its_settings_not_by_the_name_of_its_time(tmp_path: Path) -> None:
    """Defaults may have changed since it was made."""
    old = {**result(steps=7), "variant": "spo"}
    assert sorted(by_variant([old, result()])) == ["spo", "spo, steps 7"]
