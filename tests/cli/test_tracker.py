"""``spo-verl tracker``: what is printed is what history found; errors say the fix."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from spo_verl.data.identity import prompt_key
from spo_verl.tracker import Tracker, TrackerSettings
from spo_verl.tracker.checkpoint.folder import MANIFEST
from tests.cli.helpers import row, run, run_json, write_rows
from tests.support.records import hex_keys, made_run, prompt_keys


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    return made_run(folder, mode="separate_async", prompts=90, steps=7, batch=24, checkpoint_every=3, ended=False)


def test_show_is_the_same_for_a_reader_and_in_json(made):
    found = run_json("tracker", "show", made.folder, "--top", 3)
    assert found["checkpoint"] == str(made.folder / "global_step_6" / "spo")
    assert found["step"] == 6
    assert found["prompts"] == 90
    assert {name: len(prompts) for name, prompts in found["lists"].items()} == {
        "hardest": 3,
        "most_uncertain": 3,
        "most_drifted": 3,
        "never_drawn": 3,
    }
    printed = run("tracker", "show", made.folder, "--top", 3).stdout
    assert f"{made.folder}: checkpoint of step 6" in printed
    assert f"{found['coverage'] * 100:.1f} % drawn at least once, {90 - found['drawn_once']} never" in printed
    assert f"mean {found['value_mean']:.3f}" in printed
    assert "most drifted: divergence of its stored response" in printed
    for prompts in found["lists"].values():
        for one in prompts:
            assert one["key"][:10] in printed
            assert one["text"] in printed


def test_show_of_a_checkpoint_alone_asks_for_the_data(made, tmp_path):
    shutil.copytree(made.folder / "global_step_3" / "spo", tmp_path / "spo")
    found = run_json("tracker", "show", tmp_path / "spo")
    assert found["record"] is None
    assert found["step"] == 3
    printed = run("tracker", "show", tmp_path / "spo").stdout
    assert "most drifted: policy versions since its last visit" in printed
    assert "name the training data with --data" in printed
    data = write_rows(tmp_path / "data.parquet", [row("of another run", "1")])
    assert run("tracker", "show", tmp_path / "spo", "--data", data).exit_code == 0


def test_show_of_a_run_that_crashed_before_its_first_checkpoint(made, tmp_path):
    shutil.copytree(made.folder / "record", tmp_path / "run" / "record")
    found = run_json("tracker", "show", tmp_path / "run")
    assert (found["source"], found["checkpoint"], found["step"]) == ("record", None, 7)
    assert "record up to step 7; there is no checkpoint yet" in run("tracker", "show", tmp_path / "run").stdout


def test_prompt_prints_every_rollout_and_response(made):
    visited = max(range(90), key=lambda slot: sum(row["slot"] == slot for row in made.rows))
    rows = [row for row in made.rows if row["slot"] == visited]
    key = hex_keys(prompt_keys(90))[visited]
    found = run_json("tracker", "prompt", made.folder, key)["prompt"]
    assert [one["uid"] for one in found["rollouts"]] == [row["uid"] for row in rows]
    printed = run("tracker", "prompt", made.folder, 2 * visited).stdout
    assert f"prompt {key}, row {2 * visited}" in printed
    assert len([line for line in printed.splitlines() if line.endswith(tuple(row["ending"] for row in rows))]) == len(
        rows
    )
    for one in found["rollouts"]:
        for output in one["response"] or []:
            assert f"step {one['step']}: {output}" in printed


def test_responses_of_another_folder(made, tmp_path):
    trained = next(row for row in made.rows if row["ending"] == "trained")
    line = {"uid": f"{trained['uid']}_{trained['session']}_0", "output": "from elsewhere"}
    (tmp_path / f"{trained['step']}.jsonl").write_text(json.dumps(line) + "\n")
    found = run_json("tracker", "prompt", made.folder, trained["key"], "--responses", tmp_path)["prompt"]
    assert [one["response"] for one in found["rollouts"] if one["uid"] == trained["uid"]] == [["from elsewhere"]]


def test_several_matches_are_listed(made):
    found = run_json("tracker", "prompt", made.folder, "what is", "--limit", 4)
    assert (found["match_count"], len(found["matches"]), found["prompt"]) == (90, 4, None)
    printed = run("tracker", "prompt", made.folder, "what is", "--limit", 4).stdout
    assert "90 prompts match 'what is'; the first 4:" in printed
    assert "What is 3 + 21?" in printed
    assert "What is 4 + 28?" not in printed


@pytest.mark.parametrize("verb", ["show", "prompt"])
def test_what_cannot_be_read_is_one_message_with_the_fix(made, tmp_path, verb):
    more = () if verb == "show" else ("1",)
    missing = run("tracker", verb, tmp_path / "nowhere", *more)
    assert missing.exit_code == 2
    assert "nowhere is not there: name a run's folder (trainer.default_local_dir)" in missing.stderr
    error = json.loads(run("tracker", verb, tmp_path, *more, "--json").stdout)["error"]
    assert error["type"] == "HistoryError"
    shutil.copytree(made.folder / "global_step_3", tmp_path / "global_step_3")
    (tmp_path / "global_step_3" / "spo" / MANIFEST).write_text("{}")
    damaged = run("tracker", verb, tmp_path, *more)
    assert damaged.exit_code == 2
    assert f"{MANIFEST}" in damaged.stderr
    assert "Restore the folder from a copy" in damaged.stderr


def test_a_prompt_that_is_not_there(made):
    for query in ("f" * 32, "3", "no such words"):
        done = run("tracker", "prompt", made.folder, query)
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1


def test_control_characters_of_a_prompt_reach_no_terminal(tmp_path):
    hostile = row("red \x1b[31m\u202e text\nof two lines", "1")
    data = write_rows(tmp_path / "data.parquet", [hostile])
    tracker = Tracker.create(np.frombuffer(prompt_key(hostile), dtype="V16"), TrackerSettings())
    tracker.snapshot().write(tmp_path / "spo", step=1)
    for words in (("show",), ("prompt", "red")):
        done = run("tracker", words[0], tmp_path / "spo", *words[1:], "--data", data)
        assert done.exit_code == 0
        assert "red \\x1b[31m\\u202e text of two lines" in done.stdout
        assert "\x1b" not in done.stdout


def test_neither_torch_nor_verl_nor_ray_is_imported(made):
    lines = [
        ["tracker", "show", str(made.folder)],
        ["tracker", "prompt", str(made.folder), "what is 12 +"],
        ["diff", str(made.folder), str(made.folder / "global_step_3")],
        ["watch", str(made.folder), "--record-only", "--once"],
        ["export", str(made.folder), "--output", str(made.folder.parent / "out.csv")],
    ]
    code = (
        "import sys\n"
        "from spo_verl.cli import main\n"
        f"for line in {lines!r}:\n"
        "    sys.argv[1:] = line\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, line\n"
        "print([one for one in ('torch', 'verl', 'ray', 'vllm', 'datasets') if one in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr.strip() == "[]"
    assert "hardest: lowest value" in done.stdout
