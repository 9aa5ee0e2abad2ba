"""``spo-verl evaluate``: tables, JSON, Markdown, a plot; exit status 1 for what is incomplete."""

import pytest

from spo_verl.cli.evaluate import named
from tests.cli.helpers import run, run_json
from tests.evaluation.files import answers, five, write_lines

FAST = ("--resamples", 200)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: five(folder / name, 4, rate, seed) for name, rate, seed in (("spo", 0.6, 1), ("grpo", 0.5, 2))}


def test_two_runs_beside_the_paper(folders, tmp_path):
    plot, page = tmp_path / "pass.png", tmp_path / "results.md"
    done = run(
        "evaluate", f"spo={folders['spo']}", f"grpo={folders['grpo']}", *FAST, "--plot", plot, "--markdown", page
    )
    assert done.exit_code == 0, done.output
    for words in ("spo, step 7", "AIME 24", "HMMT Feb 25", "spo - grpo, paired", "paper, SPO (k = 32)", "84.0 / 74.9"):
        assert words in done.output, words
    assert "incomplete" not in done.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "| paper, GRPO (k = 32) | 83.3 / 77.6 | 72.1 / 64.2 |" in text
    assert "## spo - grpo, paired prompt by prompt" in text


def test_json_is_the_same(folders):
    found = run_json("evaluate", f"spo={folders['spo']}", f"grpo={folders['grpo']}", "-k", 2, *FAST)
    first = found["runs"][0]
    assert (first["name"], first["step"], found["settings"]["k"]) == ("spo", 7, 2)
    one = first["benchmarks"]["beyond_aime"]
    assert (one["prompts"], one["responses"], one["k"]) == (100, {"fewest": 4, "most": 4}, 2)
    assert one["avg"]["low"] < one["avg"]["mean"] < one["avg"]["high"]
    assert list(one["pass_curve"]) == ["1", "2"]
    assert one["pass_curve"]["1"] == pytest.approx(one["avg"]["mean"])
    assert found["paper"]["rows"]["SPO"]["avg"]["average"] == 56.0
    assert len(found["differences"]) == 18


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_number_is_cut_at_any_width(folders, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run("evaluate", f"spo={folders['spo']}", f"grpo={folders['grpo']}", *FAST).stdout
    assert "…" not in shown
    words = " ".join(shown.split())
    found = run_json("evaluate", f"spo={folders['spo']}", *FAST)["runs"][0]
    for one in found["benchmarks"].values():
        low, mean, high = (f"{100 * one['avg'][name]:.1f}" for name in ("low", "mean", "high"))
        assert f"{mean} [{low}, {high}]" in words
    assert max(map(len, shown.splitlines())) <= max(width, 45)


def test_what_is_incomplete_ends_with_status_1_and_still_shows(tmp_path):
    file = write_lines(tmp_path / "0.jsonl", answers("aime_2024", [["1", "2"], ["1"]]))
    done = run("evaluate", file, *FAST)
    assert done.exit_code == 1
    assert "incomplete (2):" in done.output
    assert "2 prompts, and the benchmark has 30" in done.output
    assert "1 with 1, 1 with 2" in done.output


def test_errors_name_the_remedy(tmp_path):
    done = run("evaluate", tmp_path / "none")
    assert done.exit_code == 2
    assert "trainer.validation_data_dir" in done.stderr
    file = write_lines(tmp_path / "0.jsonl", answers("mine", [["1"]]))
    done = run("evaluate", file, *FAST, "--plot", tmp_path / "none" / "x.png")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr


def test_grading_again(tmp_path):
    pytest.importorskip("math_verify")
    lines = answers("gsm8k", [["1", "2"]])
    for line in lines:
        line |= {"acc": 0.0, "gts": "\\frac{2}{2}"}
    file = write_lines(tmp_path / "0.jsonl", lines)
    assert run_json("evaluate", file, *FAST)["runs"][0]["benchmarks"]["gsm8k"]["avg"]["mean"] == 0.0
    found = run_json("evaluate", file, *FAST, "--regrade")["runs"][0]
    assert found["benchmarks"]["gsm8k"]["avg"]["mean"] == 0.5
    assert found["regraded"] == {"responses": 2, "changed": 1, "given_up": 0}


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [("spo=runs/x", "spo", "runs/x"), ("runs/x", "x", "runs/x"), ("runs/lr=1/x", "x", "runs/lr=1/x")],
)
def test_names_of_runs(text, name, path):
    assert (named(text)[0], str(named(text)[1])) == (name, path)
