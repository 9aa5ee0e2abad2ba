"""Sockets into vLLM that do not wait for ever; the real classes of verl are looked at in test_patches.py."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
import threading
import time
from types import ModuleType

import pytest

from spo_verl.cpu import weight_transfer
from spo_verl.cpu.weight_transfer import (
    SILENCE_LIMIT,
    BoundedContext,
    PendingCall,
    WeightTransferError,
    bound_sender,
    note_pending_call,
    share_of_silence,
)
from spo_verl.launching import launch
from spo_verl.launching.limits import Limits

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


@pytest.mark.parametrize("limit", [None, 300.0, 50.0, 7.0])
def test_every_wait_is_shorter_than_what_ends_the_run(limit: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SILENCE_LIMIT, raising=False)
    if limit is not None:
        monkeypatch.setenv(SILENCE_LIMIT, repr(limit))
    engine, transfer = share_of_silence(0.4, 120.0), share_of_silence(0.6, 180.0)
    assert engine < transfer < (limit or math.inf)
    assert (engine, transfer) == ((120.0, 180.0) if limit in (None, 300.0) else (0.4 * limit, 0.6 * limit))
    silence = inspect.signature(launch.run_main_ppo).parameters["silence_limit_s"].default
    assert weight_transfer.ENGINE_SECONDS < weight_transfer.TRANSFER_SECONDS < min(silence, Limits().silence_s)


class Server:
    """Stands for Ray and the call that takes the weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outcome: object) -> None:
        ray = ModuleType("ray")
        ray.wait = lambda references, timeout: (references, []) if self.ended else ([], references)  # type: ignore[attr-defined]
        ray.get = self.get  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(weight_transfer, "PENDING", PendingCall())
        monkeypatch.setattr(weight_transfer, "LOOK_MILLISECONDS", 50)
        self.ended, self.outcome = False, outcome

    def get(self, _reference: object) -> object:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_a_server_that_is_gone_ends_the_wait_at_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, RuntimeError("the actor died"))
    sender = BoundedContext(zmq.Context.instance(), 60.0).socket(zmq.REQ)
    sender.bind(f"ipc://{tmp_path}/socket")
    weight_transfer.PENDING.begin("call")
    threading.Timer(0.3, lambda: setattr(server, "ended", True)).start()
    began = time.monotonic()
    with pytest.raises(WeightTransferError, match="server has ended or failed .* the actor died") as caught:
        sender.send(b"bucket")
    assert 0.2 < time.monotonic() - began < 20
    assert caught.value.__cause__ is server.outcome
    sender.close()


def test_a_call_that_ended_well_does_not_end_the_wait(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, None)
    context = BoundedContext(zmq.Context.instance(), 30.0)
    sender, receiver = context.socket(zmq.REQ), context.socket(zmq.REP)
    sender.bind(f"ipc://{tmp_path}/socket")
    receiver.connect(f"ipc://{tmp_path}/socket")
    weight_transfer.PENDING.begin("call")
    sender.send(b"last bucket")
    receiver.recv()
    server.ended = True  # vLLM's call returns when the acknowledgement may still be on its way
    threading.Timer(0.3, lambda: receiver.send(b"taken")).start()
    assert sender.recv() == b"taken"
    sender.close()
    receiver.close()


def test_the_call_that_takes_weights_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    class ServerAdapter:
        async def _execute_method(self, method: str, non_block: bool = False) -> object:
            return f"call of {method}" if non_block else None

    module = ModuleType("vllm_rollout")
    module.ServerAdapter = ServerAdapter  # type: ignore[attr-defined]
    note_pending_call(module)
    monkeypatch.setattr(weight_transfer, "PENDING", PendingCall())
    assert asyncio.run(ServerAdapter()._execute_method("sleep")) is None
    assert weight_transfer.PENDING._reference is None
    assert asyncio.run(ServerAdapter()._execute_method("take", non_block=True)) == "call of take"
    assert weight_transfer.PENDING._reference == "call of take"


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
    with pytest.raises(WeightTransferError, match="silent for 0.2 s"):
        made.zmq_context.socket(zmq.REP).recv()
