"""An agent loop whose outcomes depend on prompt, step and session only, and which does what real ones do at times:
return several outputs, fail for one session, fail for all.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


def outcome(index: int, step: int, session: int) -> float:
    """+1 or -1, the same in every run."""
    return 1.0 if hashlib.blake2b(f"{index},{step},{session}".encode(), digest_size=1).digest()[0] % 2 else -1.0


def fails(index: int, session: int) -> bool:
    """Prompts 7, 27, 47 lose their second session, prompts 13, 33, 53 both."""
    return (index % 20 == 7 and session == 1) or index % 20 == 13


def several_outputs(index: int) -> bool:
    """Every third prompt returns two outputs."""
    return index % 3 == 0


class ScriptedAgentLoop(SingleTurnAgentLoop):
    """Generates with the policy, then scores by :func:`outcome`. Validation rows (index >= 1000) are plain."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        index = int(kwargs["extra_info"]["index"])
        session = int(kwargs["session_id"])
        if int(kwargs["global_steps"]) == 0:
            # An estimation: its parts must not all be finished while a kill takes its time to reach the workers.
            await asyncio.sleep(1.0)
        if index < 1000 and fails(index, session):
            raise RuntimeError(f"scripted failure of prompt {index}, session {session}")
        output = await super().run(sampling_params, **kwargs)
        score = outcome(index, int(kwargs["global_steps"]), session)
        output.reward_score = score
        output.extra_fields["reward_extra_info"] = {"score": score, "acc": score > 0}
        if index < 1000 and several_outputs(index):
            return [output.model_copy(deep=True), output]
        return output
