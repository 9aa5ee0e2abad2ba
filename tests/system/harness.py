"""Launching real runs in tests, bounded in time: stock `python -m verl.trainer.main_ppo` on the CPU platform, directly
or through `spo-verl values estimate`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from spo_verl.data import prompt_key
from tests.support import batch_probe, matrix
from tests.support.scripted_agent import fails, outcome

REPOSITORY = Path(__file__).parents[2]
PROMPTS = 60
TRIALS = 3
"""Responses per prompt of the estimation."""
RUN_MARK = "SPO_VERL_TEST_RUN"
NO_RAY = "The current node timed out during startup"
"""How a launch ends whose node of Ray's was not up within three minutes (ray-start): nothing has run yet."""
REPEATED: dict[str, str] = {}
"""Launches that were made twice because of :data:`NO_RAY`, with the end of the raylet's log; the summary has both."""
MEMORY_POLL_S = 3.0


def question(index: int) -> str:
    return f"{index}+1="


def row(index: int) -> dict:
    return {
        "data_source": f"toy{index % 2}",
        "prompt": [{"role": "user", "content": question(index)}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(index + 1)},
        "extra_info": {"index": index},
    }


def toy_keys() -> np.ndarray:
    """Identities of the toy prompts in slot order: slots follow the first appearance, which is the index."""
    return np.frombuffer(b"".join(prompt_key(row(index)) for index in range(PROMPTS)), dtype="V16")


def write_data(folder: Path) -> None:
    """60 different prompts (and five duplicate rows) to train on, 16 others to validate with."""
    rows = [row(index) for index in range(PROMPTS)]
    pd.DataFrame(rows + rows[:5]).to_parquet(folder / "train.parquet")
    pd.DataFrame([row(1000 + index) for index in range(16)]).to_parquet(folder / "val.parquet")


@dataclass(frozen=True)
class Run:
    """A finished launch."""

    name: str
    returncode: int
    log: str
    checkpoints: Path
    rollouts: Path
    batches: Path
    seconds: float

    def mini_batches(self) -> tuple[list[list[tuple[str, int]]], list[list[tuple[str, int, tuple[int, ...]]]]]:
        """What was dispatched and what was trained on, in order: see ``tests/support/batch_probe.py``.

        Returns:
            dispatches of (uid, dataset index), and mini-batches of (uid, session, response tokens), padding included.
        """
        notes = self.notes()
        dispatched = [list(zip(one["dispatched"], one["index"], strict=True)) for one in notes if "dispatched" in one]
        trained = [
            [
                (uid, int(session), tuple(response))
                for uid, session, response in zip(one["trained"], one["session"], one["response"], strict=True)
            ]
            for one in merged([one for one in notes if "trained" in one])
        ]
        return dispatched, trained

    def notes(self) -> list[dict]:
        """What ``tests/support/batch_probe.py`` noted, in order."""
        return [json.loads(line) for line in self.batches.read_text().splitlines()]

    def metrics(self) -> dict[int, dict[str, float]]:
        """Step -> metric -> value, from the console logger."""
        found: dict[int, dict[str, float]] = {}
        for line in self.log.splitlines():
            match = re.search(r"step:(\d+) - (.*)$", line)
            if match:
                pairs = re.findall(r"([\w./@+-]+):(?:np\.\w+\()?(-?[\d.]+(?:e[+-]?\d+)?)\)?(?= - |$)", match.group(2))
                found[int(match.group(1))] = {key: float(value) for key, value in pairs}
        return found

    def draws(self) -> dict[int, str]:
        """Step -> digest of the drawn slots."""
        return {int(step): digest for step, digest in re.findall(r"spo: step=(\d+) .*draw_digest=(\w+)", self.log)}

    def saved(self) -> dict[int, str]:
        """Step -> digest of the tracker as it was saved."""
        found = re.findall(r"spo: saved \S*global_step_(\d+)/spo tracker_digest=(\w+)", self.log)
        return {int(step): digest for step, digest in found}

    def loaded(self) -> dict[int, str]:
        """Step -> digest of the tracker as it was loaded."""
        return {
            int(step): digest for step, digest in re.findall(r"spo: loaded step=(\d+) tracker_digest=(\w+)", self.log)
        }


def merged(notes: Sequence[dict]) -> list[dict]:
    """Notes of the ranks' parts of the same batch as one: each rank has its own in order."""
    of_rank = [[one for one in notes if one["rank"] == rank] for rank in sorted({one["rank"] for one in notes})]
    lists = [name for name in notes[0] if name != "rank"] if notes else []
    return [
        {name: [item for part in parts for item in part[name]] for name in lists}
        for parts in zip(*of_rank, strict=True)
    ]


def train(
    workdir: Path,
    name: str,
    overrides: Sequence[str],
    *,
    checkpoints: str | None = None,
    kill_when: Callable[[str], bool] | None = None,
    victim: str | None = None,
    family: str = "dense",
    feature: str = "",
) -> Run:
    """Train on the toy data: ``workdir`` has ``model/``, ``train.parquet`` and ``val.parquet``."""
    command = [
        *main_ppo(workdir, name, checkpoints), *TOY,
        "data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        *overrides,
    ]  # fmt: skip
    return launch(
        workdir,
        name,
        command,
        checkpoints=checkpoints,
        kill_when=kill_when,
        victim=victim,
        family=family,
        feature=feature,
    )


def estimate(
    workdir: Path, name: str, overrides: Sequence[str], *, kill_when: Callable[[str], bool] | None = None
) -> Run:
    """Estimate ``values.parquet`` of the toy data through the command line."""
    command = [
        sys.executable, "-m", "spo_verl.cli", "values", "estimate", f"{workdir}/model", f"{workdir}/train.parquet",
        "-o", f"{workdir}/values.parquet", "--trials", str(TRIALS), "--chunk", "10", *TOY,
        *overrides,
    ]  # fmt: skip
    return launch(workdir, name, command, kill_when=kill_when, feature="offline values")


def main_ppo(workdir: Path, name: str, checkpoints: str | None = None) -> list[str]:
    """verl's stock command on the files in ``workdir``, with everything that a run writes in places of its own."""
    return [
        sys.executable, "-m", "verl.trainer.main_ppo", "+platform=cpu",
        f"data.train_files={workdir}/train.parquet", f"data.val_files={workdir}/val.parquet",
        f"actor_rollout_ref.model.path={workdir}/model",
        "trainer.logger=[console]", "trainer.total_epochs=1", "trainer.val_before_train=False",
        "trainer.project_name=spo_verl", f"trainer.experiment_name={name}",
        f"trainer.default_local_dir={workdir / (checkpoints or name)}",
        f"trainer.rollout_data_dir={rollouts_of(workdir, name)}",
    ]  # fmt: skip


TOY = (
    "data.max_prompt_length=16", "data.max_response_length=8",
    "actor_rollout_ref.actor.optim.lr=1e-3", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.calculate_log_probs=True",
    "actor_rollout_ref.rollout.max_model_len=64", "actor_rollout_ref.rollout.max_num_seqs=64",
    # Each takes as long to start as the rest of a run of few steps; the quickstart has two.
    "actor_rollout_ref.rollout.agent.num_workers=1",
    f"reward.custom_reward_function.path={REPOSITORY}/tests/support/reward.py",
)  # fmt: skip
"""Settings of every run on the toy data, whatever it does with them."""


def rollouts_of(workdir: Path, name: str) -> Path:
    """Where verl dumps the rollouts of a training run."""
    return workdir / f"rollouts_{name}"


def tensorboard_of(workdir: Path, name: str) -> Path:
    """Where a run with that logger writes its events."""
    return workdir / f"tensorboard_{name}"


def probe_of(workdir: Path, name: str) -> Path:
    """Where the run notes what is dispatched and what the actor receives."""
    return workdir / f"{name}.batches.jsonl"


def launch(
    workdir: Path,
    name: str,
    command: Sequence[str],
    *,
    checkpoints: str | None = None,
    kill_when: Callable[[str], bool] | None = None,
    victim: str | None = None,
    seconds: float = 1200.0,
    family: str = "dense",
    feature: str = "",
    meant_to_fail: bool = False,
) -> Run:
    """Run a command to its end, or SIGKILL it as soon as ``kill_when`` holds for its log.

    With a ``victim`` only its process of that title (Ray names them after their actors) is killed, and the command goes
    on by itself.
    Everything that the command started is gone when this returns. A launch whose Ray did not start is made again, once
    (:data:`NO_RAY`). ``family`` of the model, ``feature`` and
    ``meant_to_fail`` (it is to end with an error) are for :mod:`tests.support.matrix`.
    """
    mark = uuid.uuid4().hex
    log_path = workdir / f"{name}.log"
    env = environment(workdir, name, mark)
    begin = time.monotonic()
    with log_path.open("w") as log:
        process = subprocess.Popen(
            list(command),
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    ended_by_test, peak, next_look = False, 0, begin
    try:
        while process.poll() is None:
            time.sleep(0.2)
            if matrix.wanted() and time.monotonic() >= next_look:
                peak = max(peak, marked_memory(mark))
                next_look = time.monotonic() + MEMORY_POLL_S
            if kill_when is not None and kill_when(log_path.read_text(errors="replace")):
                ended_by_test = True
                if victim is None:
                    process.kill()
                    process.wait()
                    break
                kill_titled(process.pid, victim)
                kill_when = None
            if time.monotonic() > begin + seconds:
                raise TimeoutError(f"{name} ran longer than {seconds} s:\n{log_path.read_text()[-4000:]}")
    finally:
        end_marked(mark)
    run = Run(
        name,
        process.wait(),
        log_path.read_text(errors="replace"),
        workdir / (checkpoints or name),
        rollouts_of(workdir, name),
        probe_of(workdir, name),
        time.monotonic() - begin,
    )
    if run.returncode != 0 and NO_RAY in run.log and name not in REPEATED:
        REPEATED[name] = raylet_log(process.pid)
        return launch(
            workdir, name, command, checkpoints=checkpoints, kill_when=kill_when, victim=victim, seconds=seconds,
            family=family, feature=feature, meant_to_fail=meant_to_fail,
        )  # fmt: skip
    if matrix.wanted():
        matrix.record(
            matrix.launch(
                command,
                run.metrics(),
                family=family,
                feature=feature,
                seconds=run.seconds,
                peak_bytes=peak,
                passed=ended_by_test or (run.returncode != 0) == meant_to_fail,
            )
        )
    return run


def raylet_log(driver: int) -> str:
    """The last lines of what the raylets of a driver's own cluster wrote, where Ray's folder is the usual one."""
    files = sorted(Path(tempfile.gettempdir()).glob(f"ray/session_*_{driver}/logs/raylet.*"))
    return "\n".join(line for file in files for line in file.read_text(errors="replace").splitlines()[-20:])


def environment(workdir: Path, name: str, mark: str) -> dict[str, str]:
    """The environment of a launch; ``mark`` is in that of every process that it starts."""
    return {
        **os.environ,
        "VERL_PLATFORM": "cpu",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "HYDRA_FULL_ERROR": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "TENSORBOARD_DIR": str(tensorboard_of(workdir, name)),
        RUN_MARK: mark,
        "VERL_USE_EXTERNAL_MODULES": batch_probe.__name__,
        batch_probe.FILE: str(probe_of(workdir, name)),
    }


def kill_titled(ancestor: int, title: str) -> None:
    """SIGKILL the one descendant of a process whose title has these words."""
    [found] = [one for one in psutil.Process(ancestor).children(recursive=True) if title in " ".join(one.cmdline())]
    found.kill()


def end_marked(mark: str, patience: float = 20.0) -> None:
    """Wait for the processes of one launch to end, then kill those that did not."""
    give_up = time.monotonic() + patience
    while remaining := [process for process in psutil.process_iter() if _mark_of(process) == mark]:
        if time.monotonic() > give_up:
            for process in remaining:
                _signal(process)
        time.sleep(0.5)


def marked_memory(mark: str) -> int:
    """Bytes that the processes of one launch use together, in whatever session; shared pages are counted once."""
    return sum(_proportional_bytes(process) for process in psutil.process_iter() if _mark_of(process) == mark)


def _proportional_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile
        return 0


def scripted_values() -> tuple[np.ndarray, np.ndarray]:
    """Successes and trials of each toy prompt that an estimation under the scripted agent must find.

    The step of an estimation is 0; sessions that fail are no trials.
    """
    sessions = [[session for session in range(TRIALS) if not fails(index, session)] for index in range(PROMPTS)]
    successes = [sum((outcome(index, 0, session) + 1) / 2 for session in found) for index, found in enumerate(sessions)]
    return np.array(successes), np.array([len(found) for found in sessions])


def _mark_of(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.environ().get(RUN_MARK)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile, or not ours
        return None


def _signal(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
