"""The registered estimator: one advantage per session, given to every token of all its outputs."""

import numpy as np
import pytest
import torch
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from spo_verl.config import AdvantageConfig
from spo_verl.errors import SpoStateError
from spo_verl.training.estimator import PendingAdvantages, pending_advantages, spo_advantage
from spo_verl.training.sessions import read_sessions

KEYS = ["a_0_0", "b_0_0", "b_0_1", "pad_0_0", "c_0_0"]
TAGS = [{}, {}, {}, {"is_padding": True}, {}]
MASK = torch.tensor(
    [
        [1, 1, 0, 0],  # a: 2 tokens
        [1, 0, 1, 0],  # b, first output: 2 tokens (an observation between them)
        [1, 1, 1, 1],  # b, second output: 4 tokens
        [0, 0, 0, 0],  # padding
        [1, 0, 0, 0],  # c: 1 token
    ]
)
RAW = np.array([0.5, -0.25, 0.5])  # a, b, c


def through_verl(pending: PendingAdvantages, mask: torch.Tensor) -> torch.Tensor:
    """The call path of the trainer: verl's dispatcher looks the estimator up and calls it."""
    data = DataProto.from_dict(
        tensors={"token_level_rewards": torch.zeros(mask.shape), "response_mask": mask},
        non_tensors={"uid": np.array([key.rsplit("_", 2)[0] for key in KEYS], dtype=object)},
    )
    with pending_advantages(pending):
        data = compute_advantage_for_multi_trajectories(data, KEYS, adv_estimator="spo", config={})
    assert torch.equal(data.batch["advantages"], data.batch["returns"])
    return data.batch["advantages"]


def pending(**settings: str) -> PendingAdvantages:
    return PendingAdvantages(RAW, read_sessions(KEYS, TAGS).session_R, AdvantageConfig(**settings))


def test_the_registry_has_it():
    assert get_adv_estimator_fn("spo") is spo_advantage


def test_trajectory_measure_counts_sessions_not_outputs():
    # over the three sessions: mean = 0.75 / 3 = 0.25, deviations 0.25, -0.5, 0.25,
    # unbiased variance = (0.0625 + 0.25 + 0.0625) / 2 = 0.1875, std = 0.4330127
    # a = c = 0.25 / 0.4330127 = 0.5773503, b = -1.1547005
    batch = pending()
    advantage = through_verl(batch, MASK)
    expected = torch.tensor([0.5773503, -1.1547005, -1.1547005, 0.0, 0.5773503]).unsqueeze(1) * MASK
    torch.testing.assert_close(advantage, expected, rtol=0, atol=1e-6)
    assert batch.token_count_S.tolist() == [2, 6, 1]


def test_token_measure_weighs_all_outputs_of_a_session():
    # L = 2, 6, 1; sum(L A) = 1 - 1.5 + 0.5 = 0, so mu = 0
    # sigma^2 = (2*0.25 + 6*0.0625 + 1*0.25) / (9 - 1) = 1.125 / 8 = 0.140625, sigma = 0.375
    # a = c = 0.5 / 0.375 = 1.3333333, b = -0.6666667
    advantage = through_verl(pending(measure="token"), MASK)
    expected = torch.tensor([4 / 3, -2 / 3, -2 / 3, 0.0, 4 / 3]).unsqueeze(1) * MASK
    torch.testing.assert_close(advantage, expected, rtol=0, atol=1e-6)
    assert advantage.sum().item() == pytest.approx(0.0, abs=1e-5)  # sum(L_i A_i) on what the loss receives


def test_a_session_rejected_from_the_loss_takes_no_part():
    mask = MASK.clone()
    mask[4] = 0  # c is rejected
    batch = pending()
    advantage = through_verl(batch, mask)
    # a and b remain: mean 0.125, deviations +-0.375, unbiased std = sqrt(2 * 0.140625) = 0.5303301; +-0.7071068
    expected = torch.tensor([0.7071068, -0.7071068, -0.7071068, 0.0, 0.0]).unsqueeze(1) * mask
    torch.testing.assert_close(advantage, expected, rtol=0, atol=1e-6)
    assert batch.token_count_S.tolist() == [2, 6, 0]


def test_without_an_spo_trainer_the_call_is_refused():
    with pytest.raises(SpoStateError, match="trainer.use_v1=True"):
        spo_advantage(torch.zeros(2, 3), torch.ones(2, 3), index=None, config=None)


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(SpoStateError), pending_advantages(pending()):
        spo_advantage(torch.zeros(2, 3), torch.ones(2, 3))


def test_a_batch_that_verl_never_completed_is_an_error():
    with pytest.raises(SpoStateError, match=r"overrides _compute_advantage; call super\(\)"):
        _ = pending().token_count_S
