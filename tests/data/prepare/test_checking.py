"""Checks of files in verl's columns and of sources' rows, and the overlap of training and evaluation data."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.data.prepare import (
    SOURCES,
    TEMPLATES,
    RowError,
    SpoDataError,
    check_file,
    check_source,
    overlap,
    prepare,
)
from spo_verl.data.prepare.checking import check_row
from spo_verl.data.prepare.prepare_report import LISTED
from tests.cli.helpers import write_rows
from tests.data.prepare.releases import AFTER, BEFORE, CASES, write_jsonl
from tests.support import gsm8k


def row(problem="One?", answer="1", **changes):
    return {
        "data_source": "made_up",
        "prompt": [{"role": "user", "content": problem}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": 0, "split": "train"},
    } | changes


def user(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prepared_files_are_fine(case, tmp_path):
    out = tmp_path / "out.parquet"
    prepare(case.source, out, origin=[str(case.write(tmp_path / "in"))])
    report = check_file(out)
    assert report.fine
    assert report.data_sources == {case.source: report.rows}
    assert (report.rows, report.duplicates) == (len(case.expected), 0)
    assert report.prepared["source"] == case.source


def test_optional_columns_may_lack(tmp_path):
    rows = [{key: row()[key] for key in ("data_source", "prompt", "reward_model")}]
    assert check_file(write_rows(tmp_path / "a.parquet", rows)).fine
    assert check_file(write_jsonl(tmp_path / "a.jsonl", rows)).fine


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data_source": None}, "field data_source: nothing instead of a text."),
        ({"data_source": ""}, "field data_source: '' is an empty text; it needs some."),
        ({"prompt": None}, "field prompt: nothing instead of a list of messages."),
        ({"prompt": "One?"}, "field prompt: 'One?' instead of a list of messages."),
        ({"prompt": []}, "field prompt: [] instead of a list of messages."),
        ({"prompt": ["One?"]}, "field prompt[0]: 'One?' instead of a message with role and content."),
        ({"prompt": [{"role": "human", "content": "x"}]}, "field prompt[0].role: 'human' instead of one of"),
        ({"prompt": [*user("x"), *user("  ")]}, "field prompt[1].content: '  ' is an empty text; it needs some."),
        (
            {"prompt": [{"role": "system", "content": "x"}]},
            "field prompt[0].role: 'system'; the last message is the user's.",
        ),
        ({"reward_model": None}, "field reward_model: nothing instead of a struct with ground_truth."),
        ({"reward_model": {"style": "rule"}}, "field reward_model.ground_truth: nothing instead of a text."),
        ({"reward_model": {"ground_truth": 3}}, "field reward_model.ground_truth: 3 instead of a text."),
        ({"ability": 1}, "field ability: 1 instead of a text."),
        ({"extra_info": [1]}, "field extra_info: [1] instead of a struct."),
        ({"extra_info": {"index": [1]}}, "field extra_info.index: [1] instead of a number."),
    ],
)
def test_row_and_field_are_named(change, complaint):
    with pytest.raises(RowError) as error:
        check_row(17, row(**change))
    assert str(error.value).startswith(f"row 17, {complaint}")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": [{"role": "system", "content": "x"}, *user("y")]},
        {"prompt": user([{"type": "text", "text": "parts"}])},
        {"extra_info": None},
        {"extra_info": {"index": "an-id"}},
    ],
)
def test_what_verl_takes_is_fine(change):
    check_row(0, row(**change))


def test_all_problems_are_counted_and_the_first_are_listed(tmp_path):
    rows = [row(answer="1" if n % 2 else None) for n in range(100)]
    report = check_file(write_rows(tmp_path / "a.parquet", rows))
    assert not report.fine
    assert (report.rows, report.problem_count, len(report.problems)) == (100, 50, LISTED)
    assert report.problems[1] == "row 2, field reward_model.ground_truth: nothing instead of a text."


def test_duplicates_are_those_that_spo_sees_as_one_prompt(tmp_path):
    rows = [row(), row(extra_info={"index": 5, "split": "test"}), row(answer="2"), row("Two?"), row("Two?")]
    report = check_file(write_rows(tmp_path / "a.parquet", rows))
    assert report.fine
    assert report.duplicates == 2


def test_an_empty_file_is_a_problem(tmp_path):
    empty = pa.Table.from_pylist([row()]).slice(0, 0)
    pq.write_table(empty, tmp_path / "a.parquet")
    assert check_file(tmp_path / "a.parquet").problems == ["there is no row"]


def test_a_file_without_verls_columns_is_told(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"question": "1?", "answer": "1"}])
    with pytest.raises(
        SpoDataError, match=r"has no column data_source, prompt, reward_model \(only question, answer\)"
    ):
        check_file(file)
    with pytest.raises(SpoDataError, match="there is no file"):
        check_file(tmp_path / "nowhere.parquet")


def test_a_source_is_checked_as_prepare_does_it(tmp_path):
    rows = [{"problem": f"{n}?", "answer": answer} for n, answer in enumerate(["1", "2.5", "", "033", None])]
    report = check_source(SOURCES["aime_2025"], [str(write_jsonl(tmp_path / "a.jsonl", rows))])
    assert report.rows == 5
    assert report.problems == [
        "row 1, field answer: '2.5' is not a whole number.",
        "row 2, field answer: it is empty.",
        "row 4, field answer: it is empty.",
    ]


class TestOverlap:
    def test_problems_are_found_under_any_template_and_typesetting(self, tmp_path):
        train = write_rows(
            tmp_path / "train.parquet",
            [
                row(TEMPLATES["boxed"].render("Let $x=\\frac12$. Find $x$."), "1"),
                row(TEMPLATES["tool"].render("Another one?"), "2"),
                row(f"{BEFORE}Compute $1+1$.{AFTER}", "2"),
                row("Compute  $1 + 1$", "3"),
                row("Only in training", "3"),
            ],
        )
        first = write_rows(
            tmp_path / "first.parquet",
            [
                row(TEMPLATES["code"].render("let \\(x = \\dfrac12\\). Find $x$!"), "1"),
                row("Compute $1-1$.", "0"),
                row("compute \\(1+1\\)", "2"),
            ],
        )
        second = write_jsonl(tmp_path / "second.jsonl", [row("Unseen?"), row("Unseen?"), row("Another one?", "7")])
        report = overlap(train, [first, second])
        assert (report.train_rows, report.shared) == (5, 3)
        assert [(one.problems, len(one.shared)) for one in report.files] == [(3, 2), (2, 1)]
        found = [
            (entry["row"], entry["train_rows"], entry["answer"], entry["train_answer"])
            for entry in report.files[0].shared
        ]
        assert found == [(0, [0], "1", "1"), (2, [2, 3], "2", "2")]
        [entry] = report.files[1].shared
        assert (entry["row"], entry["train_rows"], entry["answer"], entry["train_answer"]) == (2, [1], "7", "2")

    def test_the_stored_problem_wins_over_the_prompt(self, tmp_path):
        train = write_rows(tmp_path / "a.parquet", [row("Some old wording. One?", extra_info={"problem": "One?"})])
        assert overlap(train, [write_rows(tmp_path / "b.parquet", [row("One?")])]).shared == 1

    def test_a_problem_in_two_evaluation_files_is_found_in_both(self, tmp_path):
        files = [write_rows(tmp_path / f"{name}.parquet", [row("One?")]) for name in "abc"]
        assert overlap(files[0], files[1:]).shared == 2

    def test_rows_without_a_problem_are_named(self, tmp_path):
        train = write_rows(tmp_path / "a.parquet", [row(), row(prompt=[{"role": "system", "content": "x"}])])
        with pytest.raises(SpoDataError, match=r"a\.parquet, row 1, field prompt: there is no text of the user"):
            overlap(train, [train])
        other = write_jsonl(tmp_path / "b.jsonl", [{"question": "x"}])
        with pytest.raises(SpoDataError, match=r"b\.jsonl has no column prompt \(only question\)"):
            overlap(train, [other])

    @gsm8k.needs_gsm8k
    def test_real_problems_of_training_and_test(self, tmp_path):
        for split in ("train", "test"):
            prepare("gsm8k", tmp_path / f"{split}.parquet", origin=[str(gsm8k.FOLDER / f"{split}.jsonl")])
        report = overlap(tmp_path / "train.parquet", [tmp_path / "test.parquet"])
        assert (report.train_rows, report.files[0].problems, report.shared) == (7473, 1319, 0)
        # One problem of the test split, put among the training rows under another template.
        planted = pq.read_table(tmp_path / "test.parquet").to_pylist()[7]
        text = planted["extra_info"]["problem"].replace(" ", "  ").upper()
        mixed = [
            *(gsm8k.row(one, n) for n, one in enumerate(gsm8k.problems("train")[:50])),
            row(f"{BEFORE}{text}{AFTER}"),
        ]
        lines = tmp_path / "mixed.jsonl"
        lines.write_text("".join(json.dumps(one) + "\n" for one in mixed))
        report = overlap(lines, [tmp_path / "test.parquet"])
        assert [(entry["row"], entry["train_rows"]) for entry in report.files[0].shared] == [(7, [50])]
