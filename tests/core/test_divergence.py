import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spo_verl.core import SpoArgumentError, divergence

from .helpers import property_test

# Three responses of up to four tokens.
# row 0: |-1 - -1.5| = 0.5, |-2 - -1| = 1, |-3 - -3| = 0; mean of three = 0.5
# row 1: the second and the fourth token: |-1 - -1.25| = 0.25, |0 - -0.75| = 0.75; mean 0.5
# row 2: nothing masked in: 0
THEN = [[-1.0, -2.0, -3.0, -9.0], [-5.0, -1.0, -7.0, 0.0], [-1.0, -1.0, -1.0, -1.0]]
NOW = [[-1.5, -1.0, -3.0, -1.0], [-1.0, -1.25, -1.0, -0.75], [-2.0, -2.0, -2.0, -2.0]]
MASK = [[1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
EXPECTED = [0.5, 0.5, 0.0]

LIBRARIES = [
    pytest.param(np.asarray, id="numpy"),
    pytest.param(lambda array: torch.as_tensor(np.asarray(array)), id="torch"),
]
log_probs = hnp.arrays(np.float64, (3, 5), elements=st.floats(-20.0, 0.0))
masks = hnp.arrays(np.bool_, (3, 5))


@pytest.mark.parametrize("array", LIBRARIES)
@pytest.mark.parametrize("mask_type", [np.int64, np.bool_, np.float32])
def test_by_hand(array, mask_type):
    result = divergence(array(THEN), array(NOW), array(np.asarray(MASK, dtype=mask_type)))
    assert type(result) is type(array([0.0]))
    np.testing.assert_allclose(np.asarray(result), EXPECTED, rtol=1e-12)


@pytest.mark.parametrize("array", LIBRARIES)
def test_what_is_masked_out_is_never_read(array):
    then, now = np.asarray(THEN), np.asarray(NOW)
    then[0, 3], now[0, 3], then[1, 0], now[2, :] = np.nan, -np.inf, np.inf, np.nan
    np.testing.assert_allclose(np.asarray(divergence(array(then), array(now), array(MASK))), EXPECTED)


@pytest.mark.parametrize("array", LIBRARIES)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_to_compare(array, shape):
    empty = array(np.zeros(shape))
    np.testing.assert_array_equal(np.asarray(divergence(empty, empty, empty)), np.zeros(shape[0]))


@pytest.mark.parametrize("array", LIBRARIES)
@property_test
@given(log_probs, log_probs, masks)
def test_equals_a_loop_over_tokens(array, then, now, mask):
    result = np.asarray(divergence(array(then), array(now), array(mask)))
    for row in range(3):
        moved = [abs(then[row, t] - now[row, t]) for t in range(5) if mask[row, t]]
        expected = sum(moved) / len(moved) if moved else 0.0
        assert result[row] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("array", LIBRARIES)
@property_test
@given(log_probs, log_probs, masks)
def test_a_distance(array, then, now, mask):
    there = np.asarray(divergence(array(then), array(now), array(mask)))
    back = np.asarray(divergence(array(now), array(then), array(mask)))
    np.testing.assert_array_equal(there, back)
    assert (there >= 0).all()
    assert not np.asarray(divergence(array(then), array(then), array(mask))).any()


def test_half_precision_tensors_are_compared_in_single():
    # 100,000 tokens that each moved by 1: their sum is beyond the largest float16, 65,504.
    then = torch.full((1, 100_000), -9.0, dtype=torch.float16)
    now = torch.full((1, 100_000), -8.0, dtype=torch.float16)
    result = divergence(then, now, torch.ones(1, 100_000))
    assert result.dtype == torch.float32
    assert result.item() == 1.0


def test_stored_half_precision_against_single():
    then = torch.tensor([[-1.0, -2.0]], dtype=torch.float16)
    now = torch.tensor([[-1.0001, -2.0003]], dtype=torch.float32)
    # (0.0001 + 0.0003) / 2 = 0.0002: rounding "now" to float16 (steps of 0.001) would lose it
    assert divergence(then, now, torch.ones(1, 2)).item() == pytest.approx(0.0002, rel=1e-3)


def test_tensors_come_back_without_a_graph():
    then = torch.zeros(1, 2, requires_grad=True)
    result = divergence(then, torch.ones(1, 2), torch.ones(1, 2))
    assert not result.requires_grad


@pytest.mark.parametrize("array", LIBRARIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_log_probs_are_refused(array, bad):
    now = np.asarray(NOW)
    now[1, 3] = bad
    with pytest.raises(SpoArgumentError, match="row 1 has a masked-in"):
        divergence(array(THEN), array(now), array(MASK))
    with pytest.raises(SpoArgumentError, match="row 1 has a masked-in"):
        divergence(array(now), array(now), array(MASK))


@pytest.mark.parametrize("array", LIBRARIES)
@pytest.mark.parametrize("bad", [2.0, 0.5, -1.0, np.nan])
def test_masks_that_are_weights_are_refused(array, bad):
    mask = np.asarray(MASK, dtype=float)
    mask[0, 1] = bad
    with pytest.raises(SpoArgumentError, match="mask_BT"):
        divergence(array(THEN), array(NOW), array(mask))


@pytest.mark.parametrize("array", LIBRARIES)
def test_other_shapes_are_refused(array):
    full, row, narrow = array(np.zeros((3, 4))), array(np.zeros(4)), array(np.zeros((3, 1)))
    for arguments in [(row, row, row), (full, full, narrow), (full, narrow, full), (full, full, row)]:
        with pytest.raises(SpoArgumentError, match=r"shape \(B, T\)"):
            divergence(*arguments)


def test_mixed_libraries_are_refused():
    with pytest.raises(SpoArgumentError, match="mixed"):
        divergence(torch.zeros(1, 2), torch.zeros(1, 2), np.ones((1, 2)))
