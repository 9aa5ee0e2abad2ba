"""``spo-verl data`` as a user types it."""

import pyarrow.parquet as pq
import pytest

from spo_verl.data.prepare import SOURCES
from tests.cli.helpers import run, run_json
from tests.data.prepare.releases import ORIGINAL, original, write_jsonl, write_parquet
from tests.docs.pages import DOCS
from tests.support import gsm8k


@pytest.fixture
def source(tmp_path):
    rows = [
        original("One?", "1"),
        original("求", "1"),
        original("One?", "01"),
        original("Two?", "2"),
        original("Two?", "3"),
    ]
    return write_parquet(tmp_path / "dapo-math-17k.parquet", rows, ORIGINAL)


def test_list_shows_every_source_and_release():
    text = run("data", "list").stdout
    for source in SOURCES.values():
        assert f"\n{source.name} " in text
        for release in source.releases:
            assert release.hub_id in text
    answer = run_json("data", "list")
    assert [one["name"] for one in answer["sources"]] == list(SOURCES)
    assert answer["sources"][0]["releases"][1]["documented_rows"] == 1791700
    assert {one["name"] for one in answer["templates"]} == {"boxed", "code", "tool", "none"}


def test_prepare_says_what_became_of_every_row(source, tmp_path):
    out = tmp_path / "train.parquet"
    result = run("data", "prepare", "dapo_math_17k", "--from", source, "-o", out)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"source      dapo_math_17k (columns prompt and reward_model.ground_truth), from {source}",
        "template    boxed; split train",
        "read        5 rows",
        "dropped     1 repeating an earlier row",
        "dropped     1 not in English",
        "dropped     2 whose problem has several answers",
        "written     1 row",
        "            rows from which the source's own instruction was removed: 5",
        "conflicts   1 problem with several answers (drop):",
        "            2 | 3: Two?",
        f"file        {out}",
    ]
    assert result.stderr == ""
    checked = run("data", "check", out)
    assert checked.exit_code == 0
    assert f"{out}: 1 row (dapo_math_17k 1)\nprepared from {source} with template boxed, 20" in checked.stdout
    assert checked.stdout.endswith("no problems\n")


def test_own_data_by_the_names_of_its_columns(tmp_path):
    (tmp_path / "mine.csv").write_text('frage,antwort\n"Two, or three?",2\nThree?,{3\nThree?,3\n')
    out = tmp_path / "out.parquet"
    prepare = ("data", "prepare", "mine", "--from", tmp_path / "mine.csv", "-o", out)
    refused = run(*prepare)
    assert refused.exit_code == 2
    assert refused.stderr.endswith("name the columns with --question and --answer; the columns are frage, antwort.\n")
    columns = ("--question", "frage", "--answer", "antwort")
    refused = run(*prepare, *columns)
    assert "mine.csv: row 1, field antwort: '{3': " in refused.stderr
    checked = run("data", "check", tmp_path / "mine.csv", *columns)
    assert (checked.exit_code, "  row 1, field antwort: '{3': " in checked.stdout) == (1, True)
    answer = run_json(*prepare, *columns, "--drop-invalid", "--instruction", "Why?", "--system", "Think.")
    assert (answer["written"], answer["dropped"], answer["template"]) == (2, {"invalid": 1}, "own")
    assert pq.read_table(out).to_pylist()[0]["prompt"] == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "Two, or three?\n\nWhy?"},
    ]
    assert run("data", "check", out).exit_code == 0
    unprepared = run("data", "check", out, *columns, "--max-prompt-length", 5, "--model", tmp_path)
    assert (unprepared.exit_code, "is for files in verl's columns: prepare" in unprepared.stderr) == (2, True)
    alone = run("data", "check", out, "--max-prompt-length", 5)
    assert (alone.exit_code, "belong together: give both" in alone.stderr) == (2, True)


def test_prepare_as_json(source, tmp_path):
    out = tmp_path / "train.parquet"
    options = ("--template", "tool", "--conflicts", "keep", "--split", "held", "--limit", "4")
    answer = run_json("data", "prepare", "dapo_math_17k", "--from", source, "-o", out, *options)
    assert answer["file"] == str(out)
    assert (answer["read"], answer["written"], answer["template"], answer["split"]) == (4, 2, "tool", "held")
    assert answer["dropped"] == {"not_english": 1, "duplicate": 1}
    checked = run_json("data", "check", out)
    assert checked["fine"]
    assert checked["prepared"]["template"] == "tool"


def test_rows_of_a_source_that_repeat_others_are_counted(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("q,a\nOne?,1\nTwo?,2\n One?  ,1\nOne?,11\nOne?,1\n")
    columns = ("--question", "q", "--answer", "a")
    assert run_json("data", "check", file, *columns)["duplicates"] == 2
    shown = run("data", "check", file, *columns).stdout
    assert "2 rows repeat problem and answer of an earlier one: `prepare` drops them\n" in shown
    out = tmp_path / "out.parquet"
    prepared = run_json("data", "prepare", "mine", "--from", file, "-o", out, *columns, "--conflicts", "keep")
    assert prepared["dropped"] == {"duplicate": 2}


def test_a_file_is_replaced_with_force_only(source, tmp_path):
    out = tmp_path / "train.parquet"
    prepare = ("data", "prepare", "dapo_math_17k", "--from", source, "-o", out)
    assert run(*prepare).exit_code == 0
    refused = run(*prepare)
    assert refused.exit_code == 2
    assert refused.stderr == f"error: {out} is there already: choose another name, or replace it with --force.\n"
    assert run(*prepare, "--force").exit_code == 0


def test_an_invalid_row_is_an_error_with_row_and_field(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "x"}])
    out = tmp_path / "out.parquet"
    refused = run("data", "prepare", "aime_2025", "--from", file, "-o", out)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"error: {file}: row 1, field answer: 'x' is not a whole number. Correct the row, or drop such rows with "
        "--drop-invalid.\n"
    )
    kept = run("data", "prepare", "aime_2025", "--from", file, "-o", out, "--drop-invalid")
    assert kept.exit_code == 0
    assert "dropped     1 invalid\n" in kept.stdout
    assert "            row 1, field answer: 'x' is not a whole number.\n" in kept.stdout
    checked = run("data", "check", file, "--source", "aime_2025")
    assert checked.exit_code == 1
    assert checked.stdout.endswith("  row 1, field answer: 'x' is not a whole number.\n1 problem\n")


def test_check_lists_the_first_problems(tmp_path):
    rows = [{"data_source": "x", "prompt": [], "reward_model": {"ground_truth": "1"}} for _ in range(30)]
    result = run("data", "check", write_jsonl(tmp_path / "a.jsonl", rows))
    assert result.exit_code == 1
    assert "  row 3, field prompt: [] instead of a list of messages.\n" in result.stdout
    assert "  ... and 10 more\n30 problems\n" in result.stdout


def test_overlap_fails_when_there_is_some(source, tmp_path):
    train, other, same = (tmp_path / f"{name}.parquet" for name in ("train", "other", "same"))
    run("data", "prepare", "dapo_math_17k", "--from", source, "-o", train, "--conflicts", "first")
    for out, problem in ((other, "Three?"), (same, "two")):
        file = write_jsonl(tmp_path / "a.jsonl", [{"problem": problem, "answer": "3"}])
        run("data", "prepare", "brumo_2025", "--from", file, "-o", out)
    clean = run("data", "overlap", train, other)
    assert clean.exit_code == 0
    assert clean.stdout == f"{train}: 2 rows\n{other}: 0 of 1 problem in the training data\n"
    result = run("data", "overlap", train, other, same)
    assert result.exit_code == 1
    assert result.stdout.endswith(
        f"{same}: 1 of 1 problem in the training data\n  row 0 (training rows 1, there with the answer 2): two\n"
    )
    answer = run_json("data", "overlap", train, other, same)
    assert answer["shared"] == 1
    assert answer["files"][1]["shared"][0]["train_rows"] == [1]


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["prepare", "aime", "-o", "x.parquet"], "there is no source 'aime': take one of dapo_math_17k"),
        (["prepare", "gsm8k", "-o", "x.csv"], "let the name end with .parquet"),
        (["prepare", "gsm8k", "--from", "nowhere.jsonl", "-o", "x.parquet"], "there is no file"),
        (["check", "nowhere.parquet"], "there is no file"),
        (["check", "x.txt", "--source", "gsm8k"], "there is no file"),
        (["overlap", "a.parquet", "b.parquet"], "there is no file"),
    ],
)
def test_mistakes_are_told_with_the_fix(arguments, fix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("data", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert fix in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_bar_runs_on_a_terminal_and_leaves_the_answer_alone(source, tmp_path, monkeypatch):
    from spo_verl.cli import data

    monkeypatch.setattr(data.sys.stderr, "isatty", lambda: True, raising=False)
    with data._progress("dapo") as begin:
        tell = begin(10)
        tell(5, 2)
        tell(10, 3)


@gsm8k.needs_gsm8k
def test_real_problems(tmp_path):
    out = tmp_path / "test.parquet"
    answer = run_json("data", "prepare", "gsm8k", "--from", gsm8k.FOLDER, "--split", "test", "-o", out)
    assert (answer["read"], answer["written"], answer["split"]) == (1319, 1319, "test")
    assert pq.read_metadata(out).num_rows == 1319
    assert run("data", "check", gsm8k.FOLDER / "test.jsonl", "--source", "gsm8k").exit_code == 0


def test_the_page_names_the_sources_of_the_registry():
    page = (DOCS / "data.md").read_text()
    assert [name for name in SOURCES if f"`{name}`" not in page] == []
