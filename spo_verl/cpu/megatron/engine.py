"""verl's Megatron engine for the device ``cpu``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import MutableMapping
from types import ModuleType
from typing import Any

import torch
import wrapt

from spo_verl.cpu.registry import workaround

_ENGINE = "verl.workers.engine.megatron"


def leave_for_later() -> None:
    """Let the import of verl's engines pass over Megatron's, which takes as long as all the others together."""
    modules: MutableMapping[str, Any] = sys.modules
    modules.setdefault(_ENGINE, None)


@workaround("megatron-on-demand", target="verl.workers.engine:EngineRegistry")
def allow_import(_module: ModuleType) -> None:
    """Once the engines are imported, Megatron's can be."""
    if sys.modules.get(_ENGINE, _ENGINE) is None:
        del sys.modules[_ENGINE]


@workaround(
    "megatron-on-demand", target="verl.workers.engine.base:EngineRegistry.get_engine_cls", parameters=("backend",)
)
def import_on_demand(module: ModuleType) -> None:
    """Import Megatron's engine when a run asks for it."""

    def with_import(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "megatron" in (*args, *kwargs.values()):
            importlib.import_module(_ENGINE)
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "EngineRegistry.get_engine_cls", with_import)


@workaround(
    "megatron-engines",
    target=f"{_ENGINE}.transformer_impl:EngineRegistry.register",
    parameters=("model_type", "backend", "device"),
)
def register_engines(module: ModuleType) -> None:
    """Offer Megatron's engines for ``cpu``; verl registers them for cuda and npu only."""
    for model_type, engine in (
        ("language_model", module.MegatronEngineWithLMHead),
        ("value_model", module.MegatronEngineWithValueHead),
    ):
        module.EngineRegistry.register(model_type=model_type, backend="megatron", device="cpu")(engine)


@workaround(
    "megatron-offload", target=f"{_ENGINE}.transformer_impl:offload_megatron_model_to_cpu", parameters=("models",)
)
def keep_model(module: ModuleType) -> None:
    """Offloading goes through pinned memory, which needs an accelerator; here everything is in host memory already."""

    def offload_megatron_model_to_cpu(models: Any) -> None:
        return None

    module.offload_megatron_model_to_cpu = offload_megatron_model_to_cpu  # type: ignore[attr-defined]


@workaround(
    "megatron-offload", target=f"{_ENGINE}.transformer_impl:offload_megatron_optimizer", parameters=("optimizers",)
)
def keep_optimizer(module: ModuleType) -> None:
    """The same for the optimizer's state."""

    def offload_megatron_optimizer(optimizers: Any) -> None:
        return None

    module.offload_megatron_optimizer = offload_megatron_optimizer  # type: ignore[attr-defined]


@workaround("megatron-fp32", target="verl.workers.config.engine:McoreEngineConfig.__post_init__")
def allow_fp32(module: ModuleType) -> None:
    """The configuration refuses the word float32, which the engine itself handles."""

    def check(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wanted = instance.dtype
        if wanted in ("float32", "fp32"):
            object.__setattr__(instance, "dtype", "bfloat16")
        wrapped(*args, **kwargs)
        object.__setattr__(instance, "dtype", wanted)

    wrapt.wrap_function_wrapper(module, "McoreEngineConfig.__post_init__", check)


class _Unpinned(torch.overrides.TorchFunctionMode):  # type: ignore[no-untyped-call]
    """While it is on, pinning a tensor's memory does nothing."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function is torch.Tensor.pin_memory else function(*args, **(kwargs or {}))


@workaround(
    "megatron-policy-copy", target="verl.utils.megatron_utils:copy_megatron_model_to_cpu", parameters=("models",)
)
def copy_unpinned(module: ModuleType) -> None:
    """The policy copy of ``separate_async`` is put into pinned memory."""

    def without_pinning(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _Unpinned():
            return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "copy_megatron_model_to_cpu", without_pinning)
