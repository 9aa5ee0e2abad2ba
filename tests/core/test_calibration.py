import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from spo_verl.core import (
    SpoArgumentError,
    calibrated_value,
    calibration_features,
    fit_calibration,
    read_calibrated,
)
from spo_verl.errors import SpoRewardError

from .helpers import property_test


def naive_objective(c, rows, rewards, weights, precision):
    """J of the docstring, one row at a time in plain floats."""
    total = 0.0
    for x, r, w in zip(rows, rewards, weights, strict=True):
        z = sum(a * b for a, b in zip(x, c, strict=True))
        total += w * (r * z - (z + math.log1p(math.exp(-z)) if z > 0 else math.log1p(math.exp(z))))
    prior = [1.0] + [0.0] * (len(c) - 1)
    return total - 0.5 * sum(k * (a - m) ** 2 for k, a, m in zip(precision, c, prior, strict=True))


def some_history(seed, rows=200, sources=3):
    rng = np.random.default_rng(seed)
    value, n_eff = rng.uniform(0, 1, rows), rng.uniform(0.2, 25, rows)
    features = calibration_features(
        value, n_eff, rng.integers(0, 50, rows), rng.integers(0, sources, rows), sources=sources
    )
    return features, rng


def test_features_by_hand():
    # logit 0.8 = log 4 = 1.386294; / sqrt(4) = 0.693147; log(1 + 3) = 1.386294; source 1 of 3
    # logit 0.2 = -1.386294; N_eff 0.25 is floored at 1; log(1 + 0) = 0; source 0
    features = calibration_features([0.8, 0.2], [4.0, 0.25], [3, 0], [1, 0], sources=3, extra_BF=[[7.0], [8.0]])
    log4 = math.log(4.0)
    wanted = [[log4, 1, log4 / 2, log4, 0, 1, 0, 7], [-log4, 1, -log4, 0, 1, 0, 0, 8]]
    np.testing.assert_allclose(features, wanted, rtol=1e-14, atol=1e-15)


def test_values_are_clipped_on_both_sides():
    logit = calibration_features([0.0, 0.01, 0.99, 1.0], [1.0] * 4, [0] * 4)[:, 0]
    np.testing.assert_allclose(logit, [-math.log(99), -math.log(99), math.log(99), math.log(99)], rtol=1e-12)


@pytest.mark.parametrize("sources", [0, 1])
def test_one_source_has_no_indicator(sources):
    assert calibration_features([0.5], [1.0], [0], [0], sources=sources).shape == (1, 4)


def test_a_prompt_of_no_source_has_no_indicator():
    features = calibration_features([0.5] * 3, [1.0] * 3, [0] * 3, [-1, 0, 1], sources=2)
    np.testing.assert_array_equal(features[:, 4:], [[0, 0], [1, 0], [0, 1]])


@property_test
@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(0, 3))
def test_what_is_read_is_the_value_of_the_features(seed, sources, extra):
    rng = np.random.default_rng(seed)
    value, n_eff, age = (
        rng.choice([0.0, 1.0, *rng.uniform(0, 1, 8)], 60),
        rng.uniform(0, 25, 60),
        rng.integers(0, 99, 60),
    )
    source = rng.integers(-1, max(sources, 1), 60)
    own = rng.normal(size=(60, extra))
    features = calibration_features(value, n_eff, age, source, sources=sources, extra_BF=own)
    coefficients = rng.normal(size=features.shape[1])
    read = read_calibrated(value, n_eff, age, coefficients, source, extra_BF=own)
    np.testing.assert_allclose(read, calibrated_value(features, coefficients), rtol=1e-12)
    # However many prompts are read together: a table that is read in parts has equal bits.
    alone = read_calibrated(value[7:8], n_eff[7:8], age[7:8], coefficients, source[7:8], extra_BF=own[7:8])
    assert alone.tobytes() == read[7:8].tobytes()


def test_without_outcomes_the_value_is_the_tracker_s():
    value = np.linspace(0.01, 0.99, 50)
    features = calibration_features(value, np.full(50, 3.0), np.arange(50), np.arange(50) % 4, sources=4)
    coefficients = fit_calibration(np.zeros((0, 8)), [])
    np.testing.assert_array_equal(coefficients, [1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(calibrated_value(features, coefficients), value, rtol=1e-13)


def test_a_strong_prior_leaves_the_value_and_a_weak_one_follows_the_outcomes():
    features = calibration_features(np.full(400, 0.5), np.full(400, 8.0), np.zeros(400))
    reward = np.arange(400) % 4 == 0  # a quarter succeeds where v says a half
    strong = calibrated_value(features, fit_calibration(features, reward, precision=1e12))
    weak = calibrated_value(features, fit_calibration(features, reward, precision=1e-9))
    np.testing.assert_allclose(strong, 0.5, atol=1e-9)
    np.testing.assert_allclose(weak, 0.25, atol=1e-9)


def test_known_optimum_of_the_intercept():
    # One feature row (0, 1), three successes in four, lambda = 2: 3 - 4 sigmoid(c) = 2 c.
    root = optimize.brentq(lambda c: 3 - 4 / (1 + math.exp(-c)) - 2 * c, -5, 5, xtol=1e-15)
    coefficients = fit_calibration(np.tile([0.0, 1.0], (4, 1)), [1, 1, 0, 1], precision=2.0)
    np.testing.assert_allclose(coefficients, [1.0, root], atol=1e-12)


def test_known_optimum_of_the_slope():
    # One row with logit 2 and reward 1, lambda = 1/2: 2 (1 - sigmoid(2 c)) = (c - 1) / 2.
    root = optimize.brentq(lambda c: 2 * (1 - 1 / (1 + math.exp(-2 * c))) - 0.5 * (c - 1), -5, 9, xtol=1e-15)
    np.testing.assert_allclose(fit_calibration([[2.0]], [1.0], precision=0.5), [root], atol=1e-12)


@property_test
@given(st.integers(0, 10**6), st.floats(0.05, 50.0))
def test_the_gradient_vanishes_at_the_optimum(seed, scale):
    features, rng = some_history(seed, rows=40)
    reward, weight = rng.uniform(0, 1, 40), rng.uniform(0, 3, 40)
    precision = scale * rng.uniform(0.5, 2.0, features.shape[1])
    found = fit_calibration(features, reward, weight, precision=precision)
    best = naive_objective(found, features, reward, weight, precision)
    for axis in np.eye(len(found)):
        above, below = (
            naive_objective(found + sign * 1e-4 * axis, features, reward, weight, precision) for sign in (1, -1)
        )
        assert max(above, below) <= best  # a maximum in every direction
        slope = (above - below) / 2e-4
        assert abs(slope) < 1e-5 * (1.0 + scale)


def test_agrees_with_a_general_optimiser():
    features, rng = some_history(3)
    reward = (rng.uniform(size=200) < 0.3).astype(float)
    precision, ones = np.full(features.shape[1], 5.0), np.ones(200)
    start = np.eye(features.shape[1])[0]
    other = optimize.minimize(lambda c: -naive_objective(c, features, reward, ones, precision), start, tol=1e-12)
    np.testing.assert_allclose(fit_calibration(features, reward), other.x, atol=2e-5)


def test_weights_count_rows():
    features, rng = some_history(4, rows=30)
    reward, times = rng.uniform(size=30), rng.integers(0, 4, 30)
    repeated = fit_calibration(np.repeat(features, times, axis=0), np.repeat(reward, times))
    np.testing.assert_allclose(fit_calibration(features, reward, times), repeated, atol=1e-9)


def test_fractions_are_a_mixture_of_outcomes():
    features, _ = some_history(5, rows=20)
    fraction = np.full(20, 0.3)
    both = fit_calibration(np.repeat(features, 2, axis=0), np.tile([1.0, 0.0], 20), np.tile([0.3, 0.7], 20))
    np.testing.assert_allclose(fit_calibration(features, fraction), both, atol=1e-9)


def test_it_recovers_a_known_distortion():
    rng = np.random.default_rng(6)
    features = calibration_features(
        rng.uniform(0.05, 0.95, 60000), rng.uniform(1, 20, 60000), np.zeros(60000), rng.integers(0, 2, 60000), sources=2
    )
    truth = np.array([0.7, 0.4, 0.2, 0.0, -0.5, 0.5])
    reward = rng.uniform(size=60000) < 1 / (1 + np.exp(-features @ truth))
    fitted = fit_calibration(features, reward, precision=1e-3)
    np.testing.assert_allclose(features @ fitted, features @ truth, atol=0.1)


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("precision", [1e-6, 5.0, 1e6])
def test_constant_outcomes_stay_finite(reward, precision):
    features, _ = some_history(7)
    coefficients = fit_calibration(features, np.full(200, reward), precision=precision)
    assert np.isfinite(coefficients).all()
    value = calibrated_value(features, coefficients)
    assert ((value >= 0) & (value <= 1)).all()
    if precision == 5.0:
        assert abs(value.mean() - reward) < 0.1


def test_perfect_separation_stays_finite_and_is_the_optimum():
    features = calibration_features([0.1, 0.2, 0.8, 0.9], [4.0] * 4, [1] * 4)
    reward, precision = np.array([0.0, 0, 1, 1]), np.full(4, 1e-4)
    found = fit_calibration(features, reward, precision=precision)
    best = naive_objective(found, features, reward, np.ones(4), precision)
    rng = np.random.default_rng(0)
    for move in rng.normal(size=(200, 4)) * 0.05:
        assert naive_objective(found + move, features, reward, np.ones(4), precision) < best


def test_one_row_moves_along_its_features_only():
    row = np.array([[0.5, 1.0, 0.25, 0.0, 2.0]])
    moved = fit_calibration(row, [1.0]) - [1, 0, 0, 0, 0]
    np.testing.assert_allclose(moved, row[0] * moved[1], atol=1e-12)
    assert moved[1] > 0


def test_equal_arguments_give_equal_bits():
    features, rng = some_history(8)
    reward = rng.uniform(size=200)
    before = features.copy()
    assert fit_calibration(features, reward).tobytes() == fit_calibration(features.copy(), reward.copy()).tobytes()
    np.testing.assert_array_equal(features, before)


def test_huge_features_do_not_overflow():
    features = np.array([[1e4, 1.0], [-1e4, 1.0]])
    value = calibrated_value(features, fit_calibration(features, [1.0, 0.0]))
    np.testing.assert_array_equal(value, [1.0, 0.0])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: calibration_features([math.nan], [1], [0]), "value_B"),
        (lambda: calibration_features([1.5], [1], [0]), "value_B"),
        (lambda: calibration_features([0.5], [-1], [0]), "n_eff_B"),
        (lambda: calibration_features([0.5], [1], [math.inf]), "age_B"),
        (lambda: calibration_features([0.5], [1, 2], [0]), "shapes differ"),
        (lambda: calibration_features(0.5, 1, 0), "value_B.shape"),
        (lambda: calibration_features([0.5], [1], [0], clip=0.5), "clip"),
        (lambda: calibration_features([0.5], [1], [0], sources=-1), "sources"),
        (lambda: calibration_features([0.5], [1], [0], sources=2), "source_B is missing"),
        (lambda: calibration_features([0.5], [1], [0], [2], sources=2), "source_B"),
        (lambda: calibration_features([0.5], [1], [0], [-2], sources=2), "source_B"),
        (lambda: calibration_features([0.5], [1], [0], [0.5], sources=2), "source_B"),
        (lambda: calibration_features([0.5], [1], [0], [0, 1], sources=2), "source_B.shape"),
        (lambda: calibration_features([0.5], [1], [0], extra_BF=[[math.nan]]), "extra_BF"),
        (lambda: calibration_features([0.5], [1], [0], extra_BF=[1.0]), "extra_BF.shape"),
        (lambda: fit_calibration([[math.nan]], [1.0]), "feature_BF"),
        (lambda: fit_calibration([1.0], [1.0]), "feature_BF.shape"),
        (lambda: fit_calibration(np.zeros((1, 0)), [1.0]), "feature_BF.shape"),
        (lambda: fit_calibration([[1.0]], [1.0, 0.0]), "reward_B.shape"),
        (lambda: fit_calibration([[1.0]], [1.0], [-1.0]), "weight_B"),
        (lambda: fit_calibration([[1.0]], [1.0], precision=0.0), "precision"),
        (lambda: fit_calibration([[1.0]], [1.0], precision=[1.0, 1.0]), "precision.shape"),
        (lambda: calibrated_value([[1.0]], [1.0, 2.0]), "coefficient_F.shape"),
        (lambda: calibrated_value([[1.0]], [math.nan]), "coefficient_F"),
        (lambda: read_calibrated([math.nan], [1], [0], [1, 0, 0, 0]), "value_B"),
        (lambda: read_calibrated([0.5], [-1], [0], [1, 0, 0, 0]), "n_eff_B"),
        (lambda: read_calibrated([0.5], [1], [0], [1, 0, 0]), "coefficient_F.shape"),
        (lambda: read_calibrated([0.5], [1], [0], [1, 0, 0, math.inf]), "coefficient_F"),
        (lambda: read_calibrated([0.5], [1], [0], [1, 0, 0, 0], extra_BF=[[1.0]]), "coefficient_F.shape"),
        (lambda: read_calibrated([0.5], [1], [0], [1, 0, 0, 0, 0], extra_BF=[[math.nan]]), "extra_BF"),
        (lambda: read_calibrated([0.5], [1], [0], [1, 0, 0, 0, 0, 0]), "source_B is missing"),
        (lambda: read_calibrated([0.5], [1], [0], [1, 0, 0, 0, 0, 0], [2]), "source_B"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, named):
    with pytest.raises(SpoArgumentError, match=named.replace(".", r"\.")):
        call()


@pytest.mark.parametrize("reward", [math.nan, -0.1, 1.1])
def test_rewards_lie_between_0_and_1(reward):
    with pytest.raises(SpoRewardError, match="reward_B"):
        fit_calibration([[1.0]], [reward])
