"""``spo-verl report`` and ``spo-verl plot``: runs found and named, ended or not, and what is wrong with them."""

import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.record.schema import FOLDER
from tests.cli.helpers import run, run_json
from tests.reporting.blocks import blocks, read_json
from tests.support.records import made_run

VERBS = pytest.mark.parametrize("verb", ["report", "plot"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made_run(folder / "sync", prompts=60, steps=5, batch=16)
    made_run(folder / "going", prompts=60, steps=7, batch=16, mode="separate_async", ended=False)
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    """A run that may be damaged, and its record."""
    shutil.copytree(runs / "sync", tmp_path / "run")
    return tmp_path / "run", tmp_path / "run" / FOLDER


def test_the_page_is_written_and_what_it_holds_is_said(runs, tmp_path):
    page = tmp_path / "new" / "page.html"
    answer = run_json("report", runs / "sync", f"after={runs / 'going'}", "--output", page)
    assert answer["output"] == str(page)
    assert answer["bytes"] == page.stat().st_size
    assert [(one["name"], one["steps"], one["prompts"]) for one in answer["runs"]] == [
        ("sync", 5, 60),
        ("after", 7, 60),
    ]
    found = blocks(page.read_text())
    assert [one["name"] for one in read_json(found, "book")["runs"]] == ["sync", "after"]
    said = run("report", runs / "sync", "--output", page).stdout
    assert "sync: 5 steps" in said
    assert "60 of 60 prompts" in said
    assert str(page) in said


def test_the_picture_is_drawn_and_its_numbers_can_be_had(runs, tmp_path, monkeypatch):
    matplotlib_image = pytest.importorskip("matplotlib.image")
    monkeypatch.setattr("spo_verl.reporting.picture.SAVED", {"dpi": 80, "format": "png"})
    file = tmp_path / "curves.png"
    answer = run_json("plot", runs / "sync", runs / "going", "--output", file)
    picture = matplotlib_image.imread(file)
    assert picture.shape[1] == 864
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # both runs are in it
        assert (np.abs(picture[:, :, :3] * 255 - colour).max(axis=2) < 2).sum() > 50
    assert answer["output"] == str(file)
    assert answer["runs"]["sync"]["step"] == [1, 2, 3, 4, 5]
    assert len(answer["runs"]["going"]["reward"]["mean"]) == 7


def test_a_run_that_continues_or_crashed_is_shown_as_far_as_it_is_recorded(copied, tmp_path):
    folder, record = copied
    parts = sorted(record.glob("rollouts-*.parquet"))
    assert len(parts) > 1
    parts[-1].write_bytes(parts[-1].read_bytes()[:100])  # torn by a crash
    (record / "rollouts-00000006-00000006.parquet.writing").write_bytes(b"half")
    [found] = run_json("report", folder, "--output", tmp_path / "out.html")["runs"]
    assert found["rollouts"] == sum(pq.read_metadata(part).num_rows for part in parts[:-1])


@pytest.mark.parametrize("path", ["", FOLDER])
def test_a_run_is_found_by_its_folder_and_by_its_record(path, runs, tmp_path):
    assert run_json("report", runs / "sync" / path, "--output", tmp_path / "page.html")["runs"][0]["steps"] == 5


def test_dumps_are_found_where_a_run_was_moved(copied, tmp_path):
    folder, record = copied
    described = json.loads((record / "run.json").read_text())
    described["config"]["trainer.rollout_data_dir"] = "/not/there/any/more/rollouts"
    (record / "run.json").write_text(json.dumps(described))
    [found] = run_json("report", folder, "--output", tmp_path / "page.html")["runs"]
    assert found["responses"] > 0
    shutil.rmtree(folder / "rollouts")
    [found] = run_json("report", folder, "--output", tmp_path / "page.html")["runs"]
    assert found["responses"] == 0


def damaged(record, name):
    described = json.loads((record / "run.json").read_text())
    if name == "no record":
        shutil.rmtree(record)
    elif name == "no rollouts":
        for part in record.glob("rollouts-*"):
            part.unlink()
    elif name == "newer":
        (record / "run.json").write_text(json.dumps({**described, "schema_version": 99}))
    elif name == "unknown ending":
        part = next(iter(sorted(record.glob("rollouts-*"))))
        table = pq.read_table(part)
        place = table.schema.names.index("ending")
        strange = ["vanished"] * table.num_rows
        column = pa.array(strange).dictionary_encode().cast(table.schema.field("ending").type)
        pq.write_table(table.set_column(place, table.schema.field("ending"), column), part)


@VERBS
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no record", "record"),
        ("no rollouts", "wait for its first step to end"),
        ("newer", "update spo_verl"),
        ("unknown ending", "is not as it was written"),
    ],
)
def test_what_is_wrong_with_a_record_is_one_message(verb, name, said, copied, tmp_path):
    folder, record = copied
    damaged(record, name)
    done = run(verb, folder, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()
    assert said in json.loads(run(verb, folder, "--output", tmp_path / "out", "--json").stdout)["error"]["message"]


def test_what_the_run_says_of_itself_may_be_missing_or_of_another_kind(copied, tmp_path):
    folder, record = copied
    described = json.loads((record / "run.json").read_text())
    (record / "run.json").write_text(json.dumps({**described, "config": 1, "dropped_through_step": 3}))
    run_json("report", folder, "--output", tmp_path / "page.html")
    [shown] = read_json(blocks((tmp_path / "page.html").read_text()), "book")["runs"]
    assert shown["name"] == "run"  # the folder's
    assert shown["facts"]["steps"] == "5; up to step 3 rows were dropped (spo.record)"
    (record / "run.json").write_text(json.dumps({**described, "starts": 1}))
    done = run("report", folder, "--output", tmp_path / "page.html")
    assert (done.exit_code, "is not as it was written" in done.stderr) == (2, True)


@VERBS
def test_runs_need_names_of_their_own(verb, runs, copied, tmp_path):
    output = tmp_path / "out"
    assert "is given twice" in run(verb, runs / "sync", runs / "sync", "--output", output).stderr
    assert "called sync: give them names" in run(verb, runs / "sync", copied[0], "--output", output).stderr
    assert not output.exists()


@VERBS
def test_what_cannot_be_written_is_refused_before_anything_is_read(verb, runs, tmp_path):
    (tmp_path / "file").write_text("")
    for output, said in ((tmp_path, "is a folder"), (tmp_path / "file" / "page", "cannot be written")):
        done = run(verb, tmp_path / "no run", "--output", output)
        assert (done.exit_code, said in done.stderr) == (2, True)
    done = run(verb, tmp_path / "no run", "--output", tmp_path / "out")
    assert (done.exit_code, "is not there" in done.stderr) == (2, True)


def test_a_limit_below_a_megabyte_is_refused(runs, tmp_path):
    assert run("report", runs / "sync", "--limit", "0.5", "--output", tmp_path / "page.html").exit_code == 2


def test_a_picture_without_matplotlib_names_the_extra(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run("plot", runs / "sync", "--output", tmp_path / "curves.png")
    assert (done.exit_code, done.stderr) == (2, "error: plots need matplotlib: pip install 'spo-verl[plots]'\n")
