"""verl's FSDP training engines on a CPU."""

from __future__ import annotations

from types import ModuleType

from spo_verl.cpu.registry import workaround

_IMPLEMENTATION = "verl.workers.engine.fsdp.transformer_impl"


@workaround("fsdp-engines", target=f"{_IMPLEMENTATION}:EngineRegistry.register", parameters=("model_type", "device"))
def register_engines(module: ModuleType) -> None:
    """Offer the FSDP2 engines for the device ``cpu``; verl registers them for cuda and npu only."""
    for model_type, engine in (
        ("language_model", module.FSDPEngineWithLMHead),
        ("value_model", module.FSDPEngineWithValueHead),
    ):
        module.EngineRegistry.register(model_type=model_type, backend="fsdp2", device="cpu")(engine)


@workaround("no-pinned-offload", target=f"{_IMPLEMENTATION}:CPUOffloadPolicy", parameters=("pin_memory",))
def never_offload(module: ModuleType) -> None:
    """Forward-only engines (a reference policy) ask for pinned host memory, which needs an accelerator.

    The parameters are in host memory already, so they get no policy.
    """

    def no_policy(pin_memory: bool = True) -> None:
        return None

    module.CPUOffloadPolicy = no_policy  # type: ignore[attr-defined]
