"""An agent loop that generates with the policy and then says what was written for it, with some LaTeX in a box."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


def is_right(index: int, session: int) -> bool:
    return (index + session) % 3 == 0


def said(index: int, session: int) -> str:
    r"""The ground truth of a prompt is ``index\sqrt{3}``; right responses write it in another form."""
    square = 3 * index * index if is_right(index, session) else 3 * index * index + 1 + session
    return f"<think>\\boxed{{1}}?</think>It is \\boxed{{\\sqrt{{{square}}}}}."


class WrittenAgentLoop(SingleTurnAgentLoop):
    """Exchanges the response of the policy for :func:`said`."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        output = await super().run(sampling_params, **kwargs)
        text = said(int(kwargs["extra_info"]["index"]), int(kwargs["session_id"]))
        output.response_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        output.response_mask = [1] * len(output.response_ids)
        output.response_logprobs = None
        return output
