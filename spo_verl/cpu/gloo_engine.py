"""verl's checkpoint engine for a CPU: weights go from the training processes to separate rollout processes over gloo.

verl imports this module because ``checkpoint_engine.custom_backend_module`` names it (``+platform=cpu``), in the
driver and in the processes at both ends; importing it registers the backend ``gloo``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import ray
import torch
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
from verl.workers.rollout.utils import ensure_async_iterator

from spo_verl.cpu.weight_stream import SENDER, Meeting, WeightStream
from spo_verl.cpu.weight_transfer import ENGINE_SECONDS

BACKEND = "gloo"
NOT_IN_THE_GROUP = -1


@CheckpointEngineRegistry.register(BACKEND)
class GlooCheckpointEngine(CheckpointEngine):
    """The first training process sends to every rollout process; the group is made again for each update.

    Args:
        bucket_size: bytes to send at once (``checkpoint_engine.update_weights_bucket_megabytes``).
        is_master: whether this is the first training process.
        timeout_seconds: the longest wait for other processes at each step of an update
            (``checkpoint_engine.engine_kwargs.gloo.timeout_seconds``), by default less than what ends a run as hung.
    """

    def __init__(self, bucket_size: int, is_master: bool = False, timeout_seconds: float = ENGINE_SECONDS) -> None:
        self.is_master = is_master
        self.rank = NOT_IN_THE_GROUP
        self.stream = WeightStream(bucket_size, timeout_seconds)

    def prepare(self) -> Meeting | None:  # type: ignore[override]
        if not self.is_master:
            return None
        return self.stream.open(ray.util.get_node_ip_address().strip("[]"))

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: Sequence[Meeting | None]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        def arguments(ranks: list[int]) -> dict[str, list[Any]]:
            count = len(ranks)
            return {"rank": ranks, "world_size": [1 + rollout_world_size] * count, "meeting": [metadata[0]] * count}

        training = [SENDER, *[NOT_IN_THE_GROUP] * (actor_wg_world_size - 1)]
        return arguments(training), arguments(list(range(1, rollout_world_size + 1)))

    def init_process_group(self, rank: int, world_size: int, meeting: Meeting) -> None:
        self.rank = rank
        if rank != NOT_IN_THE_GROUP:
            self.stream.join(meeting, rank, world_size)

    def finalize(self) -> None:
        self.stream.leave()
        self.rank = NOT_IN_THE_GROUP

    @torch.no_grad()
    async def send_weights(self, weights: Any, global_steps: int | None = None) -> None:
        if self.rank == NOT_IN_THE_GROUP:
            # A full tensor is gathered from all training processes, so each of them has to ask for every one.
            async for _ in ensure_async_iterator(weights):
                pass
            return
        await self.stream.send(ensure_async_iterator(weights), global_steps)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        async for named_tensor in self.stream.receive(global_steps):
            yield named_tensor
