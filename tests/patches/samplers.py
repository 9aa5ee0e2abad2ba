"""Classes that verl loads by path in the probes: a curriculum for the dataloader and two replay buffers."""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

try:
    from verl.experimental.dataset.sampler import AbstractCurriculumSampler
except ModuleNotFoundError:  # stock verl 0.9.1 has no such base class, which is what the probe shows
    from torch.utils.data import Sampler as AbstractCurriculumSampler


class OneByOne(AbstractCurriculumSampler):
    """Gives the same row until the trainer reports a batch, then the row after the last one of that batch."""

    def __init__(self, data_source: Any, data_config: Any) -> None:
        self.size, self.row, self.prefix = len(data_source), 0, data_config.prompt_key

    def __iter__(self) -> Any:
        for _ in range(self.size):
            yield self.row

    def __len__(self) -> int:
        return self.size

    def update(self, batch: Any) -> None:
        self.row = int(batch.keys[-1].split("_")[1]) + 1

    def state_dict(self) -> dict[str, int]:
        return {"row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.row = state["row"]


class NotASampler:
    pass


class InheritedBuffer(ReplayBuffer):
    """Takes whatever the trainer passes."""


class ClosedBuffer(ReplayBuffer):
    """Has the constructor that a custom sampler written for 0.9.1 may have."""

    def __init__(
        self, trainer_mode, trainer_config, max_off_policy_threshold, max_off_policy_strategy, sampler_kwargs, refill_fn
    ) -> None:
        super().__init__(
            trainer_mode, trainer_config, max_off_policy_threshold, max_off_policy_strategy, sampler_kwargs, 9.0
        )
