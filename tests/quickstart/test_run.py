"""Settings, the overrides they become, what is shown, and what is concluded."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from spo_verl.errors import SpoConfigError
from spo_verl.launching.deadline import STOPPED
from spo_verl.launching.launch import Run, failure
from spo_verl.launching.limits import Limits, OutOfTime, RunError
from spo_verl.launching.runs import spent
from spo_verl.launching.supervise import CommandEnd
from spo_verl.quickstart import run as run_module
from spo_verl.quickstart.__main__ import limits_from, main, parser, settings_from
from spo_verl.quickstart.evaluate import validated
from spo_verl.quickstart.run import quickstart
from spo_verl.quickstart.runs import RunFolder
from spo_verl.small.launches import Settings, training_overrides
from spo_verl.small.model import ModelShape
from spo_verl.small.task import MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS
from spo_verl.small.warmstart import WarmStartReport, WarmStartSettings
from tests.quickstart.results import result

WARM = WarmStartReport(steps=700, seconds=50.0, accuracy=0.37, accuracy_by_level=(0.37,) * 8, reached=True)
PATHS = {"model": Path("/m"), "train": Path("/a b/train.parquet"), "held_out": Path("/v.parquet")}


def validation(step: int, accuracy: float, **others: float) -> dict:
    data = {f"val-core/ladder{level}/acc/mean@1": accuracy for level in range(1, 9)}
    return {"step": step, "data": {**data, **others}}


def overrides(**changes: object) -> dict[str, str]:
    listed = training_overrides(Settings(**changes), **PATHS, checkpoints=Path("/c"), values=None)
    return {key.lstrip("+"): value for key, _, value in (line.partition("=") for line in listed)}


def test_both_estimators_get_the_same_trajectories_and_updates_per_step() -> None:
    spo, grpo = overrides(trajectories=256), overrides(trajectories=256, estimator="grpo")
    # 256 prompts once each, or 32 prompts eight times each; four updates of 64 trajectories either way.
    assert (spo["data.train_batch_size"], spo.get("actor_rollout_ref.rollout.n")) == ("256", None)
    assert (grpo["data.train_batch_size"], grpo["actor_rollout_ref.rollout.n"]) == ("32", "8")
    # verl counts mini-batches in prompts.
    assert spo["actor_rollout_ref.actor.ppo_mini_batch_size"] == "64"
    assert grpo["actor_rollout_ref.actor.ppo_mini_batch_size"] == "8"
    assert spo["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"] == "64"
    assert grpo["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"] == "64"
    assert spo["algorithm.adv_estimator"] == "spo"
    assert spo["spo"] == "paper"
    assert "spo" not in grpo


def test_paths_are_quoted_and_further_overrides_come_last() -> None:
    settings = Settings(overrides=("spo.sampling.mode=uniform",))
    listed = training_overrides(settings, **PATHS, checkpoints=Path("/c d"), values=Path("/e f/values.parquet"))
    assert "data.train_files='/a b/train.parquet'" in listed
    assert "trainer.default_local_dir='/c d'" in listed
    assert "spo.initial.values='/e f/values.parquet'" in listed
    assert listed[-1] == "spo.sampling.mode=uniform"


def test_offline_values_are_sampled_by_the_run_that_trains_from_them() -> None:
    settings, place = Settings(offline_trials=4), {**PATHS, "checkpoints": Path("/s")}
    without = training_overrides(settings, **place, values=None)
    values = training_overrides(settings, **place, values=Path("/o.parquet"))
    assert [one for one in values if one not in without] == [
        "spo.initial.values=/o.parquet",
        "spo.estimate.output=/o.parquet",
        "spo.estimate.trials=4",
        "spo.estimate.chunk=128",
    ]
    # References in verl's configuration are parsed for each rollout.
    assert f"actor_rollout_ref.rollout.prompt_length={MAX_PROMPT_TOKENS}" in without
    assert f"actor_rollout_ref.rollout.response_length={MAX_RESPONSE_TOKENS}" in without


def test_wrong_settings_are_listed_together() -> None:
    settings = Settings(trajectories=100, train_prompts=64, held_out_prompts=9, steps=0)
    with pytest.raises(SpoConfigError) as caught:
        settings.check()
    for words in ("multiple of 32", "less than one batch of 100", "multiple of the 8 levels, from 16 on: 9", "--steps"):
        assert words in str(caught.value)
    Settings().check()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["typo"], "'typo' is neither an option"),
        (["--compare-all"], "--compare-all"),
        (["+x"], "'+x' is neither an option"),
        (["=3"], "'=3' is neither an option"),
        (["trainer.total_training_steps=3"], "--steps"),
        (["+trainer.default_local_dir=/x"], "--folder"),
        (["--seed", "-1"], "--seed must be at least 0: -1"),
        (["--seed", "one"], "argument --seed: invalid int value"),
        (["--steps", "0"], "--steps must be at least 1: 0"),
        (["--offline-trials", "-2"], "--offline-trials must be at least 0"),
        (["--learning-rate", "nan"], "--learning-rate must be above 0: nan"),
        (["--warm-start-accuracy", "2"], "--warm-start-accuracy must be above 0 and at most 1: 2.0"),
        (["--warm-start-seconds", "nan"], "--warm-start-seconds must be at least 0"),
        (["--time-limit", "0"], "--time-limit must be above 0: 0.0"),
        (["--time-limit", "nan"], "--time-limit must be above 0: nan"),
        (["--memory-limit", "-1"], "--memory-limit must be above 0"),
        (["--train-prompts", "80000"], "different problems left; ask for fewer prompts"),
        (["--held-out-prompts", "8000"], "different problems left; ask for fewer prompts"),
        (["--estimator", "ppo"], "invalid choice: 'ppo'"),
    ],
)
def test_what_cannot_run_is_refused_on_one_line_and_leaves_nothing(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    try:
        status = main([*arguments, "--folder", str(folder)])
    except SystemExit as end:  # argparse's
        status = int(end.code or 0)
    assert status == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert words in shown.err
    assert shown.err.startswith("error: ")
    assert not folder.exists()


def test_accuracy_is_read_from_verls_validation_metrics() -> None:
    record = validation(5, 0.5)
    record["data"]["val-core/ladder1/acc/mean@1"] = 1.0
    record["data"]["val-aux/ladder1/score/mean@1"] = 0.1
    accuracy = validated(record, prompts=64)
    assert accuracy is not None
    # (1 + 7 * 0.5) / 8
    assert accuracy["accuracy"] == pytest.approx(0.5625)
    # Eight prompts per level: variance 0 in the first, 0.25 / 8 in each other; the mean of eight levels has
    # sqrt(7 * 0.25 / 8) / 8 = 0.05846.
    assert accuracy["standard_error"] == pytest.approx(math.sqrt(7 * 0.25 / 8) / 8)
    assert validated({"step": 1, "data": {"critic/score/mean": 0.4}}, prompts=64) is None
    del record["data"]["val-core/ladder8/acc/mean@1"]
    assert validated(record, prompts=64) is None


def finished(records: list[dict], status: str = "finished", folder: Path = Path("/r")) -> Run:
    return Run(CommandEnd(status, 0 if status == "finished" else 1, 90.0), folder, tuple(records))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("failed", "exit status 1"),
        ("silent", "printed nothing for 300 s"),
        ("memory limit", "used 12.0 GiB, more than 10 GiB (--memory-limit)"),
    ],
)
def test_a_failure_says_why_and_where(status: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("Traceback (most recent call last)\nValueError: boom\n")
    run = Run(CommandEnd(status, 1, 90.0, 12 * 2**30), tmp_path, ())  # type: ignore[arg-type]
    message = failure(run, Limits())
    assert words in message
    assert "ValueError: boom" in message
    (tmp_path / "train.log").write_text("spo_verl.errors.SpoServiceError: the tracker is gone\n")
    assert failure(finished([], "failed", tmp_path), Limits()).startswith(
        "verl's trainer ended with exit status 1: the tracker is gone. The end of"
    )
    assert str(tmp_path / "train.log") in message


def test_what_was_spent_counts_repeated_steps_and_no_validation(tmp_path: Path) -> None:
    def step(number: int, prompt: float, response: float, total: int) -> dict:
        lengths = {"prompt_length/mean": prompt, "response_length/mean": response}
        return {"step": number, "data": {**lengths, "perf/total_num_tokens": total}}

    run = RunFolder(tmp_path)
    # 64 trajectories of 9 + 3 tokens; step 2 was lost and repeated.
    for records in ([validation(0, 0.3), step(1, 9, 3, 768), step(2, 9, 3, 768)], [step(2, 9.5, 3.5, 832)]):
        folder = run.new_attempt("training")
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = spent(run)
    assert found["training"] == {
        "trajectories": 192,
        "response_tokens": 192 + 192 + 224,
        "prompt_tokens": 576 * 2 + 608,
    }
    assert found["total"] == found["training"]


@pytest.mark.parametrize(
    "other",
    [
        {"offline_trials": 2},
        {"held_out_prompts": 64},
        {"validate_every": 1},
        {"save_every": 1},
        {"warm_start": WarmStartSettings(target=0.2)},
        {"shape": ModelShape(layers=1)},
        {"overrides": ("spo.sampling.mode=uniform",)},
    ],
)
def test_whatever_differs_but_the_seed_is_another_variant(other: dict[str, Any]) -> None:
    """--compare averages runs of one variant."""
    assert Settings(**other).variant != Settings().variant == "spo" == Settings(seed=1).variant
    assert Settings(**other).identity() != Settings().identity()


def test_the_group_baseline_has_one_folder_with_and_without_offline_values() -> None:
    without = Settings(estimator="grpo", offline_trials=0)
    assert without.identity() == Settings(estimator="grpo").identity()
    assert without.variant == Settings(estimator="grpo").variant == "grpo"


def test_the_command_line_becomes_settings() -> None:
    given = parser().parse_args(
        ["--estimator", "grpo", "--steps", "3", "--warm-start-accuracy", "0.2", "spo.x=1", "trainer.y=2"]
    )
    settings = settings_from(given)
    assert (settings.estimator, settings.steps, settings.warm_start.target) == ("grpo", 3, 0.2)
    assert settings.overrides == ("spo.x=1", "trainer.y=2")
    nothing = parser().parse_args([])
    assert (settings_from(nothing), limits_from(nothing)) == (Settings(), Limits())
    assert not settings_from(parser().parse_args(["--no-offline-values"])).offline
    assert not settings_from(parser().parse_args(["--estimator", "grpo"])).offline
    assert limits_from(parser().parse_args(["--time-limit", "60", "--memory-limit", "4"])) == Limits(60.0, 300.0, 4.0)


def test_exit_statuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "0", "--folder", str(tmp_path)]) == 2
    assert "--steps must be at least 1" in capsys.readouterr().err

    def fail(*_args: object, **_kwargs: object) -> None:
        raise RunError("the training broke")

    monkeypatch.setattr("spo_verl.quickstart.__main__.quickstart", fail)
    assert main(["--folder", str(tmp_path)]) == 1
    assert "the training broke" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--estimator" in capsys.readouterr().out


class StandIn:
    """Instead of verl: writes what a launch leaves behind. ``ends`` are the outcomes of the launches in turn."""

    def __init__(self, *ends: str) -> None:
        self.ends, self.calls = list(ends), []

    def __call__(self, overrides: list[str], folder: Path, **limits: object) -> Run:
        self.calls.append((folder.name, overrides, limits))
        folder.mkdir(parents=True)
        for name in ("command.txt", "train.log"):
            (folder / name).write_text("")
        status = self.ends.pop(0)
        if status == "stopped early":
            (folder / "train.log").write_text(f"{STOPPED}, so step 3 of 4 is its last one\n")
        if status == "sampling":
            return finished([], "time limit", folder)
        (folder.parents[1] / "values.parquet").write_text("")
        step = {"finished": 4, "stopped early": 3, "before": 0}.get(status, 2)
        checkpoints = folder.parents[1] / "checkpoints"
        if step:
            (checkpoints / f"global_step_{step}").mkdir(parents=True, exist_ok=True)
            (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))
        done = 0 if not step else 3 if status in ("time limit", "silent") else step  # what was done, saved or not
        records = [{"step": number, "data": {"critic/score/mean": 0.3}} for number in range(1, done + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        status = {"stopped early": "finished", "before": "time limit"}.get(status, status)
        return finished(records, status, folder)


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run the quickstart with launches that end as told; everything that needs a model is left out."""

    def start(*ends: str) -> StandIn:
        trainer = StandIn(*ends)
        monkeypatch.setattr(run_module, "run_main_ppo", trainer)
        return trainer

    def made_up(call: run_module._Call, *_: object) -> dict:
        return {**result(steps=4, offline=0), "steps_done": call.folder.finished_step, "offline_prompts": 0}

    monkeypatch.setattr(run_module, "prepare_model", lambda *_, **__: (tmp_path / "model", WARM))
    monkeypatch.setattr(run_module._Call, "_initial", lambda *_: None)
    monkeypatch.setattr(run_module._Call, "_result", made_up)
    monkeypatch.setattr(run_module, "draw_summary", lambda _, path: path.write_bytes(b"drawn"))
    monkeypatch.setattr(run_module, "finished_prompts", lambda _: 256)
    return start


def test_the_stages_follow_each_other_and_a_finished_run_is_only_shown(staged, tmp_path: Path) -> None:
    trainer, said = staged("finished"), []
    limits = Limits(seconds=500.0, silence_s=7.0, memory_gib=3.0)
    quickstart(Settings(steps=4), tmp_path, limits=limits, say=said.append)
    [(name, overrides, given)] = trainer.calls
    assert name == "training-1"
    assert any(override.startswith("spo.initial.values=") for override in overrides)
    assert 400 < given["time_limit_s"] <= 500 - run_module.RESERVE_S
    assert (given["silence_limit_s"], given["memory_limit_bytes"]) == (7.0, 3 * 2**30)
    # The trainer is to stop before its launch is ended.
    assert given["stop_after_s"] == given["time_limit_s"] - run_module.RESERVE_S
    text = "\n".join(said)
    assert all(f"[{number}/4]" in text for number in range(1, 5))
    [folder] = tmp_path.glob("spo-seed0-*")
    assert (folder / "summary.png").exists()
    assert (folder / "result.json").exists()
    staged()  # nothing may be launched
    said.clear()
    quickstart(Settings(steps=4), tmp_path, say=said.append)
    assert "this run is finished" in said[0]
    assert "What it cost" in "\n".join(said)
    trainer = staged("finished")
    quickstart(Settings(steps=4), tmp_path, fresh=True, say=said.append)
    assert len(list(tmp_path.glob("spo-seed0-*"))) == 2


def test_a_call_whose_time_is_over_shows_what_there_is_and_the_next_one_goes_on(staged, tmp_path: Path) -> None:
    def call(*ends: str, **limits: float) -> tuple[StandIn, str]:
        trainer, said = staged(*ends), []
        found = quickstart(Settings(steps=4), tmp_path, limits=Limits(**limits), say=said.append)
        [folder] = tmp_path.glob("spo-seed0-*")
        assert (folder / "summary.png").exists()
        assert json.loads((folder / "result.json").read_text())["steps_done"] == found["steps_done"]
        text = "\n".join(said)
        assert "[4/4]" in text
        return trainer, text

    _, text = call("sampling")
    assert "0 of 4 steps" in text
    assert "while offline values were sampled. Those of 256 of 1024 prompts are kept: the same call again" in text
    _, text = call("before")
    assert "were over before the first training step was done. Everything before it is kept" in text
    _, text = call("time limit")  # a step that hangs until the launch is ended
    assert "2 of 4 steps" in text
    assert "were over after 3 of 4 steps. The first 2 of them are kept: the same call again continues" in text
    _, text = call("stopped early")
    assert "continuing after step 2" in text
    assert "were over after 3 of 4 steps. All of them are kept: the same call again continues" in text
    # Not launched at all where no time is left.
    trainer, text = call(seconds=5.0)
    assert trainer.calls == []
    assert "3 of 4 steps" in text
    trainer, text = call("finished")
    assert [name for name, _, _ in trainer.calls] == ["training-5"]
    assert "continuing after step 3" in text
    assert "were over" not in text


def test_a_call_ends_with_the_line_that_puts_the_command_on_the_path(
    staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = tmp_path / "an environment"
    environment.mkdir()
    (environment / "spo-verl").write_text("#!/bin/sh\necho found\n")
    (environment / "spo-verl").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(environment / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for ends in (("stopped early",), ("finished",), ()):  # out of time, finished, shown again
        staged(*ends)
        assert main(["--steps", "4", "--folder", str(tmp_path / "runs")]) == 0
        line = capsys.readouterr().out.rstrip().splitlines()[-1]
        done = subprocess.run(["sh", "-c", f"{line}; spo-verl"], capture_output=True, text=True, check=True)
        assert done.stdout == "found\n"
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin")
    staged()
    assert main(["--steps", "4", "--folder", str(tmp_path / "runs")]) == 0
    assert "export PATH" not in capsys.readouterr().out


def test_a_launch_that_was_ended_in_its_farewell_is_finished(staged, tmp_path: Path) -> None:
    class Late(StandIn):
        def __call__(self, overrides: list[str], folder: Path, **limits: object) -> Run:
            run = super().__call__(overrides, folder, **limits)
            return finished(list(run.metrics), "time limit", folder)

    staged()
    trainer = Late("finished")
    run_module.run_main_ppo = trainer  # put back by the fixture
    said: list[str] = []
    assert quickstart(Settings(steps=4), tmp_path, say=said.append)["steps_done"] == 4
    assert "not finished" not in "\n".join(said)


def test_a_training_that_fails_shows_what_was_kept_and_then_why(staged, tmp_path: Path) -> None:
    staged("silent")
    said: list[str] = []
    with pytest.raises(RunError, match="printed nothing for 300 s and was ended as hung"):
        quickstart(Settings(steps=4), tmp_path, say=said.append)
    assert "2 of 4 steps" in "\n".join(said)
    # Without a kept step there is nothing to show.
    staged("failed")
    with pytest.raises(RunError, match="exit status 1"):
        quickstart(Settings(steps=4, seed=1), tmp_path, say=said.append)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_the_call_without_a_result(
    staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    staged()
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    monkeypatch.setattr(run_module, "run_main_ppo", lambda *_, **__: signal.raise_signal(number))
    try:
        with pytest.raises(SystemExit) as end:
            raise SystemExit(main(["--folder", str(tmp_path)]))
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert end.value.code == status
    assert not list(tmp_path.glob("*/result.json"))


def test_a_warm_start_that_outlasts_the_call_is_shown(staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = staged()

    def out_of_time(*_: object, partial: Path, **__: object) -> None:
        partial.mkdir()
        report = {"steps": 20, "seconds": 9.0, "accuracy": 0.1, "accuracy_by_level": [0.1] * 8, "reached": False}
        (partial / "warm_start.json").write_text(json.dumps({"report": report}))
        raise OutOfTime("in the warm start, after 20 steps. They are kept")

    monkeypatch.setattr(run_module, "prepare_model", out_of_time)
    said: list[str] = []
    found = quickstart(Settings(steps=4), tmp_path, limits=Limits(seconds=7.0), say=said.append)
    assert (found["steps_done"], trainer.calls) == (0, [])
    assert said[-1] == (
        "\nThe 7 s of this call (--time-limit) were over in the warm start, after 20 steps. They are kept: the same "
        "call again continues from there."
    )


@pytest.mark.parametrize("settings", [Settings(steps=4, offline_trials=0), Settings(steps=4, estimator="grpo")])
def test_without_offline_values_none_are_asked_for(staged, tmp_path: Path, settings: Settings) -> None:
    trainer = staged("finished")
    quickstart(settings, tmp_path, say=lambda line: None)
    assert [name for name, _, _ in trainer.calls] == ["training-1"]
    assert not any("values.parquet" in override for override in trainer.calls[0][1])


@pytest.mark.parametrize(
    ("former", "now", "names"),
    [
        ("model", "model", ("build_tokenizer", "build_model", "ModelShape", "save")),
        ("settings", "launches", ("Settings", "training_overrides")),
        ("task", "task", ("build_task", "write_parquet", "MAX_PROMPT_TOKENS")),
    ],
)
def test_former_import_paths_hold(former: str, now: str, names: tuple[str, ...]) -> None:
    modules = import_module(f"spo_verl.quickstart.{former}"), import_module(f"spo_verl.small.{now}")
    for name in names:
        assert getattr(modules[0], name) is getattr(modules[1], name)


def test_comparing_nothing_is_an_error_with_the_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--compare", "--folder", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: there is no finished run in {tmp_path}")
    assert "./quickstart.sh --estimator grpo" in shown.err
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)


def test_comparing_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("a", result()), ("b", result(estimator="grpo", offline=0))):
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name).write_result(content)
    assert main(["--compare", "--folder", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "grpo" in shown
    assert (tmp_path / "compare.png").exists()
    assert main(["--compare", "--folder", str(tmp_path), str(tmp_path / "b")]) == 0
    assert len(json.loads((tmp_path / "compare.json").read_text())["runs"]) == 1
