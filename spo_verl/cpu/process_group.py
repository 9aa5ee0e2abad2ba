"""verl's process group on a CPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import workaround


@workaround(
    "gloo-alone",
    target="verl.utils.distributed:initialize_global_process_group_ray",
    parameters=("timeout_second", "backend"),
)
def use_gloo_alone(module: ModuleType) -> None:
    """Default the backend to ``gloo``: verl composes ``cpu:gloo,<device>:<backend>``, here the same device twice."""

    def with_gloo(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) < 2 and kwargs.get("backend") is None:
            kwargs = {**kwargs, "backend": "gloo"}
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "initialize_global_process_group_ray", with_gloo)
