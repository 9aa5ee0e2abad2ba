"""Other processes of a weight transfer: real ones, told through a pipe what to do. Imports nothing heavy by itself."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

Described = list[tuple[str, str, tuple[int, ...], bytes]]


def describe(named_tensors: Iterable[tuple[str, Any]]) -> Described:
    """Name, dtype, shape and the very bytes of each tensor."""
    import torch

    return [
        (name, str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in named_tensors
    ]


async def stream_of(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


class Peer:
    """A process that runs one job after the other; ``job(...)`` starts one, ``result()`` is what became of it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        assert self.result(120) == "ready"

    def job(self, name: str, **arguments: Any) -> None:
        self._pipe.send((name, arguments))

    def result(self, seconds: float = 60.0) -> Any:
        assert self._pipe.poll(seconds), "the peer did not answer"
        return self._pipe.recv()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def peers(count: int) -> Iterator[list[Peer]]:
    made: list[Peer] = []
    try:
        made.extend(Peer() for _ in range(count))
        yield made
    finally:
        for peer in made:
            peer.end()


def _serve(pipe: Any) -> None:
    from spo_verl.cpu.weight_stream import WeightStream

    jobs = {"receive": _receive, "send_until_killed": _send_until_killed, "engine": _receive_with_engine}
    pipe.send("ready")
    while True:
        name, arguments = pipe.recv()
        began = time.monotonic()
        try:
            outcome: Any = jobs[name](WeightStream, **arguments)
        except Exception as error:  # noqa: BLE001 - it is the result, for the test to look at
            outcome = (type(error).__name__, str(error), time.monotonic() - began)
        pipe.send(outcome)


def _receive(
    stream_class: Any, meeting: Any, rank: int, size: int, seconds: float, step: int | None = None, trouble: str = ""
) -> Described:
    """Take part as a receiver; ``trouble`` happens once two tensors have arrived."""
    stream = stream_class(1 << 20, seconds)
    stream.join(meeting, rank, size)

    async def collect() -> Described:
        held = []
        async for named_tensor in stream.receive(step):
            held.append(named_tensor)
            if len(held) == 2:
                if trouble == "dies":
                    os._exit(1)
                if trouble == "is stuck":
                    time.sleep(3600)
                if trouble == "raises":
                    raise LookupError("the consumer has no such layer")
        return describe(held)  # only now, when all later buckets have come as well

    result = asyncio.run(collect())
    stream.leave()
    return result


def _send_until_killed(stream_class: Any, pipe_of_meeting: Any, size: int, seconds: float) -> None:
    import torch

    stream = stream_class(4096, seconds)
    meeting = stream.open("127.0.0.1")
    pipe_of_meeting.send(meeting)
    stream.join(meeting, 0, size)

    async def forever() -> AsyncIterator[tuple[str, Any]]:
        for index in range(10**9):
            yield f"weight.{index}", torch.ones(1000)
            await asyncio.sleep(0.05)

    asyncio.run(stream.send(forever()))


def _receive_with_engine(_stream_class: Any, arguments: dict[str, Any], step: int) -> Described:
    """The receiving end as verl runs it, the module named as in verl's setting."""
    from verl.checkpoint_engine.base import CheckpointEngineRegistry
    from verl.utils.import_utils import import_external_libs

    import_external_libs("spo_verl.cpu.gloo_engine")
    engine = CheckpointEngineRegistry.new("gloo", bucket_size=1 << 20, timeout_seconds=60)
    assert engine.prepare() is None
    engine.init_process_group(**arguments)

    async def collect() -> Described:
        return describe([named_tensor async for named_tensor in engine.receive_weights(global_steps=step)])

    received = asyncio.run(collect())
    engine.finalize()
    return received
