"""verl's own keys on a CPU: the config group ``platform``."""

from __future__ import annotations

from pathlib import Path

from spo_verl.cpu.registry import declare

PLATFORM_GROUP = Path(__file__).with_name("conf") / "platform"
"""Folder of the hydra group; the plugin registers its files when ``VERL_PLATFORM=cpu``."""

declare("cpu-settings", "verl.trainer.main_ppo:main", applied="settings", apply=PLATFORM_GROUP / "cpu.yaml")
