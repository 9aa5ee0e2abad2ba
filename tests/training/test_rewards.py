"""Rewards are mapped from their declared range before anything else uses them, or refused by name."""

import math

import pytest

from spo_verl.config import RewardConfig
from spo_verl.errors import SpoRewardError
from spo_verl.training.rewards import map_rewards


def describe(uid: str) -> str:
    return f"prompt <{uid}>"


def test_the_default_range_is_the_identity():
    assert map_rewards([0.0, 1.0, 0.25], ["a", "b", "c"], RewardConfig(), describe).tolist() == [
        0.0,
        1.0,
        0.25,
    ]


def test_minus_one_to_one_is_mapped():
    config = RewardConfig(low=-1.0, high=1.0)
    # (r + 1) / 2
    assert map_rewards([-1.0, 1.0, 0.5], ["a", "b", "c"], config, describe).tolist() == [0.0, 1.0, 0.75]


def test_booleans_and_integers_are_rewards():
    assert map_rewards([True, 0], ["a", "b"], RewardConfig(key="acc"), describe).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("reward", [-1.0, 1.0001, math.nan, math.inf, -math.inf])
def test_outside_the_range_names_prompt_reward_and_setting(reward):
    with pytest.raises(SpoRewardError) as refusal:
        map_rewards([1.0, reward], ["a", "b"], RewardConfig(), describe)
    message = str(refusal.value)
    assert "prompt <b>" in message
    assert str(reward) in message
    assert "spo.reward.low" in message
    assert "spo.reward.high" in message


def test_a_missing_key_names_it():
    with pytest.raises(SpoRewardError, match=r"reward_extra_info\['acc'\]"):
        map_rewards([None], ["a"], RewardConfig(key="acc"), describe)
