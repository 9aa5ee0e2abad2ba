"""Shared memory that the kernel frees with the processes that use it, however these end.

A segment in ``/dev/shm`` outlives its processes as long as it has a name. Once all that need it are attached, nobody
needs the name any more. So it is removed then and not at the end, which a killed process does not reach (Ray ends its
actors by killing them).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import workaround

_QUEUES = "vllm.distributed.device_communicators.shm_broadcast"
_BUCKETS = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"


def forget_name(segment: SharedMemory) -> None:
    """Remove a segment's name now; those who are attached keep the memory. A later ``unlink`` does nothing."""
    segment.unlink()
    segment.unlink = lambda: None  # type: ignore[method-assign]


@workaround("nameless-segments", target=f"{_QUEUES}:MessageQueue.wait_until_ready")
def forget_queue_names(module: ModuleType) -> None:
    """The queues between vLLM's engine and its workers; ready means that every local reader is attached."""

    def ready(wrapped: Any, queue: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        buffer = getattr(queue, "buffer", None)
        if buffer is not None and buffer.is_creator:
            forget_name(buffer.shared_memory)
            buffer.is_creator = False

    wrapt.wrap_function_wrapper(module, "MessageQueue.wait_until_ready", ready)


@workaround("nameless-segments", target=f"{_BUCKETS}:BucketedWeightSender._init_buffer")
def forget_bucket_names(module: ModuleType) -> None:
    """verl's bucket of weights; the receiver is attached when the sender's set-up is through, or nobody comes."""

    def set_up(wrapped: Any, _sender: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with _made_by(module) as made:
            try:
                wrapped(*args, **kwargs)
            finally:
                for segment in made:
                    forget_name(segment)

    wrapt.wrap_function_wrapper(module, "BucketedWeightSender._init_buffer", set_up)


@contextmanager
def _made_by(module: Any) -> Iterator[list[SharedMemory]]:
    """The segments that the module's ``create_shared_memory`` makes meanwhile."""
    create, made = module.create_shared_memory, []

    def noted(*args: Any, **kwargs: Any) -> SharedMemory:
        segment: SharedMemory = create(*args, **kwargs)
        made.append(segment)
        return segment

    module.create_shared_memory = noted
    try:
        yield made
    finally:
        module.create_shared_memory = create
