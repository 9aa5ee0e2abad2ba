"""A verdict finds what is missing in a run that ended well."""

import json

import pytest

from spo_verl.launching.launch import Run
from spo_verl.launching.supervise import CommandEnd
from spo_verl.rehearsal.reduction import Files
from spo_verl.rehearsal.verdict import LOSS, OURS, judge


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "global_step_2" / "actor").mkdir(parents=True)
    (folder / "global_step_2" / "spo").mkdir()
    (folder / "global_step_2" / "spo" / "manifest.json").write_text("{}")
    (folder / "latest_checkpointed_iteration.txt").write_text("2")
    return Files(tmp_path, *[tmp_path] * 4, 9)


def run(files, **changed):
    data = {LOSS: 0.1, **dict.fromkeys(OURS, 0.5), "num_turns/max": 4, **changed}
    records = [{"step": 1, "data": dict(data)}, {"step": 2, "data": {**data, "val-core/x": 1.0}}]
    return Run(CommandEnd("finished", 0, 90.0), files.folder, tuple(records))


def failed(files, made, kind="training", *, spo=True, tools=True):
    return {check.name for check in judge(made, files, kind, spo=spo, tools=tools, validation_n=2) if not check.ok}


def test_a_whole_run_passes(files):
    assert failed(files, run(files)) == set()
    assert failed(files, run(files), spo=False, tools=False) == set()


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({LOSS: float("nan")}, "metrics finite"),
        ({"x": float("inf")}, "metrics finite"),
        ({"num_turns/max": 2}, "tool calls"),
    ],
)
def test_a_number_that_should_not_be_is_found(files, changed, name):
    assert failed(files, run(files, **changed)) == {name}


def test_a_missing_step_metric_or_validation_is_found(files):
    made = run(files)
    assert failed(files, Run(made.outcome, made.folder, made.metrics[:1])) == {"steps", "metrics of SPO", "validation"}
    del made.metrics[1]["data"]["val-core/x"]
    assert failed(files, made) == {"validation"}
    del made.metrics[0]["data"][OURS[0]]
    assert failed(files, made) == {"validation", "metrics of SPO"}


def test_a_missing_checkpoint_is_found(files):
    (files.folder / "checkpoints" / "global_step_2" / "spo" / "manifest.json").unlink()
    assert failed(files, run(files)) == {"checkpoint"}
    assert failed(files, run(files), spo=False) == set()
    (files.folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("1")
    assert failed(files, run(files), spo=False) == {"checkpoint"}


def test_an_evaluation_needs_every_response(files):
    files.dumps.mkdir()
    line = json.dumps({"score": 1.0})
    (files.dumps / "0.jsonl").write_text("\n".join([line] * 7))
    made = Run(CommandEnd("finished", 0, 9.0), files.folder, ({"step": 0, "data": {"val-core/x": 1.0}},))
    assert failed(files, made, "evaluation") == {"dumped responses"}
    (files.dumps / "0.jsonl").write_text("\n".join([line] * 8))
    assert failed(files, made, "evaluation") == set()


def test_an_estimation_needs_its_file(files):
    assert failed(files, run(files), "offline values") == {"offline values"}
