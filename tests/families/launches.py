"""What is launched for each family: three steps over eight prompts, all of them in every batch.

The learning rate of the first step is 0, so that the second step finds the policy where the responses of the first were
stored, and the divergence must be 0 there; the third step finds it moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tests.families import models
from tests.system.harness import Run, row, train

PROMPTS = 8
STEPS = 3
COMMON = (
    f"data.train_batch_size={PROMPTS}",
    f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS // 2}",
    f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={PROMPTS // 2}",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=1",
    "data.max_prompt_length=32",
    # Nothing is forgotten, so that evidence is a count; how far the policy moves is measured all the same.
    "spo.forgetting.rho_min=1",
    "spo.forgetting.rho_max=1",
    f"trainer.total_training_steps={STEPS}",
    "trainer.total_epochs=100",
    f"trainer.save_freq={STEPS}",
    "trainer.test_freq=-1",
)


def text_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [row(first + number) for number in range(count)]


@dataclass(frozen=True)
class Family:
    """A model, its rows, and the overrides of its launch.

    Attributes:
        family, feature: as :mod:`tests.support.matrix` records them.
        difference: most by which a token's probability may differ between the two engines.
    """

    family: str
    feature: str
    save: Callable[[Path], None]
    overrides: Sequence[str] = ("+spo=paper",)
    difference: float = 1e-5


LORA = (
    "+spo=paper",
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.model.lora_alpha=16",
    "actor_rollout_ref.model.target_modules=all-linear",
)
FAMILIES = {
    "lora": Family(
        "dense",
        "lora, adapter",
        models.save_dense,
        (*LORA, "actor_rollout_ref.rollout.load_format=safetensors"),
    ),
    "experts": Family("moe", "", models.save_experts),
}


def launch(name: str, folder: Path) -> Run:
    """Write the model and the rows of a family, and train on them."""
    one = FAMILIES[name]
    one.save(folder / "model")
    pd.DataFrame(text_rows(PROMPTS)).to_parquet(folder / "train.parquet")
    pd.DataFrame(text_rows(PROMPTS, 1000)).to_parquet(folder / "val.parquet")
    return train(folder, name, [*one.overrides, *COMMON], family=one.family, feature=one.feature)
