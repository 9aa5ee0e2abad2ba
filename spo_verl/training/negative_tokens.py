"""Negative-token filtering (arXiv 2606.17250): of a failed response only the least likely tenth of tokens is unlearned.

Most tokens of a failed response are right as well; pushing all of them down costs what the policy can do. The option is
a policy loss of verl (``actor_rollout_ref.actor.policy_loss.loss_mode=spo_negative_tokens``), for any estimator. It
sets the advantage of what is left out to 0 and calls one of verl's own losses (``NEGATIVE_TOKENS`` in
:mod:`spo_verl.plugin`), so that clipping, importance weights and denominators are its own. The paper also averages
successes and failures apart, which this does not. What it gained is in ``docs/benchmarks.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn

SHARE = 0.1
"""Of the response's tokens that are kept where the advantage is negative."""


def negative_token_loss(
    wrapped: str,
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    **others: Any,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's loss ``wrapped`` of the advantages that :func:`filtered_advantages` leaves.

    Args:
        wrapped: name of a policy loss in verl's registry whose tokens with advantage 0 have no gradient.
        old_log_prob, log_prob: (R, T) log-probs before the update and now.
        advantages, response_mask: (R, T).
        others: ``loss_agg_mode``, ``config`` and ``rollout_is_weights``, passed on as they are.
    """
    loss: tuple[torch.Tensor, dict[str, Any]] = get_policy_loss_fn(wrapped)(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=filtered_advantages(advantages, old_log_prob, response_mask),
        response_mask=response_mask,
        **others,
    )
    return loss


def filtered_advantages(
    advantages: torch.Tensor, old_log_prob: torch.Tensor, response_mask: torch.Tensor
) -> torch.Tensor:
    """Advantages without the negative ones of likely tokens.

    Kept are ``ceil(SHARE * tokens)`` tokens of each response, those with the lowest log-prob before the update, so that
    all epochs over a batch keep the same ones.

    Args:
        advantages: (R, T) any values.
        old_log_prob: (R, T) log-probs before the update; padding may hold anything.
        response_mask: (R, T) which tokens the policy wrote.

    Returns:
        (R, T) ``advantages``, with 0 where they are negative and the token is not kept.
    """
    inside = response_mask.bool()
    kept = torch.ceil(SHARE * inside.sum(dim=-1, keepdim=True).double())
    order = old_log_prob.detach().masked_fill(~inside, float("inf")).argsort(dim=-1, stable=True)
    rank = order.argsort(dim=-1)
    return advantages.masked_fill((advantages < 0) & (rank >= kept), 0.0)
