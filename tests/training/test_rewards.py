"""Rewards are mapped from their declared range before anything else uses them, or refused by name."""

import math

import pytest
import torch

from spo_verl.config import RewardConfig
from spo_verl.errors import SpoRewardError
from spo_verl.training import rewards
from spo_verl.training.rewards import map_rewards
from spo_verl.training.sessions import read_sessions


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


@pytest.mark.parametrize("raw", [{"right": 1}, [1.0], "right", "1", b"1", torch.tensor([1.0, 0.0]), (1, 0)])
def test_a_reward_of_another_type_names_prompt_and_key(raw):
    with pytest.raises(SpoRewardError) as refusal:
        map_rewards([1.0, raw], ["a", "b"], RewardConfig(key="acc"), describe)
    for part in ("prompt <b>", "reward_extra_info['acc']", f"a {type(raw).__name__}", "spo.reward.key"):
        assert part in str(refusal.value)


def queue(scores: list[list[float]], extra: list[object]):
    """TransferQueue as it holds what verl's agent loop wrote."""

    def kv_batch_get(keys, partition_id, select_fields):
        rows = [torch.tensor(row, dtype=torch.float32) for row in scores]
        return {"rm_scores": torch.nested.as_nested_tensor(rows, layout=torch.jagged), "extra_fields": extra}

    return kv_batch_get


@pytest.mark.parametrize(("low", "high"), [(0, 1.1), (-0.1, 1), (0, 0.3), (-1, 1), (-2, 1), (0.1, 0.7)])
def test_a_score_at_its_bound_survives_verls_float32(monkeypatch, low, high):
    keys = ["u_0_0", "v_0_0", "w_0_0"]
    # a bound at the last token, the other one, and the upper one in ten parts over the tokens
    tokens = [[0.0, low], [0.0, 0.0, high], [high / 10] * 10]
    monkeypatch.setattr(rewards.tq, "kv_batch_get", queue(tokens, []))
    sessions = read_sessions(keys, [{}] * 3)
    found = rewards.session_rewards(keys, "train", sessions, RewardConfig(low=low, high=high), describe)
    assert found.tolist() == pytest.approx([0.0, 1.0, 1.0], abs=1e-6)
    assert (found >= 0).all()
    assert (found <= 1).all()


@pytest.mark.parametrize("extra", [{"reward_extra_info": None}, {"reward_extra_info": [1.0]}, {}, None, "text"])
def test_extra_info_that_is_no_dictionary_has_no_entry(monkeypatch, extra):
    monkeypatch.setattr(rewards.tq, "kv_batch_get", queue([[1.0]], [extra]))
    with pytest.raises(SpoRewardError, match=r"prompt <u> has no reward_extra_info\['acc'\]"):
        rewards.session_rewards(["u_0_0"], "train", read_sessions(["u_0_0"], [{}]), RewardConfig(key="acc"), describe)


def test_no_prompt_is_described_as_long_as_rewards_are_fine():
    """A description reads the prompt's row of the dataset, which may have to be tokenized."""
    described: list[str] = []
    map_rewards([1.0, 0.0], ["a", "b"], RewardConfig(), lambda uid: described.append(uid) or uid)
    assert described == []
