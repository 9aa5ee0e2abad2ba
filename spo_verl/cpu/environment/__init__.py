"""The Python environment in which verl runs on a CPU: alias wheels, pinned versions, and the script that makes it.

``make_env.sh`` is what ``quickstart.sh`` and ``test.sh`` share; ``alias_wheels.py`` runs before anything is installed
and therefore imports nothing but the standard library.
"""

from __future__ import annotations

from pathlib import Path

from spo_verl.cpu.registry import declare

FOLDER = Path(__file__).parent

declare(
    "alias-wheels",
    "verl.third_party.vllm:get_version",
    applied="environment",
    parameters=("pkg",),
    apply=FOLDER / "alias_wheels.py",
)
