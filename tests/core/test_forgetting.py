import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.core import SpoArgumentError, retention

from .helpers import property_test

nats = st.floats(0.0, 10.0)
WIDE = {"rho_min": 1e-300, "rho_max": 1.0}


def test_by_hand():
    # D_half = 0.06, bounds [0.875, 0.96]:
    # D = 0:    2^0 = 1            -> 0.96 (upper bound)
    # D = 0.006: 2^-0.1 = 0.933033 -> as it is
    # D = 0.06: 2^-1 = 0.5         -> 0.875 (lower bound)
    np.testing.assert_allclose(retention([0.0, 0.006, 0.06]), [0.96, 0.9330329915368074, 0.875], rtol=1e-12)


def test_half_life_halves():
    # 2^-(0.3 / 0.3) = 1/2, 2^-(0.9 / 0.3) = 1/8
    np.testing.assert_allclose(retention([0.3, 0.9], half_life=0.3, **WIDE), [0.5, 0.125], rtol=1e-14)


def test_where_the_default_bounds_begin():
    # 2^(-D / 0.06) = 0.96 at D = -0.06 log2 0.96 = 0.0035337; = 0.875 at D = -0.06 log2 0.875 = 0.0115587
    upper, lower = -0.06 * np.log2(0.96), -0.06 * np.log2(0.875)
    rho = retention([upper * 0.999, upper * 1.001, lower * 0.999, lower * 1.001])
    assert rho[0] == 0.96 > rho[1] > rho[2] > rho[3] == 0.875


def test_infinite_divergence_keeps_the_least():
    np.testing.assert_array_equal(retention([np.inf]), [0.875])


def test_own_bounds():
    np.testing.assert_array_equal(retention([0.0, 9.0], rho_min=0.2, rho_max=0.7), [0.7, 0.2])
    np.testing.assert_array_equal(retention([0.0, 9.0], rho_min=0.5, rho_max=0.5), [0.5, 0.5])


def test_no_rows():
    assert retention([]).shape == (0,)


@property_test
@given(st.lists(nats, min_size=2, max_size=20))
def test_falls_with_divergence_and_stays_within_its_bounds(divergence):
    rho = retention(np.sort(divergence))
    assert (np.diff(rho) <= 0).all()
    assert ((rho >= 0.875) & (rho <= 0.96)).all()


@property_test
@given(nats, nats, st.floats(0.01, 5.0))
def test_divergences_add_where_retentions_multiply(first, second, half_life):
    both = retention([first + second], half_life=half_life, **WIDE)
    one_by_one = retention([first], half_life=half_life, **WIDE) * retention([second], half_life=half_life, **WIDE)
    np.testing.assert_allclose(both, one_by_one, rtol=1e-9, atol=1e-290)


@pytest.mark.parametrize("bad", [-1e-9, np.nan, -np.inf])
def test_impossible_divergence_is_refused(bad):
    with pytest.raises(SpoArgumentError, match=r"divergence_B\[1\]"):
        retention([0.0, bad])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"half_life": 0.0}, "half_life"),
        ({"half_life": -0.06}, "half_life"),
        ({"half_life": np.inf}, "half_life"),
        ({"rho_min": 0.0}, "rho_min"),
        ({"rho_min": np.nan}, "rho_min"),
        ({"rho_min": 0.97}, "rho_max"),
        ({"rho_max": 1.01}, "rho_max"),
    ],
)
def test_impossible_settings_are_refused(settings, name):
    with pytest.raises(SpoArgumentError, match=f"^{name}"):
        retention([0.0], **settings)
