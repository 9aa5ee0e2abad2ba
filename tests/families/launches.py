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
        low, high: declared range of the rewards.
        sessions: of each prompt in a batch.
        outputs: of each session.
    """

    family: str
    feature: str
    save: Callable[[Path], None]
    overrides: Sequence[str] = ("+spo=paper",)
    difference: float = 1e-5
    low: float = 0.0
    high: float = 1.0
    sessions: int = 1
    outputs: int = 1


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
    "lora_megatron": Family(
        "dense",
        "lora, merged",
        models.save_dense,
        (
            "model_engine=megatron",
            "+spo=paper",
            "actor_rollout_ref.model.lora.rank=8",
            "actor_rollout_ref.model.lora.alpha=16",
            "actor_rollout_ref.model.lora.merge=True",
        ),
    ),
    "experts": Family("moe", "", models.save_experts),
    "turns": Family(
        "dense",
        "a tool, two outputs per session",
        models.save_dense,
        (
            "+spo=bspo",
            "actor_rollout_ref.rollout.n=2",
            "actor_rollout_ref.rollout.agent.default_agent_loop=two_turns",
        ),
        sessions=2,
        outputs=2,
    ),
    "reward_model": Family(
        "dense",
        "colocated reward model",
        models.save_dense,
        (
            "+spo=paper",
            "reward.custom_reward_function.path=null",
            "reward.reward_model.enable=True",
            "reward.reward_model.rollout.name=vllm",
            "reward.reward_model.rollout.dtype=float32",
            "reward.reward_model.rollout.tensor_model_parallel_size=1",
            "reward.reward_model.rollout.free_cache_engine=False",
            "+reward.reward_model.rollout.enable_sleep_mode=False",
            "reward.reward_model.rollout.max_model_len=64",
            "reward.reward_model.rollout.max_num_seqs=16",
            "reward.reward_model.rollout.prompt_length=32",
            "reward.reward_model.rollout.response_length=8",
            "+reward.reward_model.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=67108864",
            "spo.reward.low=-16",
            "spo.reward.high=16",
        ),
        low=-16.0,
        high=16.0,
    ),
}


def launch(name: str, folder: Path) -> Run:
    """Write the model and the rows of a family, and train on them."""
    one = FAMILIES[name]
    one.save(folder / "model")
    pd.DataFrame(text_rows(PROMPTS)).to_parquet(folder / "train.parquet")
    pd.DataFrame(text_rows(PROMPTS, 1000)).to_parquet(folder / "val.parquet")
    overrides = list(one.overrides)
    if name == "turns":
        loops = folder / "agents.yaml"
        loops.write_text("- name: two_turns\n  _target_: tests.support.two_turns.TwoTurnAgentLoop\n")
        overrides.append(f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}")
    if name == "reward_model":
        models.save_classifier(folder / "reward_model")
        overrides.append(f"reward.reward_model.model_path={folder}/reward_model")
    return train(folder, name, [*overrides, *COMMON], family=one.family, feature=one.feature)
