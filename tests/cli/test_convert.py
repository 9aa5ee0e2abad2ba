"""``spo-verl convert``: scripts, stdin, command lines and files; where each output goes."""

import json

import pytest

from tests.cli.helpers import run, run_json
from tests.converting.scripts import PLAIN

WORDS = ["python3", "-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=4"]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "run_grpo.sh"
    path.write_text(PLAIN)
    path.chmod(0o755)
    return path


def test_the_script_goes_to_stdout_and_the_table_to_stderr(script):
    result = run("convert", script)
    assert result.exit_code == 0
    assert result.stdout.startswith("# GSM8K with groups of five\n")
    assert "algorithm.adv_estimator=spo +spo=paper \\\n" in result.stdout
    assert "data.train_batch_size" in result.stderr
    assert "1024 x 5 = 5120 trajectories" in " ".join(result.stderr.split())
    assert "at least 5120 different prompts" in result.stderr


def test_a_file_is_written_once(script, tmp_path):
    target = tmp_path / "run_spo.sh"
    result = run("convert", script, "--output", target)
    assert target.read_text() == run("convert", script).stdout
    assert target.stat().st_mode & 0o777 == 0o755
    assert f"written: {target}" in result.stdout
    again = run("convert", script, "--output", target)
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    assert run("convert", script, "--output", script).exit_code == 2
    assert script.read_text() == PLAIN


def test_a_script_with_problems_is_written_only_if_asked_for(script, tmp_path):
    target = tmp_path / "run_spo.sh"
    check = ("convert", script, "--output", target, "--check")
    result = run(*check)
    assert (result.exit_code, target.exists()) == (1, False)
    assert f"not written: {target}" in result.stdout
    result = run(*check, "--anyway")
    assert (result.exit_code, target.read_text()) == (1, run("convert", script).stdout)
    assert f"written: {target}" in result.stdout.splitlines()[-1]


def test_json_holds_script_changes_and_needs(script):
    data = run_json("convert", script, "--rows", 7473)
    [command] = data["commands"]
    by_key = {change["key"]: change for change in command["changes"]}
    assert by_key["trainer.total_training_steps"]["after"] == str(7473 // 1024 * 15)
    assert by_key["actor_rollout_ref.actor.use_kl_loss"]["action"] == "keep"
    assert "+spo=paper" in data["script"]
    assert command["line"] == 4
    assert "check" not in command


def test_words_of_a_command_and_options_of_hydra(tmp_path):
    by_words = run("convert", *WORDS).stdout
    assert by_words == run("convert", *WORDS[3:]).stdout
    assert by_words.replace("\\\n", "").split() == run("convert", " ".join(WORDS)).stdout.replace("\\\n", "").split()
    (tmp_path / "mine.yaml").write_text(
        "defaults: [ppo_trainer, _self_]\nactor_rollout_ref: {rollout: {n: 2}}\nalgorithm: {adv_estimator: rloo}\n"
    )
    result = run("convert", "--config-path", tmp_path, "--config-name", "mine", "data.train_batch_size=16")
    assert f"--config-path={tmp_path}" in result.stdout
    assert "data.train_batch_size=32" in result.stdout
    assert "actor_rollout_ref.rollout.n=1" in result.stdout


def test_stdin_and_variables():
    from typer.testing import CliRunner

    from spo_verl.cli.app import app

    text = 'python3 -m verl.trainer.main_ppo algorithm.adv_estimator=$METHOD actor_rollout_ref.rollout.n="$1"\n'
    result = CliRunner().invoke(app, ["convert", "-", "3", "--env", "METHOD=opo"], input=text)
    assert result.exit_code == 0
    assert "algorithm.adv_estimator=spo +spo=paper" in result.stdout
    assert 'actor_rollout_ref.rollout.n="1"' in result.stdout
    result = CliRunner().invoke(app, ["convert", "-", "--json"], input=b"\xff\xfe")
    assert result.exit_code == 2
    assert "UTF-8" in json.loads(result.stdout)["error"]["message"]


def test_a_check_reports_as_config_does(script):
    data = run_json("convert", *WORDS, "data.nope=1", "critic.enable=null", "--check")
    [command] = data["commands"]
    problems = command["check"]["problems"]
    assert any(one.startswith("data.nope=1: Could not override") for one in problems)
    assert any(one.startswith("verl's own check:") for one in problems)
    elsewhere = run("convert", script, "--check", "--no-files")
    assert elsewhere.exit_code == 0
    assert "checked: no problems" in elsewhere.stderr
    here = run("convert", script, "--check")
    assert here.exit_code == 1
    assert "data.train_files=" in here.stderr
    assert "on this machine" in " ".join(here.stderr.split())


def test_nothing_is_cut_or_broken_in_a_narrow_terminal(script, monkeypatch):
    data = run_json("convert", script)
    monkeypatch.setenv("COLUMNS", "60")
    narrow = run("convert", script).stderr
    words = " ".join(narrow.split())
    [command] = data["commands"]
    for text in (*(change["reason"] for change in command["changes"]), *command["needs"]):
        assert " ".join(text.split()) in words
    assert {change["key"] for change in command["changes"]} <= set(words.split())
    assert all(len(line) <= 60 or " " not in line.strip() for line in narrow.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a script"),
        (["no.sh"], "there is no file"),
        (["python3", "-m", "recipe.dapo.main_dapo"], "is not converted"),
        ([*WORDS, "--preset", "best"], "there is no such preset"),
        ([*WORDS, "--preset", "../paper"], "there is no such preset"),
        ([*WORDS, "--env", "X"], "NAME=VALUE"),
        ([*WORDS, "--rows", "2000"], "--preset bspo"),
        (["--config-name", "x", "-"], "of a command"),
    ],
)
def test_mistakes_are_one_message(arguments, said):
    result = run("convert", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
