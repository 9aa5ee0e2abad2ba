"""Ray's workers as forks of one process that has imported what all of them need.

Each worker of a run imports torch, transformers, verl and often vLLM: ten CPU seconds or more, and a launch has about
ten of them on two cores. ``client.py`` takes the place of the script by which Ray sets a worker up; ``server.py``,
which the first client starts, is the process that they are forked from.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

from spo_verl.cpu.registry import workaround
from spo_verl.cpu.workers.client import SOCKET, STOCK

CLIENT = Path(__file__).with_name("client.py")
SWITCH = "SPO_FORK_WORKERS"
"""Environment variable; 0 leaves Ray's own way of starting workers."""
_SOCKET_PATH_LIMIT = 107
"""Bytes of the path of a socket, on Linux."""


@workaround(
    "forked-workers",
    target="ray._private.services:start_raylet",
    parameters=("setup_worker_path", "session_dir", "env_updates"),
)
def fork_workers(module: ModuleType) -> None:
    """Have the raylet that this process starts set up its workers through the client."""

    def start_raylet(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = inspect.signature(wrapped).bind(*args, **kwargs).arguments
        socket = os.path.join(call["session_dir"], "sockets", "fork_server")
        if os.environ.get(SWITCH) != "0" and len(os.fsencode(socket)) <= _SOCKET_PATH_LIMIT:
            call["env_updates"] = {
                **(call.get("env_updates") or {}), STOCK: call["setup_worker_path"], SOCKET: socket,
            }  # fmt: skip
            call["setup_worker_path"] = str(CLIENT)
        return wrapped(**call)

    wrapt.wrap_function_wrapper(module, "start_raylet", start_raylet)
