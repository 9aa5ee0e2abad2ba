"""From what verl stored with a trajectory to one success probability sample per session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import transfer_queue as tq

from spo_verl.config import RewardConfig
from spo_verl.errors import SpoRewardError
from spo_verl.training.sessions import Sessions


def plain(item: Any) -> Any:
    """The value inside tensordict's wrapper of a non-tensor, or the item itself."""
    return getattr(item, "data", item) if type(item).__name__ == "NonTensorData" else item


def _scores(keys: list[str], partition: str) -> list[float]:
    data = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=["rm_scores"])
    return [float(row.sum()) for row in data["rm_scores"].unbind()]


def _extra(keys: list[str], partition: str, name: str) -> list[Any]:
    data = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=["extra_fields"])
    rewards = []
    for item in list(data["extra_fields"]):
        fields = plain(item)
        info = fields.get("reward_extra_info", {}) if isinstance(fields, dict) else {}
        rewards.append(info.get(name))
    return rewards


def session_rewards(
    keys: Sequence[str],
    partition: str,
    sessions: Sessions,
    config: RewardConfig,
    describe: Callable[[str], str],
) -> np.ndarray:
    """Read the outcome of every session and map it from the declared range to [0, 1].

    The outcome is that of the session's final output, which verl copies to the others.

    Args:
        keys: trajectory keys of the batch, one per row.
        partition: TransferQueue partition of the batch.
        sessions: the layout of the rows.
        config: ``spo.reward``.
        describe: uid to a short description of its prompt, for the error.

    Returns:
        float64 (S,) in [0, 1].

    Raises:
        SpoRewardError: a reward is missing, NaN or outside the range; names prompt, reward and setting.
    """
    final = [keys[row] for row in sessions.final_row_S]
    outcome = _scores(final, partition) if config.key is None else _extra(final, partition, config.key)
    return map_rewards(outcome, sessions.uid_S, config, describe)


def map_rewards(
    outcome: Sequence[Any], uids: Sequence[str], config: RewardConfig, describe: Callable[[str], str]
) -> np.ndarray:
    """Check each outcome against the declared range and map the range to [0, 1]; see :func:`session_rewards`."""
    source = "the trajectory's score" if config.key is None else f"reward_extra_info[{config.key!r}]"
    mapped = np.empty(len(outcome), dtype=np.float64)
    for position, (raw, uid) in enumerate(zip(outcome, uids, strict=True)):
        if raw is None:
            raise SpoRewardError(
                f"The reward of {describe(uid)} has no {source}; return it from the reward function's dictionary, "
                "or choose another with spo.reward.key (null takes the score)."
            )
        reward = float(raw)
        if not config.low <= reward <= config.high:
            raise SpoRewardError(
                f"The reward of {describe(uid)} is {reward} ({source}), outside the declared range "
                f"[spo.reward.low={config.low}, spo.reward.high={config.high}]; declare the range of your reward, or "
                "point spo.reward.key at an outcome inside it (e.g. acc where the score is shaped)."
            )
        mapped[position] = (reward - config.low) / (config.high - config.low)
    return mapped
