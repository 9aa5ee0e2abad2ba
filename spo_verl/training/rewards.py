"""From what verl stored with a trajectory to one success probability sample per session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import transfer_queue as tq

from spo_verl.config import RewardConfig
from spo_verl.data.unit_reward import unit_reward
from spo_verl.errors import SpoRewardError
from spo_verl.training.sessions import Sessions


def plain(item: Any) -> Any:
    """The value inside tensordict's wrapper of a non-tensor, or the item itself."""
    return getattr(item, "data", item) if type(item).__name__ == "NonTensorData" else item


def _scores(keys: list[str], partition: str) -> list[float]:
    data = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=["rm_scores"])
    return [float(row.double().sum()) for row in data["rm_scores"].unbind()]


def _extra(keys: list[str], partition: str, name: str) -> list[Any]:
    data = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=["extra_fields"])
    rewards = []
    for item in list(data["extra_fields"]):
        fields = plain(item)
        info = fields.get("reward_extra_info", {}) if isinstance(fields, dict) else {}
        rewards.append(plain(info.get(name)) if isinstance(info, dict) else None)
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
        SpoRewardError: a reward is missing, not one number, NaN or outside the range; names prompt, key, reward and
            setting.
    """
    final = [keys[row] for row in sessions.final_row_S]
    outcome = _scores(final, partition) if config.key is None else _extra(final, partition, config.key)
    return map_rewards(outcome, sessions.uid_S, config, describe)


def map_rewards(
    outcome: Sequence[Any], uids: Sequence[str], config: RewardConfig, describe: Callable[[str], str]
) -> np.ndarray:
    """Check each outcome against the declared range and map the range to [0, 1]; see :func:`session_rewards`."""
    name = "score" if config.key is None else f"reward_extra_info[{config.key!r}]"
    mapped = np.empty(len(outcome), dtype=np.float64)
    for position, (raw, uid) in enumerate(zip(outcome, uids, strict=True)):
        try:
            mapped[position] = unit_reward(raw, config, uid, name)
        except SpoRewardError:
            # A description reads the dataset, so it is asked for where it is needed only.
            mapped[position] = unit_reward(raw, config, describe(uid), name)
    return mapped
