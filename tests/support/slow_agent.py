"""The scripted outcomes with delays, so that rollouts outlive the step that they were dispatched for."""

from __future__ import annotations

import asyncio
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from tests.support.scripted_agent import ScriptedAgentLoop, fails


def delay(index: int) -> float:
    """Seconds: one prompt in four is a straggler of several steps' length; the others spread a little."""
    return 8.0 if index % 4 == 0 else 0.1 * (index % 7)


def stuck(index: int, session: int) -> bool:
    """Sessions that wait for ever: the second ones of five prompts in 60, fewer than the surplus, so that a batch
    always fills; of three of them the first ones too, so that nothing of such a prompt is ever delivered.
    """
    return index < 1000 and (index % 24 == 0 or (index % 12 == 0 and session == 1))


class SlowAgentLoop(ScriptedAgentLoop):
    """As its parent, later. Validation rows (index >= 1000) are not delayed."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        index = int(kwargs["extra_info"]["index"])
        if index < 1000 and not fails(index, int(kwargs["session_id"])):
            await asyncio.sleep(delay(index))
        return await super().run(sampling_params, **kwargs)


class HalfStuckAgentLoop(ScriptedAgentLoop):
    """Some sessions do not end by themselves (:func:`stuck`); the others do, at once."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        index, session = int(kwargs["extra_info"]["index"]), int(kwargs["session_id"])
        if stuck(index, session) and not fails(index, session):
            await asyncio.sleep(3600)
        return await super().run(sampling_params, **kwargs)
