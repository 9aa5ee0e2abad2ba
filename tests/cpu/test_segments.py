"""Names of shared memory are gone once everybody is attached; the modules are stand-ins for vLLM's and verl's."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import ModuleType

import pytest

from spo_verl.cpu.segments import forget_bucket_names, forget_queue_names


def named(segment: SharedMemory) -> bool:
    return (Path("/dev/shm") / segment.name).exists()


class Buffer:
    """As vLLM's ``ShmRingBuffer``: the creator removes the name when it is collected."""

    def __init__(self, name: str | None = None) -> None:
        self.is_creator = name is None
        self.shared_memory = SharedMemory(name, create=name is None, size=4096 if name is None else 0)

    def end(self) -> None:
        self.shared_memory.close()
        if self.is_creator:
            self.shared_memory.unlink()


def test_a_queue_loses_its_name_when_its_readers_are_there() -> None:
    class MessageQueue:
        def __init__(self, name: str | None = None) -> None:
            self.buffer = Buffer(name)

        def wait_until_ready(self) -> None:
            assert named(self.buffer.shared_memory)  # until then readers need it

    module = ModuleType("shm_broadcast")
    module.MessageQueue = MessageQueue  # type: ignore[attr-defined]
    forget_queue_names(module)
    writer = MessageQueue()
    reader = MessageQueue(writer.buffer.shared_memory.name)
    reader.wait_until_ready()
    assert named(writer.buffer.shared_memory)  # a reader does not decide
    writer.wait_until_ready()
    assert not named(writer.buffer.shared_memory)
    writer.buffer.shared_memory.buf[:3] = b"abc"
    assert bytes(reader.buffer.shared_memory.buf[:3]) == b"abc"
    reader.buffer.end()
    writer.buffer.end()  # a second time is no error


def test_a_queue_without_local_readers_has_no_name() -> None:
    class MessageQueue:
        buffer = None

        def wait_until_ready(self) -> None:
            return None

    module = ModuleType("shm_broadcast")
    module.MessageQueue = MessageQueue  # type: ignore[attr-defined]
    forget_queue_names(module)
    MessageQueue().wait_until_ready()


@pytest.mark.parametrize("fails", [False, True])
def test_a_bucket_loses_its_name_when_the_receiver_is_there_or_does_not_come(fails: bool) -> None:
    module = ModuleType("bucketed_weight_transfer")
    made: list[SharedMemory] = []

    def create_shared_memory(size: int, name: str) -> SharedMemory:
        made.append(SharedMemory(name, create=True, size=size))
        return made[-1]

    class BucketedWeightSender:
        shm = None

        def _init_buffer(self) -> None:
            shm = module.create_shared_memory(4096, f"spo_test_{id(self)}")
            assert named(shm)
            if fails:
                raise TimeoutError("nobody came")
            self.shm = shm

    module.create_shared_memory = create_shared_memory  # type: ignore[attr-defined]
    module.BucketedWeightSender = BucketedWeightSender  # type: ignore[attr-defined]
    forget_bucket_names(module)
    sender = BucketedWeightSender()
    if fails:
        with pytest.raises(TimeoutError, match="nobody came"):
            sender._init_buffer()
    else:
        sender._init_buffer()
        sender.shm.buf[0] = 7  # type: ignore[union-attr]
    [segment] = made
    assert not named(segment)
    segment.close()
    segment.unlink()  # verl's own, at the end: nothing happens
    assert module.create_shared_memory is create_shared_memory
