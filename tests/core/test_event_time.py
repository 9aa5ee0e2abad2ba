"""Event time: the sum of equation (3), whatever the order of receipt, and at any distance in versions."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.core import (
    SpoArgumentError,
    decay,
    effective_sample_size,
    evidence_at,
    fold_events,
    sampling_weights,
    update_evidence,
    value,
    value_at,
    value_weights,
)
from spo_verl.errors import SpoRewardError

from .helpers import property_test

masses = st.floats(0.01, 50.0)
rhos = st.sampled_from([0.5, 0.875, 0.96, 1.0])
rewards = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))
outcomes = st.lists(st.tuples(st.integers(0, 40), rewards), max_size=12)


def naive(alpha, beta, outcomes, version, rho):
    """Equation (3) term by term; versions may lie thousands apart, hence in fractions."""
    rho = Fraction(rho)
    kept = [rho ** (version - k) for k, _ in outcomes]
    total_alpha = rho**version * Fraction(alpha) + sum(
        w * Fraction(r) for w, (_, r) in zip(kept, outcomes, strict=True)
    )
    total_beta = rho**version * Fraction(beta) + sum(
        w * (1 - Fraction(r)) for w, (_, r) in zip(kept, outcomes, strict=True)
    )
    return total_alpha, total_beta


def fold(state, outcomes, rho, slot=0):
    """Fold (version, reward) pairs of one prompt in one call."""
    position = np.full(len(outcomes), slot)
    versions = np.array([k for k, _ in outcomes], dtype=np.int64)
    return fold_events(*state, position, versions, [r for _, r in outcomes], rho=rho)


def start(alpha=4.0, beta=4.0):
    return np.array([alpha]), np.array([beta]), np.array([0])


class TestByHand:
    def test_an_outcome_decays_from_its_own_version(self):
        # rho = 1/2. (4, 8) at version 0; success at 2: (1 + 1, 2) at 2; failure at 1, late: weight 1/2: (2, 2.5).
        state = fold(([4.0], [8.0], [0]), [(2, 1.0)], 0.5)
        assert [column.tolist() for column in state] == [[2.0], [2.0], [2]]
        state = fold(state, [(1, 0.0)], 0.5)
        assert [column.tolist() for column in state] == [[2.0], [2.5], [2]]
        # read at 4: a quarter of it; the value does not move
        alpha, beta = evidence_at(*state, 4, rho=0.5)
        assert (alpha.tolist(), beta.tolist()) == ([0.5], [0.625])
        assert value_at(*state, 4, rho=0.5).tolist() == [2.0 / 4.5]

    def test_several_outcomes_of_several_prompts_in_one_call(self):
        # rho = 1/2; prompt 0: versions 3, 1 and 3 with rewards 1, 1, 1/4; prompt 1: none; prompt 2: version 1, reward 0
        state = ([8.0, 1.0, 4.0], [0.0, 1.0, 2.0], [0, 5, 2])
        alpha, beta, newest = fold_events(*state, [0, 0, 2, 0], [3, 1, 1, 3], [1.0, 1.0, 0.0, 0.25], rho=0.5)
        # prompt 0: 8/8 + 1 + 1/4 + 1/4 and 0 + 3/4; prompt 2: 4 and 2 + 1/2
        assert alpha.tolist() == [2.5, 1.0, 4.0]
        assert beta.tolist() == [0.75, 1.0, 2.5]
        assert newest.tolist() == [3, 5, 2]

    def test_the_floor_is_added_when_read_and_does_not_decay(self):
        # (3, 1) two versions old at rho = 1/2: (3/4, 1/4); floor 2 adds (1, 1): v = 1.75 / 3
        state = ([3.0], [1.0], [5])
        alpha, beta = evidence_at(*state, 7, rho=0.5, floor=2.0)
        assert (alpha.tolist(), beta.tolist()) == ([1.75], [1.25])
        assert value_at(*state, 7, rho=0.5, floor=2.0).tolist() == [1.75 / 3]
        # after a long time only the floor is left, and N_eff is its mass
        assert evidence_at(*state, 20_000, rho=0.5, floor=2.0) == (np.array([1.0]), np.array([1.0]))
        assert value_at(*state, 20_000, rho=0.5, floor=2.0).tolist() == [0.5]

    def test_a_stale_reader_sees_the_newest_event_and_nothing_is_weighed_up(self):
        state = ([3.0], [1.0], [5])
        assert [column.tolist() for column in evidence_at(*state, 2, rho=0.5)] == [[3.0], [1.0]]

    def test_a_version_for_each_prompt(self):
        alpha, _ = evidence_at([4.0, 4.0], [0.0, 0.0], [0, 1], [1, 3], rho=0.5)
        assert alpha.tolist() == [2.0, 1.0]

    def test_decay(self):
        # 1/2 to the power of 0, 1, 3, and of a version that is not yet over
        assert decay([0, 1, 3, -2], 0.5).tolist() == [1.0, 0.5, 0.125, 1.0]
        assert decay([], 0.5).tolist() == []


class TestEquation3:
    @property_test
    @given(masses, masses, outcomes, rhos, st.integers(0, 60))
    def test_equals_the_naive_sum(self, alpha, beta, outcomes, rho, later):
        state = fold(start(alpha, beta), outcomes, rho)
        version = max((k for k, _ in outcomes), default=0) + later
        expected_alpha, expected_beta = naive(alpha, beta, outcomes, version, rho)
        read = evidence_at(*state, version, rho=rho)
        np.testing.assert_allclose(np.ravel(read), [float(expected_alpha), float(expected_beta)], rtol=1e-12)
        expected = float(expected_alpha / (expected_alpha + expected_beta))
        np.testing.assert_allclose(value_at(*state, version, rho=rho), [expected], rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("rho", [0.5, 0.875])
    def test_every_order_of_receipt_gives_the_same(self, rho):
        history = [(0, 1.0), (1, 0.0), (1, 0.25), (4, 1.0), (9, 0.0)]
        together = fold(start(), history, rho)
        for order in itertools.permutations(history):
            for cut in range(len(order) + 1):  # one call, or two calls
                state = fold(fold(start(), order[:cut], rho), order[cut:], rho)
                np.testing.assert_allclose(state[0], together[0], rtol=1e-13)
                np.testing.assert_allclose(state[1], together[1], rtol=1e-13)
                assert state[2].tolist() == together[2].tolist() == [9]

    @property_test
    @given(outcomes, rhos, st.randoms(use_true_random=False))
    def test_one_by_one_in_random_order(self, outcomes, rho, random):
        together = fold(start(), outcomes, rho)
        random.shuffle(outcomes)
        state = start()
        for one in outcomes:
            state = fold(state, [one], rho)
        np.testing.assert_allclose(np.array(state[:2]), np.array(together[:2]), rtol=1e-12)
        assert state[2].tolist() == together[2].tolist()

    def test_a_late_outcome_weighs_what_it_would_have_weighed_in_time(self):
        in_time = fold(fold(fold(start(), [(3, 1.0)], 0.875), [(7, 0.0)], 0.875), [(20, 1.0)], 0.875)
        late = fold(fold(fold(start(), [(20, 1.0)], 0.875), [(7, 0.0)], 0.875), [(3, 1.0)], 0.875)
        np.testing.assert_allclose(np.array(late[:2]), np.array(in_time[:2]), rtol=1e-14)
        # and not the weight 1 of something that has just happened
        assert late[0][0] == pytest.approx(4 * 0.875**20 + 0.875**17 + 1, rel=1e-14)


class TestLimits:
    @property_test
    @given(masses, masses, outcomes, st.integers(0, 10_000))
    def test_without_forgetting_it_counts(self, alpha, beta, outcomes, later):
        state = fold(start(alpha, beta), outcomes, 1.0)
        total = sum(r for _, r in outcomes)
        read = evidence_at(*state, 40 + later, rho=1.0)
        np.testing.assert_allclose(np.ravel(read), [alpha + total, beta + len(outcomes) - total], rtol=1e-12)

    @property_test
    @given(masses, masses, st.lists(rewards, max_size=30), rhos)
    def test_one_outcome_per_version_in_order_is_the_recursion_of_constant_retention(self, alpha, beta, history, rho):
        state, recursion = start(alpha, beta), (np.array([alpha]), np.array([beta]))
        for version, reward in enumerate(history, 1):
            state = fold(state, [(version, reward)], rho)
            recursion = update_evidence(*recursion, [reward], rho)
        np.testing.assert_allclose(np.array(state[:2]), np.array(recursion), rtol=1e-12)

    @property_test
    @given(outcomes, rhos, st.integers(0, 500), st.floats(0.01, 10.0))
    def test_the_floor_bounds_mass_and_value(self, outcomes, rho, later, floor):
        state = fold(start(), outcomes, rho)
        version = 40 + later
        plain = np.ravel(evidence_at(*state, version, rho=rho))
        floored = np.ravel(evidence_at(*state, version, rho=rho, floor=floor))
        np.testing.assert_allclose(floored, plain + floor / 2, rtol=1e-14)
        v = float(value_at(*state, version, rho=rho, floor=floor)[0])
        assert v == pytest.approx(float(floored[0] / floored.sum()), rel=1e-14)
        # between 1/2 and the value without it
        low, high = sorted([0.5, float(value_at(*state, version, rho=rho)[0])])
        assert low - 1e-12 <= v <= high + 1e-12

    def test_a_floor_of_zero_is_equation_3(self):
        state = fold(start(), [(3, 1.0), (5, 0.0)], 0.875)
        assert value_at(*state, 9, rho=0.875, floor=0.0) == value_at(*state, 9, rho=0.875)


class TestFarApart:
    """rho^400 is 6e-24 and rho^10000 is not a float64 at all."""

    @pytest.mark.parametrize("gap", [55, 400, 660, 5_600, 10_000, 1_000_000])
    def test_the_value_does_not_underflow(self, gap):
        state = fold(start(6.0, 2.0), [(1, 1.0)], 0.875)
        expected = float(value(state[0], state[1])[0])
        assert value_at(*state, 1 + gap, rho=0.875).tolist() == [expected]
        assert expected == pytest.approx((6 * 0.875 + 1) / (8 * 0.875 + 1), rel=1e-15)
        # while the mass is gone, and what it is used for stays bounded
        n_eff = effective_sample_size(*evidence_at(*state, 1 + gap, rho=0.875))
        assert 0 <= n_eff[0] <= 8 * 0.875**gap * 1.01
        for gamma in (0.0, 0.5, 1.0):
            weight = value_weights([expected], n_eff, gamma=gamma, epsilon=0.05)
            assert weight[0] == pytest.approx(math.sqrt(expected * (1 - expected)) + 0.05)

    @pytest.mark.parametrize("gap", [55, 400, 10_000])
    def test_an_outcome_after_a_long_time(self, gap):
        state = fold(start(), [(gap, 1.0)], 0.875)
        alpha, beta = naive(4.0, 4.0, [(gap, 1.0)], gap, 0.875)
        assert value_at(*state, gap, rho=0.875)[0] == pytest.approx(float(alpha / (alpha + beta)), rel=1e-14)
        if gap == 55:
            assert state[0][0] / (state[0][0] + state[1][0]) > 0.997  # one success moves it all the way
        # a floor of 1 keeps some of what was believed before: (1 + 1/2) / (1 + 1), not 1
        assert value_at(*state, gap, rho=0.875, floor=1.0)[0] == pytest.approx(0.75, abs=2e-3)

    @pytest.mark.parametrize("gap", [400, 10_000])
    def test_a_late_outcome_of_long_ago_and_a_long_history(self, gap):
        history = [(k, float(k % 3 == 0)) for k in range(0, gap, 97)]
        late = [(gap, 0.0), *reversed(history), (gap, 1.0)]
        state = fold(start(), late, 0.875)
        alpha, beta = naive(4.0, 4.0, late, gap, 0.875)
        assert value_at(*state, gap + 5_000, rho=0.875)[0] == pytest.approx(float(alpha / (alpha + beta)), rel=1e-13)
        assert state[0][0] + state[1][0] >= 2.0  # the outcomes of the newest event have their whole weight


class TestWeights:
    @property_test
    @given(masses, masses, st.floats(0.0, 1.0), st.floats(0.0, 2.0))
    def test_equal_the_weights_of_evidence(self, alpha, beta, gamma, epsilon):
        of_evidence = sampling_weights([alpha], [beta], gamma=gamma, epsilon=epsilon)
        read_apart = value_weights(
            value([alpha], [beta]), effective_sample_size([alpha], [beta]), gamma=gamma, epsilon=epsilon
        )
        np.testing.assert_array_equal(of_evidence, read_apart)

    @pytest.mark.parametrize(
        ("v", "n_eff", "setting", "message"),
        [
            ([1.1], [1.0], {}, r"value_P\[0\]"),
            ([np.nan], [1.0], {}, r"value_P\[0\]"),
            ([0.5], [-1.0], {}, r"n_eff_P\[0\]"),
            ([0.5], [np.inf], {}, r"n_eff_P\[0\]"),
            ([0.5], [1.0, 1.0], {}, "shapes differ"),
            ([0.5], [1.0], {"gamma": 2.0}, "gamma"),
            ([0.5], [1.0], {"epsilon": -1.0}, "epsilon"),
        ],
    )
    def test_impossible_arguments_are_refused(self, v, n_eff, setting, message):
        with pytest.raises(SpoArgumentError, match=message):
            value_weights(v, n_eff, **setting)


class TestRefusals:
    @pytest.mark.parametrize(
        ("position", "version", "reward", "error", "message"),
        [
            ([1], [0], [1.0], SpoArgumentError, r"position_B\[0\] = 1, but there are 1 prompts"),
            ([-1], [0], [1.0], SpoArgumentError, "position_B"),
            ([0], [-1], [1.0], SpoArgumentError, "version_B"),
            ([0], [1.5], [1.0], SpoArgumentError, "version_B has type float64"),
            ([0], [0], [1.5], SpoRewardError, r"reward_B\[0\]"),
            ([0], [0], [-0.1], SpoRewardError, r"reward_B\[0\]"),
            ([0], [0], [np.nan], SpoRewardError, r"reward_B\[0\]"),
            ([0, 0], [0], [1.0], SpoArgumentError, "shapes differ"),
            ([[0]], [[0]], [[1.0]], SpoArgumentError, "one per outcome"),
        ],
    )
    def test_impossible_outcomes(self, position, version, reward, error, message):
        with pytest.raises(error, match=message):
            fold_events(*start(), position, version, reward, rho=0.875)

    @pytest.mark.parametrize("rho", [0.0, -0.5, 1.01, np.nan])
    def test_impossible_retention(self, rho):
        for call in (
            lambda: fold_events(*start(), [0], [0], [1.0], rho=rho),
            lambda: evidence_at(*start(), 0, rho=rho),
            lambda: value_at(*start(), 0, rho=rho),
            lambda: decay([1], rho),
        ):
            with pytest.raises(SpoArgumentError, match="rho"):
                call()

    @pytest.mark.parametrize("floor", [-0.1, np.nan, np.inf])
    def test_impossible_floor(self, floor):
        with pytest.raises(SpoArgumentError, match="floor"):
            value_at(*start(), 0, rho=0.5, floor=floor)

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            (([-1.0], [1.0], [0]), "alpha"),
            (([1.0], [np.nan], [0]), "beta"),
            (([1.0], [1.0], [-1]), "newest_P"),
            (([1.0], [1.0], [0, 1]), "shapes differ"),
            (([1.0], [1.0], [0.5]), "newest_P has type"),
        ],
    )
    def test_impossible_evidence(self, state, message):
        for call in (
            lambda: fold_events(*state, [], [], [], rho=0.5),
            lambda: evidence_at(*state, 3, rho=0.5),
            lambda: value_at(*state, 3, rho=0.5),
        ):
            with pytest.raises(SpoArgumentError, match=message):
                call()

    def test_impossible_versions(self):
        for version, message in ((-1, "version"), (0.5, "version has type"), ([0, 1], "shapes differ")):
            with pytest.raises(SpoArgumentError, match=message):
                value_at(*start(), version, rho=0.5)

    def test_arguments_are_left_alone_and_results_are_new(self):
        alpha, beta, newest = np.array([4.0]), np.array([2.0]), np.array([3])
        results = fold_events(alpha, beta, newest, [], [], [], rho=0.5)
        for column in results:
            column[:] = 9
        fold_events(alpha, beta, newest, [0], [9], [1.0], rho=0.5)
        assert (alpha.tolist(), beta.tolist(), newest.tolist()) == ([4.0], [2.0], [3])


def test_integers_beyond_64_bits_are_refused_and_do_not_wrap_around():
    huge = np.array([2**64 - 1], np.uint64)
    for call in (
        lambda: decay(huge, 0.5),
        lambda: fold_events([1.0], [1.0], [0], [0], huge, [1.0], rho=0.5),
        lambda: evidence_at([1.0], [1.0], huge, 3, rho=0.5),
    ):
        with pytest.raises(SpoArgumentError, match=r"must be at most 9223372036854775807"):
            call()
    assert decay(np.array([2], np.uint64), 0.5).tolist() == [0.25]
