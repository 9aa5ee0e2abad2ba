"""How long a step is held up by the record of the run, and what the record takes on the disk.

    python benchmarks/record_cost.py [--rollouts 256 1024 8192] [--steps 30]

A step passes what it knows to the recorder, as the trainer does: dispatch, the observed batch, its numbers. A
checkpoint every 10 steps waits for the disk. Rows are made and written by another thread of the process, whose CPU time
per step is in the column "thread".
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from spo_verl.config import AdvantageConfig
from spo_verl.data.identity import DatasetKeys
from spo_verl.record import Record, RecordWriter
from spo_verl.tracker.reports import Frozen, ObserveReport
from spo_verl.training.in_flight import Evictions
from spo_verl.training.recording import Prompts, Recorder
from spo_verl.training.sessions import read_sessions
from spo_verl.training.step import Recalled, Rewarded

CHECKPOINT_EVERY = 10
NUMBERS = {f"a metric/of a step/{number}": float(number) for number in range(150)}
"""About as many as verl and SPO log."""


class Nothing:
    """A tracker that a run begins with."""

    def __init__(self, prompts: int) -> None:
        self.size = prompts

    def open_uids(self) -> list[str]:
        return []

    def values(self) -> np.ndarray:
        return np.full(self.size, 0.5)

    def evidence(self) -> tuple[np.ndarray, np.ndarray]:
        return self.values(), self.values()


class Step:
    """What the trainer has at the end of a step of so many rollouts, and passes on."""

    def __init__(self, number: int, rollouts: int, prompts: int) -> None:
        rng = np.random.default_rng(number)
        self.number = number
        self.uids = [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(rollouts)]
        self.slot_B = rng.choice(prompts, rollouts, replace=False)
        ones = np.ones(rollouts)
        self.frozen = Frozen(self.slot_B, rng.random(rollouts), ones, np.full(rollouts, number - 1))
        keys = [f"{uid}_0_0" for uid in self.uids]
        tags = [{"response_len": 900, "min_global_steps": number - 1, "max_global_steps": number - 1}] * rollouts
        batch = SimpleNamespace(keys=keys, tags=tags)
        recalled = Recalled.of(
            batch, read_sessions(keys, tags), self.frozen, None, advantage=AdvantageConfig(), version=number - 1
        )
        reward_S = rng.integers(0, 2, rollouts).astype(float)
        self.rewarded = Rewarded(recalled, reward_S, reward_S - 0.5, np.full(rollouts, 900))
        observed = np.ones(rollouts, dtype=bool)
        self.report = ObserveReport(
            self.slot_B, self.frozen.version_B, ones.astype(int), 0.9 * ones, 0.03 * ones, ones, observed, ~observed,
            rollouts, 0,
        )  # fmt: skip
        self.seen = dict.fromkeys(self.uids, time.monotonic())

    def pass_on(self, recorder: Recorder) -> None:
        recorder.dispatched(self.uids, self.frozen)
        nothing = Evictions([], [], {}, {})
        recorder.observed(self.number, self.rewarded, None, nothing, self.report, set(self.uids), self.seen)
        recorder.numbers(self.number, NUMBERS)


def measure(rollouts: int, steps: int, folder: Path | None) -> dict[str, float]:
    """Milliseconds per step that training waits, milliseconds per checkpoint, and what the record took."""
    prompts = 2 * rollouts
    slots = np.arange(prompts)
    keys = DatasetKeys(np.frombuffer(np.random.default_rng(0).bytes(16 * prompts), dtype="V16"), slots, slots.copy())
    writer = None if folder is None else RecordWriter(folder, 2**30)
    recorder = Recorder(writer, Prompts(keys, []), mode="kl", run={})
    recorder.begin(0, Nothing(prompts))
    recorder.flush()
    held, saved = [], []
    all_threads, own = time.process_time(), time.thread_time()
    for number in range(1, steps + 1):
        step = Step(number, rollouts, prompts)
        begin = time.perf_counter()
        step.pass_on(recorder)
        held.append(time.perf_counter() - begin)
        if number % CHECKPOINT_EVERY == 0:
            recorder.flush()  # between real steps there is time for it
            begin = time.perf_counter()
            recorder.cut(number)
            recorder.flush()
            saved.append(time.perf_counter() - begin)
    recorder.flush()
    spent = (time.process_time() - all_threads) - (time.thread_time() - own)
    recorder.close()
    found = {"held": 1000 * statistics.median(held), "saved": 1000 * statistics.median(saved)}
    if folder is None:
        return found
    rows = len(Record.open(folder).rollouts(["step"]))
    taken = sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith("rollouts"))
    return {**found, "thread": 1000 * spent / steps, "bytes": taken / rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, nargs="+", default=[256, 1024, 8192])
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    print("| rollouts of a step | step waits, off | step waits, on | thread | checkpoint waits | bytes per rollout |")
    print("|---|---|---|---|---|---|")
    for rollouts in arguments.rollouts:
        off = measure(rollouts, arguments.steps, None)
        with tempfile.TemporaryDirectory() as folder:
            on = measure(rollouts, arguments.steps, Path(folder) / "record")
        print(
            f"| {rollouts:,} | {off['held']:.2f} ms | {on['held']:.2f} ms | {on['thread']:.0f} ms "
            f"| {on['saved']:.0f} ms | {on['bytes']:.0f} |"
        )


if __name__ == "__main__":
    main()
