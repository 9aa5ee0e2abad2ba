"""The scripted outcomes with delays, so that rollouts outlive the step that they were dispatched for."""

from __future__ import annotations

import asyncio
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from tests.support.scripted_agent import ScriptedAgentLoop, fails


def delay(index: int) -> float:
    """Seconds: one prompt in four is a straggler of several steps' length; the others spread a little."""
    return 8.0 if index % 4 == 0 else 0.1 * (index % 7)


def stuck(index: int) -> bool:
    """Prompts whose second session waits for ever: five of 60, fewer than the surplus, so that a batch always fills."""
    return index < 1000 and index % 12 == 0


class SlowAgentLoop(ScriptedAgentLoop):
    """As its parent, later. Validation rows (index >= 1000) are not delayed."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        index = int(kwargs["extra_info"]["index"])
        if index < 1000 and not fails(index, int(kwargs["session_id"])):
            await asyncio.sleep(delay(index))
        return await super().run(sampling_params, **kwargs)


class HalfStuckAgentLoop(ScriptedAgentLoop):
    """The second session of one prompt in twelve does not end by itself; the first one does, at once."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        index, session = int(kwargs["extra_info"]["index"]), int(kwargs["session_id"])
        if stuck(index) and session == 1 and not fails(index, session):
            await asyncio.sleep(3600)
        return await super().run(sampling_params, **kwargs)
