"""The raw advantage of a step: reward minus the value that was frozen at dispatch, equation (8)."""

from types import SimpleNamespace

import numpy as np
import pytest

from spo_verl.config import AdvantageConfig, ForgettingConfig, SpoConfig
from spo_verl.tracker import Frozen, Recall, StoredResponses
from spo_verl.training import step as step_module
from spo_verl.training.sessions import read_sessions
from spo_verl.training.step import StepRecord

STATIC_P = np.array([9.0, 9.0, 9.0, 0.5, 9.0, 9.0, 9.0, 0.125])  # by slot; only 7 and 3 are in the batch


def record(monkeypatch, baseline: str) -> StepRecord:
    batch = SimpleNamespace(keys=["a_0_0", "b_0_0", "a_1_0"], partition_id="train", tags=[{"response_len": 3}] * 3)
    frozen = Frozen(
        slot_B=np.array([7, 3]), value_B=np.array([0.25, 0.75]), n_eff_B=np.ones(2), version_B=np.zeros(2, dtype=int)
    )
    monkeypatch.setattr(step_module, "session_rewards", lambda *_: np.array([1.0, 0.0, 0.0]))
    spo = SpoConfig(advantage=AdvantageConfig(baseline=baseline), forgetting=ForgettingConfig(mode="constant"))
    static_P = STATIC_P if baseline == "initial" else None
    sessions = read_sessions(batch.keys, [{}] * 3)
    found = StepRecord(spo, sessions, Recall(frozen, StoredResponses.empty()), [], batch, 0, static_P)
    found.read_rewards(batch, str)
    return found


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
    found = record(monkeypatch, baseline)
    assert found.raw_S.tolist() == raw
    assert found.slot_of("b") == 3


def test_a_static_baseline_is_what_the_metrics_compare_with(monkeypatch):
    found = record(monkeypatch, "initial")
    found.token_count_S = np.ones(3)
    metrics = found.metrics()
    assert metrics["value/batch_mean"] == pytest.approx((0.125 + 0.5 + 0.125) / 3)
    assert metrics["advantage/raw_mean"] == pytest.approx((0.875 - 0.5 - 0.125) / 3)


def test_each_session_is_one_outcome_of_its_dispatch(monkeypatch):
    evidence = record(monkeypatch, "value").evidence()
    assert evidence["uids"] == ["a", "b", "a"]
    assert evidence["session_B"].tolist() == [0, 0, 1]
    assert evidence["reward_B"].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(evidence["divergence_B"]).all()
