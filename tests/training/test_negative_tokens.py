"""Negative-token filtering: which tokens are kept, by counting; and that the wrapped loss sees nothing else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from spo_verl.plugin import NEGATIVE_TOKENS
from spo_verl.training.negative_tokens import filtered_advantages

pytestmark = pytest.mark.long


def kept_by_counting(log_probs, mask, advantages):
    """One response; a token is left out where its advantage is negative and enough tokens are less likely."""
    tokens = [position for position, one in enumerate(mask) if one]
    keep = math.ceil(len(tokens) / 10)
    least = sorted(tokens, key=lambda position: (log_probs[position], position))[:keep]
    return [advantage if advantage >= 0 or t in least else 0.0 for t, advantage in enumerate(advantages)]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_least_likely_tenth_of_failures_is_kept(data):
    rows, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 45))
    row = lambda one: st.lists(one, min_size=width, max_size=width)  # noqa: E731
    numbers = data.draw(st.lists(row(st.integers(-9, 0)), min_size=rows, max_size=rows))  # ties too
    mask = data.draw(st.lists(row(st.booleans()), min_size=rows, max_size=rows))
    advantages = data.draw(st.lists(row(st.sampled_from([-2.0, -0.5, 0.0, 1.0])), min_size=rows, max_size=rows))
    inside = torch.tensor(mask)
    old = torch.tensor(numbers, dtype=torch.float32)
    expected = torch.tensor([kept_by_counting(*each) for each in zip(numbers, mask, advantages, strict=True)])
    found = filtered_advantages(torch.tensor(advantages), old.masked_fill(~inside, math.nan), inside)
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=0)


@pytest.mark.parametrize(("tokens", "kept"), [(1, 1), (10, 1), (11, 2), (30, 3), (70, 7), (8192, 820)])
def test_how_many(tokens, kept):
    advantages = -torch.ones(1, tokens)
    found = filtered_advantages(advantages, -torch.rand(1, tokens), torch.ones(1, tokens, dtype=torch.int64))
    assert (found != 0).sum() == kept


@pytest.mark.parametrize("rollout_weights", [False, True])
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum"])
@pytest.mark.parametrize("name", NEGATIVE_TOKENS)
def test_gradients_are_those_of_verls_loss_for_the_tokens_that_are_kept(name, mode, rollout_weights):
    torch.manual_seed(11)
    old = -3 * torch.rand(4, 24)
    now = old + 0.3 * torch.randn(4, 24)
    mask = torch.arange(24) < torch.tensor([[24], [7], [1], [20]])
    advantages = torch.tensor([[-1.5], [-0.7], [-1.0], [0.8]]).expand(4, 24)
    weights = torch.rand(4, 24) if rollout_weights else None

    def gradient(loss_mode):
        config = FSDPActorConfig(
            strategy="fsdp",
            rollout_n=1,
            ppo_mini_batch_size=4,
            ppo_micro_batch_size_per_gpu=4,
            policy_loss=PolicyLossConfig(loss_mode=loss_mode),
        )
        log_prob = now.clone().requires_grad_()
        loss, metrics = get_policy_loss_fn(loss_mode)(
            old_log_prob=old,
            log_prob=log_prob,
            advantages=advantages,
            response_mask=mask,
            loss_agg_mode=mode,
            config=config,
            rollout_is_weights=weights,
        )
        loss.backward()
        return log_prob.grad, metrics

    stock, stock_metrics = gradient(NEGATIVE_TOKENS[name])
    filtered, metrics = gradient(name)
    kept = filtered_advantages(advantages, old, mask) != 0
    assert 0 < (stock[kept] != 0).sum() < (stock != 0).sum()
    torch.testing.assert_close(filtered, stock * kept, rtol=1e-6, atol=0)
    assert metrics.keys() == stock_metrics.keys()
