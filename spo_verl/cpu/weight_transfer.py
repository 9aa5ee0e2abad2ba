"""How weights reach rollout processes on a CPU: the engine between separate processes, and waits that end."""

from __future__ import annotations

from collections.abc import Callable
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

TRANSFER_SECONDS = 600.0
"""The longest silence between the two ends of a transfer into vLLM. More than the engine's own limit between separate
processes (300 s), so that of two failures the first cause is reported."""

LINGER_MILLISECONDS = 10_000

_BUCKETS = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"


def _bounded_socket_class(seconds: float) -> Any:
    import zmq

    class BoundedSocket(zmq.Socket):  # type: ignore[misc]
        """A socket whose ``send`` and ``recv`` end with a message of their own when nobody is at the other end."""

        def send(self, *args: Any, **kwargs: Any) -> Any:
            return self._attempt(super().send, *args, **kwargs)

        def recv(self, *args: Any, **kwargs: Any) -> Any:
            return self._attempt(super().recv, *args, **kwargs)

        def _attempt(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            try:
                return action(*args, **kwargs)
            except zmq.Again as error:
                raise WeightTransferError(
                    f"weight transfer into vLLM: the other end was silent for {seconds:g} s. It has ended or failed; "
                    "its own message is in the log."
                ) from error

    return BoundedSocket


class BoundedContext:
    """A zmq context whose new sockets do not wait for ever; everything else is the wrapped context's."""

    def __init__(self, context: Any, seconds: float) -> None:
        self._context = context
        self._seconds = seconds

    def socket(self, socket_type: int) -> Any:
        import zmq

        made = self._context.socket(socket_type, socket_class=_bounded_socket_class(self._seconds))
        for option in (zmq.SNDTIMEO, zmq.RCVTIMEO):
            made.setsockopt(option, int(self._seconds * 1000))
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
