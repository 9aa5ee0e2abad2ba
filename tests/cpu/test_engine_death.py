"""Calls to a vLLM engine whose process is gone: vLLM's own client, with the engine left out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine import core_client
from vllm.v1.engine.exceptions import EngineDeadError

from spo_verl.cpu.engine_death import end_calls_of_dead_engines

pytestmark = pytest.mark.long


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client that has an engine; what it sends goes nowhere, and answers are put into ``utility_results``."""
    module = SimpleNamespace(
        AsyncMPClient=type("Client", (core_client.AsyncMPClient,), {"__del__": lambda self: None}),
        EngineDeadError=EngineDeadError,
    )
    end_calls_of_dead_engines(module)
    made = object.__new__(module.AsyncMPClient)
    made.client_index, made.core_engine, made.utility_results = 0, b"engine", {}
    made.encoder = SimpleNamespace(encode=lambda _message: [b""])
    made.resources = SimpleNamespace(engine_dead=False)

    async def send(_message: Any, _engine: Any) -> None:
        """Sent."""

    monkeypatch.setattr(made, "_send_input_message", send, raising=False)
    monkeypatch.setattr(made, "_ensure_output_queue_task", lambda: None, raising=False)
    return made


async def answered(client: Any, with_what: Any) -> Any:
    call = asyncio.ensure_future(client.call_utility_async("collective_rpc", "update"))
    while not client.utility_results:
        await asyncio.sleep(0.01)
    [future] = client.utility_results.values()
    if isinstance(with_what, Exception):
        future.set_exception(with_what)
    else:
        future.set_result(with_what)
    return await call


def test_an_answer_is_passed_on(client: Any) -> None:
    assert asyncio.run(answered(client, ["done"])) == ["done"]


def test_an_error_too(client: Any) -> None:
    with pytest.raises(ValueError, match="of the engine"):
        asyncio.run(answered(client, ValueError("of the engine")))


def test_the_death_of_the_engine_ends_a_call_that_is_under_way(client: Any) -> None:
    async def run() -> None:
        call = asyncio.ensure_future(client.call_utility_async("collective_rpc", "update"))
        await asyncio.sleep(0.1)
        client.resources.engine_dead = True
        await asyncio.wait_for(call, timeout=30)

    with pytest.raises(EngineDeadError):
        asyncio.run(run())


def test_a_call_can_be_cancelled(client: Any) -> None:
    async def run() -> list[bool]:
        call = asyncio.ensure_future(client.call_utility_async("sleep"))
        while not client.utility_results:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return [future.cancelled() for future in client.utility_results.values()]

    assert asyncio.run(run()) == [True]
