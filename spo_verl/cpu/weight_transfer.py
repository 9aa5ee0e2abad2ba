"""How weights reach rollout processes on a CPU: the engine between separate processes, and waits that end."""

from __future__ import annotations

import os
import time
from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import declare, workaround
from spo_verl.errors import SpoError


class WeightTransferError(SpoError, ConnectionError):
    """Weights did not arrive, or not all: another process of the transfer failed, is gone, or answered too late."""


ENGINE_MODULE = "spo_verl.cpu.gloo_engine"
"""Imported by verl, through its own setting, where weights are sent between processes."""

declare(
    "weight-engine",
    "verl.checkpoint_engine.base:CheckpointEngineRegistry.register",
    parameters=("backend",),
    applied="settings",
    apply=ENGINE_MODULE,
)

SILENCE_LIMIT = "SPO_SILENCE_LIMIT"
"""Environment variable: seconds without output after which this run is ended as hung (set by its launch)."""


def share_of_silence(share: float, otherwise: float) -> float:
    """Seconds that a wait may take so that its error comes before the run is ended as hung: at most ``otherwise``."""
    limit = float(os.environ.get(SILENCE_LIMIT, "inf"))
    return min(otherwise, share * limit)


ENGINE_SECONDS = share_of_silence(0.4, 120.0)
"""The longest wait of the engine between separate processes, unless it is set."""

TRANSFER_SECONDS = share_of_silence(0.6, 180.0)
"""The longest silence between the two ends of a transfer into vLLM. More than the engine's, so that of two failures the
first cause is reported."""

LOOK_MILLISECONDS = 1000
LINGER_MILLISECONDS = 10_000

_BUCKETS = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"
_ADAPTER = "verl.workers.rollout.vllm_rollout.vllm_rollout"


class PendingCall:
    """The call to the rollout server that takes the weights of the transfer under way, in the process that sends."""

    def __init__(self) -> None:
        self._reference: Any = None

    def begin(self, reference: Any) -> None:
        self._reference = reference

    def require_alive(self) -> None:
        """Raise what the call ended with, if it failed: its server is gone, or vLLM raised."""
        if self._reference is None:
            return
        import ray

        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return
        try:
            ray.get(ready[0])
        except Exception as error:
            self._reference = None
            raise WeightTransferError(
                "weight transfer into vLLM: the rollout server has ended or failed and did not take the weights: "
                f"{error}"
            ) from error


PENDING = PendingCall()


@workaround("transfer-timeout", target=f"{_ADAPTER}:ServerAdapter._execute_method", parameters=("method", "non_block"))
def note_pending_call(module: ModuleType) -> None:
    """Remember the call that receives weights, so that its failure ends the wait of the sender."""

    async def noted(wrapped: Any, _adapter: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = await wrapped(*args, **kwargs)
        if kwargs.get("non_block"):
            PENDING.begin(answer)
        return answer

    wrapt.wrap_function_wrapper(module, "ServerAdapter._execute_method", noted)


def _bounded_socket_class(seconds: float) -> Any:
    import zmq

    class BoundedSocket(zmq.Socket):  # type: ignore[misc]
        """A socket whose ``send`` and ``recv`` end with a message of their own when nobody is at the other end."""

        def send(self, *args: Any, **kwargs: Any) -> Any:
            self._wait(zmq.POLLOUT)
            return super().send(*args, **kwargs)

        def recv(self, *args: Any, **kwargs: Any) -> Any:
            self._wait(zmq.POLLIN)
            return super().recv(*args, **kwargs)

        def _wait(self, event: int) -> None:
            give_up = time.monotonic() + seconds
            while not self.poll(min(LOOK_MILLISECONDS, max(1, int(seconds * 1000))), event):
                PENDING.require_alive()
                if time.monotonic() >= give_up:
                    raise WeightTransferError(
                        f"weight transfer into vLLM: the other end was silent for {seconds:g} s. It has ended or "
                        "failed; its own message is in the log."
                    )

    return BoundedSocket


class BoundedContext:
    """A zmq context whose new sockets do not wait for ever; everything else is the wrapped context's."""

    def __init__(self, context: Any, seconds: float) -> None:
        self._context = context
        self._seconds = seconds

    def socket(self, socket_type: int) -> Any:
        import zmq

        made = self._context.socket(socket_type, socket_class=_bounded_socket_class(self._seconds))
        # A closed socket still delivers (the last acknowledgement needs that), but not beyond the end of the process.
        made.setsockopt(zmq.LINGER, LINGER_MILLISECONDS)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _with_bounded_context(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    instance.zmq_context = BoundedContext(instance.zmq_context, TRANSFER_SECONDS)


@workaround("transfer-timeout", target=f"{_BUCKETS}:BucketedWeightSender.__init__", parameters=("zmq_handle",))
def bound_sender(module: ModuleType) -> None:
    """The sending side, which otherwise waits for ever when vLLM raises while it loads weights."""
    wrapt.wrap_function_wrapper(module, "BucketedWeightSender.__init__", _with_bounded_context)


@workaround("transfer-timeout", target=f"{_BUCKETS}:BucketedWeightReceiver.__init__", parameters=("zmq_handle",))
def bound_receiver(module: ModuleType) -> None:
    """The vLLM side, which otherwise waits for ever for a sender that is gone."""
    wrapt.wrap_function_wrapper(module, "BucketedWeightReceiver.__init__", _with_bounded_context)
