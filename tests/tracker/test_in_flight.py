"""Prompts in flight: a prompt with enough open rollouts is not drawn, whatever opened, ended or restored them."""

import copy
from collections import Counter

import numpy as np
import pytest

from spo_verl import core
from spo_verl.errors import SpoStateError
from spo_verl.tracker import PromptSources, Tracker, TrackerSettings
from tests.core.helpers import ordered_p_value

from .helpers import keys, observe_one, train_step


def open_by_hand(tracker):
    """Open rollouts per slot, counted from the ledger."""
    return dict(Counter(one.slot for one in tracker._ledger.open.values()))


def test_a_prompt_in_flight_is_not_drawn():
    tracker = Tracker.create(keys(6), TrackerSettings())
    tracker.dispatch(["a", "b"], [1, 4], 0)
    for _ in range(20):
        assert sorted(tracker.draw(4).slot_B.tolist()) == [0, 2, 3, 5]
    tracker.observe(["a"], [0], [1.0], [np.nan])  # an outcome does not end it, settling does
    assert 1 not in tracker.draw(4).slot_B
    tracker.settle(["a"], "stale")
    assert sorted(tracker.draw(5).slot_B.tolist()) == [0, 1, 2, 3, 5]


def test_several_rollouts_of_a_prompt_and_no_limit():
    tracker = Tracker.create(keys(3), TrackerSettings(max_in_flight=2))
    tracker.dispatch(["a", "b", "c"], [0, 0, 1], 0)
    assert sorted(tracker.draw(2).slot_B.tolist()) == [1, 2]
    tracker.settle(["b"], "aborted")
    assert sorted(tracker.draw(3).slot_B.tolist()) == [0, 1, 2]
    free = Tracker.create(keys(3), TrackerSettings(max_in_flight=None))
    free.dispatch(["a", "b", "c"], [0, 0, 1], 0)
    assert sorted(free.draw(3).slot_B.tolist()) == [0, 1, 2]


@pytest.mark.long
def test_draws_are_successive_sampling_of_the_others():
    alpha_P, beta_P = np.array([1.0, 3.0, 1.0, 5.0, 2.0, 9.0]), np.array([1.0, 1.0, 9.0, 5.0, 1.0, 1.0])
    tracker = Tracker.create(keys(6), TrackerSettings(epsilon=0.0), alpha_P=alpha_P, beta_P=beta_P)
    tracker.dispatch(["a", "b"], [0, 3], 0)
    free = [1, 2, 4, 5]
    weights = core.sampling_weights(alpha_P, beta_P, epsilon=0.0)[free]
    drawn = tracker.draw(4)
    np.testing.assert_allclose(drawn.share_B, [weights[free.index(slot)] / weights.sum() for slot in drawn.slot_B])

    def draw_one():
        return [free.index(slot) for slot in tracker.draw(2).slot_B]

    assert ordered_p_value(draw_one, weights, 2, 5000) > 0.01


@pytest.mark.parametrize("quota", [None, {"a": 1, "b": 1}])
def test_what_was_in_flight_leaves_no_trace_in_the_weights(quota):
    trackers = [
        Tracker.create(keys(20), TrackerSettings(seed=2, quota=quota), sources=PromptSources.of("ab" * 10))
        for _ in range(2)
    ]
    trackers[0].dispatch(["a", "b"], [3, 8], 0)
    trackers[0].draw(6)
    trackers[0].settle(["a", "b"])
    trackers[1]._drawing.generators = copy.deepcopy(trackers[0]._drawing.generators)
    draws = [tracker.draw(6) for tracker in trackers]
    assert draws[0].slot_B.tolist() == draws[1].slot_B.tolist()
    assert draws[0].share_B.tolist() == draws[1].share_B.tolist()


def test_asking_for_more_than_is_left_is_refused_with_the_arithmetic():
    tracker = Tracker.create(keys(10), TrackerSettings())
    uids = [f"u{number}" for number in range(7)]
    tracker.dispatch(uids, range(7), 0)
    before = tracker.digest()
    with pytest.raises(SpoStateError) as refusal:
        tracker.draw(4)
    message = str(refusal.value)
    for words in ("a batch of 4", "10 prompts 7 are in flight", "max_in_flight=1", "leaves 3", "num_warmup_batches"):
        assert words in message
    assert "spo.oversample" in message
    assert tracker.digest() == before
    assert sorted(tracker.draw(3).slot_B.tolist()) == [7, 8, 9]


def test_each_source_counts_its_own_prompts_in_flight():
    of = PromptSources.of("aaaabbbb")
    tracker = Tracker.create(keys(8), TrackerSettings(quota={"a": 1, "b": 1}), sources=of)
    tracker.dispatch(["x", "y"], [0, 2], 0)
    for _ in range(10):
        drawn = tracker.draw(4)
        assert sorted(drawn.slot_B.tolist())[:2] == [1, 3]
        # a: two of equal weight are left, with half of the batch; b: four
        np.testing.assert_allclose(drawn.share_B, np.where(drawn.slot_B < 4, 1 / 4, 1 / 8))
    before = tracker.digest()
    with pytest.raises(SpoStateError, match=r"'a' 1 / 2 x 6 = 3 .* of its 4 2 are in flight .* leaves 2; lower"):
        tracker.draw(6)
    assert tracker.digest() == before
    tracker.settle(["x"])
    assert len(tracker.draw(6).slot_B) == 6


def test_uniform_draws_leave_them_out_too():
    tracker = Tracker.create(keys(5), TrackerSettings(sampling_mode="uniform"))
    tracker.dispatch(["a"], [2], 0)
    drawn = tracker.draw(4)
    assert sorted(drawn.slot_B.tolist()) == [0, 1, 3, 4]
    np.testing.assert_allclose(drawn.share_B, 1 / 4)


def test_counts_follow_the_ledger_through_everything(tmp_path):
    rng = np.random.default_rng(0)
    settings = TrackerSettings(max_in_flight=3)
    tracker = Tracker.create(keys(12), settings)
    for step in range(120):
        waiting = tracker.open_uids()
        action = rng.integers(0, 4)
        if action == 0 or not waiting:
            uids = [f"{step}.{n}" for n in range(rng.integers(1, 6))]
            tracker.dispatch(uids, rng.integers(0, tracker.size, len(uids)), step)
        elif action == 1:
            tracker.settle(rng.choice(waiting, rng.integers(1, len(waiting) + 1)).tolist(), "aborted")
        elif action == 2:
            tracker.redispatch([waiting[0]], step)
        else:
            tracker.snapshot().write(tmp_path / "spo")
            order = rng.permutation(12)[: int(rng.integers(6, 13))] if step % 2 else np.arange(12)
            tracker, _ = Tracker.load(tmp_path / "spo", keys(order.tolist()), settings)
        assert dict(tracker._ledger.in_flight) == open_by_hand(tracker)
        full = {slot for slot, count in open_by_hand(tracker).items() if count >= 3 and slot < tracker.size}
        assert set(tracker._taken().tolist()) == full
        if len(full) < tracker.size:
            assert not full & set(tracker.draw(tracker.size - len(full)).slot_B.tolist())


def test_a_restart_keeps_them_out(tmp_path):
    tracker = Tracker.create(keys(5), TrackerSettings(seed=4))
    tracker.dispatch(["a"], [3], 0)
    tracker.snapshot().write(tmp_path / "spo")
    resumed, _ = Tracker.load(tmp_path / "spo", keys(5), TrackerSettings(seed=4))
    assert resumed.draw(4).slot_B.tolist() == tracker.draw(4).slot_B.tolist()
    # the dataset lost the prompt in flight: it takes no place among those that are left
    fewer, _ = Tracker.load(tmp_path / "spo", keys([0, 1, 2, 4]), TrackerSettings(seed=4))
    assert sorted(fewer.draw(4).slot_B.tolist()) == [0, 1, 2, 3]


def test_where_all_is_settled_before_the_next_draw_nothing_has_changed():
    limited, free = (Tracker.create(keys(60), TrackerSettings(seed=11, max_in_flight=n)) for n in (1, None))
    for version in range(12):
        assert train_step(limited, version, 9).tolist() == train_step(free, version, 9).tolist()
    assert limited.digest() == free.digest()


def test_an_outcome_of_a_prompt_in_flight_reaches_its_weight():
    tracker = Tracker.create(keys(2), TrackerSettings(epsilon=0.0, forgetting_mode="constant", rho=0.5))
    observe_one(tracker, "a", 0, 0, 1.0)
    tracker.settle(["a"])
    # (1.25, 0.25): sqrt(5) / 6 against 1/2
    drawn = tracker.draw(2)
    expected = np.array([np.sqrt(5) / 6, 0.5]) / (np.sqrt(5) / 6 + 0.5)
    np.testing.assert_allclose(drawn.share_B, expected[drawn.slot_B], rtol=1e-12)
