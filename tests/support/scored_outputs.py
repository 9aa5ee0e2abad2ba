"""Outputs of one session on their way through verl's agent-loop worker and reward worker to the reward function."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, AgentLoopWorker
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.experimental.reward_loop.reward_manager import NaiveRewardManager

SESSION = {
    "data_source": "letters",
    "reward_model": {"ground_truth": "x"},
    "extra_info": {},
    "raw_prompt": [{"role": "user", "content": "x"}],
}


class Letters:
    """A tokenizer of one letter per token; 0, which verl pads with, is a letter too, as in real vocabularies."""

    eos_token = "."

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(chr(97 + int(one)) for one in ids)


def output(prompt: list[int], response: list[int]) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=prompt,
        response_ids=response,
        response_mask=[1] * len(response),
        metrics=AgentLoopMetrics(),
        extra_fields={"turn_scores": [], "tool_rewards": []},
    )


def scored(
    outputs: list[AgentLoopOutput], estimator: str = "spo", manager: type = NaiveRewardManager
) -> tuple[list[str], list[Any]]:
    """The text that the reward function sees, and what the worker hands to its manager."""
    seen = []

    def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
        seen.append(solution_str)
        return 1.0

    config = OmegaConf.create(
        {
            "algorithm": {"adv_estimator": estimator},
            "reward": {"custom_reward_function": {"path": "x"}, "max_concurrent": 1, "timeout": 60},
        }
    )

    async def run():
        worker = object.__new__(RewardLoopWorker)
        worker.config = config
        worker.reward_manager = manager(config, Letters(), compute_score)
        stock = worker.reward_manager.run_single

        async def run_single(data):
            given.append(data)
            return await stock(data)

        worker.reward_manager.run_single = run_single
        loop = object.__new__(AgentLoopWorker)
        loop.processor, loop.mm_processor_kwargs = None, None
        loop.reward_loop_worker_handles = [SimpleNamespace(compute_score=SimpleNamespace(remote=worker.compute_score))]
        await loop._compute_score(outputs, kwargs=SESSION)

    given = []
    asyncio.run(run())
    return seen, given
