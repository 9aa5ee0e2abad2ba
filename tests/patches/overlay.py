"""verl as the probes see it: the installed package, with the files of a folder in their place where it has them.

The folder is in the environment variable ``PROBE_OVERLAY``; without it the probes see verl as installed.
"""

from __future__ import annotations

import copy
import functools
import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.patches.applying import VERL

OVERLAY = Path(os.environ["PROBE_OVERLAY"]) if "PROBE_OVERLAY" in os.environ else None


class Overlay(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        for file in (OVERLAY / f"{name.replace('.', '/')}.py", OVERLAY / name.replace(".", "/") / "__init__.py"):
            if file.is_file():
                return importlib.util.spec_from_file_location(name, file)
        return None


if OVERLAY is not None:
    assert "verl" not in sys.modules, "the finder has to be in place before verl is imported"
    sys.meta_path.insert(0, Overlay())


def source(name: str) -> str:
    patched = OVERLAY / name if OVERLAY is not None else None
    return (patched if patched is not None and patched.is_file() else VERL.parent / name).read_text()


@functools.cache
def composed(*overrides: str) -> Any:
    """The stock trainer's configuration, with patched files where there are some."""
    stock = VERL / "trainer" / "config"
    first = OVERLAY / "verl" / "trainer" / "config" if OVERLAY is not None else stock
    with initialize_config_dir(str(first), version_base=None):
        return compose("ppo_trainer", [f"hydra.searchpath=[file://{stock}]", *overrides])


def config(*overrides: str) -> Any:
    """The same, composed once: keys that it has are set in a copy, and Hydra judges the others."""
    given = copy.deepcopy(composed())
    absent = object()
    if any(OmegaConf.select(given, item.split("=")[0], default=absent) is absent for item in overrides):
        return copy.deepcopy(composed(*overrides))
    given.merge_with_dotlist(list(overrides))
    return given


def outcome(action: Any) -> Any:
    """What the action returns, or the type and first line of what it raises."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - the report is about which error it is
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
