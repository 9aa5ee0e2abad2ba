"""Rollouts that are stopped at the end of their policy version (``spo.late.policy=abort``).

verl's agent-loop workers start one asyncio task per prompt and have no verb to end it. The workers here remember the
task of each prompt and cancel it: its sessions end where they wait (for the rollout engine, a tool or a reward), and
:class:`CancellableClient` has the engine drop the request that it was computing. What a prompt's other sessions had
delivered by then stays in verl's queue, so that the caller can add it to the evidence before it clears it.

The manager is chosen through verl's own setting (:func:`stoppable_rollouts`); no name of verl is replaced.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Iterable
from typing import Any

import ray
from omegaconf import DictConfig, open_dict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from spo_verl.errors import SpoConfigError, SpoStateError

PATIENCE = 60.0
"""Seconds that a cancelled rollout has to end."""
MANAGER = "agent_loop_manager_class"

_Worker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__


class StoppableRollouts:
    """Mixed in before an agent-loop worker's class, whose ``_run_prompt`` is one task per prompt.

    State: the running tasks by uid, nothing that a restart would miss.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spo_tasks: dict[str, asyncio.Task] = {}

    async def _run_prompt(self, prompt: dict, *args: Any, **kwargs: Any) -> None:
        uid, task = prompt["uid"], asyncio.current_task()
        assert task is not None
        self.spo_tasks[uid] = task
        try:
            await super()._run_prompt(prompt, *args, **kwargs)  # type: ignore[misc]
        finally:
            del self.spo_tasks[uid]

    async def spo_stop(self, uids: frozenset[str], patience: float) -> int:
        """Cancel the rollouts of these prompts; returns how many have not ended within ``patience``."""
        tasks = [task for uid, task in self.spo_tasks.items() if uid in uids]
        for task in tasks:
            task.cancel()
        if not tasks:
            return 0
        _, running = await asyncio.wait(tasks, timeout=patience)
        return len(running)


class StoppableWorker(StoppableRollouts, _Worker):
    """verl's agent-loop worker, whose rollouts can be stopped."""


class StoppableManager(AgentLoopManagerTQ):
    """verl's agent-loop manager with :class:`StoppableWorker`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(StoppableWorker)


def stoppable_rollouts(config: DictConfig) -> None:
    """Have verl build the manager whose rollouts can be stopped; verl reads the key after the trainer was built."""
    agent = config.actor_rollout_ref.rollout.agent
    with open_dict(agent):
        agent[MANAGER] = f"{StoppableManager.__module__}.{StoppableManager.__qualname__}"


def abort_rollouts(manager: Any, uids: Iterable[str], *, patience: float = PATIENCE) -> None:
    """Stop the rollouts of these prompts in every agent-loop worker; returns when none of them runs any more.

    Args:
        manager: a :class:`StoppableManager`.
        uids: prompts; those that have ended meanwhile are left alone.
        patience: seconds to wait for their end.

    Raises:
        SpoStateError: a rollout swallowed its cancellation and continues.
    """
    wanted = frozenset(uids)
    running = sum(ray.get([worker.spo_stop.remote(wanted, patience) for worker in manager.agent_loop_workers]))
    if running:
        raise SpoStateError(
            f"{running} rollouts still run {patience:g} s after they were cancelled: the agent loop catches "
            "asyncio.CancelledError; let it pass, or set spo.late.policy=drop."
        )


# ---------------------------------------------------------------------- the rollout engine's side

_request: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("spo_request")


class CancellableClient:
    """Mixed in before a client of verl's rollout servers: a request whose caller is cancelled ends in the server too.

    Cancelling a task that awaits a remote call does not reach the other side, and a server of its own
    (``separate_async``) would generate the response to its end.
    """

    async def _acquire_server(self, request_id: str, **extra: Any) -> Any:
        server_id, server = await super()._acquire_server(request_id, **extra)  # type: ignore[misc]
        _request.get()["server"] = server
        return server_id, server

    def _vllm_request_id(self, request_id: str) -> str:
        name: str = super()._vllm_request_id(request_id)  # type: ignore[misc]
        _request.get()["name"] = name
        return name

    async def generate(self, request_id: str, **arguments: Any) -> Any:
        request: dict[str, Any] = {}
        _request.set(request)
        try:
            return await super().generate(request_id, **arguments)  # type: ignore[misc]
        except asyncio.CancelledError:
            # Not every rollout server has this verb; without it a request is computed to its end for nobody.
            abort = getattr(request.get("server"), "abort_request", None)
            if abort is not None and "name" in request:
                abort.remote(request["name"], reset_prefix_cache=False)
            raise


@functools.cache
def cancellable_class(client_class: type) -> type:
    """The class of a client whose requests can be cancelled."""
    return type(f"Cancellable{client_class.__name__}", (CancellableClient, client_class), {})


def cancellable_client(client: Any) -> Any:
    """Make the requests of a client of verl end with their callers; returns it.

    Raises:
        SpoConfigError: it is no client of verl's rollout servers.
    """
    missing = [name for name in ("_acquire_server", "_vllm_request_id", "generate") if not hasattr(client, name)]
    if missing:
        raise SpoConfigError(
            f"spo.late.policy=abort: {type(client).__name__} has no {', '.join(missing)}, so that requests could not "
            "be ended; set spo.late.policy=drop or carry."
        )
    client_class: type = type(client)
    client.__class__ = cancellable_class(client_class)
    return client
