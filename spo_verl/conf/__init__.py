"""Hydra config groups that the plugin adds to verl's: ``spo`` (presets) and, on a CPU, ``platform``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = Path(__file__).resolve().parent.parent
PRESETS = _PACKAGE / "conf" / "spo"
PLATFORMS = _PACKAGE / "cpu" / "conf" / "platform"


def chosen_platform(environ: Mapping[str, str] | None = None) -> str:
    """The platform that ``VERL_PLATFORM`` names, as verl reads it (``cpu``); empty where it is not set.

    Args:
        environ: where to look; None: ``os.environ`` of this moment. It is no default, because ``datasets`` puts a copy
            in its place when verl filters prompts with several processes.
    """
    return (os.environ if environ is None else environ).get("VERL_PLATFORM", "").strip().lower()


def groups(*, cpu: bool = False) -> Iterator[tuple[str, str, Any]]:
    """Yield ``(group, file name, content)`` of every config file of the plugin.

    The files carry ``# @package _global_`` for readers and for use in a config directory of one's own; entries of
    hydra's ConfigStore get the package from the caller.
    """
    from omegaconf import OmegaConf

    folders = {"spo": PRESETS, **({"platform": PLATFORMS} if cpu else {})}
    for group, folder in folders.items():
        for path in sorted(folder.glob("*.yaml")):
            yield group, path.name, OmegaConf.load(path)


def platform_values(engine: str) -> Any:
    """What ``+platform=cpu`` sets with this ``model_engine``."""
    from omegaconf import OmegaConf

    files = [PLATFORMS / f"{name}.yaml" for name in ("cpu", f"cpu_{engine}")]
    values: Any = OmegaConf.merge(*(OmegaConf.load(file) for file in files if file.exists()))
    values.pop("defaults", None)
    return values


def platform_by_engine(module: ModuleType) -> None:
    """Let hydra read ``+platform=cpu`` as ``+platform=cpu_<model_engine>``; calling it again changes nothing.

    hydra lets one group's choice decide another's in a defaults list only, and this one is on the command line.

    Args:
        module: ``hydra._internal.defaults_list``.
    """
    import wrapt

    def with_engine(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        for default in instance.append_group_defaults:
            if (default.group, default.value) == ("platform", "cpu"):
                default.value = "cpu_${oc.select:model_engine,dp}"

    if not isinstance(module.Overrides.__init__, wrapt.BoundFunctionWrapper | wrapt.FunctionWrapper):
        wrapt.wrap_function_wrapper(module, "Overrides.__init__", with_engine)


def store_groups(store: Any, platform: str) -> None:
    """Put every group into hydra's ConfigStore; the group ``platform`` only where that is ``cpu``."""
    if platform == "cpu":
        import wrapt

        wrapt.register_post_import_hook(platform_by_engine, "hydra._internal.defaults_list")
    else:
        store.repo.pop("platform", None)  # of an earlier composition in this process
    for group, name, node in groups(cpu=platform == "cpu"):
        store.store(group=group, name=name, node=node, package="_global_", provider="spo_verl")
