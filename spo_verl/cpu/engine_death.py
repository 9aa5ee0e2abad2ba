"""A call to a vLLM engine that dies before it answers ends with an error."""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import Any

from spo_verl.cpu.registry import workaround

LOOK_SECONDS = 0.5


@workaround(
    "engine-death",
    target="vllm.v1.engine.core_client:AsyncMPClient._call_utility_async",
    parameters=("method", "engine"),
)
def end_calls_of_dead_engines(module: ModuleType) -> None:
    """vLLM notices that the engine's process is gone, and still waits for the answers of calls that it had sent.

    The transfer of weights is such a call: the training process would wait for it until its own time is over.
    """
    stock = module.AsyncMPClient._call_utility_async

    # A plain function, as vLLM's own: the client is inherited from.
    async def call(self: Any, method: str, *args: Any, engine: Any) -> Any:
        answer = asyncio.ensure_future(stock(self, method, *args, engine=engine))
        try:
            while not answer.done():
                await asyncio.wait({answer}, timeout=LOOK_SECONDS)
                if self.resources.engine_dead and not answer.done():
                    raise module.EngineDeadError
            return answer.result()
        finally:
            answer.cancel()

    module.AsyncMPClient._call_utility_async = call
