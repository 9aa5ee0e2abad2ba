"""verl's checkpoint engine for Ascend, which every process would import on a CPU, and all of vLLM with it."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any

from spo_verl.cpu.registry import declare

MODULE = "verl.checkpoint_engine.hccl_checkpoint_engine"


def leave_out(modules: MutableMapping[str, Any] | None = None) -> None:
    """Make the import of the module fail, which verl notes as for any engine that is not installed."""
    target: MutableMapping[str, Any] = sys.modules if modules is None else modules
    target.setdefault(MODULE, None)


declare(
    "no-ascend-engine",
    "verl.checkpoint_engine.base:CheckpointEngineRegistry.record_import_error",
    parameters=("error",),
    applied="environment",
    apply=leave_out,
)
