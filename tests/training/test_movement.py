"""The policy's movement: the wrapped loss is exactly the loss, the metric is by hand, the meter undoes verl's mean."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.config import RolloutCorrectionConfig
from verl.trainer.ppo import core_algos
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric, reduce_metrics
from verl.workers.config import FSDPActorConfig, PolicyLossConfig
from verl.workers.utils import losses

from spo_verl.config import SpoConfig
from spo_verl.errors import SpoConfigError, SpoStateError
from spo_verl.training.checks import check
from spo_verl.training.movement import (
    LOSS_MODE,
    METRIC,
    TOKENS,
    MeasuredPolicyLossConfig,
    MovementMeter,
    measure_movement,
    movement_metrics,
)
from spo_verl.training.trainer import SpoTrainer
from tests.support.verl_config import compose_verl

pytestmark = pytest.mark.long

# one setting of each loss that verl needs beyond the defaults
SETTINGS = {"dro": {"dro_beta": 0.5}, "bypass_mode": {"rollout_correction": RolloutCorrectionConfig(bypass_mode=True)}}
STOCK_LOSSES = sorted(set(core_algos.POLICY_LOSS_REGISTRY) - {LOSS_MODE})


def actor_config(policy_loss: PolicyLossConfig) -> FSDPActorConfig:
    return FSDPActorConfig(
        strategy="fsdp", rollout_n=1, ppo_mini_batch_size=4, ppo_micro_batch_size_per_gpu=4, policy_loss=policy_loss
    )


def loss_and_gradient(config: FSDPActorConfig) -> tuple[torch.Tensor, torch.Tensor, dict]:
    torch.manual_seed(5)
    log_prob = (-torch.rand(4, 6)).requires_grad_()
    old = log_prob.detach() + 0.5 * torch.randn(4, 6)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
    torch.manual_seed(7)  # kl_cov and clip_cov choose tokens at random
    loss, metrics = core_algos.get_policy_loss_fn(config.policy_loss.loss_mode)(
        old_log_prob=old,
        log_prob=log_prob,
        advantages=torch.randn(4, 1).expand(4, 6) * mask,
        response_mask=mask,
        loss_agg_mode="token-mean",
        config=config,
        rollout_is_weights=None,
    )
    loss.backward()
    assert log_prob.grad is not None
    metrics["by hand"] = (log_prob.detach() - old).abs()[mask].mean().item()
    return loss.detach(), log_prob.grad, metrics


@pytest.mark.parametrize("mode", STOCK_LOSSES)
def test_loss_and_gradient_are_those_of_the_wrapped_loss_to_the_bit(mode):
    fields = SETTINGS.get(mode, {})
    loss, gradient, metrics = loss_and_gradient(actor_config(PolicyLossConfig(loss_mode=mode, **fields)))
    wrapped = MeasuredPolicyLossConfig(loss_mode=LOSS_MODE, wrapped_mode=mode, **fields)
    measured_loss, measured_gradient, measured = loss_and_gradient(actor_config(wrapped))
    assert torch.equal(loss, measured_loss)
    assert torch.equal(gradient, measured_gradient)
    assert gradient.abs().sum() > 0
    assert measured.pop(TOKENS) == 1  # this micro-batch is the whole of its mini-batch
    assert measured.pop(METRIC) == pytest.approx(metrics["by hand"])
    assert measured == pytest.approx(metrics, nan_ok=True)


def test_the_movement_is_the_mean_absolute_difference_over_the_mask():
    old = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, math.nan]])
    now = torch.tensor([[-1.5, -1.0, -9.0], [-1.25, -1.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    by_hand = (0.5 + 1.0 + 0.25) / 3  # absolute: +.5 and -1 do not cancel
    assert movement_metrics(old, now, mask, {}) == {METRIC: pytest.approx(by_hand), TOKENS: 1}
    assert movement_metrics(old, now, mask.bool(), {}) == movement_metrics(old, now, mask, {})
    assert movement_metrics(old, now, torch.zeros_like(mask), {}) == {METRIC: 0, TOKENS: 0}


def test_differences_of_half_precision_are_not_rounded_again():
    old, now = torch.tensor([[-8.0, -0.0]]).bfloat16(), torch.tensor([[-8.0625, -0.0078125]]).bfloat16()
    assert movement_metrics(old, now, torch.ones(1, 2), {})[METRIC] == (0.0625 + 0.0078125) / 2


def reported(minis: list, *, ranks: int, micro: int) -> dict[str, float]:
    """What verl makes of the metrics of an update: see TrainingWorker.train_mini_batch and PPOTrainer._update_actor.

    Args:
        minis: per mini-batch (old, now, mask), each (R, T); rows are shared out to ranks in order.
        micro: rows per micro-batch.
    """
    values: dict[str, list[float]] = {METRIC: [], TOKENS: []}
    for old, now, mask in minis:
        batch = {"dp_size": ranks, "batch_num_tokens": int(mask.sum())}
        of_rank = []
        for share in torch.arange(len(mask)).chunk(ranks):
            metrics = {name: Metric("mean") for name in values}
            for rows in share.split(micro):
                measured = movement_metrics(old[rows], now[rows], mask[rows], batch)
                for name, metric in Metric.from_dict(measured, "mean").items():
                    metrics[name].extend(metric)
            of_rank.append(metrics)
        for name in values:
            values[name].append(Metric.aggregate_dp([metrics[name] for metrics in of_rank]))
    return reduce_metrics(values)


@given(data=st.data(), minis=st.integers(2, 3))
@settings(max_examples=40, deadline=None)
def test_any_number_of_ranks_and_micro_batches_measures_the_movement_of_one_rank(data, minis):
    """Rows of 0 to 5 tokens, which no share of ranks and micro-batches deals out evenly; some are padding."""
    rows, tokens = 8, 5
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    batches = []
    for _ in range(minis):
        lengths = torch.tensor(data.draw(st.lists(st.integers(0, tokens), min_size=rows, max_size=rows)))
        lengths[0] = tokens
        old, now = (-torch.rand(rows, tokens, generator=generator, dtype=torch.float32) for _ in range(2))
        batches.append((old, now, torch.arange(tokens) < lengths[:, None]))
    by_hand = sum(float((now - old).abs()[mask].mean()) for old, now, mask in batches) / minis
    expected = 2 * minis / (minis - 1) * by_hand
    for ranks, micro in ((1, 8), (1, 2), (2, 4), (2, 1), (4, 2)):
        meter = MovementMeter(mini_batch_rows=rows, epochs=1, updates=1)
        metrics = reported(batches, ranks=ranks, micro=micro)
        assert meter.read(metrics, rows * minis, step=1) == pytest.approx(expected, rel=1e-5), (ranks, micro)


def test_verls_ppo_loss_reports_the_movement_beside_its_own_metrics():
    def run(policy_loss: PolicyLossConfig) -> tuple[torch.Tensor, dict]:
        # loss of one micro-batch, as verl's engines call it
        def nested(rows: list) -> torch.Tensor:
            return torch.nested.nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)

        data = TensorDict(
            {
                "prompts": nested([[1], [1, 2]]),
                "responses": nested([[3, 4], [5]]),
                "response_mask": nested([[1, 1], [1]]),
                "attention_mask": nested([[1, 1, 1], [1, 1, 1]]),
                "old_log_probs": nested([[-1.0, -2.0], [-3.0]]),
                "advantages": nested([[1.0, 1.0], [-1.0]]),
            },
            batch_size=2,
        )
        tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=3, global_batch_size=2)
        return losses.ppo_loss(actor_config(policy_loss), {"log_probs": log_probs(nested)}, data)

    def log_probs(nested):
        # values over prompt and response, each shifted left by one
        return nested([[-1.5, -1.0, 0.0], [0.0, -2.75, 0.0]])

    _, metrics = run(MeasuredPolicyLossConfig(loss_mode=LOSS_MODE))
    loss, stock = run(PolicyLossConfig())
    again, _ = run(MeasuredPolicyLossConfig(loss_mode=LOSS_MODE))
    assert torch.equal(loss, again)
    assert metrics.keys() - stock.keys() == {METRIC, TOKENS}
    assert metrics[TOKENS].aggregate() == 1
    assert metrics[METRIC].aggregate() == pytest.approx((0.5 + 1.0 + 0.25) / 3)


def test_verl_averages_the_metric_over_the_mini_batches():
    # one Metric per mini-batch, as train_mini_batch collects them
    assert reduce_metrics({METRIC: [0.0, 0.25, 0.5, 0.75]})[METRIC] == 0.375
    assert isinstance(Metric("mean", 0.5).aggregate(), float)


# ---------------------------------------------------------------------- from the mean to the movement


def test_an_even_movement_is_found_again():
    # four mini-batches see 0, 1/4, 1/2, 3/4 of a movement of 2
    assert MovementMeter(mini_batch_rows=8, epochs=1, updates=1).note(0.75, rows=32) == pytest.approx(2.0)
    # two epochs of two mini-batches are the same four
    assert MovementMeter(mini_batch_rows=16, epochs=2, updates=1).note(0.75, rows=32) == pytest.approx(2.0)
    # two mini-batches see 0 and 1/2: the mean is a quarter of it
    assert MovementMeter(mini_batch_rows=16, epochs=1, updates=1).note(0.5, rows=32) == pytest.approx(2.0)


def test_updates_from_one_anchor_are_one_movement():
    # separate_async with four updates of one mini-batch each: 0, 1/4, 1/2, 3/4 of 2, all against the version's policy
    meter = MovementMeter(mini_batch_rows=8, epochs=1, updates=4)
    for _ in range(2):  # the meter starts afresh with each version
        assert [meter.note(mean, rows=8) for mean in (0.0, 0.5, 1.0)] == [0.0, 0.0, 0.0]
        assert meter.note(1.5, rows=8) == pytest.approx(2.0)


def test_updates_of_different_size_weigh_by_their_mini_batches():
    # one mini-batch that sees 0, then three that see 1/4, 1/2, 3/4 of 2 (their mean is 1)
    meter = MovementMeter(mini_batch_rows=8, epochs=1, updates=2)
    assert meter.note(0.0, rows=8) == 0.0
    assert meter.note(1.0, rows=24) == pytest.approx(2.0)


def test_one_mini_batch_tells_nothing():
    with pytest.raises(SpoStateError, match="lower actor_rollout_ref.actor.ppo_mini_batch_size"):
        MovementMeter(mini_batch_rows=8, epochs=1, updates=1).note(0.0, rows=8)


def test_a_movement_that_is_no_number_stops_the_run():
    with pytest.raises(SpoStateError, match="actor/spo_movement is nan"):
        MovementMeter(mini_batch_rows=8, epochs=1, updates=1).note(math.nan, rows=32)


# ---------------------------------------------------------------------- configuration

DRIFT = ["+spo=paper", "spo.forgetting.mode=drift"]
SEPARATE = ["trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.num_warmup_batches=1"]


def test_the_workers_get_the_wrapped_loss_with_the_users_settings():
    loss = "actor_rollout_ref.actor.policy_loss"
    config = compose_verl([*DRIFT, f"{loss}.loss_mode=gspo", f"{loss}.kl_cov_ratio=0.125"])
    check(config)
    measure_movement(config)
    measure_movement(config)  # twice is once
    built = instantiate(config.actor_rollout_ref.actor.policy_loss)
    assert built.loss_mode == LOSS_MODE
    assert (built.wrapped_mode, built.kl_cov_ratio) == ("gspo", 0.125)
    check(config)  # a resolved configuration can be used again


def test_a_config_without_a_loss_mode_wraps_verls_default():
    config = OmegaConf.create({"actor_rollout_ref": {"actor": {"policy_loss": {}}}})
    OmegaConf.set_struct(config, True)
    measure_movement(config)
    assert config.actor_rollout_ref.actor.policy_loss.wrapped_mode == PolicyLossConfig().loss_mode


ONE_MINI_BATCH = ["data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=64"]
TWO_MINI_BATCHES = ["data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=32"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algorithm.rollout_correction.bypass_mode=True"], "add up from step to step"),
        (ONE_MINI_BATCH, "has 1 per update"),
        (
            [*SEPARATE, *ONE_MINI_BATCH, "trainer.v1.separate_async.parameter_sync_step=1"],
            "parameter_sync_step",
        ),
        (["actor_rollout_ref.actor.policy_loss._target_=my.Loss"], "_target_=my.Loss"),
    ],
)
def test_what_cannot_be_measured_is_refused(overrides, said):
    with pytest.raises(SpoConfigError, match="spo.forgetting.mode") as refusal:
        check(compose_verl([*DRIFT, *overrides]))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    "overrides",
    [
        TWO_MINI_BATCHES,
        [*ONE_MINI_BATCH, "actor_rollout_ref.actor.ppo_epochs=2"],
        [*SEPARATE, *TWO_MINI_BATCHES, "trainer.v1.separate_async.parameter_sync_step=2"],
    ],
)
def test_two_mini_batches_are_enough(overrides):
    check(compose_verl([*DRIFT, *overrides]))


@pytest.mark.parametrize("mode", ["version", "constant"])
def test_bypass_mode_goes_with_what_needs_no_log_probs(mode):
    bypass = "algorithm.rollout_correction.bypass_mode=True"
    check(compose_verl(["+spo=paper", f"spo.forgetting.mode={mode}", bypass]))


def test_the_meter_of_a_run_knows_its_anchor():
    def meter(*overrides: str) -> dict:
        sizes = "actor_rollout_ref.actor.ppo_mini_batch_size=16"
        return vars(MovementMeter.of(compose_verl([*DRIFT, sizes, *overrides])))

    assert meter("spo.bspo=True", "actor_rollout_ref.rollout.n=2")["_rows"] == 32
    assert meter("actor_rollout_ref.actor.ppo_epochs=3")["_epochs"] == 3
    assert meter()["_updates"] == meter("trainer.v1.trainer_mode=colocate_async")["_updates"] == 1
    assert meter(*SEPARATE, "trainer.v1.separate_async.parameter_sync_step=4")["_updates"] == 4


# ---------------------------------------------------------------------- the trainer


def trainer(**fields) -> SimpleNamespace:
    meter = MovementMeter(mini_batch_rows=8, epochs=1, updates=1, warmup=2)
    return SimpleNamespace(**{"global_steps": 2, "_movement": meter, **fields})


def test_the_trainer_reports_a_movement_only_in_this_mode():
    metrics = {METRIC: 0.375, TOKENS: 0.5}  # two micro-batches
    assert SpoTrainer._measured_movement(trainer(_movement=None), metrics, 32) is None
    assert SpoTrainer._measured_movement(trainer(), metrics, 32) == pytest.approx(2.0)


def test_an_actor_that_is_not_updated_yet_has_not_moved():
    assert SpoTrainer._measured_movement(trainer(global_steps=1), {}, 32) == 0.0


def test_an_update_without_the_metric_is_an_error():
    with pytest.raises(SpoStateError, match="actor/spo_movement"):
        SpoTrainer._measured_movement(trainer(), {"actor/ppo_kl": 0.1}, 32)


def test_a_worker_finds_the_loss_and_loads_nothing_for_it_before():
    code = (
        "import sys, json, verl; from verl.trainer.ppo import core_algos\n"
        "loss = core_algos.get_policy_loss_fn('spo_movement')\n"
        "print(json.dumps([loss.__module__, 'spo_verl.training.movement' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "VERL_PLATFORM": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == ["spo_verl.plugin", False], done.stderr


def test_the_tracker_discounts_by_what_the_trainer_reports():
    """End to end without a trainer: two visits, three updates between them."""
    import numpy as np

    from spo_verl.tracker import Tracker
    from spo_verl.tracker.settings import TrackerSettings

    spo = SpoConfig(forgetting={"mode": "drift", "drift_scale": 0.5})
    tracker = Tracker.create(np.arange(16, dtype=np.uint8).reshape(1, 16), TrackerSettings.of(spo))
    meter = MovementMeter(mini_batch_rows=8, epochs=1, updates=1)
    moved = [meter.note(mean, rows=32) for mean in (0.00375, 0.0015, 0.00075)]  # 0.01, 0.004, 0.002
    assert moved == pytest.approx([0.01, 0.004, 0.002])
    for version, uids in enumerate((["a"], [], [], ["b"])):
        if uids:
            tracker.dispatch(uids, [0], version)
        report = tracker.finish_step(
            uids, [0] * len(uids), [1.0] * len(uids), [float("nan")] * len(uids), settle_uids=uids,
            movement=moved[version] if version < 3 else 0.0,
        )  # fmt: skip
    # all three lie between the visits: the one of the first visit's own step too
    assert report.observe.rho_B.tolist() == pytest.approx([2 ** (-0.5 * 0.016 / 0.06)])
