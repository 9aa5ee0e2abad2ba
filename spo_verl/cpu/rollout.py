"""vLLM's CPU build as verl's rollout engine."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import workaround
from spo_verl.errors import SpoStateError

_SOCKET_PREFIX = "rl-colocate-zmq-"


@workaround("linear-weights", target="vllm._custom_ops:_supports_onednn")
def keep_linear_weights(module: ModuleType) -> None:
    """Leave linear layers to torch: packing for oneDNN frees ``layer.weight``, and weight sync writes into that.

    vLLM reads the flag when it builds a layer, which is after verl was imported in the worker process.
    """
    module._supports_onednn = False  # type: ignore[attr-defined]


def unique_socket(handle: str) -> str:
    """Put the process id of this node's raylet into a weight-transfer socket path.

    verl names the socket by the Ray job id, and the first job of every local cluster is 01000000: two runs on one
    machine would take each other's weights, and both wait for ever. The raylet's id differs between clusters that
    live at the same time, and every process of a run on one node, vLLM's children included, inherits the same.

    Raises:
        SpoStateError: this process was not started by Ray, or the path is not a weight-transfer socket.
    """
    raylet = os.environ.get("RAY_RAYLET_PID")
    if not raylet:
        raise SpoStateError(
            "RAY_RAYLET_PID is not in the environment, so a weight-transfer socket of this run's own cannot be named: "
            "verl's rollout workers must be started by Ray (`python -m verl.trainer.main_ppo`)."
        )
    head, prefix, tail = handle.partition(_SOCKET_PREFIX)
    if not prefix:
        raise SpoStateError(f"{handle!r} does not contain {_SOCKET_PREFIX!r}; is this verl 0.9.1?")
    own = f"{raylet}-"
    return handle if tail.startswith(own) else f"{head}{prefix}{own}{tail}"


@workaround(
    "unique-sockets",
    target="verl.workers.rollout.vllm_rollout.vllm_rollout:ServerAdapter.__init__",
    parameters=("config", "model_config", "device_mesh"),
)
def name_sending_socket(module: ModuleType) -> None:
    """The training side of the transfer."""

    def with_own_socket(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        instance.zmq_handle = unique_socket(instance.zmq_handle)

    wrapt.wrap_function_wrapper(module, "ServerAdapter.__init__", with_own_socket)


@workaround(
    "unique-sockets",
    target="verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension._get_zmq_handle",
)
def name_receiving_socket(module: ModuleType) -> None:
    """The vLLM side of the transfer."""

    def with_own_socket(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return unique_socket(wrapped(*args, **kwargs))

    wrapt.wrap_function_wrapper(module, "vLLMColocateWorkerExtension._get_zmq_handle", with_own_socket)


_EXPERTS = "vllm.model_executor.layers.fused_moe.cpu_fused_moe:CPUFusedMOE"


@workaround("expert-weights", target=f"{_EXPERTS}.check_grouped_gemm", parameters=("layer",))
def keep_expert_weights(module: ModuleType) -> None:
    """Compute each expert with torch, from the weights as they were loaded; ``none`` is vLLM's name for that."""
    module.CPUFusedMOE.check_grouped_gemm = lambda self, layer: (False, "none")  # type: ignore[attr-defined]


@workaround("expert-weights", target=f"{_EXPERTS}._pad_moe_intermediate_for_grouped_gemm", parameters=("layer",))
def keep_expert_shapes(module: ModuleType) -> None:
    """Leave the shapes too: a wider layer has no place for the weights of the next update."""
    module.CPUFusedMOE._pad_moe_intermediate_for_grouped_gemm = lambda self, layer: None  # type: ignore[attr-defined]
