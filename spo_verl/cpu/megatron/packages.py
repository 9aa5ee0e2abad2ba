"""Megatron-Core and Megatron-Bridge on a CPU: layers, conversion of weights and configuration."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import workaround

_SPECS = "megatron.core.models.gpt.gpt_layer_specs"
_CONVERSION = "megatron.bridge.models.conversion"


@workaround("transformer-engine-layers", target=f"{_SPECS}:HAVE_TE")
def specify_layers(module: ModuleType) -> None:
    """Layers in plain torch in the place of Transformer Engine's."""
    from spo_verl.cpu.megatron.layers import CpuSpecProvider, TENorm

    module.TESpecProvider, module.TENorm, module.HAVE_TE = CpuSpecProvider, TENorm, True  # type: ignore[attr-defined]


@workaround("transformer-engine-layers", target="megatron.core.transformer.transformer_block:LayerNormImpl")
def norm_at_the_end(module: ModuleType) -> None:
    """The norm after the last layer."""

    class Norm:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            from spo_verl.cpu.megatron.layers import TENorm  # imports what is being imported here

            return TENorm(*args, **kwargs)

    module.LayerNormImpl = Norm  # type: ignore[attr-defined]


@workaround("one-generator", target="megatron.core.tensor_parallel.random:CudaRNGStatesTracker.fork")
def expect_one_generator(module: ModuleType) -> None:
    """Megatron swaps the accelerator's random state, and warns at every layer that the CPU's, the same, has changed."""
    logging.getLogger(module.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


@workaround(
    "contiguous-shards",
    target=f"{_CONVERSION}.param_mapping:MegatronParamMapping.scatter_to_tp_ranks",
    parameters=("splits",),
)
def scatter_contiguous(module: ModuleType) -> None:
    """Gloo sends the bytes of a strided view as they lie: the other ranks would get wrong weights without a word."""

    def contiguous(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def call(splits: Any, *more: Any, **named: Any) -> Any:
            return wrapped(splits and [split.contiguous() for split in splits], *more, **named)

        return call(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "MegatronParamMapping.scatter_to_tp_ranks", contiguous)


@workaround(
    "rope-theta",
    target=f"{_CONVERSION}.model_bridge:MegatronModelBridge.hf_config_to_provider_kwargs",
    parameters=("hf_config",),
)
def read_rope_theta(module: ModuleType) -> None:
    """On any hardware: transformers 5 moved ``rope_theta``, and Megatron-Bridge 0.3.1 takes its default instead."""

    def with_theta(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        [hf_config] = (*args, *kwargs.values())
        theta = (getattr(hf_config, "rope_parameters", None) or {}).get("rope_theta")
        return {**wrapped(*args, **kwargs), **({} if theta is None else {"rotary_base": theta})}

    wrapt.wrap_function_wrapper(module, "MegatronModelBridge.hf_config_to_provider_kwargs", with_theta)
