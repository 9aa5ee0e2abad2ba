"""How far an update moves the policy, read off the log-probs that the policy loss is given anyway.

The policy loss of every mini-batch gets the log-probs of now and those from before the update. :func:`measured_loss`
calls the loss that the run is configured with, unchanged, and adds the sum of |now - before| over the response tokens.
It is a policy loss in verl's registry, chosen by the trainer of an SPO run with ``spo.forgetting.mode=drift``
(:func:`measure_movement`), so no other run ever calls it.

verl averages a metric over ranks and micro-batches, whatever number of tokens each has, then over the mini-batches. So
the sum is reported together with the number of tokens (:func:`movement_metrics`): their quotient is the mean over all
tokens of a mini-batch, with any number of ranks.

Before the first of N mini-batches no step has been taken, before the i-th i - 1 of N, so a policy that moves evenly by
M in all shows the mean ``M (N - 1) / (2 N)``, and :class:`MovementMeter` returns ``2 N / (N - 1)`` times that mean.
What the last mini-batch did is thereby extrapolated, and with N = 1 nothing is seen at all: such a run is refused
(:func:`spo_verl.training.checks.mini_batches`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import PolicyLossConfig

from spo_verl.errors import SpoStateError
from spo_verl.training.checks import POLICY_LOSS

LOSS_MODE = "spo_movement"
"""Name of :func:`measured_loss` in verl's registry of policy losses."""
METRIC = "actor/spo_movement"
TOKENS = "actor/spo_movement_tokens"
"""Names of the two metrics of :func:`movement_metrics`. No part of them is a word that verl's reduction reads."""


@dataclass
class MeasuredPolicyLossConfig(PolicyLossConfig):
    """verl's settings of the policy loss, and the name of the one that :func:`measured_loss` calls."""

    wrapped_mode: str = "vanilla"


def measured_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The configured policy loss with two metrics more; loss and gradient are exactly those of the wrapped one.

    Args:
        old_log_prob, log_prob: (R, T) log-probs before the update and now.
        advantages, response_mask, loss_agg_mode, config, rollout_is_weights: passed on as they are;
            ``config.policy_loss`` is a :class:`MeasuredPolicyLossConfig`.
    """
    loss, metrics = get_policy_loss_fn(config.policy_loss.wrapped_mode)(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    return loss, {**metrics, **movement_metrics(old_log_prob, log_prob, response_mask, config.global_batch_info)}


def movement_metrics(
    old_log_prob: torch.Tensor, log_prob: torch.Tensor, response_mask: torch.Tensor, batch: Mapping[str, Any]
) -> dict[str, float]:
    """What this micro-batch adds to the movement and to the tokens of its mini-batch.

    :data:`METRIC` is the sum of |log_prob - old_log_prob| over the tokens of ``response_mask``, :data:`TOKENS` is their
    number, both over the mini-batch's tokens per rank. The means of both over ranks and micro-batches therefore have
    the movement per token of the whole mini-batch as their quotient.

    Args:
        old_log_prob, log_prob, response_mask: (R, T). Summed in float32, so that the differences of half-precision
            log-probs are not rounded once more; padding may hold anything.
        batch: ``dp_size`` ranks and the ``batch_num_tokens`` of their mini-batch, as verl's engines tell their loss;
            without them this micro-batch is the whole of it.
    """
    with torch.no_grad():
        kept = response_mask.bool()
        distance = (log_prob.detach()[kept].float() - old_log_prob.detach()[kept].float()).abs()
    tokens = distance.numel()
    whole = (batch.get("batch_num_tokens") or tokens or 1) / (batch.get("dp_size") or 1)
    return {METRIC: float(distance.sum()) / whole, TOKENS: tokens / whole}


def measure_movement(config: DictConfig) -> None:
    """Let the workers of this run call :func:`measured_loss` around the loss that the user configured."""
    section = OmegaConf.select(config, POLICY_LOSS)
    if section.get("loss_mode") == LOSS_MODE:
        return
    with open_dict(section):
        section.wrapped_mode = section.get("loss_mode") or "vanilla"
        section.loss_mode = LOSS_MODE
        section["_target_"] = f"{MeasuredPolicyLossConfig.__module__}.{MeasuredPolicyLossConfig.__qualname__}"


def updates_per_anchor(config: DictConfig) -> int:
    """Updates of the actor that are compared with the same policy.

    The separate asynchronous trainer takes the old log-probs of all updates of a version from the policy that the
    version began with; the other two take those of each update from the policy before it.
    """
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode", default="sync")
    if mode != "separate_async":
        return 1
    return int(OmegaConf.select(config, f"trainer.v1.{mode}.parameter_sync_step", default=1))


class MovementMeter:
    """From verl's metric to the movement of a policy version; one call of :meth:`note` per update of the actor."""

    def __init__(self, *, mini_batch_rows: int, epochs: int, updates: int, warmup: int = 0) -> None:
        """
        Args:
            mini_batch_rows: trajectories per mini-batch, ``ppo_mini_batch_size * rollout.n``.
            epochs: ``ppo_epochs``.
            updates: updates that are compared with the same policy, :func:`updates_per_anchor`.
            warmup: ``trainer.critic_warmup``, the first step in which verl updates the actor.
        """
        self._rows, self._epochs, self._updates, self._warmup = mini_batch_rows, epochs, updates, warmup
        self._seen, self._sum, self._batches = 0, 0.0, 0

    @classmethod
    def of(cls, config: DictConfig) -> MovementMeter:
        """The meter of a run."""
        actor = config.actor_rollout_ref.actor
        return cls(
            mini_batch_rows=int(actor.ppo_mini_batch_size) * int(config.actor_rollout_ref.rollout.n),
            epochs=int(actor.ppo_epochs),
            updates=updates_per_anchor(config),
            warmup=int(config.trainer.critic_warmup),
        )

    def read(self, metrics: Mapping[str, float], rows: int, *, step: int) -> float:
        """How far this update moved the policy, from what verl's workers reported of it; see :meth:`note`.

        Args:
            metrics: those of the update.
            rows: trajectories of the update, padding included.
            step: verl's ``global_steps``.

        Raises:
            SpoStateError: the update did not report :data:`METRIC`.
        """
        if self._warmup > step:
            return 0.0  # verl does not update the actor yet
        if METRIC not in metrics or TOKENS not in metrics:
            raise SpoStateError(
                f"the update reported no {METRIC}: the workers did not call the policy loss that "
                "spo.forgetting.mode=drift is measured by (a worker or loss of one's own, or distillation only); set "
                "spo.forgetting.mode=kl."
            )
        moved, tokens = float(metrics[METRIC]), float(metrics[TOKENS])
        return self.note(moved / tokens if tokens else moved, rows)

    def note(self, mean: float, rows: int) -> float:
        """The movement to report after this update.

        Where several updates are compared with one policy it is 0 until the last of them, and then that of them all.

        Args:
            mean: movement per token, averaged over the mini-batches of this update.
            rows: trajectories of the update, padding included.

        Raises:
            SpoStateError: the metric is no number, or there was one mini-batch only, which says nothing.
        """
        if not math.isfinite(mean):
            raise SpoStateError(
                f"{METRIC} is {mean}: the policy's log-probs are no numbers any more; lower "
                "actor_rollout_ref.actor.optim.lr, and look at actor/grad_norm in the steps before."
            )
        batches = rows // self._rows * self._epochs
        self._seen, self._batches = self._seen + 1, self._batches + batches
        self._sum += mean * batches
        if self._seen < self._updates:
            return 0.0
        total, count = self._sum, self._batches
        self._seen, self._sum, self._batches = 0, 0.0, 0
        if count < 2:
            raise SpoStateError(
                f"an update of {rows} trajectories was one mini-batch, whose log-probs say nothing about the policy's "
                "movement; lower actor_rollout_ref.actor.ppo_mini_batch_size, or set spo.forgetting.mode=kl."
            )
        return 2.0 * total / (count - 1)
