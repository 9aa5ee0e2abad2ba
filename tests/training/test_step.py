"""The raw advantage of a step: reward minus the value that was frozen at dispatch, equation (8)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spo_verl.config import AdvantageConfig, ForgettingConfig, SpoConfig
from spo_verl.errors import SpoStateError
from spo_verl.tracker import Frozen
from spo_verl.training import estimator
from spo_verl.training import trainer as trainer_module
from spo_verl.training.sessions import read_sessions
from spo_verl.training.step import Recalled, Rewarded
from spo_verl.training.trainer import SpoTrainer

STATIC_P = np.array([9.0, 9.0, 9.0, 0.5, 9.0, 9.0, 9.0, 0.125])  # by slot; only 7 and 3 are in the batch
BATCH = SimpleNamespace(keys=["a_0_0", "b_0_0", "a_1_0"], partition_id="train", tags=[{"response_len": 3}] * 3)


class Verl:
    """The trainer's base class, as far as an advantage needs it: it calls the estimator."""

    def _compute_advantage(self, batch, metrics):
        self.raw_S = estimator._pending.get().raw_S
        estimator.spo_advantage(torch.zeros(3, 1), torch.ones(3, 1))
        return batch


class Trainer(SpoTrainer, Verl):
    def __init__(self, monkeypatch, baseline: str) -> None:
        frozen = Frozen(
            slot_B=np.array([7, 3]),
            value_B=np.array([0.25, 0.75]),
            n_eff_B=np.ones(2),
            version_B=np.zeros(2, dtype=int),
        )
        monkeypatch.setattr(trainer_module, "session_rewards", lambda *_: np.array([1.0, 0.0, 0.0]))
        self.spo = SpoConfig(advantage=AdvantageConfig(baseline=baseline), forgetting=ForgettingConfig(mode="constant"))
        self._stage = self.recalled = Recalled.of(
            BATCH,
            read_sessions(BATCH.keys, [{}] * 3),
            frozen,
            None,
            advantage=self.spo.advantage,
            version=0,
            static_value_P=STATIC_P if baseline == "initial" else None,
        )


def rewarded(monkeypatch, baseline: str) -> Rewarded:
    trainer = Trainer(monkeypatch, baseline)
    assert trainer._compute_advantage(BATCH, {}) is BATCH
    return trainer._reached(Rewarded)


@pytest.mark.parametrize(
    ("baseline", "raw"),
    [
        # a: 1 - .25, b: 0 - .75, a's second session shares a's value: 0 - .25
        ("value", [0.75, -0.75, -0.25]),
        ("none", [1.0, 0.0, 0.0]),
        # the values of slots 7 and 3 before training, whatever the tracker says: 1 - .125, 0 - .5, 0 - .125
        ("initial", [0.875, -0.5, -0.125]),
    ],
)
def test_the_frozen_value_is_subtracted_from_every_session_of_its_prompt(monkeypatch, baseline, raw):
    trainer = Trainer(monkeypatch, baseline)
    trainer._compute_advantage(BATCH, {})
    assert trainer.raw_S.tolist() == raw
    assert trainer.recalled.slot_of("b") == 3


def test_a_static_baseline_is_what_the_metrics_compare_with(monkeypatch):
    metrics = rewarded(monkeypatch, "initial").metrics()
    assert metrics["value/batch_mean"] == pytest.approx((0.125 + 0.5 + 0.125) / 3)
    assert metrics["advantage/raw_mean"] == pytest.approx((0.875 - 0.5 - 0.125) / 3)


def test_each_session_is_one_outcome_of_its_dispatch(monkeypatch):
    outcomes = rewarded(monkeypatch, "value").outcomes(None)
    assert outcomes["uids"] == ["a", "b", "a"]
    assert outcomes["session_B"].tolist() == [0, 0, 1]
    assert outcomes["reward_B"].tolist() == [1.0, 0.0, 0.0]
    assert "divergence_B" not in outcomes


def test_an_advantage_before_its_batch_was_recalled_is_an_error(monkeypatch):
    trainer = Trainer(monkeypatch, "value")
    trainer._stage = None
    with pytest.raises(SpoStateError, match=r"skipped _compute_old_log_prob .*call super\(\)"):
        trainer._compute_advantage(BATCH, {})
