"""``spo-verl diff``."""

import json
import shutil

import pytest

from tests.cli.helpers import run, run_json
from tests.support.records import made_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made_run(folder / "a", prompts=60, steps=4, batch=20, checkpoint_every=2)
    made_run(folder / "b", prompts=60, steps=3, batch=20, checkpoint_every=2, forgetting="constant", seed=1)
    return folder


def test_what_is_printed_is_what_json_says(runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    found = run_json("diff", runs / "a", runs / "b", "--top", 2)
    assert found["settings"]["spo.forgetting.mode"] == ["kl", "constant"]
    assert found["steps"] == [4, 2]
    printed = run("diff", runs / "a", runs / "b", "--top", 2).stdout
    assert f"A: {runs / 'a'}, step 4" in printed
    assert ["spo.forgetting.mode", "kl", "constant"] in [line.split() for line in printed.splitlines()]
    assert "60 in both, 0 only in A, 0 only in B" in printed
    for one in found["largest"]:
        assert one["text"] in printed
        assert f"{one['values'][0]:.3f}  {one['values'][1]:.3f}" in printed
    last = found["outcomes"][-1]
    assert last["from"] == 4
    assert f"4      {last['reward'][0]:.3f} ({last['value'][0]:.3f})  -" in printed


def test_checkpoints_without_record(runs, tmp_path):
    shutil.copytree(runs / "a" / "global_step_2" / "spo", tmp_path / "spo")
    printed = run("diff", tmp_path / "spo", tmp_path / "spo").stdout
    assert "settings that differ\n  none" in printed
    assert "Outcomes over steps need the record of both runs." in printed
    assert "largest differences" not in printed


def test_an_error_names_the_side(runs, tmp_path):
    done = run("diff", runs / "a", tmp_path / "b")
    assert done.exit_code == 2
    assert f"{tmp_path / 'b'} is not there" in done.stderr
    assert json.loads(run("diff", tmp_path, runs / "a", "--json").stdout)["error"]["type"] == "HistoryError"
