"""How often verl's replay buffer looks for finished rollouts."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import workaround

POLL_SECONDS = 0.1
"""Seconds between two looks at TransferQueue. verl's 2 s are half a training step of a CPU-sized model."""


@workaround(
    "poll-interval",
    target="verl.trainer.ppo.v1.replay_buffer:ReplayBuffer.__init__",
    parameters=("poll_interval",),
)
def poll_often(module: ModuleType) -> None:
    """Change the default of ``poll_interval``, whatever subclass is built; a value that is passed is kept."""

    def with_short_interval(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "poll_interval" not in inspect.signature(wrapped).bind(*args, **kwargs).arguments:
            kwargs = {**kwargs, "poll_interval": POLL_SECONDS}
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "ReplayBuffer.__init__", with_short_interval)
