"""Hydra config groups that the plugin adds to verl's: ``spo`` (presets) and, on a CPU, ``platform``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

_PACKAGE = Path(__file__).resolve().parent.parent
PRESETS = _PACKAGE / "conf" / "spo"
PLATFORMS = _PACKAGE / "cpu" / "conf" / "platform"


def chosen_platform(environ: Mapping[str, str] = os.environ) -> str:
    """The platform that ``VERL_PLATFORM`` names, as verl reads it (``cpu``); empty where it is not set."""
    return environ.get("VERL_PLATFORM", "").strip().lower()


def groups(*, cpu: bool = False) -> Iterator[tuple[str, str, Any]]:
    """Yield ``(group, file name, content)`` of every config file of the plugin.

    The files carry ``# @package _global_`` for readers and for use in a config directory of one's own; entries of
    hydra's ConfigStore get the package from the caller.
    """
    from omegaconf import OmegaConf

    folders = {"spo": PRESETS, **({"platform": PLATFORMS} if cpu else {})}
    for name, folder in folders.items():
        group = PurePosixPath(name)
        for path in sorted(folder.rglob("*.yaml")):
            yield (group / path.relative_to(folder).parent).as_posix(), path.name, OmegaConf.load(path)


def platform_values(engine: str) -> Any:
    """What ``+platform=cpu`` sets with this ``model_engine``."""
    from omegaconf import OmegaConf

    files = [PLATFORMS / "engine" / f"{engine}.yaml", PLATFORMS / "cpu.yaml"]
    values = OmegaConf.merge(*(OmegaConf.load(file) for file in files if file.exists()))
    del values["defaults"]
    return values


def store_groups(store: Any, platform: str) -> None:
    """Put every group into hydra's ConfigStore; the group ``platform`` only where that is ``cpu``."""
    for group, name, node in groups(cpu=platform == "cpu"):
        store.store(group=group, name=name, node=node, package="_global_", provider="spo_verl")
