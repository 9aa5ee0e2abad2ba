import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.core import SpoArgumentError, normalize_advantages

from .helpers import property_test

advantages = st.floats(-1.0, 1.0).map(lambda a: round(a, 6))
rows = st.lists(st.tuples(advantages, st.integers(0, 40)), min_size=1, max_size=25)


def columns(rows):
    return np.array([a for a, _ in rows]), np.array([count for _, count in rows])


def spread_out(advantage, count=None):
    """Whether there are two different advantages among the rows that take part."""
    live = advantage if count is None else advantage[count > 0]
    return len(set(live.tolist())) > 1


class TestTrajectory:
    def test_by_hand(self):
        # mean of (1, 0, -1, 2) = 0.5; squared deviations 0.25 + 0.25 + 2.25 + 2.25 = 5;
        # unbiased variance 5 / 3, std = 1.2909944; (0.5, -0.5, -1.5, 1.5) / std
        std = math.sqrt(5 / 3)
        expected = [0.5 / std, -0.5 / std, -1.5 / std, 1.5 / std]
        np.testing.assert_allclose(normalize_advantages([1.0, 0.0, -1.0, 2.0]), expected, rtol=1e-7)

    def test_eps_is_added_to_the_std(self):
        # A = (0, 2e-8): mean 1e-8, unbiased std sqrt(2) e-8, so 1e-8 / (sqrt(2) e-8 + 1e-8) = sqrt(2) - 1
        expected = math.sqrt(2) - 1
        np.testing.assert_allclose(normalize_advantages([0.0, 2e-8]), [-expected, expected], rtol=1e-12)
        # A = (0, 2), eps = 3: 1 / (sqrt(2) + 3)
        np.testing.assert_allclose(normalize_advantages([0.0, 2.0], eps=3.0)[1], 1 / (math.sqrt(2) + 3), rtol=1e-12)

    def test_rows_without_tokens_take_no_part(self):
        # The rows of 100 and -7 are padding; the others are (1, 3): mean 2, std sqrt(2).
        result = normalize_advantages([1.0, 100.0, 3.0, -7.0], [5, 0, 900, 0], eps=0.0)
        np.testing.assert_allclose(result, [-1 / math.sqrt(2), 0, 1 / math.sqrt(2), 0], rtol=1e-12)

    def test_length_does_not_weigh(self):
        advantage = [0.3, -0.2, 0.9]
        np.testing.assert_array_equal(normalize_advantages(advantage, [1, 10, 100]), normalize_advantages(advantage))

    @property_test
    @given(rows)
    def test_mean_zero_and_unbiased_std_one(self, rows):
        advantage, _ = columns(rows)
        result = normalize_advantages(advantage, eps=0.0)
        assert np.isfinite(result).all()
        if spread_out(advantage):
            assert result.mean() == pytest.approx(0.0, abs=1e-9)
            assert result.std(ddof=1) == pytest.approx(1.0, rel=1e-9)
        else:
            assert not result.any()

    @property_test
    @given(rows, st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
    def test_shift_and_scale_do_not_matter(self, rows, scale, shift):
        advantage, _ = columns(rows)
        if spread_out(advantage):
            np.testing.assert_allclose(
                normalize_advantages(scale * advantage + shift, eps=0.0),
                normalize_advantages(advantage, eps=0.0),
                rtol=1e-6,
                atol=1e-6,
            )


class TestToken:
    def test_by_hand(self):
        # A = (1, -1), L = (3, 1): mu = (3 - 1) / 4 = 0.5; sum L (A - mu)^2 = 3 * 0.25 + 1 * 2.25 = 3;
        # sigma = sqrt(3 / (4 - 1)) = 1; so (0.5, -1.5), and 3 * 0.5 - 1 * 1.5 = 0
        result = normalize_advantages([1.0, -1.0], [3, 1], measure="token", eps=0.0)
        np.testing.assert_allclose(result, [0.5, -1.5], rtol=1e-14)

    def test_eps_is_added_to_the_std(self):
        # as above with eps = 1: sigma + eps = 2
        result = normalize_advantages([1.0, -1.0], [3, 1], measure="token", eps=1.0)
        np.testing.assert_allclose(result, [0.25, -0.75], rtol=1e-14)

    @property_test
    @given(rows)
    def test_token_weighted_sum_is_zero(self, rows):
        advantage, count = columns(rows)
        result = normalize_advantages(advantage, count, measure="token")
        assert np.isfinite(result).all()
        scale = max(1.0, float((count * np.abs(result)).sum()))
        assert (count * result).sum() == pytest.approx(0.0, abs=1e-9 * scale)
        assert not result[count == 0].any()

    @property_test
    @given(rows)
    def test_equals_the_trajectory_measure_on_one_row_per_token(self, rows):
        advantage, count = columns(rows)
        per_token = normalize_advantages(np.repeat(advantage, count), eps=0.0)
        result = normalize_advantages(advantage, count, measure="token", eps=0.0)
        np.testing.assert_allclose(np.repeat(result, count), per_token, rtol=1e-8, atol=1e-8)

    def test_equal_lengths_differ_from_trajectories_only_in_the_degrees_of_freedom(self):
        # 4 rows of 10 tokens: the variance is divided by 39 / 10 instead of 3.
        advantage = np.array([0.1, 0.9, -0.4, 0.3])
        token = normalize_advantages(advantage, [10] * 4, measure="token", eps=0.0)
        np.testing.assert_allclose(token, normalize_advantages(advantage, eps=0.0) * math.sqrt(3.9 / 3.0), rtol=1e-12)

    def test_token_counts_are_needed(self):
        with pytest.raises(SpoArgumentError, match="token_count_B is missing"):
            normalize_advantages([1.0, 0.0], measure="token")


@pytest.mark.parametrize("measure", ["trajectory", "token"])
class TestBoth:
    def test_one_row_gives_zero(self, measure):
        for count in ([1], [7]):
            np.testing.assert_array_equal(normalize_advantages([0.7], count, measure=measure), [0.0])
        np.testing.assert_array_equal(normalize_advantages([0.7, 0.1], [7, 0], measure=measure), [0.0, 0.0])

    def test_equal_advantages_give_exactly_zero(self, measure):
        # The mean of ten times 0.1 is not 0.1 in floating point.
        result = normalize_advantages([0.1] * 10, list(range(1, 11)), measure=measure, eps=0.0)
        np.testing.assert_array_equal(result, np.zeros(10))

    def test_differences_below_floating_point_give_zero(self, measure):
        result = normalize_advantages([0.0, 1e-200], [2, 3], measure=measure, eps=0.0)
        np.testing.assert_array_equal(result, [0.0, 0.0])

    def test_no_rows_and_no_tokens(self, measure):
        assert normalize_advantages(np.zeros(0), np.zeros(0), measure=measure).shape == (0,)
        np.testing.assert_array_equal(normalize_advantages([1.0, 2.0], [0, 0], measure=measure), [0, 0])

    @property_test
    @given(rows, st.randoms(use_true_random=False))
    def test_the_order_of_rows_does_not_matter(self, measure, rows, random):
        advantage, count = columns(rows)
        order = list(range(len(rows)))
        random.shuffle(order)
        np.testing.assert_allclose(
            normalize_advantages(advantage[order], count[order], measure=measure),
            normalize_advantages(advantage, count, measure=measure)[order],
            rtol=1e-7,
            atol=1e-9,
        )

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_tensors_come_back_as_they_came(self, measure, dtype):
        advantage = torch.tensor([1.0, -1.0, 0.5], dtype=dtype)
        count = torch.tensor([3, 1, 2])
        result = normalize_advantages(advantage, count, measure=measure)
        assert result.dtype == dtype
        expected = normalize_advantages(advantage.double().numpy(), count.numpy(), measure=measure)
        torch.testing.assert_close(result, torch.as_tensor(expected).to(dtype), rtol=0, atol=0)

    def test_tensors_with_a_graph_and_integer_tensors(self, measure):
        result = normalize_advantages(torch.tensor([1.0, 0.0], requires_grad=True), [2, 2], measure=measure)
        assert not result.requires_grad
        assert normalize_advantages(torch.tensor([1, 0]), [2, 2], measure=measure).dtype == torch.float64

    def test_numpy_precision_is_kept(self, measure):
        for dtype, expected in [(np.float32, np.float32), (np.float64, np.float64), (np.int64, np.float64)]:
            result = normalize_advantages(np.array([1, 0], dtype=dtype), [1, 2], measure=measure)
            assert result.dtype == expected

    def test_the_argument_is_left_alone(self, measure):
        advantage = np.array([1.0, 0.0, 5.0])
        normalize_advantages(advantage, [1, 2, 0], measure=measure)
        np.testing.assert_array_equal(advantage, [1.0, 0.0, 5.0])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_broken_advantages_are_refused(self, measure, bad):
        with pytest.raises(SpoArgumentError, match=r"advantage_B\[1\]"):
            normalize_advantages([1.0, bad], [1, 1], measure=measure)

    @pytest.mark.parametrize("bad", [-1, 0.5, np.nan, np.inf])
    def test_broken_token_counts_are_refused(self, measure, bad):
        with pytest.raises(SpoArgumentError, match=r"token_count_B\[0\]"):
            normalize_advantages([1.0, 0.0], [bad, 1], measure=measure)

    def test_other_shapes_are_refused(self, measure):
        with pytest.raises(SpoArgumentError, match="shapes differ"):
            normalize_advantages([1.0, 0.0], [1], measure=measure)
        with pytest.raises(SpoArgumentError, match=r"\(B,\)"):
            normalize_advantages([[1.0, 0.0]], [[1, 1]], measure=measure)

    @pytest.mark.parametrize("eps", [-1e-8, np.nan, np.inf])
    def test_impossible_eps_is_refused(self, measure, eps):
        with pytest.raises(SpoArgumentError, match="eps"):
            normalize_advantages([1.0, 0.0], [1, 1], measure=measure, eps=eps)


def test_unknown_measure_is_refused():
    with pytest.raises(SpoArgumentError, match="'trajectory' or 'token'"):
        normalize_advantages([1.0, 0.0], measure="batch")
