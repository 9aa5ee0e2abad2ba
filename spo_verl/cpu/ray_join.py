"""A Ray cluster that is already running, joined with ``+platform=cpu``."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import workaround

OF_THE_NODES = ("num_cpus", "num_gpus", "object_store_memory")
"""What ``+platform=cpu`` gives to a cluster of the run's own. Ray refuses it for another: ``ray start`` set it."""


@workaround("ray-join", target="ray:init", parameters=("address", *OF_THE_NODES, "runtime_env"))
def join_without_resources(module: ModuleType) -> None:
    """Where Ray joins a running cluster, leave those keys out and give the platform to the processes that it starts."""

    def init(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        address = running_cluster(args[0] if args else kwargs.get("address"), kwargs.get("_temp_dir"))
        if address is None:
            return wrapped(*args, **kwargs)
        left = {key: value for key, value in kwargs.items() if key not in OF_THE_NODES}
        if len(left) < len(kwargs):
            names = ", ".join(key for key in OF_THE_NODES if key in kwargs)
            print(
                f"Ray runs at {address}: its nodes have {names} of their own, and this run's are left out", flush=True
            )
        environment = left.get("runtime_env") or {}
        variables = {"VERL_PLATFORM": "cpu", **(environment.get("env_vars") or {})}
        return wrapped(*args, **{**left, "runtime_env": {**environment, "env_vars": variables}})

    wrapt.wrap_function_wrapper(module, "init", init)


def running_cluster(address: str | None, temp_dir: str | None) -> str | None:
    """``host:port`` of the cluster that ``ray.init`` joins: by address, RAY_ADDRESS or ``ray start``; None: its own."""
    from ray._private.services import canonicalize_bootstrap_address

    found: str | None = canonicalize_bootstrap_address(address, temp_dir)
    return found
