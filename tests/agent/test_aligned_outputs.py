"""What a reward function is given for a session with several outputs: through verl's worker and its managers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.experimental.reward_loop.reward_manager import DAPORewardManager, NaiveRewardManager, RateLimitedRewardManager

from spo_verl.agent.aligned_outputs import aligned
from tests.support.scored_outputs import Letters, output, scored

pytestmark = pytest.mark.long

TOKENS = st.lists(st.integers(0, 25), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4),
    st.sampled_from([NaiveRewardManager, DAPORewardManager]),
)
def test_the_whole_last_response_is_scored_and_nothing_else(parts, manager):
    seen, _ = scored([output(*part) for part in parts], manager=manager)
    assert seen == [Letters().decode(parts[-1][1])]


def test_the_rate_limited_manager_too():
    RateLimitedRewardManager._class_initialized = False
    seen, _ = scored([output([1, 2, 3], [4, 5, 6]), output([7], [8, 9])], manager=RateLimitedRewardManager)
    assert seen == ["ij"]


def test_without_spo_nothing_is_changed():
    """If this fails, verl has mended it: the hook of the plugin and its patch can go."""
    outputs = [([1, 2, 3], [4, 5, 6]), ([7], [8, 9])]
    seen, given = scored([output(*one) for one in outputs], estimator="grpo")
    assert seen == [""]
    assert given[0].batch["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]


def test_layout_of_every_field():
    outputs = [([1, 2, 3], [4, 5, 6]), ([7], [8, 9]), ([10, 11], [12, 13, 14, 15])]
    _, [data] = scored([output(*one) for one in outputs])
    batch = data.batch
    assert batch["prompts"].tolist() == [[1, 2, 3], [0, 0, 7], [0, 10, 11]]
    assert batch["responses"].tolist() == [[4, 5, 6, 0], [8, 9, 0, 0], [12, 13, 14, 15]]
    assert batch["input_ids"].tolist() == torch.cat([batch["prompts"], batch["responses"]], dim=1).tolist()
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [0, 0] + [1] * 3 + [0, 0], [0] + [1] * 6]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 0],
        [0, 0, 0, 1, 2, 0, 0],
        [0, 0, 1, 2, 3, 4, 5],
    ]
    assert list(data.non_tensor_batch["response_len"]) == [3, 2, 4]


def test_a_verl_that_aligns_is_left_alone():
    _, [data] = scored([output([1, 2], [3]), output([4], [5, 6])])
    assert aligned(data) is data


def test_positions_of_several_dimensions():
    """As of vision-language models: (N, 3, L)."""
    _, [data] = scored([output([1, 2], [3]), output([4], [5])], estimator="grpo")
    data.batch["position_ids"] = torch.stack([data.batch["position_ids"] + 10 * axis for axis in range(3)], dim=1)
    found = aligned(data).batch["position_ids"]
    assert found[0].tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    assert found[1].tolist() == [[0, 0, 1], [0, 10, 11], [0, 20, 21]]
    assert isinstance(data.non_tensor_batch["prompt_len"], np.ndarray)
