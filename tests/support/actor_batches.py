"""A step of verl without its machines: trainer, replay buffer and mini-batch loop around a queue in a dictionary."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.trainer.ppo import padding_utils
from verl.trainer.ppo.v1 import get_trainer_cls, replay_buffer
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker

from tests.support.verl_config import compose_verl

MODES = {
    "sync": ["trainer.v1.trainer_mode=sync"],
    "colocate_async": ["trainer.v1.trainer_mode=colocate_async"],
    "separate_async": [
        "trainer.v1.trainer_mode=separate_async",
        "trainer.v1.separate_async.parameter_sync_step=1",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    ],
}
SPO = ["+spo=paper"]


class Queue:
    """The verbs of TransferQueue that dispatch, sampling and padding use."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, dict]] = {"train": {}}

    def kv_list(self, partition_id: str | None = None) -> dict:
        return {name: dict(items) for name, items in self.items.items()}

    def kv_clear(self, keys: Sequence[str], partition_id: str) -> None:
        for key in keys:
            self.items[partition_id].pop(key, None)

    def kv_batch_put(self, keys: Sequence[str], partition_id: str, fields: Any = None, tags: Any = None) -> None:
        for key, tag in zip(keys, tags, strict=True):
            self.items[partition_id].setdefault(key, {}).update(tag)

    def kv_batch_get(self, keys: Sequence[str], partition_id: str) -> list[dict]:
        """What verl's padding copies from the first row."""
        return [{"uid": keys[0].split("_")[0]}]


class Actors:
    """A worker group whose ranks run verl's own loop over mini-batches and note what each of them holds."""

    def __init__(self, ranks: int) -> None:
        self._dispatch_info = {"actor": list(range(ranks))}
        self.ranks = ranks
        self.mini_batches: list[list[list[str]]] = []
        """Mini-batch -> rank -> keys, of the last update; epochs follow each other."""

    def update_actor(self, meta: Any) -> TensorDict:
        seen: dict[int, list[list[str]]] = defaultdict(list)
        for rank, part in enumerate(meta.chunk(self.ranks)):
            data = TensorDict({"row": torch.arange(len(part))}, batch_size=len(part))
            tu.assign_non_tensor(data, **meta.extra_info)
            number = iter(range(len(part)))

            def note(
                mini: TensorDict, rank: int = rank, keys: list[str] = part.keys, number: Any = number
            ) -> TensorDict:
                seen[next(number)].append([keys[row] for row in mini["row"].tolist()])
                return TensorDict({}, batch_size=[])

            engine = SimpleNamespace(
                get_data_parallel_size=lambda: self.ranks,
                get_data_parallel_rank=lambda rank=rank: rank,
                train_mode=lambda **_: contextlib.nullcontext(),
                is_mp_src_rank_with_outputs=lambda: False,
            )
            worker = SimpleNamespace(engine=engine, train_batch=note, profiler=SimpleNamespace(step=lambda: None))
            TrainingWorker.train_mini_batch(worker, data)
        self.mini_batches = [seen[number] for number in sorted(seen)]
        return tu.get_tensordict({}, {"metrics": {"mfu": [0.0]}})


class Step:
    """One trainer, whose steps are dispatched, finish in a given order, and are updated on."""

    def __init__(
        self, monkeypatch: Any, overrides: Sequence[str], *, mode: str = "sync", ranks: int = 1, prompts: int = 64
    ) -> None:
        self.queue = Queue()
        self._monkeypatch = monkeypatch
        config = copy.deepcopy(_composed(*MODES[mode], f"data.train_batch_size={prompts}", *overrides))
        self.trainer = get_trainer_cls(mode)(config=config)
        self.use(ranks)
        self.trainer.tokenizer = SimpleNamespace(eos_token_id=0)
        self.trainer.global_steps = 1
        self.prompts = prompts

    def use(self, ranks: int) -> None:
        """Let so many data-parallel ranks do the next updates."""
        self.actors = Actors(ranks)
        self.trainer.actor_rollout_wg = self.actors

    def run(self, length_of: dict[tuple[int, int, int], int], finished: Sequence[tuple[int, int, int]], uids: list[str],
            dispatched: Sequence[int] | None = None) -> list[list[list[tuple[int, int, int]]]]:  # fmt: skip
        """Dispatch, finish, sample, balance, update.

        Args:
            length_of: tokens of each row: (prompt, session, output).
            finished: rows in the order in which they finish.
            uids: verl's random name of each prompt.
            dispatched: order in which prompts were dispatched; None: ascending.

        Returns:
            mini-batch -> rank -> rows as (prompt, session, output); padding is (-1, number, 0).
        """
        for module in (replay_buffer, padding_utils):
            self._monkeypatch.setattr(module, "tq", self.queue)
        self.queue.items["train"].clear()
        for number in dispatched or range(len(uids)):
            tag = {"is_prompt": True, "status": "finished", "global_steps": self.trainer.global_steps}
            self.queue.items["train"][uids[number]] = tag
        for row in finished:
            key = f"{uids[row[0]]}_{row[1]}_{row[2]}"
            self.queue.items["train"][key] = {"seq_len": length_of[row], "response_len": length_of[row]}
        batch, _ = self.trainer.replay_buffer.sample(self.trainer.global_steps, "train", self.prompts)
        self.metrics: dict = {}
        batch = self.trainer._balance_batch(batch, metrics=self.metrics)
        self.trainer._update_actor(batch, metrics={})
        number_of = {uid: number for number, uid in enumerate(uids)}

        def row_of(key: str) -> tuple[int, int, int]:
            uid, session, output = key.rsplit("_", 2)
            return number_of.get(uid, -1), int(session), int(output)

        return [[[row_of(key) for key in keys] for keys in rank] for rank in self.actors.mini_batches]


@functools.cache
def _composed(*overrides: str) -> DictConfig:
    return compose_verl(overrides)
