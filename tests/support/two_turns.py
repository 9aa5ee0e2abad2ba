"""An agent loop with a tool and two turns, which returns an output for each turn, as loops do that rewrite the history.

The first turn answers the prompt, calls the tool, and continues after what the tool returned; the second turn begins
with a shorter history. No language model decides when the tool is called, so every session is alike.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.workers.rollout.replica import TokenOutput

RETURNED = "="
"""What the tool returns."""
PART = 3
"""Tokens that the policy generates at a time."""


class TwoTurnAgentLoop(SingleTurnAgentLoop):
    """Two outputs: ``prompt | part, returned, part`` and ``last token of the prompt | part``."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> list[AgentLoopOutput]:
        prompt = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        returned = self.tokenizer.encode(RETURNED, add_special_tokens=False)
        call = await self._generate(prompt, sampling_params)
        rest = await self._generate([*prompt, *call.token_ids, *returned], sampling_params)
        final = await self._generate(prompt[-1:], sampling_params)
        return [self._output(prompt, call, returned, rest), self._output(prompt[-1:], final)]

    async def _generate(self, prompt: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        return await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=prompt, sampling_params={**sampling_params, "max_tokens": PART}
        )

    def _output(self, prompt: list[int], *parts: TokenOutput | list[int]) -> AgentLoopOutput:
        """Generated parts, and lists of tokens that were not generated."""
        response, mask, log_probs = [], [], []
        for part in parts:
            generated = not isinstance(part, list)
            tokens = list(part.token_ids) if generated else part
            response += tokens
            mask += [int(generated)] * len(tokens)
            log_probs += list(part.log_probs) if generated else [0.0] * len(tokens)
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=response,
            response_mask=mask,
            response_logprobs=log_probs,
            num_turns=2 * len(parts),
            metrics=AgentLoopMetrics(),
            extra_fields={**parts[-1].extra_fields, "turn_scores": [], "tool_rewards": []},
        )
