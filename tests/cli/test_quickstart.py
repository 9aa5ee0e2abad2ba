"""``spo-verl quickstart`` is the quickstart."""

import json

import pytest

from spo_verl.quickstart.__main__ import parser
from tests.cli.helpers import run


def test_the_help_is_that_of_the_quickstart():
    assert run("quickstart", "--help").stdout == parser().format_help()


def test_wrong_settings_end_it_as_they_end_the_quickstart(tmp_path):
    result = run("quickstart", "--trajectories", "7", "--folder", tmp_path)
    assert result.exit_code == 2
    assert "7" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_arguments_go_through_unchanged_and_json_prints_the_result(tmp_path, monkeypatch):
    seen = []

    def execute(arguments, say):
        seen.append(arguments)
        say("[1/5] task")
        return 0, {"trajectories": 64}

    monkeypatch.setattr("spo_verl.quickstart.__main__.execute", execute)
    arguments = ["--steps", "2", "--folder", str(tmp_path), "spo.sampling.mode=uniform"]
    result = run("quickstart", *arguments, "--json")
    assert seen == [arguments]
    assert json.loads(result.stdout) == {"status": 0, "result": {"trajectories": 64}}
    assert "[1/5] task" in result.stderr
    assert "[1/5] task" in run("quickstart", *arguments).stdout


@pytest.mark.parametrize("status", [1, 2, 130])
def test_a_failure_is_json_as_well(status, monkeypatch):
    monkeypatch.setattr("spo_verl.quickstart.__main__.execute", lambda arguments, say: (status, None))
    result = run("quickstart", "--json")
    assert result.exit_code == status
    assert json.loads(result.stdout) == {"status": status, "result": None}
