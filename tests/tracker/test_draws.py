"""Draws by the present weights, and what the tracker says about itself."""

import numpy as np
import pytest

from spo_verl import core
from spo_verl.errors import SpoConfigError, SpoStateError
from spo_verl.tracker import Tracker, TrackerSettings

from .helpers import keys, observe_one, train_step


def shares_by_slot(tracker: Tracker) -> np.ndarray:
    drawn = tracker.draw(tracker.size)
    share_P = np.empty(tracker.size)
    share_P[drawn.slot_B] = drawn.share_B
    return share_P


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_draw_follows_the_evidence_as_it_changes(gamma):
    tracker = Tracker.create(keys(40), TrackerSettings(gamma=gamma, epsilon=0.01))
    for version in range(30):
        train_step(tracker, version, 8)
        weight_P = core.sampling_weights(*tracker.evidence(), gamma=gamma, epsilon=0.01)
        np.testing.assert_allclose(shares_by_slot(tracker), weight_P / weight_P.sum(), rtol=1e-12)
    assert np.ptp(shares_by_slot(tracker)) > 0.001


def test_prompts_without_weight_are_not_drawn_while_there_are_others():
    alpha_P, beta_P = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0])
    tracker = Tracker.create(keys(4), TrackerSettings(epsilon=0.0), alpha_P=alpha_P, beta_P=beta_P)
    for _ in range(20):
        assert sorted(tracker.draw(2).slot_B.tolist()) == [0, 3]
    observe_one(tracker, "a", 1, 0, 1.0)  # slot 1 has now seen both outcomes
    tracker.settle(["a"])
    assert sorted(tracker.draw(3).slot_B.tolist()) == [0, 1, 3]


def test_uniform_mode_ignores_the_evidence():
    tracker = Tracker.create(
        keys(8), TrackerSettings(sampling_mode="uniform"), alpha_P=np.full(8, 99.0), beta_P=np.arange(8.0)
    )
    np.testing.assert_allclose(shares_by_slot(tracker), 1 / 8)
    observe_one(tracker, "a", 0, 0, 1.0)
    tracker.settle(["a"])
    np.testing.assert_allclose(shares_by_slot(tracker), 1 / 8)


def test_draws_are_seeded():
    def draws(seed: int) -> list:
        tracker = Tracker.create(keys(100), TrackerSettings(seed=seed))
        return [tracker.draw(5).slot_B.tolist() for _ in range(4)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


@pytest.mark.parametrize("size", [0, -1, 6])
def test_impossible_batches_are_refused_and_cost_no_random_numbers(size):
    tracker = Tracker.create(keys(5), TrackerSettings())
    before = tracker.digest()
    with pytest.raises(SpoStateError, match=f"batch of {size} different prompts was asked for, the dataset has 5"):
        tracker.draw(size)
    assert tracker.digest() == before
    assert sorted(tracker.draw(5).slot_B.tolist()) == [0, 1, 2, 3, 4]


def test_metrics_by_hand():
    alpha_P, beta_P = np.array([3.0, 1.0, 0.0, 2.0]), np.array([1.0, 1.0, 4.0, 2.0])
    tracker = Tracker.create(keys(4), TrackerSettings(epsilon=0.0), alpha_P=alpha_P, beta_P=beta_P)
    metrics = tracker.metrics()
    # values 3/4, 1/2, 0, 1/2 and masses 4, 2, 4, 4
    assert metrics["value_mean"] == 1.75 / 4
    assert metrics["n_eff_mean"] == 14 / 4
    # weights sqrt(3)/4, 1/2, 0, 1/2: (sum)^2 / (3/16 + 1/4 + 1/4)
    assert metrics["effective_prompts"] == pytest.approx((np.sqrt(3) / 4 + 1) ** 2 / (11 / 16))
    assert (metrics["prompts"], metrics["prompts_aside"], metrics["coverage"]) == (4, 0, 0)
    first = set(tracker.draw(2).slot_B.tolist())
    assert tracker.metrics()["coverage"] == 0.5
    both = first | set(tracker.draw(2).slot_B.tolist())
    assert tracker.metrics()["coverage"] == len(both) / 4
    assert tracker.metrics()["drawn"] == 4
    tracker.dispatch(["a", "b"], [0, 1], 0)
    assert (tracker.metrics()["open"], tracker.metrics()["dispatched"]) == (2, 2)
    # bins [0, .25), [.25, .5), [.5, .75), [.75, 1]
    assert tracker.value_histogram(4).tolist() == [1, 0, 2, 1]
    assert all(type(value) is float for value in metrics.values())


def test_keys_are_checked():
    Tracker.create(keys(3).view(np.uint8).reshape(3, 16), TrackerSettings())
    with pytest.raises(SpoStateError, match="is at positions 1 and 3"):
        Tracker.create(keys([5, 6, 7, 6]), TrackerSettings())
    with pytest.raises(SpoStateError, match="there are no prompts"):
        Tracker.create(keys(1)[:0], TrackerSettings())
    with pytest.raises(SpoStateError, match="prompt keys have type int64"):
        Tracker.create(np.arange(3), TrackerSettings())
    # Keys that share their first half are different prompts.
    close = np.zeros((3, 16), dtype=np.uint8)
    close[:, 15] = [1, 2, 3]
    assert Tracker.create(close, TrackerSettings()).size == 3


@pytest.mark.parametrize(
    ("alpha", "beta", "words"),
    [
        ([1.0, np.nan], [1.0, 1.0], "slot 1 .* alpha=nan"),
        ([1.0, 1.0], [-1.0, 1.0], r"slot 0 .* beta=-1\.0"),
        ([0.0, 1.0], [0.0, 1.0], r"slot 0 .* alpha=0\.0, beta=0\.0"),
        ([1.0], [1.0], r"shapes \(1,\) and \(1,\); \(2,\) is needed"),
        ([1.0, 1.0], None, "needs both"),
    ],
)
def test_initial_evidence_is_checked(alpha, beta, words):
    given = {"alpha_P": np.array(alpha), "beta_P": None if beta is None else np.array(beta)}
    with pytest.raises(SpoStateError, match=words):
        Tracker.create(keys(2), TrackerSettings(), **given)


def test_settings_name_every_problem():
    with pytest.raises(SpoConfigError, match=r"gamma=2, rho_min=0\.99, references=\('a', 'a'\), max_tokens=0"):
        TrackerSettings(gamma=2, rho_min=0.99, references=("a", "a"), max_tokens=0)
