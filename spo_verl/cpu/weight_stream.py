"""A stream of named tensors from one process to several others, in buckets, over gloo. Knows torch and nothing of verl.

Every wait ends: a process that fails leaves the group, which its peers notice at once, and one that is killed or
stuck makes them fail when the time is up. A group serves one transfer. Its port is chosen by the system and its keys
carry a token of its own, so transfers of two runs on one machine cannot meet.

A bucket travels as three broadcasts: the two lengths, a header (JSON), and the bytes. The header lists the pieces
that the bucket holds; a tensor is one piece unless it is larger than a bucket.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from spo_verl.cpu.weight_transfer import WeightTransferError
from spo_verl.errors import SpoStateError

SENDER = 0
ALIGNMENT = 16
"""Bytes; a piece may then be viewed as any dtype, whatever came before it in the bucket."""

T = TypeVar("T")


@dataclass(frozen=True)
class Meeting:
    """Where the processes of one transfer find each other."""

    host: str
    port: int
    token: str


@dataclass(frozen=True)
class Piece:
    """A tensor, or the part of it that begins at byte ``start``, and its place in the bucket."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int
    offset: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def tensor_bytes(self) -> int:
        return int(torch.Size(self.shape).numel() * self.torch_dtype.itemsize)


@dataclass
class _Bucket:
    capacity: int
    pieces: list[Piece] = field(default_factory=list)
    parts: list[torch.Tensor] = field(default_factory=list)
    end: int = 0

    @property
    def next_offset(self) -> int:
        return -(-self.end // ALIGNMENT) * ALIGNMENT

    @property
    def room(self) -> int:
        return self.capacity - self.next_offset

    def add(self, name: str, weight: torch.Tensor, start: int, part: torch.Tensor) -> None:
        dtype = str(weight.dtype).removeprefix("torch.")
        offset = self.next_offset
        self.pieces.append(Piece(name, dtype, tuple(weight.shape), start, part.numel(), offset))
        self.parts.append(part)
        self.end = offset + part.numel()

    def payload(self) -> torch.Tensor:
        payload = torch.zeros(self.end, dtype=torch.uint8)
        for piece, part in zip(self.pieces, self.parts, strict=True):
            payload[piece.offset : piece.offset + piece.size] = part
        return payload


class WeightStream:
    """One process's end of a transfer: ``open`` (the sender), ``join``, ``send`` or ``receive``, ``leave``.

    Args:
        bucket_bytes: how much is sent at once; what a receiver holds at a time in addition to the tensors it was given.
        seconds: the longest wait for the other processes, at each single step of the transfer.
    """

    def __init__(self, bucket_bytes: int, seconds: float) -> None:
        if bucket_bytes < ALIGNMENT:
            raise ValueError(f"a bucket of {bucket_bytes} bytes is too small, at least {ALIGNMENT} are needed")
        if not seconds > 0:
            raise ValueError(f"the longest wait must be above 0 seconds, it is {seconds}")
        self._bucket_bytes = bucket_bytes
        self._seconds = seconds
        self._store: TCPStore | None = None
        self._group: ProcessGroupGloo | None = None
        self._rank: int | None = None
        self._size = 0

    @property
    def _patience(self) -> timedelta:
        return timedelta(seconds=self._seconds)

    def open(self, host: str) -> Meeting:
        """Wait for the others at a free port of ``host``, this machine's address."""
        self.leave()
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=self._patience)
        self._meeting = Meeting(host, self._store.port, uuid.uuid4().hex)
        return self._meeting

    def join(self, meeting: Meeting, rank: int, size: int) -> None:
        """Meet the other ``size - 1`` processes; rank 0 is the one that called :meth:`open`."""
        if rank != SENDER:
            self.leave()
        self._rank, self._size = rank, size

        def meet() -> ProcessGroupGloo:
            if rank != SENDER:
                self._store = TCPStore(meeting.host, meeting.port, is_master=False, timeout=self._patience)
            return ProcessGroupGloo(PrefixStore(meeting.token, self._store), rank, size, self._patience)

        self._group = self._attempt(f"meeting at {meeting.host}:{meeting.port}", meet)

    def leave(self) -> None:
        """Close the connections; whoever still waits for this process fails at once. Calling it again does nothing."""
        group, self._group, self._store = self._group, None, None
        if group is not None:
            group.shutdown()

    async def send(self, weights: AsyncIterator[tuple[str, torch.Tensor]], step: int | None = None) -> None:
        """Send all tensors, and return when every receiver has taken the last one.

        Raises:
            WeightTransferError: a receiver is gone, has failed or did not answer in time.
        """
        try:
            bucket = _Bucket(self._bucket_bytes)
            async for name, weight in weights:
                data = weight.detach().cpu().contiguous().view(-1).view(torch.uint8)
                if bucket.pieces and data.numel() > bucket.room:
                    await self._send_bucket(bucket, step, last=False)
                    bucket = _Bucket(self._bucket_bytes)
                start = 0
                while True:
                    part = data[start : start + bucket.room]
                    bucket.add(name, weight, start, part)
                    start += part.numel()
                    if start == data.numel():
                        break
                    await self._send_bucket(bucket, step, last=False)
                    bucket = _Bucket(self._bucket_bytes)
            await self._send_bucket(bucket, step, last=True)
            await self._everyone_is_done()
        except BaseException:
            self.leave()
            raise

    async def receive(self, step: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Yield the tensors in the order in which they were sent. They stay valid after the next one is asked for.

        Raises:
            WeightTransferError: the sender is gone, has failed, did not send in time, or is at another step.
        """
        try:
            last, whole = False, torch.empty(0, dtype=torch.uint8)
            while not last:
                pieces, last, payload = await self._receive_bucket(step)
                for piece in pieces:
                    part = payload[piece.offset : piece.offset + piece.size]
                    if piece.size < piece.tensor_bytes:
                        if piece.start == 0:
                            whole = torch.empty(piece.tensor_bytes, dtype=torch.uint8)
                        whole[piece.start : piece.start + piece.size] = part
                        if piece.start + piece.size < piece.tensor_bytes:
                            continue
                        part = whole
                    yield piece.name, part.view(piece.torch_dtype).view(piece.shape)
            await self._everyone_is_done()
        except BaseException:
            # Also when the caller gives up (GeneratorExit): the sender must not wait for it.
            self.leave()
            raise

    async def _send_bucket(self, bucket: _Bucket, step: int | None, *, last: bool) -> None:
        content = {"step": step, "last": last, "pieces": [list(vars(piece).values()) for piece in bucket.pieces]}
        header = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
        payload = bucket.payload()
        await self._broadcast(torch.tensor([header.numel(), payload.numel()]))
        await self._broadcast(header)
        await self._broadcast(payload)

    async def _receive_bucket(self, step: int | None) -> tuple[list[Piece], bool, torch.Tensor]:
        lengths = await self._broadcast(torch.zeros(2, dtype=torch.long))
        header, payload = [torch.empty(length, dtype=torch.uint8) for length in lengths.tolist()]
        content = json.loads((await self._broadcast(header)).numpy().tobytes())
        if content["step"] != step:
            raise WeightTransferError(
                f"weights of step {content['step']} arrived where those of step {step} were expected: the processes of "
                "this transfer are not at the same update."
            )
        pieces = [Piece(name, dtype, tuple(shape), *numbers) for name, dtype, shape, *numbers in content["pieces"]]
        return pieces, content["last"], await self._broadcast(payload)

    async def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel():
            await self._collective("passing on a bucket", lambda group: group.broadcast(tensor, SENDER))
        return tensor

    async def _everyone_is_done(self) -> None:
        # Without it the sender, whose bytes fit into socket buffers, would not notice a receiver that is stuck.
        await self._collective("waiting for everyone to finish", lambda group: group.allreduce(torch.zeros(1)))

    async def _collective(self, what: str, start: Callable[[ProcessGroupGloo], Any]) -> None:
        group = self._group
        if group is None:
            raise SpoStateError("this process has not joined a weight transfer: call join (verl: init_process_group)")
        # In a thread, since an actor's event loop has other calls to answer meanwhile.
        await asyncio.to_thread(self._attempt, what, lambda: start(group).wait())

    def _attempt(self, what: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except RuntimeError as error:
            self.leave()
            role = "the sender" if self._rank == SENDER else f"receiver {self._rank}"
            raise WeightTransferError(
                f"weight transfer: {role} of {self._size} processes failed at {what} (no step may take longer than "
                f"{self._seconds:g} s): {error}. Another process of the run has ended, failed or is stuck; its own "
                "message is in the log. If it was only slow, raise the limit: "
                "+actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.gloo.timeout_seconds=..."
            ) from error
