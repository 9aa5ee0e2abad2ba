"""Real launches of verl on the CPU, one after the other, each killed at a random moment and continued by the next.

    python -m tests.crash.real --cases N --seed S --mode sync|colocate_async|separate_async --ledger FILE

A launch is a case: it continues from the last checkpoint, trains until it has written a marker of its own, then one of
its processes is killed. It must end with an error, or train on, within a minute; checkpoint and record are then
compared prompt by prompt. The ledger has a line of JSON for each; cases that are in it are left out, so that the same
command continues. The run itself lies in ``FILE.MODE.SEED/``.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from spo_verl.small.model import ModelShape, build_model, build_tokenizer
from tests.crash.ledger import LaunchCase, add_launch, read_launches
from tests.crash.marker import follow_advice
from tests.crash.marker import marked as marked_step
from tests.support.record_check import differences
from tests.system.harness import TOY, end_marked, environment, main_ppo, write_data

VICTIMS = {
    "driver": None,
    "trainer": "ray::TaskRunner",
    "tracker": "ray::TrackerHost",
    "rollout server": "ray::vLLMHttpServer",
    "rollout engine": "VLLM::EngineCore",
    "storage": "ray::SimpleStorageUnit",
    "rank": "ray::WorkerDict",
    "agent-loop worker": "ray::AgentLoopWorkerTQ",
    "reward worker": "ray::RewardLoopWorker",
    "queue controller": "ray::TransferQueueController",
}
"""Titles of processes; the driver is the command itself. The cases with seeds below 2000 had the first seven."""
COMMON = [
    "spo.reward.low=-1", "spo.reward.high=1", "trainer.total_training_steps=100000", "trainer.save_freq=2",
    "trainer.test_freq=-1", "trainer.max_actor_ckpt_to_keep=2",
    "data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8",
]  # fmt: skip
MODES = {
    "sync": [
        "+spo=bspo", "actor_rollout_ref.rollout.n=2", "spo.forgetting.mode=constant", "spo.forgetting.rho=0.9",
        "actor_rollout_ref.rollout.agent.default_agent_loop=scripted",
    ],
    "colocate_async": [
        "+spo=plus_plus", "spo.forgetting.rho=1.0", "spo.oversample=0.5", "spo.late.policy=carry",
        "trainer.v1.trainer_mode=colocate_async", "trainer.v1.sampler.max_off_policy_threshold=null",
        "actor_rollout_ref.rollout.agent.default_agent_loop=slow",
    ],
    "separate_async": [
        "+spo=paper", "trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.hybrid_engine=False",
        "trainer.v1.separate_async.parameter_sync_step=2", "trainer.v1.separate_async.num_warmup_batches=0",
        "actor_rollout_ref.rollout.agent.default_agent_loop=scripted",
    ],
}  # fmt: skip
"""As the runs of ``tests/system/conftest.py``."""
MINUTE = 60.0
SPREAD = 12.0
"""Seconds after the first marker of a launch within which its process is killed: some steps and a save."""
LIMIT = 600.0
"""Seconds that a case takes at most."""


def prepare(folder: Path) -> None:
    """Data, model and agent loops of the system tests."""
    if not (folder / "agents.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_data(folder)
        tokenizer = build_tokenizer()
        tokenizer.save_pretrained(folder / "model")
        build_model(tokenizer, ModelShape(layers=2), seed=0).save_pretrained(folder / "model")
        (folder / "agents.yaml").write_text(
            "- name: scripted\n  _target_: tests.support.scripted_agent.ScriptedAgentLoop\n"
            "- name: slow\n  _target_: tests.support.slow_agent.SlowAgentLoop\n"
        )


@dataclass
class Launch:
    """A launch under way."""

    process: subprocess.Popen
    log: Path
    run: Path
    mark: str
    begin: float

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def trained(self) -> int:
        """The newest step whose numbers were logged."""
        return max((int(step) for step in re.findall(r"step:(\d+) - ", self.text())), default=0)

    def until(self, holds, seconds: float) -> bool:
        """Wait until something holds, the command ends, or time is over; whether it holds."""
        end = time.monotonic() + seconds
        while not holds():
            if self.process.poll() is not None or time.monotonic() > end:
                return bool(holds())
            time.sleep(0.1)
        return True


def start(folder: Path, mode: str, seed: int, number: int) -> Launch:
    name, mark = f"case{number}", uuid.uuid4().hex
    command = [
        *main_ppo(folder, name, checkpoints="run"), *TOY, *COMMON, *MODES[mode], f"spo.seed={seed}",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder}/agents.yaml",
    ]  # fmt: skip
    log = folder / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            env=environment(folder, name, mark),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Launch(process, log, folder / "run", mark, time.monotonic())


def kill(launch: Launch, victim: str) -> list[str]:
    """SIGKILL a process of the launch: the first of its descendants with the title; what was wrong."""
    title = VICTIMS[victim]
    if title is None:
        launch.process.kill()
        return []
    titles = []
    for one in _descendants(launch):
        try:
            titles.append(" ".join(one.cmdline()))
            if titles[-1].startswith(title):
                one.kill()
                return []
        except psutil.NoSuchProcess:
            continue
    return [plain(f"no process is called {title}: {sorted(set(titles))}")]


def _descendants(launch: Launch) -> list[psutil.Process]:
    try:
        return psutil.Process(launch.process.pid).children(recursive=True)
    except psutil.NoSuchProcess:  # it has just ended
        return []


def error_in(log: str) -> str:
    """The last line of a log that names an error, one of this package if there is any."""
    found = re.findall(r"([\w.]*(?:Error|Exception|Died)\b(?:\([^)]*\))?: [^\n]*)", log)
    mine = [line for line in found if "Spo" in line]
    return plain((mine or found or [""])[-1])[:200]


def plain(text: str) -> str:
    """A line of a log without colours, and without what differs from machine to machine."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    text = re.sub(r"(?<![\w.])(?:/[\w.+-]+){2,}", "PATH", text)
    return re.sub(r"\b(pid|ip|actor_id|node_id)=[\w.]+", r"\1=...", text)


def case(folder: Path, mode: str, seed: int, number: int) -> LaunchCase:
    """One launch, its kill, and what was found."""
    rng = random.Random(f"{mode} {seed} {number}")
    victims = list(VICTIMS) if seed >= 2000 else list(VICTIMS)[:7]
    victim, moment = rng.choice(victims), round(rng.uniform(0, SPREAD), 2)
    run = folder / "run"
    before = marked_step(run) or 0
    launch = start(folder, mode, seed, number)
    problems: list[str] = []
    outcome, seconds = "", 0.0
    try:
        marked = launch.until(lambda: (marked_step(run) or 0) > before, LIMIT)
        loaded = [int(step) for step in re.findall(r"spo: loaded step=(\d+)", launch.text())]
        if not marked:
            problems.append(
                f"no marker was written within {time.monotonic() - launch.begin:.0f} s: {error_in(launch.text())}"
            )
        else:
            launch.until(lambda: False, moment)
            acknowledged, trained = marked_step(run) or 0, launch.trained()
            killed = time.monotonic()
            problems += kill(launch, victim)
            if not problems:
                ended = launch.until(
                    lambda: launch.process.poll() is not None or launch.trained() > trained + 2, MINUTE
                )
                seconds = time.monotonic() - killed
                outcome = _outcome(launch, victim)
                if not ended:
                    problems.append(f"the command neither ended nor trained within {MINUTE:.0f} s")
                elif not outcome:
                    problems.append(f"the command ended without an error: {plain(launch.text()[-500:])}")
    finally:
        if launch.process.poll() is None:
            launch.process.kill()
        launch.process.wait()
        end_marked(launch.mark)
    if before != (loaded[0] if loaded else 0):
        problems.append(f"the marker said {before}, the launch loaded {loaded}")
    step, trained = marked_step(run), launch.trained()
    if step is None:
        outcome += "; torn marker"
        step = follow_advice(run)
    if marked and step < acknowledged:
        problems.append(f"step {acknowledged} was marked, now it is {step}")
    if step:
        problems += _record(run)
        _prune(run, step)
    return LaunchCase(
        number, seed, mode, victim, moment, round(seconds, 1), outcome, loaded[0] if loaded else 0, step,
        max(0, trained - step), problems,
    )  # fmt: skip


def _outcome(launch: Launch, victim: str) -> str:
    if launch.process.poll() is None:
        return "goes on"
    return "killed" if victim == "driver" else error_in(launch.text())


def _record(run: Path) -> Iterator[str]:
    """Record against tracker; the numbers of a step follow its checkpoint, and may be missing where a launch began."""
    starts = json.loads((run / "record" / "run.json").read_text())["starts"]
    tolerated = {f"there are no numbers of step {start['step']}" for start in starts}
    yield from (one for one in differences(run) if one not in tolerated)


def _prune(run: Path, step: int) -> None:
    """Checkpoints of earlier launches, which verl does not prune."""
    for path in run.glob("global_step_*"):
        if int(path.name.rsplit("_", 1)[1]) < step:
            shutil.rmtree(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.real")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode", choices=list(MODES), default="sync")
    parser.add_argument("--ledger", type=Path, required=True)
    given = parser.parse_args()
    folder = Path(f"{given.ledger.absolute()}.{given.mode}.{given.seed}")
    prepare(folder)
    done = {one.case for one in read_launches(given.ledger) if (one.mode, one.seed) == (given.mode, given.seed)}
    wrong = 0
    for number in range(given.cases):
        if number in done:
            continue
        found = case(folder, given.mode, given.seed, number)
        add_launch(given.ledger, found)
        print(json.dumps(asdict(found)), flush=True)
        wrong += bool(found.problems)
    print(f"{wrong} cases with a problem; their logs are {folder}/case*.log" if wrong else "nothing was wrong")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
