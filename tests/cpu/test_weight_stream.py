"""Weights between real processes: what arrives, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from spo_verl.cpu.weight_stream import Meeting, WeightStream
from spo_verl.cpu.weight_transfer import WeightTransferError
from spo_verl.errors import SpoStateError
from tests.cpu.weight_peers import Peer, describe, peers, stream_of

pytestmark = pytest.mark.long

PATIENT = 60.0


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Peer]]:
    """Two receivers for the tests in which nobody dies."""
    with peers(2) as made:
        yield made


@pytest.fixture
def one() -> Iterator[Peer]:
    with peers(1) as [made]:
        yield made


def weights() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    odd = noise(3, 5, dtype=torch.bfloat16)
    return [
        ("embedding", noise(130, 7)),
        ("odd.bf16", odd),  # 30 bytes: what follows begins at no multiple of its own size
        ("after.odd", noise(9)),
        ("flags", noise(11) > 0),
        ("half", noise(4, 4, dtype=torch.float16)),
        ("positions", torch.arange(5)),
        ("scalar", torch.tensor(2.5, dtype=torch.float64)),
        ("empty", torch.empty(0, 8)),
        ("transposed", noise(6, 10).t()),
        ("strange", torch.tensor([float("nan"), float("inf"), -0.0])),
        ("parameter", torch.nn.Parameter(noise(2, 3, 4))),
        ("bytes", torch.arange(255, dtype=torch.uint8)),
        ("int8", torch.arange(-3, 4, dtype=torch.int8)),
        ("last", noise(1, dtype=torch.bfloat16)),
    ]


class Counting(WeightStream):
    buckets = 0

    async def _send_bucket(self, *args, **kwargs) -> None:
        self.buckets += 1
        await super()._send_bucket(*args, **kwargs)


def start(stream: WeightStream, receivers: list[Peer], **arguments) -> Meeting:
    """Open a transfer and let the receivers come."""
    meeting = stream.open("127.0.0.1")
    for rank, receiver in enumerate(receivers, start=1):
        receiver.job("receive", **{"meeting": meeting, "rank": rank, "size": 1 + len(receivers), **arguments})
    stream.join(meeting, 0, 1 + len(receivers))
    return meeting


def bytes_in_all() -> int:
    return sum(tensor.nbytes for _, tensor in weights())


@pytest.mark.parametrize(
    ("bucket_bytes", "at_least", "at_most"),
    [
        pytest.param(1 << 20, 1, 1, id="one-bucket"),
        pytest.param(4096, 2, 4, id="a-few"),
        pytest.param(48, bytes_in_all() // 48, 10**6, id="tensors-larger-than-a-bucket"),
        pytest.param(16, bytes_in_all() // 16, 10**6, id="the-smallest-bucket"),
    ],
)
def test_every_bit_arrives_at_every_receiver(pair, bucket_bytes: int, at_least: int, at_most: int) -> None:
    sender = Counting(bucket_bytes, PATIENT)
    start(sender, pair, seconds=PATIENT, step=7)
    asyncio.run(sender.send(stream_of(weights()), step=7))
    sender.leave()
    assert pair[0].result() == pair[1].result() == describe(weights())
    assert at_least <= sender.buckets <= at_most


def test_a_transfer_of_nothing_ends(pair) -> None:
    sender = WeightStream(1024, PATIENT)
    start(sender, pair, seconds=PATIENT)
    asyncio.run(sender.send(stream_of([])))
    assert [receiver.result() for receiver in pair] == [[], []]


def test_a_stream_serves_one_transfer_after_another(pair) -> None:
    sender = WeightStream(1024, PATIENT)
    for step in range(3):
        start(sender, pair[:1], seconds=PATIENT, step=step)
        asyncio.run(sender.send(stream_of([("step", torch.tensor(step))]), step))
        assert pair[0].result() == describe([("step", torch.tensor(step))])
        sender.leave()
        sender.leave()  # nothing is left to do


def test_two_transfers_on_one_machine_do_not_meet(pair) -> None:
    senders = [WeightStream(64, PATIENT) for _ in pair]
    meetings = [start(sender, [receiver], seconds=PATIENT) for sender, receiver in zip(senders, pair, strict=True)]
    assert len({meeting.port for meeting in meetings}) == len({meeting.token for meeting in meetings}) == 2
    contents = [[(f"run.{run}.{index}", torch.full((30,), run)) for index in range(20)] for run in range(2)]

    async def both() -> None:
        await asyncio.gather(*(sender.send(stream_of(run)) for sender, run in zip(senders, contents, strict=True)))

    asyncio.run(both())
    assert [receiver.result() for receiver in pair] == [describe(run) for run in contents]


def test_a_process_of_another_transfer_is_not_let_in(pair) -> None:
    """As when a port is free again and the next run gets it: the address is right, and the token is not."""
    sender = WeightStream(1024, seconds=2.0)
    meeting = sender.open("127.0.0.1")
    pair[0].job("receive", meeting=replace(meeting, token="of another run"), rank=1, size=2, seconds=2.0)
    began = time.monotonic()
    with pytest.raises(WeightTransferError, match="the sender of 2 processes failed at meeting at 127.0.0.1"):
        sender.join(meeting, 0, 2)
    assert time.monotonic() - began < 20
    kind, message, _ = pair[0].result()
    assert kind == "WeightTransferError"
    assert "receiver 1 of 2" in message


def test_the_ends_are_at_the_same_step(pair) -> None:
    sender = WeightStream(64, PATIENT)
    start(sender, pair[:1], seconds=PATIENT, step=4)
    with pytest.raises(WeightTransferError):
        asyncio.run(sender.send(stream_of(weights()), step=5))
    kind, message, seconds = pair[0].result()
    assert kind == "WeightTransferError"
    assert "weights of step 5 arrived where those of step 4 were expected" in message
    assert seconds < PATIENT / 2


# ---------------------------------------------------------------------- processes that fail


def fails_to_send(sender: WeightStream, items) -> tuple[str, float]:
    began = time.monotonic()
    with pytest.raises(WeightTransferError) as caught:
        asyncio.run(sender.send(stream_of(items)))
    return str(caught.value), time.monotonic() - began


@pytest.mark.parametrize("bucket_bytes", [64, 1 << 20], ids=["in-the-middle", "after-the-only-bucket"])
def test_a_receiver_that_dies_ends_the_sender_at_once(one, bucket_bytes: int) -> None:
    sender = WeightStream(bucket_bytes, PATIENT)
    start(sender, [one], seconds=PATIENT, trouble="dies")
    message, seconds = fails_to_send(sender, weights())
    assert seconds < PATIENT / 2
    assert "the sender of 2 processes failed" in message
    assert "engine_kwargs.gloo.timeout_seconds" in message
    one.process.join(30)
    assert one.process.exitcode == 1


def test_a_receiver_that_gives_up_ends_the_sender_at_once(pair) -> None:
    sender = WeightStream(64, PATIENT)
    start(sender, pair[:1], seconds=PATIENT, trouble="raises")
    _, seconds = fails_to_send(sender, weights())
    assert seconds < PATIENT / 2
    assert pair[0].result()[:2] == ("LookupError", "the consumer has no such layer")


@pytest.mark.parametrize("bucket_bytes", [64, 1 << 20], ids=["in-the-middle", "after-the-only-bucket"])
def test_a_receiver_that_is_stuck_ends_the_sender_when_the_time_is_up(one, bucket_bytes: int) -> None:
    sender = WeightStream(bucket_bytes, seconds=3.0)
    start(sender, [one], seconds=PATIENT, trouble="is stuck")
    message, seconds = fails_to_send(sender, weights())
    assert 2.0 < seconds < 20.0
    assert "no step may take longer than 3 s" in message


def test_a_sender_that_is_killed_ends_the_receiver_at_once(one) -> None:
    here, there = multiprocessing.get_context("spawn").Pipe()
    one.job("send_until_killed", pipe_of_meeting=there, size=2, seconds=PATIENT)
    receiver = WeightStream(64, PATIENT)
    assert here.poll(30)
    receiver.join(here.recv(), 1, 2)
    killed = 0.0

    async def take() -> None:
        nonlocal killed
        async for name, tensor in receiver.receive():
            assert torch.equal(tensor, torch.ones(1000))
            if name == "weight.3":
                one.process.kill()
                killed = time.monotonic()

    with pytest.raises(WeightTransferError, match="receiver 1 of 2"):
        asyncio.run(take())
    assert killed
    assert time.monotonic() - killed < PATIENT / 2


def test_a_sender_that_fails_ends_the_receivers_at_once_and_keeps_its_own_error(pair) -> None:
    def failing():
        yield from weights()[:3]
        raise LookupError("the model lost a layer")

    sender = WeightStream(64, PATIENT)
    start(sender, pair, seconds=PATIENT)
    with pytest.raises(LookupError, match="the model lost a layer"):
        asyncio.run(sender.send(stream_of(failing())))
    for receiver in pair:
        kind, _, seconds = receiver.result()
        assert kind == "WeightTransferError"
        assert seconds < PATIENT / 2


def test_a_process_that_never_comes_is_waited_for_no_longer_than_allowed() -> None:
    sender = WeightStream(64, seconds=1.5)
    meeting = sender.open("127.0.0.1")
    began = time.monotonic()
    with pytest.raises(WeightTransferError, match="1.5 s"):
        sender.join(meeting, 0, 2)
    assert 1.0 < time.monotonic() - began < 15
    receiver = WeightStream(64, seconds=1.5)
    with pytest.raises(WeightTransferError, match="receiver 1 of 2"):
        receiver.join(meeting, 1, 2)  # the sender has left


def test_mistakes_of_the_caller() -> None:
    with pytest.raises(ValueError, match="8 bytes is too small"):
        WeightStream(8, 1.0)
    with pytest.raises(ValueError, match="above 0 seconds"):
        WeightStream(64, 0.0)
    with pytest.raises(SpoStateError, match="has not joined"):
        asyncio.run(WeightStream(64, 1.0).send(stream_of(weights())))
