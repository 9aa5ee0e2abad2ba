"""Rollouts that are stopped: in a real Ray actor that runs one task per prompt, as verl's agent-loop workers do."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from omegaconf import OmegaConf
from verl.utils.import_utils import load_class_from_fqn

from spo_verl.errors import SpoConfigError, SpoStateError
from spo_verl.training import abort
from spo_verl.training.abort import (
    StoppableManager,
    StoppableRollouts,
    StoppableWorker,
    abort_rollouts,
    cancellable_client,
    stoppable_rollouts,
)
from tests.support.local_ray import start_ray

pytestmark = pytest.mark.long


class Plain:
    """What verl's agent-loop worker is, as far as stopping goes: a task per prompt that runs ``_run_prompt``."""

    def __init__(self) -> None:
        self.background_tasks: set[asyncio.Task] = set()
        self.ended: list[str] = []

    async def start(self, seconds_of: dict[str, float], stubborn: bool = False) -> None:
        for uid, seconds in seconds_of.items():
            task = asyncio.create_task(self._run_prompt({"uid": uid}, seconds, stubborn=stubborn))
            self.background_tasks.add(task)
            task.add_done_callback(self.background_tasks.discard)

    async def _run_prompt(self, prompt: dict, seconds: float, stubborn: bool) -> None:
        try:
            await asyncio.gather(asyncio.sleep(seconds), asyncio.sleep(seconds))
            self.ended.append(f"{prompt['uid']} finished")
        except asyncio.CancelledError:
            if stubborn:
                await asyncio.sleep(3)
            self.ended.append(f"{prompt['uid']} cancelled")
            raise

    async def report(self) -> tuple[list[str], int]:
        await asyncio.sleep(0.1)
        return sorted(self.ended), len(self.background_tasks)


class Worker(StoppableRollouts, Plain):
    pass


@pytest.fixture(scope="module")
def workers():
    start_ray(num_cpus=2)
    # Their classes travel as code, not as names of modules: to import verl takes an actor longer than all tests here.
    by_value = (abort, sys.modules[__name__])
    for module in by_value:
        ray.cloudpickle.register_pickle_by_value(module)
    worker_class = ray.remote(Worker)
    started = [worker_class.remote() for _ in range(2)]
    for module in by_value:
        ray.cloudpickle.unregister_pickle_by_value(module)
    yield started
    ray.shutdown()


def test_only_the_named_prompts_are_stopped_and_none_of_them_is_left(workers):
    ray.get(workers[0].start.remote({"late": 60.0, "kept": 60.0}))
    ray.get(workers[1].start.remote({"late2": 60.0, "done": 0.0}))
    ray.get([worker.report.remote() for worker in workers])
    abort_rollouts(SimpleNamespace(agent_loop_workers=workers), ["late", "late2", "done", "unknown"])
    assert ray.get([worker.report.remote() for worker in workers]) == [
        (["late cancelled"], 1),
        (["done finished", "late2 cancelled"], 0),
    ]


def test_a_loop_that_swallows_the_cancellation_is_an_error_and_not_a_silent_straggler(workers):
    ray.get(workers[1].start.remote({"a": 60.0}, stubborn=True))
    ray.get(workers[1].report.remote())
    with pytest.raises(SpoStateError, match=r"1 rollouts still run 0.2 s after they were cancelled"):
        abort_rollouts(SimpleNamespace(agent_loop_workers=workers[1:]), ["a"], patience=0.2)


def test_verl_loads_the_manager_by_its_setting():
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"agent": {"num_workers": 1}}}})
    OmegaConf.set_struct(config, True)
    stoppable_rollouts(config)
    name = config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
    assert load_class_from_fqn(name, "AgentLoopManager") is StoppableManager
    assert issubclass(StoppableWorker, StoppableRollouts)


# ---------------------------------------------------------------------- the rollout engine's side


class Server:
    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.abort_request = SimpleNamespace(remote=lambda name, reset_prefix_cache: self.aborted.append(name))


class Client:
    """The shape of verl's client: acquire a server, name the request, wait, release."""

    def __init__(self, server: Any) -> None:
        self.server, self.released = server, 0

    async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, Any]:
        if request_id == "no server":
            await asyncio.sleep(60)
        return "server", self.server

    def _vllm_request_id(self, request_id: str) -> str:
        return f"{request_id} in vllm"

    async def generate(self, request_id: str, *, prompt_ids: list[int]) -> str:
        await self._acquire_server(request_id)
        try:
            name = self._vllm_request_id(request_id)
            await asyncio.sleep(prompt_ids[0])
            return name
        finally:
            self.released += 1


async def cancelled(client: Any, *requests: tuple[str, float]) -> list[Any]:
    """What the requests return when all that have not ended after a moment are cancelled."""
    tasks = [asyncio.create_task(client.generate(request_id=name, prompt_ids=[wait])) for name, wait in requests]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_cancelled_request_ends_in_the_engine_too():
    server = Server()
    client = cancellable_client(Client(server))
    found = asyncio.run(cancelled(client, ("a", 60), ("b", 0), ("no server", 60), ("c", 60)))
    assert found[1] == "b in vllm"
    assert [type(found[i]) for i in (0, 2, 3)] == [asyncio.CancelledError] * 3
    assert sorted(server.aborted) == ["a in vllm", "c in vllm"]
    assert client.released == 3


def test_a_server_without_the_verb_is_left_alone():
    client = cancellable_client(Client(object()))
    assert [type(one) for one in asyncio.run(cancelled(client, ("a", 60)))] == [asyncio.CancelledError]


def test_the_client_travels_to_the_workers(workers):
    client = cancellable_client(Client(None))
    assert asyncio.run(ray.get(ray.put(client)).generate("a", prompt_ids=[0])) == "a in vllm"


def test_another_client_is_refused():
    with pytest.raises(SpoConfigError, match="_vllm_request_id"):
        cancellable_client(SimpleNamespace(generate=None, _acquire_server=None))
