"""What is checked of rewards before a run: that they can be in the declared range, and that the loss reads them.

Sources: ``verl.experimental.reward_loop`` (managers, and the old keys that it moves to the new ones) and
``verl.trainer.distillation.losses`` of verl 0.9.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spo_verl.config import SpoConfig

LOSS = "distillation.distillation_loss"
KNOWN_MANAGERS = ("naive", "dapo")
"""Managers whose reward is the reward function's score, with or without the penalty of ``dapo``."""


def newest(config: DictConfig, old: str, new: str) -> tuple[str, Any]:
    """Key and value of a setting that verl 0.9.1 still takes from its old key, which wins unless it is null."""
    value = OmegaConf.select(config, old, default=None)
    return (new, OmegaConf.select(config, new, default=None)) if value is None else (old, value)


def contradictions(config: DictConfig, spo: SpoConfig) -> Iterator[str]:
    """Yield what cannot work, with its fix."""
    yield from _distillation(config)
    penalty = _penalty(config)
    if penalty is None or _reads_an_entry(spo):
        return
    key, factor = penalty
    if spo.reward.low > -factor:
        yield (
            f"{key}.penalty_factor={factor:g} lowers the reward of long responses below spo.reward.low="
            f"{spo.reward.low:g}, which stops the run; set spo.reward.low={-factor:g} for scores of 0 to 1 "
            f"({-1 - factor:g} for scores of -1 to 1), or spo.reward.key=acc to train on the answer alone."
        )


def unusual(config: DictConfig, spo: SpoConfig) -> Iterator[str]:
    """Yield whose range nothing in the configuration tells."""
    declared = f"[{spo.reward.low:g}, {spo.reward.high:g}]"
    stops = (
        f"a reward outside the declared range {declared} stops the run: set spo.reward.low and spo.reward.high to the "
        "range of the scores, or spo.reward.key to an entry that lies in it"
    )
    if _reads_an_entry(spo):
        return
    penalty = _penalty(config)
    function = _reward_function(config)
    if penalty is not None and function is None and -1 - penalty[1] < spo.reward.low <= -penalty[1]:
        yield (
            f"{penalty[0]}.penalty_factor={penalty[1]:g} with spo.reward.low={spo.reward.low:g} fits scores of 0 to 1; "
            "for verl's scores of -1 to 1 (data_source math, math_dapo, aime...) set spo.reward.low="
            f"{-1 - penalty[1]:g}."
        )
    if (spo.reward.low, spo.reward.high) != (0.0, 1.0):
        return  # somebody has thought of the range
    key, manager = newest(config, "reward_model.reward_manager", "reward.reward_manager.name")
    source_key, source = newest(config, "reward_model.reward_loop_source", "reward.reward_manager.source")
    if source == "importlib":
        yield f"{source_key}=importlib: nothing tells the range of your reward manager's rewards; {stops}."
    elif manager not in (None, *KNOWN_MANAGERS):
        yield f"{key}={manager}: nothing tells the range of this reward manager's rewards; {stops}."
    model_key, has_model = newest(config, "reward_model.enable", "reward.reward_model.enable")
    if has_model and function is None:
        yield (
            f"{model_key}=True without a reward function: the score of a reward model may have no bounds; {stops}, or "
            "bound it in a function of your own (reward.custom_reward_function)."
        )


def _distillation(config: DictConfig) -> Iterator[str]:
    def get(key: str) -> Any:
        return OmegaConf.select(config, key, default=None)

    if not get("distillation.enabled"):
        return
    if get(f"{LOSS}.use_task_rewards") is False:
        yield (
            f"{LOSS}.use_task_rewards=False: the loss is the teacher's alone and reads no reward, so SPO would change "
            f"nothing; set {LOSS}.use_task_rewards=True, or train with another estimator and without +spo=<preset>."
        )


def _penalty(config: DictConfig) -> tuple[str, float] | None:
    """Key and factor of the penalty on long responses, where there is one."""
    _, manager = newest(config, "reward_model.reward_manager", "reward.reward_manager.name")
    key, kwargs = newest(config, "reward_model.reward_kwargs", "reward.reward_kwargs")
    buffer = OmegaConf.select(kwargs, "overlong_buffer_cfg", default=None) if OmegaConf.is_config(kwargs) else None
    if manager != "dapo" or not isinstance(buffer, DictConfig) or not buffer.get("enable"):
        return None
    factor = buffer.get("penalty_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
        return None
    return f"{key}.overlong_buffer_cfg", float(factor)


def _reward_function(config: DictConfig) -> Any:
    return newest(config, "custom_reward_function.path", "reward.custom_reward_function.path")[1]


def _reads_an_entry(spo: SpoConfig) -> bool:
    """Whether the reward is an entry of the reward function, which no manager changes."""
    return spo.reward.key is not None
