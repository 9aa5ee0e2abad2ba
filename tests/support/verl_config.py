"""verl's own trainer configuration, composed as `python -m verl.trainer.main_ppo` composes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import verl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig


def compose_verl(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of a run with these command-line overrides."""
    folder = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(config_dir=str(folder), version_base=None):
        return compose(config_name="ppo_trainer", overrides=list(overrides))
