"""How long Ray waits for the node that it has just started."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import workaround

NODE_SECONDS = 180.0
"""Ray gives up after 30 s, which a small machine with other work exceeds."""


@workaround("ray-start", target="ray._private.services:get_node", parameters=("gcs_address", "node_id"))
def wait_for_node(module: ModuleType) -> None:
    """Ask until the node is registered. Ray asks in a loop of 30 s that cannot be set, and starts over with nothing."""

    def get_node(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        end = time.monotonic() + NODE_SECONDS
        while True:
            try:
                return wrapped(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    wrapt.wrap_function_wrapper(module, "get_node", get_node)
