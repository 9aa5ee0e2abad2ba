"""What agent-loop workers do for many rollouts at once; modules are stand-ins with the form of verl's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
from ray import cloudpickle

from spo_verl.cpu import agent_loops
from spo_verl.cpu.agent_loops import (
    Gathering,
    GatheringQueue,
    LocalRewardWorker,
    build_loops_directly,
    gather_puts,
    keep_the_only_server,
    score_in_the_worker,
)
from spo_verl.cpu.checkpoint_engines import MODULE, leave_out
from spo_verl.cpu.columns import NOT_FOR_TRAINING, fetch_fewer_columns


class Loop:
    """An agent loop without settings, or with one."""

    def __init__(self, tokenizer: Any, limit: int = 3) -> None:
        self.tokenizer, self.limit = tokenizer, limit


def test_a_loop_without_settings_is_built_by_its_class_and_others_by_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    module, by_hydra = ModuleType("agent_loop"), []
    stock = hydra.utils.instantiate
    monkeypatch.setattr(hydra.utils, "instantiate", lambda **given: by_hydra.append(given) or stock(**given))
    module.hydra = hydra  # type: ignore[attr-defined]
    build_loops_directly(module)
    name, tokenizer = f"{__name__}.Loop", object()
    plain = module.hydra.utils.instantiate(config={"_target_": name}, tokenizer=tokenizer)
    assert isinstance(plain, Loop)
    assert (plain.tokenizer, plain.limit, by_hydra) == (tokenizer, 3, [])
    other = module.hydra.utils.instantiate(config={"_target_": name}, tokenizer=tokenizer)
    assert other is not plain  # a rollout has a loop of its own
    set_ = module.hydra.utils.instantiate(config={"_target_": name, "limit": 5}, tokenizer="t")
    assert (set_.limit, len(by_hydra)) == (5, 1)


@pytest.mark.parametrize(
    ("handles", "model", "local"),
    [(["far"], False, True), ([], False, True), (["far"], True, False), (None, False, False)],
)
def test_rewards_are_computed_in_the_worker_unless_a_model_gives_them(
    handles: Any, model: bool, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, built = ModuleType("agent_loop"), []

    class AgentLoopWorker:
        def __init__(self) -> None:
            self.reward_loop_worker_handles = handles
            self.config = SimpleNamespace(reward=SimpleNamespace(reward_model=SimpleNamespace(enable=model)))
            self.scores: list[Any] = []

        async def _compute_score(self, outputs: Any, kwargs: Any) -> None:
            one = (self.reward_loop_worker_handles or [None])[0]
            data = SimpleNamespace(non_tensor_batch={"number": outputs})
            self.scores.append(await one.compute_score.remote(data) if isinstance(one, LocalRewardWorker) else one)

    class RewardWorker:
        def __init__(self, config: Any) -> None:
            built.append(config)

        async def compute_score(self, data: Any) -> int:
            return 2 * data.non_tensor_batch["number"]

    module.AgentLoopWorker = AgentLoopWorker  # type: ignore[attr-defined]
    monkeypatch.setattr(agent_loops, "_reward_worker", RewardWorker)
    score_in_the_worker(module)
    worker = AgentLoopWorker()

    async def two_rollouts() -> None:
        await worker._compute_score(1, kwargs={})
        await worker._compute_score(2, kwargs={})

    asyncio.run(two_rollouts())
    assert worker.scores == ([2, 4] if local else [(handles or [None])[0]] * 2)
    assert built == ([worker.config] if local else [])


def test_what_a_reward_manager_writes_reaches_no_other_rollout_of_the_prompt() -> None:
    extra_info = {"of_the_dataset": [1]}

    class RewardWorker:
        async def compute_score(self, data: Any) -> Any:
            (mine,) = data.non_tensor_batch["extra_info"]
            mine["num_turns"] = data.non_tensor_batch["__num_turns__"]
            mine["of_the_dataset"].append(2)
            await asyncio.sleep(0)  # verl's managers decode the response here
            return mine["num_turns"]

    async def rollouts() -> list[int]:
        handle = LocalRewardWorker(RewardWorker())
        fields = ({"extra_info": np.array([extra_info]), "__num_turns__": turns} for turns in (1, 2, 3))
        return await asyncio.gather(
            *(handle.compute_score.remote(SimpleNamespace(non_tensor_batch=one)) for one in fields)
        )

    assert asyncio.run(rollouts()) == [1, 2, 3]
    assert extra_info == {"of_the_dataset": [1]}  # it is stored with the rollout, as the dataset has it


def gathered(items: Sequence[Any], deliver: Any, *, cancel: Sequence[int] = ()) -> list[Any]:
    """Put all items at once; what became of each."""

    async def run() -> list[Any]:
        gathering: Gathering[Any] = Gathering(deliver)
        tasks = [asyncio.create_task(gathering.put(item)) for item in items]
        await asyncio.sleep(0)
        for index in cancel:
            tasks[index].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(run())


def test_what_arrives_during_a_delivery_is_delivered_together_and_in_order() -> None:
    delivered: list[list[int]] = []

    async def deliver(items: list[int]) -> None:
        delivered.append(items)
        await asyncio.sleep(0.01)

    async def run() -> None:
        gathering: Gathering[int] = Gathering(deliver)
        first = asyncio.create_task(gathering.put(0))
        await asyncio.sleep(0.001)
        rest = [asyncio.create_task(gathering.put(item)) for item in range(1, 100)]
        await first
        assert not any(task.done() for task in rest)  # a put is over when it is delivered
        await asyncio.gather(*rest)
        await gathering.put(100)

    asyncio.run(run())
    assert delivered == [[0], list(range(1, 100)), [100]]


def test_an_error_reaches_the_item_that_is_at_fault_only() -> None:
    async def deliver(items: list[int]) -> None:
        if 3 in items:
            raise ValueError("three")

    ends = gathered(range(5), deliver)
    assert ends[:3] + ends[4:] == [None] * 4
    assert isinstance(ends[3], ValueError)


def test_an_error_of_one_kind_delivers_nothing_of_another_kind_again() -> None:
    delivered: list[list[str]] = []

    async def deliver(items: list[str]) -> None:
        if "bad" in items:
            raise ValueError("bad")
        delivered.append(items)

    async def run() -> list[Any]:
        gathering: Gathering[str] = Gathering(deliver)
        items = (("a", 1), ("x", 2), ("b", 1), ("bad", 2))
        return await asyncio.gather(*(gathering.put(item, kind) for item, kind in items), return_exceptions=True)

    ends = asyncio.run(run())
    assert ends[:3] == [None] * 3
    assert isinstance(ends[3], ValueError)
    # The reader of the queue may have cleared "a" and "b" by the time of "bad".
    assert delivered == [["a", "b"], ["x"]]


def test_nobody_waits_for_a_delivery_that_was_cancelled() -> None:
    async def deliver(items: list[int]) -> None:
        raise asyncio.CancelledError  # a socket that was closed cancels what waits for it

    async def run() -> list[Any]:
        gathering: Gathering[int] = Gathering(deliver)
        for _ in range(2):
            puts = asyncio.gather(*(gathering.put(item, item % 2) for item in range(3)), return_exceptions=True)
            ends = await asyncio.wait_for(puts, timeout=5)
        return ends

    assert [type(end) for end in asyncio.run(run())] == [asyncio.CancelledError] * 3


def test_a_cancelled_put_is_not_delivered() -> None:
    delivered: list[int] = []

    async def deliver(items: list[int]) -> None:
        delivered.extend(items)

    ends = gathered(range(4), deliver, cancel=[1])
    assert delivered == [0, 2, 3]
    assert [end for end in ends if end is not None] == [ends[1]]
    assert isinstance(ends[1], asyncio.CancelledError)


class Queue:
    """TransferQueue's module: what is put, call by call."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    async def async_kv_batch_put(self, **given: Any) -> None:
        self.calls.append(given)
        await asyncio.sleep(0)

    async def async_kv_put(self, **given: Any) -> None:
        raise AssertionError("one by one")

    def init(self) -> str:
        return "started"


def test_puts_of_one_partition_and_the_same_fields_share_a_call() -> None:
    queue, module = Queue(), ModuleType("agent_loop_tq")
    module.tq, module.list_of_dict_to_tensordict = queue, lambda rows: ("table", rows)  # type: ignore[attr-defined]
    gather_puts(module)
    gather_puts(module)  # for the second target of the same module
    assert isinstance(module.tq, GatheringQueue)
    assert module.tq.init() == "started"

    async def rollout(number: int, partition: str) -> None:
        uid = f"u{number}"
        await module.tq.async_kv_put(key=uid, partition_id=partition, tag={"status": "running"})
        rows = [{"a": number, "b": index} for index in range(2)]
        keys = [f"{uid}_0_{index}" for index in range(2)]
        fields = module.list_of_dict_to_tensordict(rows)
        tags = [{"n": index} for index in range(2)]
        await module.tq.async_kv_batch_put(keys=keys, fields=fields, tags=tags, partition_id=partition)
        await module.tq.async_kv_put(key=uid, partition_id=partition, tag={"status": "finished"})

    async def run() -> None:
        await asyncio.gather(rollout(0, "train"), rollout(1, "train"), rollout(2, "val"))

    asyncio.run(run())
    # Two partitions, and three puts of each rollout one after the other.
    assert len(queue.calls) == 6
    train = [call for call in queue.calls if call["partition_id"] == "train"]
    assert [call["keys"] for call in train] == [["u0", "u1"], ["u0_0_0", "u0_0_1", "u1_0_0", "u1_0_1"], ["u0", "u1"]]
    assert [call["fields"] for call in train] == [
        None,
        ("table", [{"a": number, "b": index} for number in (0, 1) for index in (0, 1)]),
        None,
    ]
    assert [call["tags"] for call in train] == [
        [{"status": "running"}] * 2,
        [{"n": 0}, {"n": 1}] * 2,
        [{"status": "finished"}] * 2,
    ]


def test_a_queue_travels_with_the_class_of_an_actor() -> None:
    arrived = cloudpickle.loads(cloudpickle.dumps(GatheringQueue(json, list)))
    assert arrived.dumps(1) == "1"


def test_rows_of_other_fields_are_put_apart() -> None:
    queue = Queue()
    gathering = GatheringQueue(queue, list)

    async def run() -> None:
        await asyncio.gather(
            *(
                gathering.async_kv_batch_put(keys=[key], partition_id="train", fields=[{name: 1}], tags=[{}])
                for key, name in (("x", "a"), ("y", "b"), ("z", "a"))
            )
        )

    asyncio.run(run())
    assert sorted(call["keys"] for call in queue.calls) == [["x", "z"], ["y"]]


@pytest.mark.parametrize(
    ("mode", "processes", "asked", "given_back"),
    [("sync", 1, 1, 0), ("sync", 2, 3, 3), ("separate_async", 1, 3, 3), ("colocate_async", 1, 3, 3)],
)
def test_the_only_server_is_asked_for_once(mode: str, processes: int, asked: int, given_back: int) -> None:
    module = ModuleType("llm_server")

    class LLMServerClient:
        def __init__(self) -> None:
            trainer = SimpleNamespace(v1=SimpleNamespace(trainer_mode=mode), nnodes=1, n_gpus_per_node=processes)
            rollout = SimpleNamespace(tensor_model_parallel_size=1)
            self.config = SimpleNamespace(trainer=trainer, actor_rollout_ref=SimpleNamespace(rollout=rollout))
            self.asked: list[Any] = []
            self.given_back: list[Any] = []

        async def _acquire_server(self, request_id: str, **extra: Any) -> Any:
            self.asked.append((request_id, extra))
            return "server-0", "handle"

        def _release_server(self, server_id: str, request_id: str | None = None) -> None:
            self.given_back.append((server_id, request_id))

    module.LLMServerClient = LLMServerClient  # type: ignore[attr-defined]
    keep_the_only_server(module)
    client = LLMServerClient()

    async def rollouts() -> None:
        for number in range(3):
            found = await client._acquire_server(f"r{number}", prompt_ids=[1])
            assert found == ("server-0", "handle")
            client._release_server(found[0], request_id=f"r{number}")

    asyncio.run(rollouts())
    assert client.asked == [(f"r{number}", {"prompt_ids": [1]}) for number in range(asked)]
    assert client.given_back == [("server-0", f"r{number}") for number in range(given_back)]


class Meta:
    """A BatchMeta, as far as its columns go."""

    def __init__(self, names: list[str], size: int = 2) -> None:
        self.field_names, self.size = names, size

    def select_fields(self, names: list[str]) -> Meta:
        return Meta(names, self.size)


class KeyMeta(Meta):
    """A KVBatchMeta: keys, whose columns are asked for first."""


@pytest.mark.parametrize("kind", [Meta, KeyMeta])
def test_training_fetches_all_columns_but_those_that_no_engine_reads(kind: type[Meta]) -> None:
    module = ModuleType("transferqueue_utils")

    async def stock(meta: Meta) -> list[str]:
        return meta.field_names

    async def looked_up(meta: Meta) -> Meta:
        return Meta(meta.field_names, meta.size)

    module._async_meta_to_realdata, module.KVBatchMeta = stock, KeyMeta  # type: ignore[attr-defined]
    module.async_kv_batch_meta2batch_meta = looked_up  # type: ignore[attr-defined]
    fetch_fewer_columns(module)
    read = ["input_ids", "position_ids", "response_mask", "old_log_probs", "multi_modal_inputs", "uid", "of_somebody"]
    names = [*sorted(NOT_FOR_TRAINING), *read]
    assert asyncio.run(module._async_meta_to_realdata(kind(names))) == read
    assert asyncio.run(module._async_meta_to_realdata(kind(names, size=0))) == names  # nothing to fetch


def test_the_engine_that_is_left_out_cannot_be_imported_and_one_that_is_there_stays() -> None:
    modules: dict[str, Any] = {}
    leave_out(modules)
    assert modules == {MODULE: None}
    there = {MODULE: "imported before"}
    leave_out(there)
    assert there == {MODULE: "imported before"}
