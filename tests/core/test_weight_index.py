import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.core import SpoArgumentError, WeightIndex

from .helpers import property_test


def random_history(data, block, steps=6):
    """An index after some updates of random size, weights of very different size among them."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    size = data.draw(st.integers(1, 60))
    table = WeightIndex(rng.random(size), block=block)
    for _ in range(data.draw(st.integers(0, steps))):
        slots = rng.permutation(size)[: rng.integers(0, size + 1)]
        table.update(slots, rng.random(slots.size) * 10.0 ** rng.integers(-9, 9, slots.size))
        if rng.random() < 0.5:
            table.draw(int(rng.integers(0, size + 1)), rng)
    return table, rng


@property_test
@given(st.data(), st.sampled_from([1, 2, 7, 64]))
def test_updated_equals_rebuilt_bit_for_bit(data, block):
    table, rng = random_history(data, block)
    rebuilt = WeightIndex(table.weight_P, block=block)
    assert table.total == rebuilt.total
    size = table.weight_P.size
    for _ in range(3):
        wanted = int(rng.integers(0, size + 1))
        twin = copy.deepcopy(rng)
        slot, share = table.draw(wanted, rng)
        slot_again, share_again = rebuilt.draw(wanted, twin)
        np.testing.assert_array_equal(slot, slot_again)
        np.testing.assert_array_equal(share, share_again)
        assert rng.bit_generator.state == twin.bit_generator.state
        change = rng.permutation(size)[:3], rng.random(min(size, 3))
        table.update(*change)
        rebuilt.update(*change)
        twin.permutation(size), twin.random(min(size, 3))


def test_sums_do_not_drift_over_a_long_history():
    # A delta added to a sum would leave rounding behind when large weights come and go.
    rng = np.random.default_rng(1)
    table = WeightIndex(rng.random(1000))
    for _ in range(300):
        slots = rng.permutation(1000)[:20]
        table.update(slots, rng.random(20) * 10.0 ** rng.integers(-12, 12, 20))
    table.update(np.arange(1000), np.full(1000, 0.1))
    assert table.total == WeightIndex(np.full(1000, 0.1)).total


def test_restore_and_continue():
    rng = np.random.default_rng(21)
    table = WeightIndex(rng.random(5000))
    saved = None
    drawn = []
    for step in range(20):
        if step == 10:
            saved = table.weight_P.copy(), copy.deepcopy(rng.bit_generator.state)
        slot, _ = table.draw(64, rng)
        table.update(slot, rng.random(64))
        drawn.append(slot)
    weights, state = saved
    restored, resumed = WeightIndex(weights), np.random.default_rng(0)
    resumed.bit_generator.state = state
    for expected in drawn[10:]:
        slot, _ = restored.draw(64, resumed)
        np.testing.assert_array_equal(slot, expected)
        restored.update(slot, resumed.random(64))
    np.testing.assert_array_equal(restored.weight_P, table.weight_P)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_every_slot_can_be_drawn_and_no_other(size):
    slot, share = WeightIndex(np.full(size, 0.5)).draw(size, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(slot), np.arange(size))
    np.testing.assert_allclose(share, 1 / size, rtol=1e-12)


def test_weights_are_copied_and_read_only():
    weights = np.ones(3)
    table = WeightIndex(weights)
    weights[0] = 99.0
    np.testing.assert_array_equal(table.weight_P, [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="read-only"):
        table.weight_P[0] = 2.0
    table.update([0], [2.0])
    np.testing.assert_array_equal(table.weight_P, [2.0, 1.0, 1.0])


def test_total_and_effective_number_by_hand():
    # 3, 1, 0: total 4, 16 / (9 + 1) = 1.6
    table = WeightIndex([3.0, 1.0, 0.0])
    assert table.total == 4.0
    assert table.effective_number() == pytest.approx(1.6, rel=1e-15)
    # 1, 1, 1 after the update
    table.update(np.array([0, 2]), np.array([1.0, 1.0]))
    assert table.total == 3.0
    assert table.effective_number() == pytest.approx(3.0, rel=1e-15)


def test_effective_number_at_the_limits():
    assert WeightIndex(np.zeros(7)).effective_number() == 7.0
    assert WeightIndex(np.full(7, 1e-200)).effective_number() == pytest.approx(7.0)
    assert WeightIndex([0.0, 1e-200]).effective_number() == 1.0
    assert WeightIndex(np.full(70, 1e307)).effective_number() == pytest.approx(70.0)
    assert WeightIndex([]).effective_number() == 0.0
    assert WeightIndex([]).total == 0.0


@pytest.mark.parametrize("block", [1, 4, 64])
def test_effective_number_after_updates_is_that_of_all_weights(block, monkeypatch):
    monkeypatch.setattr("spo_verl.core.sampling.ROWS_AT_ONCE", 2)
    rng = np.random.default_rng(block)
    table = WeightIndex(rng.random(150), block=block)
    for scale in (1.0, 1e-180, 1e150, 0.0, 1.0):  # squares alone would underflow, or reach beyond all floats
        slots = rng.permutation(150)[:40]
        table.update(slots, rng.random(40) * scale)
        share = table.weight_P / table.weight_P.max()
        assert table.effective_number() == pytest.approx(share.sum() ** 2 / (share**2).sum(), rel=1e-12)
        assert table.effective_number() == WeightIndex(table.weight_P, block=block).effective_number()


def test_no_update():
    table = WeightIndex([1.0, 2.0])
    table.update([], [])
    assert table.total == 3.0


@pytest.mark.parametrize(
    ("slots", "weights", "message"),
    [
        ([0, 3], [1.0, 1.0], r"slot_B\[1\] = 3.*there are 3 slots"),
        ([-1], [1.0], r"slot_B\[0\] = -1"),
        ([0, 0], [1.0, 2.0], "names a slot twice"),
        ([0.0], [1.0], "integers"),
        ([[0]], [[1.0]], "integers"),
        ([True], [1.0], "integers"),
        ([0, 1], [1.0], "weight_B.shape"),
        ([0], [np.nan], r"weight_B\[0\]"),
        ([0, 1], [1.0, -1.0], r"weight_B\[1\]"),
        ([0], [np.inf], r"weight_B\[0\]"),
    ],
)
def test_a_refused_update_changes_nothing(slots, weights, message):
    table = WeightIndex([1.0, 2.0, 3.0])
    with pytest.raises(SpoArgumentError, match=message):
        table.update(slots, weights)
    np.testing.assert_array_equal(table.weight_P, [1.0, 2.0, 3.0])
    assert table.total == 6.0


def test_impossible_blocks_are_refused():
    with pytest.raises(SpoArgumentError, match="block"):
        WeightIndex([1.0], block=0)
