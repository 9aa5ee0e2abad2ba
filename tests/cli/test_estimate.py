"""``spo-verl values estimate``: the command that it starts, and what it makes of its end."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from omegaconf import OmegaConf

from spo_verl.cli.estimate import estimate_command
from spo_verl.config import parse
from spo_verl.data.values import OfflineValues, provenance
from spo_verl.launching.composition import compose, examine, verl_problem
from tests.cli.helpers import run

SETTINGS = {"output": "/runs/values.parquet", "trials": 4, "chunk": None}

COPY = "import shutil, sys; print('Offline values: 100%'); shutil.copy({source!r}, sys.argv[1])"


def overrides_of(command):
    assert command[:3] == [sys.executable, "-m", "verl.trainer.main_ppo"]
    return command[3:]


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async", "'colocate_async'"])
def test_an_asynchronous_mode_is_refused_before_anything_starts(tmp_path, mode):
    call = ["values", "estimate", "m", "d.parquet", "-o", tmp_path / "v.parquet", "--dry-run"]
    refused = run(*call, f"trainer.v1.trainer_mode={mode}")
    assert refused.exit_code == 2
    assert f"trainer.v1.trainer_mode={mode}: values are estimated by the synchronous trainer" in refused.stderr
    assert run(*call, f"trainer.v1.trainer_mode={mode}", "trainer.v1.trainer_mode=sync").exit_code == 0


@pytest.mark.parametrize(
    ("more", "environ"), [([], {"VERL_PLATFORM": "cpu"}), (["+spo=paper", "data.train_batch_size=512"], {})]
)
def test_the_command_composes_and_passes_every_check(more, environ):
    files = ["/data/a b.parquet", "/data/c.parquet"]
    overrides = overrides_of(estimate_command("org/model", files, SETTINGS, more, environ))
    assert ("+platform=cpu" in overrides) == bool(environ)
    # The platform group exists in a process that runs on a CPU only; it changes none of what is compared here.
    composed = compose([o for o in overrides if o != "+platform=cpu"], config_name="ppo_trainer")
    assert examine(composed).problems == []
    assert verl_problem(composed.config) is None
    config = composed.config
    assert config.algorithm.adv_estimator == "spo"
    assert config.actor_rollout_ref.model.path == "org/model"
    assert list(config.data.train_files) == files
    assert config.trainer.resume_mode == "disable"
    spo, _ = parse(OmegaConf.to_container(config.spo))
    assert (spo.estimate.output, spo.estimate.trials, spo.estimate.chunk) == ("/runs/values.parquet", 4, 256)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A model ``m`` and data ``d.parquet`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "d.parquet").write_text("rows")


@pytest.mark.parametrize(
    ("model", "data", "more", "named"),
    [
        ("/nope", "mine.parquet", [], ["DATA=mine.parquet", "MODEL=/nope"]),
        ("m", "d.parquet,gone.parquet", [], ["DATA=gone.parquet"]),
        ("./gone", "d.parquet", ["data.custom_cls.path=x.py"], ["MODEL=./gone"]),
        ("m", "d.csv", [], ["DATA=d.csv"]),
        ("m", "gone.parquet", ["data.val_files=d.parquet"], ["DATA=gone.parquet"]),
    ],
)
def test_missing_files_are_named_before_verl_starts(model, data, more, named, monkeypatch):
    monkeypatch.setattr("spo_verl.cli.estimate._run", lambda *arguments, **options: pytest.fail("verl was started"))
    refused = run("values", "estimate", model, data, "-o", "v.parquet", "+spo=paper", *more)
    assert refused.exit_code == 2
    lines = refused.stderr.removeprefix("error: ").splitlines()
    assert [line.partition(":")[0] for line in lines] == named


def test_what_an_override_replaces_or_verl_fetches_is_not_looked_for(monkeypatch, stand_in, copying):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    stand_in(copying)
    replaced = ["++actor_rollout_ref.model.path=other", "data.train_files=[x.parquet]"]
    assert run("values", "estimate", "/nope", "no.parquet", "-o", "v.parquet", *replaced).exit_code == 0
    assert run("values", "estimate", "own/model", "hdfs://x/a.parquet", "-o", "w.parquet").exit_code == 0


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "here.parquet").touch()
    command = estimate_command("model", ["here.parquet", "hdfs://there.parquet"], SETTINGS, [], {})
    assert f"actor_rollout_ref.model.path={tmp_path}/model" in command
    assert f"data.train_files=[{tmp_path}/here.parquet,hdfs://there.parquet]" in command


def test_the_users_overrides_win():
    command = estimate_command("m", ["d.parquet"], SETTINGS, ["trainer.logger=[file]", "+platform=cpu"], {})
    assert compose([o for o in overrides_of(command) if "platform" not in o], config_name="ppo_trainer").config[
        "trainer"
    ]["logger"] == ["file"]
    again = estimate_command("m", ["d.parquet"], SETTINGS, ["+platform=cpu"], {"VERL_PLATFORM": "cpu"})
    assert again.count("+platform=cpu") == 1


def test_a_dry_run_prints_the_command_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    out = tmp_path / "values.parquet"
    arguments = ["values", "estimate", "m", "a.parquet,b.parquet", "-o", out, "--dry-run", "trainer.nnodes=2"]
    command = shlex.split(run(*arguments).stdout)
    assert command == json.loads(run(*arguments, "--json").stdout)["command"]
    assert f"++spo.estimate.output={out}" in command
    assert "data.train_files=[a.parquet,b.parquet]" in command
    assert command[-1] == "trainer.nnodes=2"
    assert not any("estimate.trials" in part for part in command)


@pytest.fixture
def copying(tmp_path):
    """A program that puts finished values at its argument."""
    source = tmp_path / "finished.parquet"
    key_N = np.frombuffer(bytes(range(32)), dtype="V16")
    OfflineValues(key_N, np.array([1.0, 4.0]), np.array([4, 4]), (provenance("estimate", policy="m"),)).write(source)
    return COPY.format(source=str(source))


@pytest.fixture
def stand_in(monkeypatch):
    """Let the verb start this Python program instead of verl; its argument is the output."""

    def replace(program):
        def command(model, files, settings, overrides, environ):
            return [sys.executable, "-c", program, str(settings["output"])]

        monkeypatch.setattr("spo_verl.cli.estimate.estimate_command", command)

    return replace


def test_output_passes_through_and_the_values_are_described(tmp_path, stand_in, copying, capfd):
    stand_in(copying)
    out = tmp_path / "values.parquet"
    result = run("values", "estimate", "m", "d.parquet", "-o", out)
    assert result.exit_code == 0
    assert len(OfflineValues.read(out)) == 2
    assert "Offline values: 100%" in capfd.readouterr().out
    assert "trials      8, 4 per prompt" in result.stdout
    assert "spo.initial.values=" in result.stdout
    again = run("values", "estimate", "m", "d.parquet", "-o", out)
    assert again.exit_code == 2
    assert "exists: remove it" in again.stderr


def test_with_json_the_progress_goes_to_stderr(tmp_path, stand_in, copying, capfd):
    stand_in(copying)
    result = run("values", "estimate", "m", "d.parquet", "-o", tmp_path / "values.parquet", "--json")
    assert json.loads(result.stdout)["trials"] == 8
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Offline values: 100%" in captured.err


def test_a_failure_of_verl_is_told_with_what_to_do(tmp_path, stand_in):
    stand_in("raise SystemExit(3)")
    arguments = ["values", "estimate", "m", "d.parquet", "-o", tmp_path / "values.parquet"]
    result = run(*arguments)
    assert result.exit_code == 1
    assert "exit status 3" in result.stderr
    assert "start the same command again" in result.stderr
    assert json.loads(run(*arguments, "--json").stdout)["error"]["returncode"] == 3


# Like verl: a driver that ends when it is told to, and a worker in a process group of its own that does not listen.
WITH_WORKER = """
import os, pathlib, signal, subprocess, sys, time
worker = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(300)"
started = subprocess.Popen([sys.executable, "-c", worker], process_group=0)
time.sleep(0.5)
pids = pathlib.Path(sys.argv[1]).with_name("pids")
pids.with_suffix(".new").write_text(f"{os.getpid()} {started.pid}")
pids.with_suffix(".new").rename(pids)
time.sleep(300)
"""


def wait_for_pids(folder):
    file = folder / "pids"
    while not file.exists():
        time.sleep(0.05)
    return [psutil.Process(int(pid)) for pid in file.read_text().split()]


def ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def listened(request):
    """A signal that is not ignored, as it would be where the tests run under nohup or in the background of a shell."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


@pytest.mark.parametrize("listened", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], indirect=True)
def test_when_it_is_told_to_end_so_is_everything_that_verl_started(listened, tmp_path, stand_in, monkeypatch):
    number = listened
    stand_in(WITH_WORKER)
    monkeypatch.setattr("spo_verl.cli.estimate._GRACE_S", 2.0)
    before = signal.getsignal(number)
    found = []

    def tell():
        found.extend(wait_for_pids(tmp_path))
        os.kill(os.getpid(), number)

    threading.Thread(target=tell, daemon=True).start()
    result = run("values", "estimate", "m", "d.parquet", "-o", tmp_path / "values.parquet")
    assert result.exit_code == 1
    assert f"ended by {number.name} (exit status -15); to continue, start the same command again" in result.stderr
    assert [ended(process) for process in found] == [True, True]
    assert signal.getsignal(number) is before


def test_when_it_is_killed_verls_driver_goes_with_it(tmp_path):
    """The workers of a real driver follow it, see tests/system; this one has none that could."""
    output = str(tmp_path / "values.parquet")
    script = f"""
import sys
from spo_verl.cli import estimate, main
estimate.estimate_command = lambda *arguments: [sys.executable, "-c", {WITH_WORKER!r}, {output!r}]
sys.argv = ["spo-verl", "values", "estimate", "m", "d.parquet", "-o", {output!r}]
main()
"""
    cli = subprocess.Popen([sys.executable, "-c", script])
    driver, worker = wait_for_pids(tmp_path)
    cli.kill()
    cli.wait()
    driver.wait(timeout=10)
    worker.kill()
