import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.core import (
    SpoArgumentError,
    degenerate_probability,
    effective_sample_size,
    initial_evidence,
    update_evidence,
    value,
)
from spo_verl.errors import SpoRewardError

from .helpers import property_test

mass = st.floats(0.0, 1e3)
reward = st.floats(0.0, 1.0)
rho = st.floats(0.01, 1.0)


class TestInitialEvidence:
    def test_jeffreys_by_hand(self):
        # N0 = 1 / (1 - 0.875) = 8, n = 8.
        # 0 right: alpha = 8 * 0.5 / 9 = 4/9,   beta = 8 * 8.5 / 9 = 68/9
        # 2 right: alpha = 8 * 2.5 / 9 = 20/9,  beta = 8 * 6.5 / 9 = 52/9
        # 8 right: alpha = 68/9,                beta = 4/9
        alpha, beta = initial_evidence([0, 2, 8], [8, 8, 8])
        np.testing.assert_allclose(alpha, [4 / 9, 20 / 9, 68 / 9], rtol=1e-14)
        np.testing.assert_allclose(beta, [68 / 9, 52 / 9, 4 / 9], rtol=1e-14)

    def test_without_prior_is_equation_6_as_printed(self):
        # rho_min = 0.75 gives N0 = 4. 1 of 4 right: v0 = 0.25, alpha = 4 * 0.25 = 1, beta = 4 * 0.75 = 3.
        # All wrong: (0, 4), a value of exactly 0. All right: (4, 0).
        alpha, beta = initial_evidence([1, 0, 2], [4, 4, 2], rho_min=0.75, prior="none")
        np.testing.assert_array_equal(alpha, [1, 0, 4])
        np.testing.assert_array_equal(beta, [3, 4, 0])

    @pytest.mark.parametrize("prior", ["jeffreys", "none"])
    def test_untried_slots_are_half_and_half(self, prior):
        alpha, beta = initial_evidence([0, 3, 0], [0, 4, 0], prior=prior)
        np.testing.assert_array_equal(alpha[[0, 2]], [0.5, 0.5])
        np.testing.assert_array_equal(beta[[0, 2]], [0.5, 0.5])
        assert alpha[1] > beta[1]

    def test_no_slots(self):
        alpha, beta = initial_evidence([], [])
        assert alpha.shape == beta.shape == (0,)
        assert alpha.dtype == np.float64

    @property_test
    @given(
        st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1)), min_size=1, max_size=20),
        st.floats(0.0, 0.99),
        st.sampled_from(["jeffreys", "none"]),
    )
    def test_mass_is_n0_and_value_is_the_smoothed_mean(self, rows, rho_min, prior):
        trials = np.array([n for n, _ in rows], dtype=float)
        successes = trials * np.array([share for _, share in rows])
        alpha, beta = initial_evidence(successes, trials, rho_min=rho_min, prior=prior)
        np.testing.assert_allclose(alpha + beta, 1 / (1 - rho_min), rtol=1e-12)
        smoothing = 0.5 if prior == "jeffreys" else 0.0
        np.testing.assert_allclose(
            value(alpha, beta), (successes + smoothing) / (trials + 2 * smoothing), rtol=1e-9, atol=1e-12
        )
        if prior == "jeffreys":
            assert ((value(alpha, beta) > 0) & (value(alpha, beta) < 1)).all()

    @pytest.mark.parametrize("successes", [-1, 9, np.nan, np.inf, 8.01])
    def test_impossible_successes_are_refused(self, successes):
        with pytest.raises(SpoRewardError, match=r"successes_P\[1\]"):
            initial_evidence([4, successes], [8, 8])

    @pytest.mark.parametrize("trials", [-1, 2.5, np.nan, np.inf])
    def test_impossible_trials_are_refused(self, trials):
        with pytest.raises(SpoArgumentError, match=r"trials_P\[0\]"):
            initial_evidence([0], [trials])

    @pytest.mark.parametrize("rho_min", [1.0, -0.1, np.nan])
    def test_impossible_rho_min_is_refused(self, rho_min):
        with pytest.raises(SpoArgumentError, match="rho_min"):
            initial_evidence([0], [1], rho_min=rho_min)

    def test_unknown_prior_is_refused(self):
        with pytest.raises(SpoArgumentError, match="'jeffreys' or 'none'"):
            initial_evidence([0], [1], prior="laplace")

    def test_different_shapes_are_refused(self):
        with pytest.raises(SpoArgumentError, match="shapes differ"):
            initial_evidence([0, 0], [1])


class TestValue:
    def test_by_hand(self):
        # 1 / (1 + 3) = 0.25; 6 / (6 + 2) = 0.75; 0 / 4 = 0; 4 / 4 = 1
        np.testing.assert_array_equal(value([1, 6, 0, 4], [3, 2, 4, 0]), [0.25, 0.75, 0.0, 1.0])

    def test_half_where_the_evidence_has_underflowed(self):
        np.testing.assert_array_equal(value([0.0, 5e-324], [0.0, 5e-324]), [0.5, 0.5])

    def test_scalars(self):
        assert float(value(3.0, 1.0)) == 0.75

    @property_test
    @given(mass, mass)
    def test_in_range_and_symmetric(self, alpha, beta):
        v = float(value(alpha, beta))
        assert 0.0 <= v <= 1.0
        assert float(value(beta, alpha)) == pytest.approx(1.0 - v, abs=1e-12)

    @pytest.mark.parametrize("bad", [-1e-9, np.nan, np.inf])
    @pytest.mark.parametrize("function", [value, effective_sample_size])
    def test_impossible_evidence_is_refused(self, function, bad):
        with pytest.raises(SpoArgumentError, match=r"alpha\[1\]"):
            function([1.0, bad], [1.0, 1.0])
        with pytest.raises(SpoArgumentError, match=r"beta\[0\]"):
            function([1.0, 1.0], [bad, 1.0])

    def test_effective_sample_size_by_hand(self):
        # 1.5 + 2.25 = 3.75
        np.testing.assert_array_equal(effective_sample_size([1.5], [2.25]), [3.75])


class TestUpdate:
    def test_by_hand(self):
        # rho = 0.9, (alpha, beta) = (4, 6):
        # success: 0.9 * 4 + 1 = 4.6, 0.9 * 6 + 0 = 5.4
        # failure: 0.9 * 4 + 0 = 3.6, 0.9 * 6 + 1 = 6.4
        # graded reward 0.25: 3.85, 5.4 + 0.75 = 6.15
        alpha, beta = update_evidence([4, 4, 4], [6, 6, 6], [1, 0, 0.25], [0.9, 0.9, 0.9])
        np.testing.assert_allclose(alpha, [4.6, 3.6, 3.85], rtol=1e-15)
        np.testing.assert_allclose(beta, [5.4, 6.4, 6.15], rtol=1e-15)

    def test_several_outcomes_are_discounted_once(self):
        # 3 outcomes, 2 of them right, rho = 0.5, (8, 4): 0.5 * 8 + 2 = 6, 0.5 * 4 + 1 = 3.
        # Discounting per outcome would leave 1 + ... of the 8.
        alpha, beta = update_evidence([8.0], [4.0], [2.0], [0.5], count=3)
        np.testing.assert_array_equal([alpha, beta], [[6.0], [3.0]])

    def test_count_per_row_and_no_outcome_at_all(self):
        # row 0: 0.5 * 2 + 1, 0.5 * 2 + 1; row 1: only the discount
        alpha, beta = update_evidence([2.0, 2.0], [2.0, 2.0], [1.0, 0.0], 0.5, count=[2, 0])
        np.testing.assert_array_equal([alpha, beta], [[2.0, 1.0], [2.0, 1.0]])

    @property_test
    @given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), reward, rho)
    def test_equation_5_equals_equation_7(self, alpha, beta, r, rho):
        new_alpha, new_beta = update_evidence([alpha], [beta], [r], [rho])
        v, n_eff = alpha / (alpha + beta), alpha + beta
        eta = 1.0 / (rho * n_eff + 1.0)
        np.testing.assert_allclose(value(new_alpha, new_beta), [v + eta * (r - v)], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(effective_sample_size(new_alpha, new_beta), [rho * n_eff + 1], rtol=1e-12)

    @property_test
    @given(mass, mass, st.lists(reward, min_size=1, max_size=6), rho)
    def test_the_order_of_outcomes_of_one_version_does_not_matter(self, alpha, beta, rewards, rho):
        # One discount, then further outcomes without one (rho = 1), equals one call with the sum.
        at_once = update_evidence([alpha], [beta], [sum(rewards)], [rho], count=len(rewards))
        one_by_one = update_evidence([alpha], [beta], [rewards[-1]], [rho])
        for r in reversed(rewards[:-1]):
            one_by_one = update_evidence(*one_by_one, [r], [1.0])
        np.testing.assert_allclose(at_once, one_by_one, rtol=1e-12, atol=1e-12)

    @property_test
    @given(st.lists(st.tuples(reward, st.floats(0.5, 0.96)), max_size=60))
    def test_mass_stays_within_the_memory_window(self, history):
        # N' = rho N + 1 <= 0.96 * 25 + 1 = 25 = 1 / (1 - 0.96)
        evidence = (np.array([12.5]), np.array([12.5]))
        for r, rho in history:
            evidence = update_evidence(*evidence, [r], [rho])
            assert 1.0 <= float(effective_sample_size(*evidence)[0]) <= 25.0 + 1e-9

    def test_arguments_are_left_alone_and_results_are_new(self):
        alpha, beta = np.array([1.0, 2.0]), np.array([3.0, 4.0])
        new_alpha, new_beta = update_evidence(alpha, beta, np.array([0.0, 0.0]), 1.0, count=0)
        new_alpha[:], new_beta[:] = -1.0, -1.0
        np.testing.assert_array_equal([alpha, beta], [[1.0, 2.0], [3.0, 4.0]])

    def test_single_precision_arguments_are_computed_in_double(self):
        alpha, _ = update_evidence(np.float32([1]), np.float32([1]), np.float32([0]), [1.0 - 1e-12])
        assert alpha.dtype == np.float64
        assert alpha[0] == 1.0 - 1e-12

    @pytest.mark.parametrize("reward_sum", [-0.1, 1.1, np.nan, np.inf])
    def test_rewards_outside_their_range_are_refused(self, reward_sum):
        with pytest.raises(SpoRewardError, match=r"reward_sum_B\[1\].*map rewards to \[0, 1\]"):
            update_evidence([1, 1], [1, 1], [0, reward_sum], 0.9)

    def test_the_range_of_the_reward_sum_is_the_count(self):
        update_evidence([1], [1], [2.0], 0.9, count=2)
        with pytest.raises(SpoRewardError):
            update_evidence([1], [1], [2.0], 0.9, count=1)

    @pytest.mark.parametrize("rho", [0.0, -0.5, 1.0001, np.nan])
    def test_impossible_retention_is_refused(self, rho):
        with pytest.raises(SpoArgumentError, match="rho_B"):
            update_evidence([1], [1], [1], [rho])
        with pytest.raises(SpoArgumentError, match="rho_B"):
            update_evidence([1], [1], [1], rho)

    @pytest.mark.parametrize("count", [-1, 1.5, np.nan, np.inf])
    def test_impossible_counts_are_refused(self, count):
        with pytest.raises(SpoArgumentError, match="count"):
            update_evidence([1], [1], [0], 0.9, count=count)

    @pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
    def test_impossible_evidence_is_refused(self, bad):
        with pytest.raises(SpoArgumentError, match="alpha"):
            update_evidence([bad], [1], [0], 0.9)
        with pytest.raises(SpoArgumentError, match="beta"):
            update_evidence([1], [bad], [0], 0.9)

    @pytest.mark.parametrize(
        ("alpha", "beta", "rewards", "rho", "count"),
        [
            ([1, 1], [1], [0, 0], 0.9, 1),
            ([1, 1], [1, 1], [0], 0.9, 1),
            ([1, 1], [1, 1], [0, 0], [0.9], 1),
            ([1, 1], [1, 1], [0, 0], 0.9, [1]),
        ],
    )
    def test_nothing_broadcasts_but_scalars(self, alpha, beta, rewards, rho, count):
        with pytest.raises(SpoArgumentError, match="shape"):
            update_evidence(alpha, beta, rewards, rho, count=count)

    def test_text_is_refused_with_its_name(self):
        with pytest.raises(SpoArgumentError, match="reward_sum_B cannot be read as numbers"):
            update_evidence([1], [1], ["right"], 0.9)


class TestDegenerateProbability:
    def test_by_hand(self):
        # p = 0.5, G = 2: 0.25 + 0.25 = 0.5; p = 0.9, G = 2: 0.81 + 0.01 = 0.82; p = 0 or 1: certain
        np.testing.assert_allclose(degenerate_probability([0.5, 0.9, 0.0, 1.0], 2), [0.5, 0.82, 1, 1])
        # p = 0.5, G = 8: 2 / 256
        assert float(degenerate_probability(0.5)) == 2 / 256

    def test_against_simulated_groups(self):
        rng = np.random.default_rng(3)
        right = rng.random((200_000, 8)) < 0.85
        share = np.mean(right.all(axis=1) | ~right.any(axis=1))
        # 0.85^8 = 0.2725; three standard errors are 0.003
        assert abs(share - float(degenerate_probability(0.85))) < 0.003

    @pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
    def test_impossible_values_are_refused(self, bad):
        with pytest.raises(SpoArgumentError, match="value"):
            degenerate_probability([bad])

    def test_empty_groups_are_refused(self):
        with pytest.raises(SpoArgumentError, match="group_size"):
            degenerate_probability([0.5], 0)
