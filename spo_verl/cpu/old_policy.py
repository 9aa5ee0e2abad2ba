"""The policy copy that ``separate_async`` keeps while it trains."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import workaround


@workaround("old-policy-copy", target="verl.utils.fsdp_utils:fsdp2_sharded_save_to_cpu", parameters=("model",))
def copy_when_saving(module: ModuleType) -> None:
    """Clone what is saved: ``.cpu()`` of a CPU tensor is that tensor, so the copy would follow the live policy."""

    def with_clones(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state, spec = wrapped(*args, **kwargs)
        return {name: (tensor.clone(), tensor_spec) for name, (tensor, tensor_spec) in state.items()}, spec

    wrapt.wrap_function_wrapper(module, "fsdp2_sharded_save_to_cpu", with_clones)
