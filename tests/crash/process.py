"""A training process that may die: verl's trainer classes with SPO, without engines.

Loop, replay buffer, save and load are verl's; tracker, checkpoints and record are the package's. Rollouts, weights and
TransferQueue are those of :mod:`tests.training.simulated_run`; the queue is saved with a checkpoint. Everything that is
fed to the tracker is in the journal first.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import mmap
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import numpy as np
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import trainer_base
from verl.utils.dataset.rl_dataset import collate_fn

from spo_verl.config import ForgettingConfig, LateConfig, SpoConfig
from spo_verl.data.loader import PrioritizedDataLoader
from spo_verl.errors import SpoError
from spo_verl.record import RecordWriter
from spo_verl.record.schema import FOLDER
from spo_verl.record.writing import _Disk
from spo_verl.tracker.checkpoint import folder as folders
from spo_verl.tracker.checkpoint.snapshot import Snapshot
from spo_verl.tracker.reports import Late
from spo_verl.tracker.service import TrackerHost
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.training import recording, trainer
from spo_verl.training.checkpoint import CheckpointFollower
from tests.crash.journal import Journal, groups_of
from tests.crash.marker import MARKER
from tests.crash.plan import Incident, Shape
from tests.training import simulated_run

SHARD_BYTES = 3000
STOPPED, ENDED = 3, 0
"""Exit statuses: an error ended the process, which is in the journal; it trained all its steps."""

MAIN = ("before", "start", "step", "save", "marker", "after")
TRACKER = ("idle", "writing", "publishing")
RECORD = ("idle", "part", "merge", "going back")


class Phases:
    """Where the threads of a process are, in memory that its parent sees after its death."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 3)

    def set(self, of: tuple[str, ...], name: str) -> None:
        self._shared[(MAIN, TRACKER, RECORD).index(of)] = of.index(name)

    def get(self, of: tuple[str, ...]) -> str:
        return of[self._shared[(MAIN, TRACKER, RECORD).index(of)]]

    def clear(self) -> None:
        self._shared[:] = bytes(3)


# ---------------------------------------------------------------------- tracker and queue


class Journaled:
    """The tracker's host under the face of its client; what it is fed is written down first."""

    def __init__(self, journal: Journal) -> None:
        self._host, self._journal = TrackerHost(), journal
        self.step: Callable[[], int] = lambda: 0

    def __getattr__(self, verb: str) -> Any:
        if verb.startswith("_"):
            raise AttributeError(verb)
        tracker = self._host._tracker
        return getattr(tracker, verb)

    def create(self, *args: Any, **kwargs: Any) -> int:
        self._journal.write("start", 0)
        return self._host.create(*args, **kwargs)

    def load(self, folder: Any, *args: Any, **kwargs: Any) -> Any:
        report = self._host.load(folder, *args, **kwargs)
        self._journal.write("start", report.step)
        return report

    def begin_save(self, folder: Path, step: int, **kwargs: Any) -> Any:
        self._journal.write("save", step)
        return self._host.begin_save(folder, step, **kwargs)

    def end_save(self) -> Any:
        return self._host.end_save()

    def dispatch(self, uids: Any, slot_B: Any, version: int) -> Any:
        self._journal.write("dispatch", list(uids), np.asarray(slot_B).tolist(), version)
        return self._host.call("dispatch", uids, slot_B, version)

    def redispatch(self, uids: Any, version: int) -> Any:
        self._journal.write("redispatch", list(uids), version)
        return self._host.call("redispatch", uids, version)

    def absorb(self, late: Any) -> Any:
        self._journal.write("absorb", list(groups_of(late)))
        return self._host.call("absorb", late)

    def finish_step(self, uids: Any, session_B: Any, reward_B: Any, **rest: Any) -> Any:
        trained = Late("trained", uids, session_B, reward_B, ended=rest["settle_uids"])
        self._journal.write("finish", self.step(), list(groups_of([*rest["late"], trained])))
        return self._host.call("finish_step", uids, session_B, reward_B, **rest)

    def stop(self) -> None:
        pass


class SavedQueue(simulated_run.Queue):
    """TransferQueue with its checkpoints."""

    def save_checkpoint(self, path: str, metadata: dict) -> None:
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, "state.json"), "w") as file:
            json.dump([self.items["train"], self.rewards], file)

    def load_checkpoint(self, path: str) -> None:
        with open(os.path.join(path, "state.json")) as file:
            self.items["train"], self.rewards = json.load(file)


class Ranks:
    """The training processes: shards named as FSDP's, which must be whole."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def _shards(self, folder: str) -> list[Path]:
        names = [f"model_world_size_{self._ranks}_rank_{rank}.pt" for rank in range(self._ranks)]
        return [Path(folder) / name for name in names]

    def save_checkpoint(self, path: str, remote: Any, step: int, max_ckpt_to_keep: int | None = None) -> None:
        os.makedirs(path, exist_ok=True)
        for shard in self._shards(path):
            with shard.open("wb") as file:
                file.write(step.to_bytes(4, "big") * (SHARD_BYTES // 4))

    def load_checkpoint(self, local_path: str, **_: Any) -> None:
        for shard in self._shards(local_path):
            content = shard.read_bytes()
            if len(content) != SHARD_BYTES or content[:4] * (SHARD_BYTES // 4) != content:
                raise RuntimeError(f"{shard} is not whole")


# ---------------------------------------------------------------------- the trainer


def made(shape: Shape, folder: Path, journal: Journal, world: simulated_run.World, last: int, phases: Phases) -> Any:
    """A trainer whose checkpoints and record are in a folder; the part that simulated runs leave out."""
    spo = SpoConfig(
        late=LateConfig(policy=shape.late),
        forgetting=ForgettingConfig(mode=shape.forgetting, rho=shape.rho[0] / shape.rho[1]),
    )
    setting = simulated_run.Setting(
        shape.mode,
        prompts=shape.prompts,
        batch=shape.batch,
        spo=spo,
        warmup=shape.warmup,
        sync_step=shape.sync_step,
        threshold=shape.threshold,
        sessions=shape.sessions,
        refill_failed=shape.mode == "sync",
        resumed=0,
    )
    one = simulated_run.build(setting, world)
    more = {
        "default_local_dir": str(folder),
        "default_hdfs_dir": None,
        "resume_mode": "auto",
        "save_freq": shape.save_freq,
        "max_actor_ckpt_to_keep": shape.keep,
        "del_local_ckpt_after_load": False,
        "nnodes": 1,
        "n_gpus_per_node": shape.ranks,
    }
    one.config = OmegaConf.merge(one.config, {"trainer": more, "actor_rollout_ref": {"actor": {}}})
    tracker = one.tracker = Journaled(journal)
    tracker.step = lambda: one.global_steps
    one.actor_rollout_wg = Ranks(shape.ranks)
    one.checkpoint_callback = SimpleNamespace(
        on_save=lambda global_step, **_: (journal.write("ack", global_step), phases.set(MAIN, "save"))
    )
    one._recorder = recording.Recorder(
        RecordWriter(folder / FOLDER, 2**30),
        recording.Prompts(one._keys, []),
        mode=spo.forgetting.mode,
        run={"config": {"spo": {}}},
    )
    one._checkpoint = CheckpointFollower(
        one.config.trainer, tracker, one._keys.key_P, TrackerSettings.of(spo), recorder=one._recorder
    )
    one.train_dataloader = PrioritizedDataLoader(
        [{"raw_prompt": f"p{row}", "index": row} for row in range(shape.prompts)],
        trainer.CurrentWeights(tracker, lambda: one.global_steps - 1),
        batch_size=shape.batch,
        collate_fn=collate_fn,
        slot_field=trainer.SLOT_FIELD,
        before_state_dict=one._checkpoint.finish_write,
        on_foreign_state=one._checkpoint.note_foreign_state,
    )
    one._load_checkpoint()
    one.total_training_steps = one.global_steps + last
    one.on_init_end()
    return one


def train(shape: Shape, folder: Path, journal: Journal, incident: Incident | None, phases: Phases, last: int) -> None:
    """Continue the run in a folder for so many steps, and meet what is planned for this process."""
    seed = 0 if incident is None else incident.seed
    world = simulated_run.World(np.random.default_rng(seed), simulated_run.somehow(shape.failing), shape.sessions)
    world.queue = SavedQueue()
    phases.set(MAIN, "start")
    with simulated_run.patched(world), watched(phases), hurt(incident, phases):
        one = made(shape, folder, journal, world, last, phases)
        begin = one.on_train_begin

        def begun() -> None:
            phases.set(MAIN, "step")
            begin()

        one.on_train_begin = begun
        one.fit(world)
    phases.set(MAIN, "after")


def main(
    shape: Shape, folder: Path, journal: Path, log: Path, incident: Incident | None, phases: Phases, last: int,
    prepare: Callable[[], None],
) -> NoReturn:  # fmt: skip
    """Train in this process, which ends here."""
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        lines = Journal(journal)
        simulated_run.POLLS = 10**9
        prepare()
        try:
            train(shape, folder, lines, incident, phases, last)
            lines.write("end")
            status = ENDED
        except (SpoError, OSError) as reason:
            lines.write("error", type(reason).__name__, str(reason), phases.get(MAIN))
            status = STOPPED
        except BaseException as reason:
            lines.write("error", type(reason).__name__, str(reason), phases.get(MAIN))
            logging.exception("the process ends")
            raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


# ---------------------------------------------------------------------- where it is, and what happens to it

_here = threading.local()


@contextlib.contextmanager
def watched(phases: Phases) -> Iterator[None]:
    """Note where the threads are: in ``phases``, and in ``_here.phase`` of each."""

    def noted(function: Callable, of: tuple[str, ...], name: str) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            before, outer = phases.get(of), getattr(_here, "phase", None)
            inside = before == "merge"  # a merge writes a part
            if not inside:
                phases.set(of, name)
                _here.phase = name
            result = function(*args, **kwargs)
            if not inside:
                phases.set(of, before)
                _here.phase = outer
            return result

        return wrapper

    places = [
        (Snapshot, "write", TRACKER, "writing"),
        (folders, "_publish", TRACKER, "publishing"),
        (_Disk, "store", RECORD, "part"),
        (_Disk, "merge", RECORD, "merge"),
        (_Disk, "resume", RECORD, "going back"),
        (trainer.SpoTrainer, "_save_checkpoint", MAIN, "save"),
        (trainer.SpoTrainer, "_load_checkpoint", MAIN, "start"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, of, phase in places:
            stack.enter_context(mock.patch.object(owner, name, noted(getattr(owner, name), of, phase)))
        yield


KILLED_IN = {
    "kill in save": ("writing", "publishing"),
    "kill in merge": ("merge",),
    "kill at start": ("start", "going back"),
}
CALLS = {"kill in save": 14, "kill in merge": 8, "kill at start": 10}
"""About as many calls as a whole phase has."""
EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "fsync"})


class Killer:
    """Kills its process at the chosen call that changes the disk, or shortly after."""

    def __init__(self, incident: Incident) -> None:
        self._phases = KILLED_IN[incident.kind]
        passed = 0 if incident.kind == "kill at start" else incident.passed
        self._left = int(incident.moment * CALLS[incident.kind]) + passed * CALLS[incident.kind]
        self._delay = incident.delay
        sys.addaudithook(lambda event, _: self._look(event))
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self._look("fsync")
            fsync(descriptor)

        os.fsync = counted

    def _look(self, event: str) -> None:
        if event in EVENTS and getattr(_here, "phase", None) in self._phases:
            if self._left == 0:
                if self._delay:
                    threading.Timer(self._delay, die).start()
                else:
                    die()
            self._left -= 1


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def hurt(incident: Incident | None, phases: Phases) -> Iterator[None]:
    """What happens inside of the process."""
    with contextlib.ExitStack() as stack:
        if incident is not None and incident.kind in KILLED_IN:
            Killer(incident)
        opened = marker_opener(incident, phases)
        stack.enter_context(mock.patch.object(trainer_base, "open", opened, create=True))
        if incident is not None and incident.kind == "clock jump":
            stack.enter_context(jumping_clock(incident))
        yield


def marker_opener(incident: Incident | None, phases: Phases) -> Callable:
    """``open`` of verl's trainer, which it calls for the marker: may die before, while it is empty, or after."""
    kills = incident is not None and incident.kind == "kill at marker"
    left = incident.passed if incident is not None else 0

    def opened(path: Any, mode: str = "r", **kwargs: Any) -> Any:
        nonlocal left
        if not (str(path).endswith(MARKER) and "w" in mode):
            return builtins.open(path, mode, **kwargs)
        phases.set(MAIN, "marker")
        place = int(incident.moment * 3) if kills and incident is not None and left == 0 else None
        left -= 1
        if place == 0:
            die()
        file = builtins.open(path, mode, **kwargs)  # noqa: SIM115 - whoever asked closes it
        if place == 1:
            die()
        if place == 2:
            threading.Timer(0.0, die).start()
        return file

    return opened


@contextlib.contextmanager
def jumping_clock(incident: Incident) -> Iterator[None]:
    """The wall clock, and the times of files, jump at some moment; the monotonic clock does not."""
    real, begin = time.time, time.monotonic()

    def offset() -> float:
        return incident.jump if time.monotonic() - begin > 0.15 * incident.moment else 0.0

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=offset())

    def jumping() -> float:
        return real() + offset()

    with mock.patch.object(time, "time", jumping), mock.patch.object(recording, "datetime", Jumping):
        yield


def touch(folder: Path, jump: float, seed: int) -> None:
    """Give half of the files a time that a clock gave them before it jumped."""
    rng, when = random.Random(seed), max(0.0, time.time() + jump)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if rng.random() < 0.5:
            with contextlib.suppress(FileNotFoundError):  # merged or replaced meanwhile
                os.utime(path, (when, when))
