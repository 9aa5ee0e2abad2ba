"""A run of verl's real trainer classes without engines: its loop, buffer and hooks, and a queue in a dictionary.

Time passes when the buffer polls and during updates. A rollout that was dispatched begins when time passes next while
generation is live; the version that is published at that moment is the one that generates it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import replay_buffer, trainer_base
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from spo_verl.config import SpoConfig
from spo_verl.data.identity import DatasetKeys
from spo_verl.data.loader import PrioritizedDataLoader
from spo_verl.record import RecordWriter
from spo_verl.tracker import PromptSources, Tracker
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.training import asynchronous, in_flight, recording, rewards, trainer
from spo_verl.training.early_warnings import EarlyWarnings, RunFacts
from spo_verl.training.estimator import spo_advantage
from spo_verl.training.metrics import Stopwatch
from spo_verl.training.quotas import SourceRecord
from spo_verl.training.samples import SampleLog

POLLS = 400
"""More than any simulated step needs; then it waits for ever."""


class Queue:
    """TransferQueue: the verbs that trainer, buffer and rewards use."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, dict]] = {"train": {}, "val": {}}
        self.rewards: dict[str, float] = {}

    def kv_list(self, partition: str | None = None) -> dict:
        return {
            name: {key: dict(tag) for key, tag in items.items()}
            for name, items in self.items.items()
            if partition in (None, name)
        }

    def kv_clear(self, keys, partition_id) -> None:
        for key in keys:
            self.items[partition_id].pop(key, None)

    def kv_batch_put(self, keys, partition_id, tags, fields=None) -> None:
        for key, tag in zip(keys, tags, strict=True):
            self.items[partition_id].setdefault(key, {}).update(tag)

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        if select_fields is None:
            return tu.get_tensordict({"uid": np.array(keys, dtype=object)})
        rows = [torch.tensor([self.rewards[key]]) for key in keys]
        return {"rm_scores": torch.nested.nested_tensor(rows, layout=torch.jagged)}


@dataclasses.dataclass
class Step:
    """What a step was made of."""

    version: int
    uids: list[str]


class World:
    """Rollout servers, agent loops and weights, as far as a trainer sees them.

    Attributes:
        began: the version that began to generate each rollout.
        recorded: the version that the tracker has for it.
        outcomes: (uid, session) -> reward of everything that was verified.
    """

    def __init__(self, rng: np.random.Generator, fate: Callable[[World], list[tuple[str, str]]], sessions: int = 1):
        self.queue, self.rng, self.fate, self.sessions = Queue(), rng, fate, sessions
        self.version, self.live, self.polls = -1, False, 0
        self.sent: list[str] = []
        self.running: dict[str, int] = {}
        self.began: dict[str, int] = {}
        self.recorded: dict[str, int] = {}
        self.slot: dict[str, int] = {}
        self.outcomes: dict[tuple[str, int], float] = {}
        self.steps: list[Step] = []

    # -- verl's managers

    def generate_sequences(self, batch: Any) -> None:
        self.sent += [str(uid) for uid in batch["uid"]]

    def update_weights(self, version: int) -> dict:
        self.version, self.live = version, True
        return {}

    def resume_generation_replicas(self) -> None:
        self.live = True

    def abort_replicas(self, **_: Any) -> None:
        self.live = False

    def sleep_replicas(self) -> None:
        self.live = False

    def stop(self, manager: Any, uids: set[str]) -> None:
        """Cancel; some finish before it reaches them."""
        self._begin()
        for uid in sorted(uids):
            if self.running.pop(uid, None) is None:
                self.sent = [other for other in self.sent if other != uid]
            elif self.rng.random() < 0.2:
                self._end(uid, "finished")

    # -- time

    def _begin(self) -> None:
        if self.live:
            for uid in self.sent:
                self.began[uid] = self.version
                self.running[uid] = 0
                self.queue.items["train"][uid]["status"] = "running"
            self.sent = []

    def _end(self, uid: str, status: str) -> None:
        self.running.pop(uid, None)
        self.queue.items["train"][uid]["status"] = status
        # Of a failed group the first session may have finished.
        for session in range(self.sessions if status == "finished" else int(self.rng.integers(self.sessions))):
            reward = float(self.rng.integers(2))
            key = f"{uid}_{session}_0"
            self.outcomes[uid, session] = self.queue.rewards[key] = reward
            began = self.began.get(uid, 0)
            spans = {"min_global_steps": began, "max_global_steps": max(began, self.version)}
            self.queue.items["train"][key] = {"response_len": 3, "global_steps": 0, **spans}

    def poll(self, *_: Any) -> float:
        self.polls += 1
        assert self.polls < POLLS, "the run waits for ever"
        self.pass_time()
        return 0.0

    def pass_time(self) -> None:
        self._begin()
        if self.live:
            for uid in self.running:
                self.running[uid] += 1
            for uid, status in self.fate(self):
                self._end(uid, status)


def somehow(failing: float = 0.0, patience: int = 12) -> Callable[[World], list[tuple[str, str]]]:
    """Rollouts end in random order, some fail, and none runs for longer than ``patience`` polls."""

    def fate(world: World) -> list[tuple[str, str]]:
        speed = world.rng.random() ** 2
        ending = [uid for uid, age in world.running.items() if age >= patience or world.rng.random() < speed]
        failed = world.rng.random(len(ending)) < failing
        return [(uid, "failure" if bad else "finished") for uid, bad in zip(ending, failed, strict=True)]

    return fate


class Client:
    """The tracker in this process, under the face of its service."""

    def __init__(self, tracker: Tracker, world: World) -> None:
        self.tracker, self.world, self.most_open, self.observed = tracker, world, 0, Counter[tuple[str, int]]()
        self.frozen: dict[str, tuple[float, float]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tracker, name)

    def dispatch(self, uids, slot_B, version):
        frozen = self.tracker.dispatch(uids, slot_B, version)
        self.world.recorded.update(dict.fromkeys(uids, version))
        self.world.slot.update(zip(uids, np.asarray(slot_B).tolist(), strict=True))
        self._note(uids, frozen)
        self.most_open = max(self.most_open, self.tracker.open_count)
        return frozen

    def redispatch(self, uids, version):
        self.world.recorded.update(dict.fromkeys(uids, version))
        frozen = self.tracker.redispatch(uids, version)
        self._note(uids, frozen)
        return frozen

    def _note(self, uids, frozen):
        self.frozen.update(zip(uids, zip(frozen.value_B.tolist(), frozen.n_eff_B.tolist(), strict=True), strict=True))

    def absorb(self, late):
        for entry in late:
            self.observed.update(zip(entry.uids, np.asarray(entry.session_B).tolist(), strict=True))
        return self.tracker.absorb(late)

    def finish_step(self, uids, session_B, reward_B, *, late=(), **rest):
        self.observed.update(zip(uids, np.asarray(session_B).tolist(), strict=True))
        for entry in late:
            self.observed.update(zip(entry.uids, np.asarray(entry.session_B).tolist(), strict=True))
        self.world.steps.append(Step(self.world.version, sorted(set(uids))))
        return self.tracker.finish_step(uids, session_B, reward_B, late=late, **rest)

    def stop(self) -> None:
        pass


class NoEngine(PPOTrainer):
    """What needs engines is left out; behind ``AfterOldLogProb``, as the trainer of a mode calls it."""

    def _compute_old_log_prob(self, batch, metrics):
        return batch

    def _compute_advantage(self, batch, metrics):
        spo_advantage(torch.zeros(len(batch.keys), 1), torch.ones(len(batch.keys), 1))
        return batch

    def _update_actor(self, batch, metrics):
        self.checkpoint_manager.pass_time()
        return batch

    def _compute_metrics(self, batch, metrics, *_, **__):
        self.logged.append(dict(metrics))

    def _start_profiling(self):
        pass

    _stop_profiling = _shutdown_dump_executor = _start_profiling


@functools.cache
def simulated_class(mode: str) -> type:
    mode_class = get_trainer_cls(mode)

    class Simulated(trainer.SpoTrainer, mode_class, trainer.AfterOldLogProb, NoEngine):  # type: ignore[misc, valid-type]
        def _balance_batch(self, batch, metrics, *_, **__):
            return batch  # the ranks of an engine; tests/training/test_order.py looks at them

        def prepare_step(self):
            metrics = super().prepare_step()
            self.in_flight.append(len(asynchronous._registered_prompts()))
            return metrics

    return Simulated


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run."""

    mode: str
    prompts: int
    batch: int
    spo: SpoConfig = dataclasses.field(default_factory=SpoConfig)
    warmup: float = 0.5
    sync_step: int = 1
    steps: int = 4
    threshold: int | None = None
    sessions: int = 1
    refill_failed: bool = False
    slots_of_source: tuple[str, ...] | None = None
    favourites: int = 0
    """The first so many prompts are drawn before the others."""
    restored: int = 0
    """Rollouts in flight at the checkpoint that is resumed; a third of them has finished."""
    resumed: int = 0
    """Step of that checkpoint."""
    record: Path | None = None
    """Folder of the record; None records nothing."""

    def config(self) -> Any:
        v1 = {
            "trainer_mode": self.mode,
            "sync": {},
            "sampler": {
                "max_off_policy_threshold": self.threshold,
                "max_off_policy_strategy": "drop",
                "sampler_kwargs": {},
                "sync_refill_failed_groups": self.refill_failed,
            },
        }
        if self.mode != "sync":
            v1[self.mode] = {"num_warmup_batches": self.warmup, "parameter_sync_step": self.sync_step}
        trainer = {"v1": v1, "total_epochs": 10**9, "critic_warmup": 0, "save_freq": -1, "test_freq": -1}
        trainer |= {"val_before_train": False, "project_name": "", "experiment_name": "", "logger": []}
        data = {"train_batch_size": self.batch}
        if self.mode != "sync" or self.refill_failed:
            data["gen_batch_size"] = 1
        return OmegaConf.create(
            {
                "data": data,
                "trainer": trainer,
                "algorithm": {"rollout_correction": None, "filter_groups": None},
                "skip": {"rollout_tq": {"enable": False}},
                "global_profiler": {"steps": None},
                "actor_rollout_ref": {"rollout": {"temperature": 1.0}},
                "reward": {"reward_model": {"enable": False}},
            }
        )


def keys(prompts: int) -> np.ndarray:
    return np.arange(2 * prompts, dtype=np.uint64).reshape(prompts, 2).view("V16")[:, 0].copy()


def build(setting: Setting, world: World) -> Any:
    """The SPO trainer of a mode, ready to fit."""
    made = object.__new__(simulated_class(setting.mode))
    made.config, made.spo, made.trainer_mode = setting.config(), setting.spo, setting.mode
    made.parameter_sync_step, made.local_trigger_step = setting.sync_step, 0
    made.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    made.replay_buffer = made._build_replay_buffer()
    made.replay_buffer._wait_for_next_poll = world.poll
    made._aborts = trainer.aborts(made.config, setting.spo)
    made._choose_n = made._movement = made._stage = made._static_value_P = None
    made._stopwatch, made._dispatched, made.logged = Stopwatch(), set(), []
    made._samples = SampleLog(setting.spo.samples_every)
    made._warnings = EarlyWarnings(RunFacts.of(setting.spo, setting.batch))
    made.in_flight = []
    made.use_reference_policy = made.use_critic = False
    made._restored_tq_prompt_count, made.global_steps = setting.restored, setting.resumed
    made.total_training_steps, made.steps_per_epoch = setting.resumed + setting.steps, 10**9
    made.checkpoint_manager = made.standalone_checkpoint_manager = world
    made.actor_rollout_wg = mock.MagicMock()
    made._enable_hybrid_replicas, made.current_mode = False, None
    made.hybrid_rollout_config = SimpleNamespace(enable_switch=False)
    sources = None if setting.slots_of_source is None else PromptSources.of(setting.slots_of_source)
    made._source_record = None if sources is None else SourceRecord(sources)
    # Without an exploration bonus a value of almost 0 is almost never drawn.
    value_P = np.where(np.arange(setting.prompts) < (setting.favourites or setting.prompts), 0.5, 1e-12)
    tracker = Tracker.create(
        keys(setting.prompts), TrackerSettings.of(setting.spo), alpha_P=value_P, beta_P=1 - value_P, sources=sources
    )
    key_P, rows = keys(setting.prompts), np.arange(setting.prompts)
    made._keys, made._sources = DatasetKeys(key_P, rows, rows.copy()), sources
    writer = None if setting.record is None else RecordWriter(setting.record, 2**30)
    made._recorder = recording.Recorder(
        writer, recording.Prompts(made._keys, []), mode=setting.spo.forgetting.mode, run={"made": True}
    )
    made.tracker = Client(tracker, world)
    made.train_dataloader = PrioritizedDataLoader(
        [{"raw_prompt": f"p{row}", "index": row} for row in range(setting.prompts)],
        trainer.CurrentWeights(made.tracker, lambda: made.global_steps - 1),
        batch_size=setting.batch,
        collate_fn=collate_fn,
        slot_field=trainer.SLOT_FIELD,
    )
    made.train_dataloader_it = None
    if setting.restored:
        uids = [f"restored{number}" for number in range(setting.restored)]
        for first in range(0, setting.restored, setting.prompts):
            some = uids[first : first + setting.prompts]
            made.tracker.dispatch(some, tracker.draw(len(some)).slot_B, setting.resumed - 1)
        tags = [{"is_prompt": True, "status": "running", "global_steps": setting.resumed} for _ in uids]
        world.queue.kv_batch_put(uids, "train", tags)
        for uid in uids[: setting.restored // 3]:
            world.began[uid] = setting.resumed - 1
            world._end(uid, "finished")
        made._match_restored_rollouts()
    made.on_init_end()
    return made


@contextlib.contextmanager
def patched(world: World) -> Iterator[None]:
    """verl's queue, loggers and cancellation are those of the world."""
    nothing = mock.MagicMock()
    with contextlib.ExitStack() as stack:
        logging.disable(logging.INFO)
        stack.callback(logging.disable, logging.NOTSET)
        for module in (trainer_base, replay_buffer, in_flight, rewards, asynchronous):
            stack.enter_context(mock.patch.object(module, "tq", world.queue))
        for name in ("Tracking", "ValidationGenerationsLogger", "DapoFilteredRewardTableLogger", "tqdm", "pprint"):
            stack.enter_context(mock.patch.object(trainer_base, name, nothing))
        stack.enter_context(mock.patch.object(trainer_base.SkipManager, "init", nothing))
        stack.enter_context(mock.patch.object(trainer_base.SkipManager, "set_step", nothing))
        stack.enter_context(mock.patch.object(asynchronous, "abort_rollouts", world.stop))
        yield


def run(setting: Setting, fate: Callable[[World], list[tuple[str, str]]], seed: int = 0) -> tuple[World, Any]:
    """Start and train to the end; what happened, and the trainer."""
    world = World(np.random.default_rng(seed), fate, setting.sessions)
    with patched(world):
        made = build(setting, world)
        made.fit(world)
    return world, made
