import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.core import SpoArgumentError, WeightIndex, draw, sampling_weights

from .helpers import property_test

mass = st.floats(0.0, 1e3)


def draw_by_index(weight_P, size, rng):
    return WeightIndex(weight_P, block=3).draw(size, rng)


BOTH = pytest.mark.parametrize("draw_slots", [draw, draw_by_index])


def generator(seed=0):
    return np.random.default_rng(seed)


class TestSamplingWeights:
    def test_by_hand(self):
        # v = 0.5: sqrt(0.25) + 0.05 = 0.55; v = 0.2: sqrt(0.16) + 0.05 = 0.45; v = 0 and 1: 0.05
        np.testing.assert_allclose(sampling_weights([4, 2, 0, 8], [4, 8, 8, 0]), [0.55, 0.45, 0.05, 0.05], rtol=1e-14)

    def test_gamma_by_hand(self):
        # N_eff = 16, v = 0.5: 0.5 / 16^0.5 + 0.1 = 0.225; gamma = 1: 0.5 / 16 + 0.1 = 0.13125
        np.testing.assert_allclose(sampling_weights([8], [8], gamma=0.5, epsilon=0.1), [0.225], rtol=1e-14)
        np.testing.assert_allclose(sampling_weights([8], [8], gamma=1.0, epsilon=0.1), [0.13125], rtol=1e-14)

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
    def test_bounded_for_tiny_evidence(self, gamma):
        # Below one outcome's worth of evidence the power stays 1; without evidence v is 0.5.
        tiny = [0.5, 0.25, 1e-9, 5e-324, 0.0]
        np.testing.assert_allclose(sampling_weights(tiny, tiny, gamma=gamma), [0.55] * 5, rtol=1e-14)

    @property_test
    @given(mass, mass, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
    def test_range_and_symmetry(self, alpha, beta, gamma, epsilon):
        weight = float(sampling_weights(alpha, beta, gamma=gamma, epsilon=epsilon))
        assert epsilon <= weight <= 0.5 + epsilon
        assert weight == pytest.approx(
            float(sampling_weights(beta, alpha, gamma=gamma, epsilon=epsilon)), rel=1e-7, abs=1e-7
        )

    @property_test
    @given(st.floats(1.0, 1e3), st.floats(0.01, 0.99), st.floats(0.0, 1.0))
    def test_more_evidence_for_the_same_value_never_weighs_more(self, n_eff, v, gamma):
        few, many = sampling_weights([n_eff * v, 2 * n_eff * v], [n_eff * (1 - v), 2 * n_eff * (1 - v)], gamma=gamma)
        # eq. 11: the informative part falls by 2^-gamma
        assert many - 0.05 == pytest.approx((few - 0.05) * math.pow(2.0, -gamma), rel=1e-6)

    @pytest.mark.parametrize("gamma", [-0.1, 1.1, np.nan])
    def test_impossible_gamma_is_refused(self, gamma):
        with pytest.raises(SpoArgumentError, match="gamma"):
            sampling_weights([1], [1], gamma=gamma)

    @pytest.mark.parametrize("epsilon", [-0.05, np.nan, np.inf])
    def test_impossible_epsilon_is_refused(self, epsilon):
        with pytest.raises(SpoArgumentError, match="epsilon"):
            sampling_weights([1], [1], epsilon=epsilon)


class TestDraw:
    @BOTH
    def test_share_is_of_the_total_weight(self, draw_slots):
        # 1 + 2 + 5 + 8 = 16: 1/16, 2/16, 5/16, 8/16, whatever was drawn before
        share_of_slot = np.array([1, 2, 5, 8]) / 16
        for seed in range(20):
            slot, share = draw_slots([1.0, 2.0, 5.0, 8.0], 4, generator(seed))
            assert sorted(slot) == [0, 1, 2, 3]
            np.testing.assert_allclose(share, share_of_slot[slot], rtol=1e-15)

    def test_share_with_replacement(self):
        slot, share = draw([1.0, 3.0], 50, generator(), replace=True)
        np.testing.assert_array_equal(share, np.where(slot == 0, 0.25, 0.75))

    @BOTH
    def test_types(self, draw_slots):
        slot, share = draw_slots([1, 2, 3], 2, generator())
        assert (slot.dtype, share.dtype, slot.shape, share.shape) == (np.int64, np.float64, (2,), (2,))

    @BOTH
    def test_same_state_same_draw(self, draw_slots):
        weights = generator(7).random(500)
        first, again, other = (draw_slots(weights, 40, generator(seed))[0] for seed in (3, 3, 4))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    @BOTH
    @property_test
    @given(st.data())
    def test_distinct_and_positive_weights_first(self, draw_slots, data):
        weights = data.draw(st.lists(st.sampled_from([0.0, 1e-9, 0.05, 0.55, 1e9]), min_size=1, max_size=40))
        size = data.draw(st.integers(0, len(weights)))
        slot, share = draw_slots(weights, size, generator(data.draw(st.integers(0, 99))))
        assert len(set(slot.tolist())) == slot.size == share.size == size
        assert ((slot >= 0) & (slot < len(weights))).all()
        drawn = np.asarray(weights)[slot]
        positive = min(size, int(np.count_nonzero(weights)))
        assert (drawn[:positive] > 0).all()
        assert not drawn[positive:].any()

    @BOTH
    def test_zero_total_mass_is_uniform_over_ordered_outcomes(self, draw_slots):
        rng = generator(11)
        count = np.zeros((3, 3))
        for _ in range(6000):
            slot, share = draw_slots([0.0, 0.0, 0.0], 2, rng)
            np.testing.assert_array_equal(share, [1 / 3, 1 / 3])
            count[slot[0], slot[1]] += 1
        # Six ordered outcomes, 1000 each, sd 29
        assert not np.diag(count).any()
        assert np.abs(count[~np.eye(3, dtype=bool)] - 1000).max() < 4 * 29

    def test_zero_total_mass_with_replacement_is_uniform(self):
        slot, share = draw(np.zeros(4), 40_000, generator(5), replace=True)
        # 10,000 each, sd 87
        assert np.abs(np.bincount(slot, minlength=4) - 10_000).max() < 4 * 87
        np.testing.assert_array_equal(share, np.full(40_000, 0.25))

    @BOTH
    def test_the_weightless_remainder_is_uniform(self, draw_slots):
        rng = generator(13)
        count = np.zeros(5)
        for _ in range(6000):
            slot, share = draw_slots([0.0, 0.0, 3.0, 1.0, 0.0], 3, rng)
            assert set(slot[:2].tolist()) == {2, 3}
            assert share[2] == 0.0
            count[slot[2]] += 1
        # 2000 each for slots 0, 1, 4; sd 36.5
        np.testing.assert_array_equal(count[[2, 3]], 0)
        assert np.abs(count[[0, 1, 4]] - 2000).max() < 4 * 36.5

    def test_replacement_may_ask_for_more_than_there_are(self):
        # weights 1, 0, 3 of 4: 10,000, 0 and 30,000 of 40,000; sd 87
        slot, _ = draw([1.0, 0.0, 3.0], 40_000, generator(2), replace=True)
        count = np.bincount(slot, minlength=3)
        assert count[1] == 0
        assert abs(count[0] - 10_000) < 4 * 87

    def test_draws_with_replacement_are_independent(self):
        pairs = draw([1.0, 1.0], 40_000, generator(8), replace=True)[0].reshape(-1, 2)
        # A pair repeats with probability 1/2: 10,000 of 20,000, sd 71
        assert abs(int((pairs[:, 0] == pairs[:, 1]).sum()) - 10_000) < 4 * 71

    @BOTH
    @pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1e200, 1e307])
    def test_weights_of_any_size(self, draw_slots, scale):
        weights = np.array([1.0, 0.0, 2.0, 3.0]) * scale
        firsts = [int(draw_slots(weights, 3, generator(seed))[0][0]) for seed in range(600)]
        count = np.bincount(firsts, minlength=4)
        # 100, 0, 200, 300 of 600; sd at most 12.3
        assert np.abs(count - [100, 0, 200, 300]).max() < 4 * 12.3

    def test_replacement_with_the_smallest_weights_there_are(self):
        slot, _ = draw([5e-324, 0.0], 2000, generator(), replace=True)
        assert not slot.any()

    @BOTH
    def test_a_share_of_one_millionth_of_a_millionth_is_still_distinct(self, draw_slots):
        slot, _ = draw_slots([1e12] + [1.0] * 30, 31, generator())
        assert slot[0] == 0
        assert sorted(slot) == list(range(31))

    @BOTH
    def test_nothing_wanted(self, draw_slots):
        for weights in ([], [1.0], [0.0]):
            slot, share = draw_slots(weights, 0, generator())
            assert slot.shape == share.shape == (0,)
            assert slot.dtype == np.int64

    @BOTH
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-300])
    def test_impossible_weights_are_refused(self, draw_slots, bad):
        with pytest.raises(SpoArgumentError, match=r"weight_P\[2\]"):
            draw_slots([1.0, 1.0, bad], 1, generator())

    @BOTH
    def test_an_infinite_total_is_refused(self, draw_slots):
        with np.errstate(over="ignore"), pytest.raises(SpoArgumentError, match="sum of the weights"):
            draw_slots([1e308] * 8, 1, generator())

    @BOTH
    def test_more_than_there_are_is_refused(self, draw_slots):
        with pytest.raises(SpoArgumentError, match="4 slots are wanted, but there are 3"):
            draw_slots([1.0, 1.0, 0.0], 4, generator())
        with pytest.raises(SpoArgumentError, match="there are 0"):
            draw_slots([], 1, generator())

    def test_replacement_needs_at_least_one_slot(self):
        with pytest.raises(SpoArgumentError, match="there are 0"):
            draw([], 1, generator(), replace=True)

    @BOTH
    @pytest.mark.parametrize("size", [-1, 1.5, None, True])
    def test_impossible_sizes_are_refused(self, draw_slots, size):
        with pytest.raises(SpoArgumentError, match="size"):
            draw_slots([1.0, 1.0], size, generator())

    @BOTH
    @pytest.mark.parametrize("rng", [None, 0, np.random.RandomState(0)])
    def test_only_seeded_generators_are_taken(self, draw_slots, rng):
        with pytest.raises(SpoArgumentError, match=r"numpy\.random\.Generator"):
            draw_slots([1.0, 1.0], 1, rng)

    @BOTH
    def test_tables_are_refused(self, draw_slots):
        with pytest.raises(SpoArgumentError, match=r"weight_P\.shape"):
            draw_slots(np.ones((2, 2)), 1, generator())

    def test_a_refused_draw_leaves_the_generator_alone(self):
        rng, untouched = generator(1), generator(1)
        with pytest.raises(SpoArgumentError):
            draw([1.0], 2, rng)
        assert rng.random() == untouched.random()
