"""Sockets into vLLM that do not wait for ever; the real classes of verl are looked at in test_patches.py."""

from __future__ import annotations

import time
from types import ModuleType

import pytest

from spo_verl.cpu import weight_transfer
from spo_verl.cpu.weight_transfer import BoundedContext, WeightTransferError, bound_sender

zmq = pytest.importorskip("zmq")


def test_a_silent_peer_is_an_error_when_the_time_is_up(tmp_path) -> None:
    context = BoundedContext(zmq.Context.instance(), 0.3)
    address = f"ipc://{tmp_path}/socket"
    sender, receiver = context.socket(zmq.REQ), context.socket(zmq.REP)
    sender.bind(address)
    receiver.connect(address)
    sender.send_pyobj({"layer": 1})
    assert receiver.recv_pyobj() == {"layer": 1}
    began = time.monotonic()
    with pytest.raises(WeightTransferError, match=r"silent for 0.3 s.*message is in the log"):
        sender.recv()
    assert 0.2 < time.monotonic() - began < 10
    sender.close()
    receiver.close()


def test_a_peer_that_never_comes_is_an_error_as_well(tmp_path) -> None:
    sender = BoundedContext(zmq.Context.instance(), 0.3).socket(zmq.REQ)
    sender.bind(f"ipc://{tmp_path}/socket")
    with pytest.raises(WeightTransferError, match="silent for 0.3 s"):
        sender.send_pyobj({"layer": 1})
    sender.close()


def test_a_last_word_arrives_although_its_socket_is_closed(tmp_path) -> None:
    """verl's receiver acknowledges the last bucket and closes its socket in the same breath."""
    context = BoundedContext(zmq.Context.instance(), 20.0)
    address = f"ipc://{tmp_path}/socket"
    sender, receiver = context.socket(zmq.REQ), context.socket(zmq.REP)
    sender.bind(address)
    receiver.connect(address)
    sender.send(b"last bucket")
    receiver.recv()
    receiver.send(b"taken")
    receiver.close()
    assert sender.recv() == b"taken"
    sender.close()


def test_other_sockets_of_the_process_are_as_before() -> None:
    shared = zmq.Context.instance()
    bounded = BoundedContext(shared, 0.3)
    bounded.socket(zmq.REQ).close()
    assert bounded.closed is shared.closed  # everything else is the shared context's
    ordinary = shared.socket(zmq.REQ)
    assert ordinary.getsockopt(zmq.RCVTIMEO) == -1
    ordinary.close()


def test_the_context_is_bounded_when_the_sender_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class BucketedWeightSender:
        def __init__(self, zmq_handle: str, bucket_size_mb: int = 512) -> None:
            self.zmq_handle, self.bucket_size_mb = zmq_handle, bucket_size_mb
            self.zmq_context = zmq.Context.instance()

    monkeypatch.setattr(weight_transfer, "TRANSFER_SECONDS", 0.2)
    module = ModuleType("bucketed_weight_transfer")
    module.BucketedWeightSender = BucketedWeightSender  # type: ignore[attr-defined]
    bound_sender(module)
    made = module.BucketedWeightSender("ipc:///nowhere", bucket_size_mb=3)
    assert (made.zmq_handle, made.bucket_size_mb) == ("ipc:///nowhere", 3)
    assert made.zmq_context.socket(zmq.REP).getsockopt(zmq.RCVTIMEO) == 200
