"""Metrics of runs from files: by hand where that is possible, and nothing incomplete passes unsaid."""

import pytest

from spo_verl.evaluation.benchmarks import in_order, paper_table
from spo_verl.evaluation.generations import EvaluationError, read_generations
from spo_verl.evaluation.scores import EvaluationSettings, evaluate, powers_up_to
from tests.evaluation.files import FIVE, answers, five, write_lines

FAST = EvaluationSettings(resamples=200)


def run_of(path, name="run"):
    return read_generations(path, name)


def lines_of(tmp_path, rows, name="run", source="mine"):
    return read_generations(write_lines(tmp_path / f"{name}.jsonl", answers(source, rows)), name)


def test_two_prompts_by_hand(tmp_path):
    # ground truth 1. c = 1 and 3 of n = 4; the modes are 2 (wrong) and 1 (right)
    found = evaluate([lines_of(tmp_path, [["1", "2", "2", ""], ["1", "1", "1", "3"]])], FAST)
    [one] = found.runs[0].benchmarks.values()
    assert (one.prompts, one.responses, one.k) == (2, (4, 4), 4)
    assert one.intervals["avg"].mean == 0.5
    assert one.intervals["pass"].mean == 1.0
    assert one.intervals["maj"].mean == 0.5
    assert one.missing_answers == 1 / 8
    assert {k: curve.mean for k, curve in one.pass_curve.items()} == {1: 0.5, 2: pytest.approx((0.5 + 1.0) / 2), 4: 1.0}
    assert found.problems == []


def test_k_below_n_uses_all_responses(tmp_path):
    found = evaluate(
        [lines_of(tmp_path, [["1", "2", "2", ""], ["1", "1", "1", "3"]])], EvaluationSettings(k=1, resamples=200)
    )
    [one] = found.runs[0].benchmarks.values()
    assert one.intervals["avg"].mean == one.intervals["pass"].mean == 0.5
    assert one.intervals["maj"].mean == pytest.approx(0.5, abs=0.05)  # one response decides by itself
    assert {k: curve.mean for k, curve in one.pass_curve.items()} == {1: 0.5}


def test_powers():
    assert powers_up_to(1) == [1]
    assert powers_up_to(8) == [1, 2, 4, 8]
    assert powers_up_to(20) == [1, 2, 4, 8, 16, 20]


def test_five_benchmarks_and_their_average(tmp_path):
    found = evaluate([run_of(five(tmp_path, n=4, rate=0.5, seed=0))], FAST)
    run = found.runs[0]
    assert list(run.benchmarks) == list(paper_table().title_of)
    assert found.problems == []
    assert run.notes == []
    assert run.step == 7
    for metric in ("avg", "pass", "maj"):
        means = [one.intervals[metric].mean for one in run.benchmarks.values()]
        assert run.average[metric].mean == pytest.approx(sum(means) / 5)  # benchmarks weigh the same, not prompts
        assert run.average[metric].prompts == sum(FIVE.values())


def test_no_average_without_all_five(tmp_path):
    run = evaluate([lines_of(tmp_path, [["1", "2"]] * 30, source="aime_2024")], FAST).runs[0]
    assert run.average == {}
    assert run.notes == ["no average of the five benchmarks, as there is no AIME 25, BeyondAIME, BRUMO 25, HMMT Feb 25"]


def test_what_is_incomplete_is_said(tmp_path):
    found = evaluate(
        [lines_of(tmp_path, [["1"] * 4] * 28 + [["1"] * 3], source="aime_2024")], EvaluationSettings(k=4, resamples=200)
    )
    assert found.problems == [
        "run: AIME 24: 29 prompts, and the benchmark has 30",
        "run: AIME 24: prompts differ in their number of responses (1 with 3, 28 with 4); metrics look at 3",
        "run: AIME 24: 1 of 29 prompts have fewer than k = 4 responses (at most 4); metrics look at 3",
    ]
    assert found.runs[0].benchmarks["aime_2024"].k == 3
    short = evaluate([lines_of(tmp_path, [["1"] * 2])], EvaluationSettings(k=32, resamples=200))
    assert len(short.problems) == 1
    assert "fewer than k = 32 responses (at most 2); metrics look at 2" in short.problems[0]


def test_a_benchmark_of_the_data_without_generations_is_a_problem(tmp_path):
    run = lines_of(tmp_path, [["1"]])
    run.expected = {"mine": 2, "other": 3}
    assert evaluate([run], FAST).problems == [
        "run: mine: 1 prompts, and the benchmark has 2",
        "run: other: no generation at all",
    ]


def test_without_answers_there_is_no_majority(tmp_path):
    lines = answers("mine", [["1", "2"]])
    for line in lines:
        del line["pred"]
    run = evaluate([read_generations(write_lines(tmp_path / "0.jsonl", lines), "run")], FAST).runs[0]
    assert set(run.benchmarks["mine"].values) == {"avg", "pass"}
    assert run.benchmarks["mine"].missing_answers is None
    assert "no maj@k" in run.notes[0]


def test_differences_are_paired_by_prompt_whatever_the_order(tmp_path):
    rows = [["1", "1"], ["1", "2"], ["2", "2"]]
    first, second = lines_of(tmp_path, rows, "a"), lines_of(tmp_path, rows, "b")
    second.prompts["mine"] = dict(reversed(second.prompts["mine"].items()))
    found = evaluate([first, second], FAST)
    assert [(one.metric, one.interval.mean, one.interval.low, one.interval.high) for one in found.differences] == [
        (metric, 0.0, 0.0, 0.0) for metric in ("avg", "pass", "maj")
    ]


def test_differences_of_two_whole_runs(tmp_path):
    runs = [run_of(five(tmp_path / name, 4, rate, seed), name) for name, rate, seed in (("a", 0.7, 1), ("b", 0.4, 2))]
    found = evaluate(runs, FAST)
    assert len(found.differences) == 6 * 3
    average = {one.metric: one for one in found.differences if one.source == "average"}
    assert average["avg"].interval.low > 0.2
    a, b = found.runs
    assert average["avg"].interval.mean == pytest.approx(a.average["avg"].mean - b.average["avg"].mean)
    assert {(one.first, one.second, one.k) for one in found.differences} == {("a", "b", 4)}


def test_runs_on_different_prompts_or_k_are_compared_on_what_is_common(tmp_path):
    first = lines_of(tmp_path, [["1", "1", "1"]] * 3, "a")
    second = lines_of(tmp_path, [["2", "1"]] * 2, "b")
    found = evaluate([first, second], FAST)
    assert len(found.problems) == 1
    assert "a - b, mine: 2 prompts in common, of 3 and 2" in found.problems[0]
    assert {one.k for one in found.differences} == {2}
    assert {one.interval.prompts for one in found.differences} == {2}


def test_two_runs_of_one_name_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="two runs are called a"):
        evaluate([lines_of(tmp_path, [["1"]], "a")] * 2, FAST)


def test_the_papers_table():
    """The averages of Table 1 are those of its columns, to the rounding; a slip in typing would show."""
    table = paper_table()
    assert table.prompts_of == FIVE
    for name, row in table.rows.items():
        for metric, cells in row.items():
            mean = sum(cells[source] for source in table.title_of) / 5
            assert cells["average"] == pytest.approx(mean, abs=0.1), (name, metric)
    assert table.rows["SPO"]["maj"]["aime_2025"] == 76.5
    assert in_order({"zzz", "hmmt_feb_2025", "aime_2024", "abc"}) == ["aime_2024", "hmmt_feb_2025", "abc", "zzz"]
