"""The agent loop of `stragglers.py real`: a response of the policy after a long-tailed wait, as for a tool."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

EVENTS, MEDIAN, SIGMA, SEED = "STRAGGLERS_EVENTS", "STRAGGLERS_MEDIAN", "STRAGGLERS_SIGMA", "STRAGGLERS_SEED"


def wait_seconds(name: str) -> float:
    """A log-normal wait that depends on the rollout's name and the seed of the environment only."""
    digest = hashlib.blake2b(f"{os.environ[SEED]},{name}".encode(), digest_size=8).digest()
    normal = np.random.default_rng(int.from_bytes(digest, "little")).standard_normal()
    return float(os.environ[MEDIAN]) * float(np.exp(float(os.environ[SIGMA]) * normal))


class WaitingAgentLoop(SingleTurnAgentLoop):
    """Waits, generates, scores 0 or 1 by a coin; notes when each rollout began, asked the server, and ended."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        name = f"{kwargs['uid']}_{kwargs['session_id']}"
        began = time.time()
        await asyncio.sleep(wait_seconds(name))
        asked = time.time()
        output = await super().run(sampling_params, **kwargs)
        output.reward_score = float(hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % 2)
        output.extra_fields["reward_extra_info"] = {"acc": output.reward_score}
        # One write of one line: the workers share the file.
        with Path(os.environ[EVENTS]).open("a") as file:
            file.write(json.dumps([began, asked, time.time()]) + "\n")
        return output
