"""What verl's agent-loop workers do for every single rollout, done once for many, or without a detour.

A rollout of a CPU-sized model generates a few tokens, so the work around it decides how long a step takes.
"""

from __future__ import annotations

import asyncio
import copy
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

from spo_verl.cpu.registry import workaround

_LOOP = "verl.experimental.agent_loop.agent_loop"
_WORKER = "verl.trainer.ppo.v1.agent_loop_tq"

Item = TypeVar("Item")


@workaround("plain-loops", target=f"{_LOOP}:hydra.utils.instantiate", parameters=("config",))
def build_loops_directly(module: ModuleType) -> None:
    """Call the class of an agent loop that has no settings; hydra copies its arguments for as long as a step takes."""
    hydra = module.hydra

    def instantiate(config: Any, **arguments: Any) -> Any:
        if set(config) == {"_target_"}:
            return hydra.utils.get_class(config["_target_"])(**arguments)
        return hydra.utils.instantiate(config=config, **arguments)

    module.hydra = SimpleNamespace(utils=SimpleNamespace(instantiate=instantiate))  # type: ignore[attr-defined]


@workaround("local-rewards", target=f"{_LOOP}:AgentLoopWorker._compute_score", parameters=("outputs", "kwargs"))
def score_in_the_worker(module: ModuleType) -> None:
    """Let verl's reward worker live in the agent-loop worker; a reward model keeps processes of its own."""

    stock = module.AgentLoopWorker._compute_score

    # A plain function: Ray sends the worker's class with its methods, and loses a wrapper's.
    async def scored(self: Any, outputs: Any, kwargs: Any) -> None:
        handles = self.reward_loop_worker_handles
        local = handles is not None and any(isinstance(handle, LocalRewardWorker) for handle in handles)
        if handles is not None and not local and not self.config.reward.reward_model.enable:
            # Here and not when the worker is built: the reward worker keeps the running event loop.
            self.reward_loop_worker_handles = [LocalRewardWorker(_reward_worker(self.config))]
        await stock(self, outputs, kwargs=kwargs)

    module.AgentLoopWorker._compute_score = scored


def _reward_worker(config: Any) -> Any:
    from verl.experimental.reward_loop import RewardLoopWorker

    return RewardLoopWorker(config)


class LocalRewardWorker:
    """A reward worker of this process, called as the handle of one in another process is."""

    def __init__(self, worker: Any) -> None:
        async def compute_score(data: Any) -> Any:
            # Another process gets copies. Reward managers write into extra_info, which all rollouts of a prompt share.
            data.non_tensor_batch = copy.deepcopy(data.non_tensor_batch)
            return await worker.compute_score(data)

        self.compute_score = SimpleNamespace(remote=compute_score)


@workaround("gathered-puts", target=f"{_WORKER}:tq.async_kv_put", parameters=("key", "partition_id", "tag"))
@workaround(
    "gathered-puts", target=f"{_WORKER}:tq.async_kv_batch_put", parameters=("keys", "partition_id", "fields", "tags")
)
def gather_puts(module: ModuleType) -> None:
    """Put what many rollouts have to put into TransferQueue in few calls, as long as another call is under way."""
    if isinstance(module.tq, GatheringQueue):
        return
    module.tq = GatheringQueue(module.tq, module.list_of_dict_to_tensordict)  # type: ignore[attr-defined]
    # The rows of a rollout stay rows until those of other rollouts have joined them.
    module.list_of_dict_to_tensordict = list  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Waiting(Generic[Item]):
    item: Item
    kind: Hashable
    done: asyncio.Future[None]

    def settle(self, error: Exception | None = None) -> None:
        if self.done.done():  # its task was cancelled
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Gathering(Generic[Item]):
    """Items of concurrent tasks, delivered together: those that arrive during one delivery make up the next ones.

    Args:
        deliver: takes a list of items of one kind. Where it raises, each item is delivered once more by itself, so
            that an error reaches the task whose item is at fault; a delivery repeated must do no harm.
    """

    def __init__(self, deliver: Callable[[list[Item]], Awaitable[object]]) -> None:
        self._deliver = deliver
        self._waiting: list[_Waiting[Item]] = []
        self._running: asyncio.Task[None] | None = None

    async def put(self, item: Item, kind: Hashable = None) -> None:
        """Return when the item is delivered. Cancelling this takes it back, unless its delivery has begun."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, kind, done))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        await done

    async def _run(self) -> None:
        taken: list[_Waiting[Item]] = []
        try:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                kinds: dict[Hashable, list[_Waiting[Item]]] = defaultdict(list)
                for one in taken:
                    kinds[one.kind].append(one)
                for alike in kinds.values():
                    await self._together(alike)
        finally:
            # Only where the delivery itself was cancelled does anybody still wait.
            for one in (*taken, *self._waiting):
                one.done.cancel()
            self._waiting, self._running = [], None

    async def _together(self, alike: Sequence[_Waiting[Item]]) -> None:
        wanted = [one for one in alike if not one.done.done()]
        if not wanted:
            return
        try:
            await self._deliver([one.item for one in wanted])
        except Exception as error:  # noqa: BLE001 - goes to the task whose item it is
            if len(wanted) == 1:
                wanted[0].settle(error)
            else:
                await asyncio.gather(*(self._together([one]) for one in wanted))
            return
        for one in wanted:
            one.settle()


@dataclass(frozen=True)
class _Put:
    """What one call puts; ``rows`` is None where only tags are set."""

    partition: str
    keys: Sequence[str]
    rows: Sequence[Mapping[str, Any]] | None
    tags: Sequence[Mapping[str, Any]]


class GatheringQueue:
    """TransferQueue's module as verl's agent-loop worker uses it; everything but puts is the module's.

    Args:
        queue: the module ``transfer_queue``.
        to_tensordict: makes a TensorDict of rows, each a dict of the same fields.
    """

    def __init__(self, queue: Any, to_tensordict: Callable[[list[Any]], Any]) -> None:
        self._queue, self._to_tensordict = queue, to_tensordict
        self._puts = Gathering(self._deliver)

    async def async_kv_put(self, *, key: str, partition_id: str, tag: Mapping[str, Any]) -> None:
        await self._puts.put(_Put(partition_id, [key], None, [tag]), kind=partition_id)

    async def async_kv_batch_put(
        self, *, keys: Sequence[str], partition_id: str, fields: Any, tags: Sequence[Mapping[str, Any]]
    ) -> None:
        await self._puts.put(_Put(partition_id, keys, fields, tags), kind=(partition_id, tuple(fields[0])))

    async def _deliver(self, puts: list[_Put]) -> None:
        rows = [row for put in puts for row in put.rows or ()]
        await self._queue.async_kv_batch_put(
            keys=[key for put in puts for key in put.keys],
            partition_id=puts[0].partition,
            fields=self._to_tensordict(rows) if rows else None,
            tags=[dict(tag) for put in puts for tag in put.tags],
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray sends the class of an actor with the globals of its methods.
        return GatheringQueue, (self._queue, self._to_tensordict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


_SERVER, _ONE = "_spo_server", "_spo_has_one_server"


@workaround(
    "one-server", target="verl.workers.rollout.llm_server:LLMServerClient._acquire_server", parameters=("request_id",)
)
def keep_the_only_server(module: ModuleType) -> None:
    """Where one rollout server answers all of a run, ask the load balancer for it once, and give nothing back."""
    client_class: Any = module.LLMServerClient
    acquire, release = client_class._acquire_server, client_class._release_server

    # The signatures are verl's, which the plugin's trainer compares.
    async def acquire_once(self: Any, request_id: str, **extra: Any) -> Any:
        if not has_one_server(self):
            return await acquire(self, request_id, **extra)
        if (found := vars(self).get(_SERVER)) is None:
            found = vars(self)[_SERVER] = await acquire(self, request_id, **extra)
        return found

    def keep(self: Any, server_id: str, request_id: str | None = None) -> None:
        if not has_one_server(self):
            release(self, server_id, request_id=request_id)

    client_class._acquire_server, client_class._release_server = acquire_once, keep


def has_one_server(client: Any) -> bool:
    """Whether a run has the same single rollout server from its beginning to its end."""
    if (found := vars(client).get(_ONE)) is None:
        trainer, rollout = client.config.trainer, client.config.actor_rollout_ref.rollout
        # separate_async stops and starts servers, and asks the balancer which of them are there.
        colocated = trainer.v1.trainer_mode == "sync"
        found = vars(client)[_ONE] = (
            colocated and trainer.nnodes * trainer.n_gpus_per_node == rollout.tensor_model_parallel_size
        )
    return bool(found)
