"""Rewards that cannot lie in the declared range, and losses that read none, are found in the configuration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from spo_verl.config import RewardConfig, SpoConfig
from spo_verl.errors import SpoError
from spo_verl.training.reward_checks import contradictions, unusual
from spo_verl.training.rewards import map_rewards

TENTHS = st.integers(-30, 30).map(lambda number: number / 10)


def dapo(factor, *, old=False, enable=True):
    kwargs = {"overlong_buffer_cfg": {"enable": enable, "len": 8, "penalty_factor": factor}, "max_resp_len": 16}
    if old:
        return {"reward_model": {"reward_manager": "dapo", "reward_kwargs": kwargs}, "reward": {"reward_manager": {}}}
    return {"reward": {"reward_manager": {"name": "dapo", "source": "register"}, "reward_kwargs": kwargs}}


def found(function, config, **reward):
    return list(function(OmegaConf.create(config), SpoConfig(reward=RewardConfig(**reward))))


def lowest_reward(factor):
    """Of a wrong response of full length, by the formula in verl's DAPORewardManager."""
    max_resp_len, length, score = 16, 8, 0.0
    return score + min(-(max_resp_len - (max_resp_len - length)) / length * factor, 0)


@given(st.integers(1, 30).map(lambda number: number / 10), TENTHS, st.booleans())
def test_a_penalty_below_the_declared_range_is_refused_as_the_run_would_stop(factor, low, old):
    reward = RewardConfig(low=low, high=max(low, 0) + 1)
    try:
        map_rewards([lowest_reward(factor)], ["a"], reward, describe=str)
        stops = False
    except SpoError:
        stops = True
    problems = found(contradictions, dapo(factor, old=old), low=reward.low, high=reward.high)
    assert bool(problems) == stops
    if stops:
        assert f"spo.reward.low={-factor:g} " in problems[0]
        assert f"({-1 - factor:g} for scores of -1 to 1)" in problems[0]
        assert problems[0].startswith("reward_model." if old else "reward.")


@pytest.mark.parametrize(
    ("config", "reward"),
    [
        (dapo(1.0, enable=False), {}),
        (dapo(0.0), {}),
        (dapo(1.0), {"key": "acc"}),
        (dapo(1.0), {"low": -2, "high": 1}),
        ({"reward": {"reward_manager": {"name": "naive"}, "reward_kwargs": dapo(1.0)["reward"]["reward_kwargs"]}}, {}),
        ({}, {}),
    ],
)
def test_a_penalty_that_fits_or_is_not_read_is_no_problem(config, reward):
    assert found(contradictions, config, **reward) == []
    assert found(unusual, config, **reward) == []


def test_a_range_that_fits_one_kind_of_scores_only_is_a_warning():
    [warning] = found(unusual, dapo(1.0), low=-1, high=1)
    assert "spo.reward.low=-2" in warning
    own = {**dapo(1.0), "custom_reward_function": {"path": "mine.py"}}
    assert found(unusual, own, low=-1, high=1) == []


MANAGER, MODEL = {"reward_manager": {"name": "remote", "source": "register"}}, {"reward_model": {"enable": True}}


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"reward": MANAGER}, "reward.reward_manager.name=remote"),
        ({"reward": {"reward_manager": {"name": "gdpo"}}}, "reward.reward_manager.name=gdpo"),
        ({"reward_model": {"reward_manager": "remote"}}, "reward_model.reward_manager=remote"),
        (
            {"reward": {"reward_manager": {"name": "Mine", "source": "importlib"}}},
            "reward.reward_manager.source=importlib",
        ),
        ({"reward": {"reward_manager": {"name": "naive"}, **MODEL}}, "reward.reward_model.enable=True"),
        (
            {"reward_model": {"enable": True}, "reward": {"reward_manager": {"name": "naive"}}},
            "reward_model.enable=True",
        ),
    ],
)
def test_rewards_of_unknown_range_are_a_warning_until_the_range_is_declared(config, key):
    [warning] = found(unusual, config)
    assert warning.startswith(key)
    assert "spo.reward.low" in warning
    assert "spo.reward.key" in warning
    assert found(unusual, config, low=-5, high=5) == []
    assert found(unusual, config, key="acc") == []


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("task_rewards", [True, False])
@pytest.mark.parametrize("policy_gradient", [True, False])
def test_distillation_whose_loss_reads_no_reward_is_refused(enabled, task_rewards, policy_gradient):
    # verl.trainer.distillation.losses: the policy loss is 0.0 unless use_task_rewards, policy gradient or not
    loss = {"use_task_rewards": task_rewards, "use_policy_gradient": policy_gradient}
    problems = found(contradictions, {"distillation": {"enabled": enabled, "distillation_loss": loss}})
    assert bool(problems) == (enabled and not task_rewards)
    assert all("use_task_rewards=True" in problem for problem in problems)
