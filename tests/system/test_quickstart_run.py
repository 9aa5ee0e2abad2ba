"""The quickstart for real: offline values, training, a call that runs out of time, and what is said in the end."""

import json

import pytest

from spo_verl.data.values import OfflineValues
from spo_verl.launching.launch import read_metrics
from spo_verl.quickstart.__main__ import main
from spo_verl.quickstart.runs import RunFolder

pytestmark = [pytest.mark.system, pytest.mark.timeout(5400)]


@pytest.fixture(scope="module")
def folder(quickstart) -> RunFolder:
    [path] = (quickstart[0].folder / "runs").glob("spo-seed0-*")
    return RunFolder(path)


def test_a_call_that_runs_out_of_time_ends_with_the_result_of_what_it_did(quickstart, folder):
    stopped, finished, _ = quickstart
    assert stopped.returncode == 0, stopped.output[-3000:]
    assert "a line says of its step" in stopped.output  # no terminal: lines, and what they mean
    assert "This run is not finished: 1 of 4 steps." in stopped.output
    assert (
        "were over after 1 of 4 steps. All of them are kept: the same call again continues from there" in stopped.output
    )
    assert stopped.result["steps_done"] == 1
    assert [point["step"] for point in stopped.result["curve"]] == [0, 1]
    assert stopped.result["curve"][1]["held_out"] == stopped.result["held_out"]["after"]
    assert sum(prompt["visits"] for prompt in stopped.result["tracker"]["prompts"]) == 64
    log = (folder.attempts("training")[0] / "train.log").read_text()
    assert "nearly over, so step 1 of 4 is its last one" in log
    assert finished.returncode == 0, finished.output[-3000:]
    # What comes after the rest of the steps has the same beginning.
    assert finished.result["curve"][:2] == stopped.result["curve"]


def test_nothing_is_left_in_shared_memory(quickstart):
    # verl's buckets for weights are there for a moment only; those that were seen are gone.
    for call in quickstart:
        assert not call.left


def test_the_second_call_goes_on_where_the_first_one_ended(quickstart, folder):
    finished = quickstart[1].output
    assert "reusing" in finished  # the warm-started model
    assert "values.parquet" in finished
    assert "of 128 prompts" not in finished  # nothing was sampled again
    went_on = next(int(line.split()[-1]) for line in finished.splitlines() if "continuing after step" in line)
    assert went_on == 1
    assert "Offline values:" not in (folder.attempts("training")[1] / "train.log").read_text()
    first, second = folder.attempts("training")
    assert [record["step"] for record in read_metrics(second / "metrics.jsonl")][-1] == 4
    assert (
        min(r["step"] for r in read_metrics(second / "metrics.jsonl") if "critic/score/mean" in r["data"])
        == went_on + 1
    )
    assert max(record["step"] for record in read_metrics(first / "metrics.jsonl")) == 1


def test_offline_values_were_estimated_and_trained_from(quickstart, folder):
    values = OfflineValues.read(folder.values)
    assert len(values) == 128
    assert values.trials_N.tolist() == [2] * 128
    assert "offline values cover 128 of 128 prompts" in (folder.attempts("training")[0] / "train.log").read_text()


def test_the_summary_has_numbers_that_hang_together(quickstart, folder):
    result = folder.result()
    spent = result["spent"]
    assert spent["offline values"]["trajectories"] == 256
    steps = sum("critic/score/mean" in record["data"] for record in folder.records("training"))
    assert spent["training"]["trajectories"] == 64 * steps
    assert steps == 4
    assert spent["total"]["trajectories"] == 256 + 64 * steps
    # Sampled accuracy of verl, one response per prompt, against the exact one: four standard errors.
    for sampled, exact in ((result["sampled"][0], "before"), (result["sampled"][-1], "after")):
        assert abs(sampled["accuracy"] - result["held_out"][exact]) < 4 * sampled["standard_error"] + 1e-9
    assert [point["step"] for point in result["curve"]] == [0, 1, 2, 3, 4]
    assert result["curve"][0]["held_out"] == pytest.approx(result["held_out"]["before"])
    assert result["curve"][-1]["train"] == pytest.approx(result["train"]["after"])
    # Two trials per prompt of a model that is right 16 times in 100: the mean is within four standard errors.
    offline = [prompt["successes"] / prompt["trials"] for prompt in result["tracker"]["prompts"]]
    truth = [prompt["before"] for prompt in result["tracker"]["prompts"]]
    noise = sum(p * (1 - p) / 2 for p in truth) ** 0.5 / len(truth)
    assert abs(sum(offline) - sum(truth)) / len(truth) < 4 * noise
    assert sum(prompt["visits"] for prompt in result["tracker"]["prompts"]) == 4 * 64
    assert 2 < result["peak_bytes"] / 2**30 < 10


def test_a_call_of_a_finished_run_shows_it_again(quickstart, folder):
    again = quickstart[2]
    assert again.returncode == 0
    assert "this run is finished; --fresh starts a new one" in again.output
    assert again.seconds < 60
    assert len(folder.attempts("training")) == 2
    assert folder.plot.read_bytes().startswith(b"\x89PNG")
    for output in (quickstart[1].output, again.output):
        assert "What it cost" in output
        assert "What to try next" in output


def test_the_finished_run_can_be_compared(quickstart, folder, capsys):
    assert main(["--compare", "--folder", str(folder.path.parent)]) == 0
    table, common = capsys.readouterr().out.split("In common: ")
    # The one run differs from nothing; what it was given is said once, below.
    assert table.splitlines()[4].split()[:2] == ["spo", "0"]
    assert max(len(line) for line in table.splitlines()) <= 120
    assert common.startswith("steps 4, trajectories 64, train prompts 128, ")
    assert "trainer.save_freq=1" in " ".join(common.split())
    compared = json.loads((folder.path.parent / "compare.json").read_text())
    assert compared["runs"][0]["trajectories"] == folder.result()["spent"]["total"]["trajectories"]
