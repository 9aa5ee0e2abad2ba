"""``spo-verl export``."""

import json

import pytest

from tests.cli.helpers import run, run_json
from tests.support.records import made_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("made") / "run", prompts=40, steps=3, batch=10, checkpoint_every=2)


def test_the_chosen_columns_are_written_and_named(made, tmp_path):
    output = tmp_path / "new" / "out.jsonl"
    found = run_json("export", made.folder, "--output", output, "--columns", "step, reward")
    assert found == {
        "file": str(output),
        "what": "rollouts",
        "rows": len(made.rows),
        "columns": ["step", "reward"],
    }
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert lines == [{"step": row["step"], "reward": row["reward"]} for row in made.rows]
    printed = run("export", made.folder, "-o", tmp_path / "steps.csv", "--what", "steps").stdout
    assert f"wrote {tmp_path}/steps.csv" in printed
    assert "rows of steps (step, name, value)" in printed


def test_values_are_offline_values(made, tmp_path):
    output = tmp_path / "values.parquet"
    assert f"++spo.initial.values={output}" in run("export", made.folder, "-o", output, "--what", "values").stdout
    shown = run_json("values", "show", output)
    assert shown["prompts"] == len({row["key"] for row in made.rows if row["step"] <= 2 and row["reward"] is not None})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "+out.xlsx"), "the ending names the format"),
        (("-o", "+out.csv", "--columns", "rewrad"), "rollouts have no column rewrad: choose among uid"),
        (("-o", "+out.csv", "--columns", " , "), "--columns names no column"),
        (("-o", "+out.csv", "--what", "values"), "let it be .parquet"),
        (("-o", "+v.parquet", "--what", "values", "--columns", "key"), "leave out --columns"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_said(made, tmp_path, words, message):
    done = run("export", made.folder, *(word.replace("+", f"{tmp_path}/") for word in words))
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["record/prompts.parquet", "record/new.csv", "global_step_2/spo/out.parquet"])
def test_no_output_lands_in_what_is_read(made, name):
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    for what in ("prompts", "values"):
        done = run("export", made.folder, "-o", made.folder / name, "--what", what)
        assert done.exit_code == 2
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


def test_a_run_without_a_record_says_so(made, tmp_path):
    import shutil

    shutil.copytree(made.folder / "global_step_2" / "spo", tmp_path / "spo")
    done = run("export", tmp_path / "spo", "-o", tmp_path / "out.csv")
    assert done.exit_code == 2
    assert "has no record (record/ in the run's folder)" in done.stderr
    assert run("export", tmp_path / "spo", "-o", tmp_path / "out.parquet", "--what", "values").exit_code == 0
