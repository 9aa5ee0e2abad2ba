"""slurm.sbatch is run under stand-ins for Slurm and Ray: what it starts where, with which token, and how it ends."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipes.helpers import REPOSITORY, ROOT
from tests.support import slurm_stand_ins

NAMES = ("srun", "scontrol", "hostname", "ray", "sleep", "python")
RECIPE = "gsm8k_qwen3_0_6b/spo"


class Job:
    """A finished job: exit status, output, and the calls that it made."""

    def __init__(self, folder, *overrides, nodes=3, timeout=60, **variables):
        (folder / "bin").mkdir()
        for name in NAMES:
            stand_in = folder / "bin" / name
            stand_in.write_text(f"#!{sys.executable} -IS\n" + Path(slurm_stand_ins.__file__).read_text())
            stand_in.chmod(0o755)
        log = folder / "calls.jsonl"
        log.touch()
        environment = {
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_NODELIST": ",".join(f"gpu{number}" for number in range(1, nodes + 1)),
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_CPUS_PER_TASK": "32",
            "STAND_IN_LOG": str(log),
            **variables,
        }
        began = time.monotonic()
        done = subprocess.run(
            ["bash", str(ROOT / "cluster" / "slurm.sbatch"), RECIPE, *overrides],
            cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        self.seconds = time.monotonic() - began
        self.status, self.errors = done.returncode, done.stderr
        self.calls = [json.loads(line) for line in log.read_text().splitlines()]

    def of(self, command, *first):
        return [
            call for call in self.calls if call["command"] == command and call["arguments"][: len(first)] == list(first)
        ]


def test_head_workers_and_the_run(tmp_path):
    odd = ["trainer.experiment_name='two words'", 'data.x="${y}"', "+empty=", "data.train_files=[a b.parquet,*]"]
    job = Job(tmp_path, *odd)
    assert (job.status, job.errors) == (0, "")
    head, *workers = job.of("ray", "start")
    assert head["node"] == "gpu1"
    assert head["arguments"] == [
        "start", "--head", "--node-ip-address=10.0.0.7", "--port=24711", "--num-gpus=4", "--temp-dir=/tmp/ray-4711",
        "--block",
    ]  # fmt: skip
    assert sorted(call["node"] for call in workers) == ["gpu2", "gpu3"]
    for call in workers:
        assert call["arguments"] == ["start", "--address=10.0.0.7:24711", "--num-gpus=4", "--block"]
    [run] = job.of("python")
    assert run["node"] == "gpu1"
    assert run["variables"]["RAY_ADDRESS"] == "10.0.0.7:24711"
    assert run["arguments"] == [
        "-m", "spo_verl.launching.run_recipe", str(ROOT), RECIPE, "trainer.nnodes=3", "trainer.n_gpus_per_node=4", *odd
    ]  # fmt: skip
    assert {call["variables"]["SRUN_CPUS_PER_TASK"] for call in [head, *workers, run]} == {"32"}
    # The order: workers when the head answers, the run when all are there.
    order = [job.calls.index(call) for call in (head, *workers, run)]
    assert order == sorted(order)
    assert job.calls.index(job.of("ray", "status")[0]) < min(map(job.calls.index, workers))


def test_every_process_has_the_token_of_this_job_and_no_command_line_shows_it(tmp_path):
    tokens = []
    for name, given in (("one", {}), ("two", {"SLURM_EXPORT_ENV": "NONE", "RAY_AUTH_MODE": "disabled"})):
        (tmp_path / name).mkdir()
        job = Job(tmp_path / name, nodes=2, **given, RAY_AUTH_TOKEN="the user's other cluster")
        assert job.status == 0, job.errors
        [token] = {call["variables"]["RAY_AUTH_TOKEN"] for call in job.of("ray") + job.of("python")}
        assert {call["variables"]["RAY_AUTH_MODE"] for call in job.of("ray") + job.of("python")} == {"token"}
        assert re.fullmatch(r"[0-9a-f]{64}", token)
        assert not [call for call in job.calls if token in " ".join(call["arguments"])]
        tokens.append(token)
    assert tokens[0] != tokens[1]


def test_one_node_starts_no_workers(tmp_path):
    job = Job(tmp_path, nodes=1)
    assert job.status == 0, job.errors
    assert len(job.of("ray", "start")) == 1
    assert "trainer.nnodes=1" in job.of("python")[0]["arguments"]


@pytest.mark.parametrize("lost", ["gpu1", "gpu2"])
def test_a_node_that_fails_ends_the_job(tmp_path, lost):
    job = Job(tmp_path, STAND_IN_FAILS=lost, STAND_IN_SECONDS="50")
    assert job.status == 1
    assert job.seconds < 20
    assert "Some Ray subprocesses exited" in job.errors
    assert job.errors.splitlines()[-1].startswith("error: Ray ended on a node")


def test_the_exit_status_is_that_of_the_run(tmp_path):
    job = Job(tmp_path, STAND_IN_STATUS="7")
    assert job.status == 7


def test_a_node_that_never_joins_is_an_error_before_the_run(tmp_path):
    job = Job(tmp_path, STAND_IN_LATE="gpu3", SPO_JOIN_SECONDS="3")
    assert job.status == 1
    assert "error: 2 of 3 nodes joined Ray at 10.0.0.7:24711 in 3 s" in job.errors
    assert not job.of("python")


def test_a_head_without_an_address_for_others_is_an_error(tmp_path):
    job = Job(tmp_path, STAND_IN_ADDRESSES="127.0.1.1 ::1")
    assert job.status == 1
    assert "error: gpu1 knows itself by a loopback address only" in job.errors
    assert not job.of("ray")


def test_without_a_recipe_it_says_how_to_call_it():
    done = subprocess.run(["bash", str(ROOT / "cluster" / "slurm.sbatch")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: sbatch recipes/cluster/slurm.sbatch <experiment>/<name>" in done.stderr
