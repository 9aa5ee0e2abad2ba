"""The command, its environment, and what comes back, with a stand-in for the interpreter that runs verl."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from spo_verl.launching.deadline import STOP_AT
from spo_verl.launching.launch import (
    child_environment,
    hydra_value,
    keep_ray_logs,
    main_ppo_command,
    ray_directory,
    read_metrics,
    relevant_tail,
    run_main_ppo,
    stated_reason,
)


def read_back(value: object) -> object:
    override = OverridesParser.create().parse_override(f"key={hydra_value(value)}")
    return OmegaConf.create({"key": override.value()}).key  # what reads a configuration resolves it


@pytest.mark.parametrize(
    "value", [1, 0.5, 1e-4, True, False, None, "grpo", "/a/b.parquet", "pkg://a.b", ["console", "file"]]
)
def test_plain_values_are_readable_and_read_back(value: object) -> None:
    assert "'" not in hydra_value(value)
    assert read_back(value) == value


@pytest.mark.parametrize("text", ["/a folder/x=1,{y}.parquet", "it's", "$HOME", "a[0]", "", "(b)", "50%", "ü"])
def test_other_strings_are_quoted_and_read_back(text: str) -> None:
    assert read_back(text) == text


@given(st.text(alphabet="ab /'=,[]{}():$%~äé_-.", max_size=30))
def test_any_path_reads_back(text: str) -> None:
    if not text.replace(".", "").replace("-", ""):
        text = f"x{text}"  # "." and "--" alone are not values of a path
    assert read_back(text) == text


def test_the_command_is_the_stock_one() -> None:
    command = main_ppo_command(["a=1"], python="python")
    assert command == ["python", "-m", "verl.trainer.main_ppo", "a=1"]


def test_each_run_has_its_own_cluster_and_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setenv("KEEP_ME", "yes")
    first, second = (child_environment(tmp_path, {"EXTRA": "1"}) for _ in range(2))
    assert "RAY_ADDRESS" not in first
    assert first["VERL_PLATFORM"] == "cpu"
    assert (first["KEEP_ME"], first["EXTRA"]) == ("yes", "1")
    assert first["VERL_FILE_LOGGER_PATH"] == str(tmp_path / "metrics.jsonl")
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_rays_directory_is_new_and_short_even_below_a_long_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("SPO_RAY_TMP", str(long))
    folders = [ray_directory() for _ in range(2)]
    try:
        assert folders[0] != folders[1]
        assert all(len(str(folder)) <= 40 for folder in folders)
    finally:
        for folder in folders:
            folder.rmdir()


def stand_in(tmp_path: Path, body: str) -> str:
    """An interpreter whose ``-m verl.trainer.main_ppo ...`` is ``body``; ``ARGUMENTS`` are the overrides."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\nARGUMENTS = sys.argv[3:]\n{body}\n")
    path.chmod(0o755)
    return str(path)


GOOD = """
print("training")
ray = next(a.partition("=")[2] for a in ARGUMENTS if "_temp_dir" in a)
seen = {"ray": ray, "is_dir": os.path.isdir(ray), "cwd": os.getcwd(), "arguments": ARGUMENTS}
json.dump(seen, open("seen.json", "w"))
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as file:
    for step in range(3):
        data = {"loss": step / 2, **({"late": 1.0} if step == 2 else {})}
        file.write(json.dumps({"step": step, "data": data}) + "\\n")
    file.write('{"step": 3, "da')
"""


def test_a_run_returns_verls_metrics_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    run = run_main_ppo(["trainer.x=1", "+platform=cpu"], folder, python=stand_in(tmp_path, GOOD), time_limit_s=30)
    assert run.ok
    assert run.series("loss") == {0: 0.0, 1: 0.5, 2: 1.0}
    assert run.series("late") == {2: 1.0}
    assert run.log() == "training\n"
    seen = json.loads((folder / "seen.json").read_text())
    assert seen["is_dir"]
    assert not os.path.exists(seen["ray"])
    assert seen["cwd"] == str(folder)
    arguments = seen["arguments"]
    assert arguments[0] == "+platform=cpu"
    assert arguments.count("+platform=cpu") == 1
    assert arguments[-1] == "trainer.x=1"  # what the caller gives wins
    assert f"trainer.default_local_dir='{folder}/checkpoints'" in arguments
    assert (folder / "command.txt").read_text().splitlines()[1:3] == ["-m", "verl.trainer.main_ppo"]


def test_the_processes_know_the_limits_of_their_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_AT, "1.0")  # of a launch that this one is inside of
    body = """
print(json.dumps([os.environ.get("SPO_STOP_AT"), os.environ.get("SPO_SILENCE_LIMIT"), time.monotonic()]))
print("spo: the time of this launch is nearly over, so step 3 of 4 is its last one")
"""
    python = stand_in(tmp_path, body)
    run = run_main_ppo([], tmp_path / "a", python=python, time_limit_s=30, stop_after_s=20.0, silence_limit_s=25.0)
    stop_at, silence, now = json.loads(run.log().splitlines()[0])
    assert 10 < float(stop_at) - now <= 20.0
    assert float(silence) == 25.0
    assert run.stopped_early
    body = 'print(json.dumps([os.environ.get("SPO_STOP_AT"), os.environ.get("SPO_SILENCE_LIMIT")]))'
    run = run_main_ppo([], tmp_path / "b", python=stand_in(tmp_path, body), time_limit_s=30)
    assert json.loads(run.log()) == [None, "300.0"]
    assert not run.stopped_early


def test_a_failed_run_keeps_rays_logs(tmp_path: Path) -> None:
    body = """
ray = next(a.partition("=")[2] for a in ARGUMENTS if "_temp_dir" in a)
os.makedirs(ray + "/session_1/logs"); open(ray + "/session_1/logs/raylet.err", "w").write("out of memory")
raise SystemExit(7)
"""
    run = run_main_ppo([], tmp_path / "run", python=stand_in(tmp_path, body), time_limit_s=30)
    assert (run.ok, run.outcome.status, run.outcome.returncode) == (False, "failed", 7)
    assert run.metrics == ()
    assert (tmp_path / "run" / "ray_logs" / "raylet.err").read_text() == "out of memory"


def test_a_hanging_run_is_ended(tmp_path: Path) -> None:
    python = stand_in(tmp_path, 'print("one line", flush=True)\ntime.sleep(100)')
    run = run_main_ppo([], tmp_path / "run", python=python, time_limit_s=30, silence_limit_s=0.5)
    assert run.outcome.status == "silent"
    assert run.log() == "one line\n"


def test_only_the_end_of_a_large_log_is_kept(tmp_path: Path) -> None:
    logs = tmp_path / "ray" / "session_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "worker.out").write_text("a" * 100 + "end")
    (logs / "empty").write_text("")
    (tmp_path / "ray" / "session_latest").symlink_to("session_1")
    keep_ray_logs(tmp_path / "ray", tmp_path / "kept", at_most_bytes=5)
    assert [(path.name, path.read_text()) for path in (tmp_path / "kept").iterdir()] == [("worker.out", "aaend")]


def test_metrics_of_a_run_that_never_logged() -> None:
    assert read_metrics(Path("/nowhere/metrics.jsonl")) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("spo_verl.cpu.weight_transfer.WeightTransferError: the other end was silent", "the other end was silent"),
        ("(WorkerDict pid=12) spo_verl.errors.SpoConfigError: a: b", "a: b"),
        ("ValueError: boom", None),
        ("ray.exceptions.RayTaskError(WeightTransferError): ray::WorkerDict.update() (pid=3)", None),
        ("see spo_verl.errors.SpoError: in the manual", None),
    ],
)
def test_the_reason_is_the_last_error_of_this_package(line: str, reason: str | None) -> None:
    assert stated_reason(f"start\n{line}\nValueError: later\n") == reason
    assert stated_reason(f"spo_verl.errors.SpoError: earlier\n{line}\n") == (reason or "earlier")


def test_the_relevant_part_of_a_log_is_its_last_traceback() -> None:
    log = "\n".join(
        [
            "start",
            "Traceback (most recent call last)",
            "old",
            *["fine"] * 5,
            "Traceback (most recent call last)",
            "KeyError",
        ]
    )
    assert relevant_tail(log) == "Traceback (most recent call last)\nKeyError"
    assert relevant_tail("\n".join(map(str, range(100))), lines=3) == "97\n98\n99"
    long_ago = "Traceback (most recent call last)\n" + "\n".join(["later"] * 500)
    assert relevant_tail(long_ago, lines=2) == "later\nlater"
