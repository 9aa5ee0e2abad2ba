"""verl and vLLM without an accelerator. Optional, and inert unless ``VERL_PLATFORM=cpu`` is set.

:func:`activate` is called while ``verl`` is being imported, in every process, so it only registers: the platform
class at once, everything else as hooks that run when the module they concern is imported. ``+platform=cpu`` then
sets the verl keys that a CPU needs (``conf/platform/cpu.yaml``).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from spo_verl.cpu.registry import REGISTRY, Workaround, install_hooks, look_up

__all__ = ["Workaround", "activate", "unfit_workarounds", "workarounds"]

_MODULES = (
    "platform",
    "process_group",
    "engines",
    "rollout",
    "engine_death",
    "polling",
    "agent_loops",
    "columns",
    "checkpoint_engines",
    "ray_start",
    "ray_join",
    "workers",
    "old_policy",
    "trainer_log",
    "weight_transfer",
    "segments",
    "settings",
    "process_env",
    "environment",
    "megatron.source",
    "megatron.packages",
    "megatron.optimizer",
    "megatron.engine",
)
_active = False


def workarounds() -> tuple[Workaround, ...]:
    """Every workaround, in the order in which they are declared."""
    for module in _MODULES:
        importlib.import_module(f"spo_verl.cpu.{module}")
    return tuple(REGISTRY)


def unfit_workarounds() -> Iterator[tuple[str, str]]:
    """Yield each workaround of verl that does not fit the installed one, and why; no import ends the search."""
    for module in _MODULES:
        try:
            importlib.import_module(f"spo_verl.cpu.{module}")
        except Exception as error:  # noqa: BLE001 - a package of another version may raise anything; it is reported
            yield f"spo_verl/cpu/{module.replace('.', '/')}.py", f"cannot be imported ({type(error).__name__}: {error})"
    for entry in REGISTRY:
        if entry.module.partition(".")[0] != "verl":
            continue
        try:
            _, difference = look_up(entry)
        except Exception as error:  # noqa: BLE001 - as above
            difference = f"{entry.module} cannot be imported ({type(error).__name__}: {error})"
        if difference:
            yield entry.name, difference


def activate() -> None:
    """Make verl run on a CPU in this process and in those it starts. Calling it again changes nothing.

    Raises:
        SpoVersionError: a module that is already imported is not as a workaround expects it; for modules that are
            imported later, their import raises it.
    """
    global _active
    if _active:
        return
    # Set first: the platform module imports verl, whose plugin activates in turn.
    _active = True
    try:
        workarounds()
        from spo_verl.cpu.checkpoint_engines import leave_out
        from spo_verl.cpu.megatron import engine, source
        from spo_verl.cpu.process_env import set_defaults

        set_defaults()
        leave_out()
        engine.leave_for_later()
        source.install()
        install_hooks()
    except BaseException:
        _active = False
        raise
