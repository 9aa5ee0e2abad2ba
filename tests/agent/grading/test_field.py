"""Branches far from zero, identities and hidden zeros, against Python's absolute value and sympy."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.agent.grading import field
from spo_verl.agent.grading.worker import verdict
from tests.core.helpers import property_test

few = settings(property_test, max_examples=25)

AROUND = [
    "{}",
    "e^{{{}}}",
    "2^{{{}}}",
    "2^{{-{}}}\\sin x",
    "x{}",
    "\\frac{{1}}{{{}}}",
    "\\sqrt{{x^2+1}}{}",
    "n!{}",
    "\\sin{}",
    "\\ln{}",
]
"""What an absolute value may stand in."""


def equal(truth, answer):
    return verdict(truth, answer) == "equal"


@st.composite
def far(draw):
    """A polynomial that has one sign at all small numbers, and the same with the other sign."""
    letter = draw(st.sampled_from(["x", "n"]))
    roots = [
        draw(st.integers(30, 600) | st.integers(2_000, 10**15)) for _ in range(draw(st.sampled_from([1, 1, 1, 3])))
    ]
    return "".join(f"({letter}-{root})" for root in roots), f"({roots[0]}-{letter})" + "".join(
        f"({letter}-{root})" for root in roots[1:]
    )


@few
@given(far(), st.sampled_from(AROUND))
def test_an_absolute_value_is_none_of_its_branches(polynomials, around):
    one, other = (around.format(f"\\left({part}\\right)") for part in polynomials)
    bars = around.format(f"\\left|{polynomials[0]}\\right|")
    assert not equal(one, bars)
    assert not equal(bars, other)
    turned = verdict(bars, around.format(f"\\left|{polynomials[1]}\\right|"))
    assert turned == "equal" or (turned == "unanswered" and "^" in around)  # e^{2000} has too many digits


@few
@given(far(), st.integers(2, 99), st.sampled_from([1, 2, 3]))
def test_an_even_root_is_an_absolute_value(polynomials, factor, half):
    one, other = polynomials
    root = f"\\sqrt[{2 * half}]{{{factor ** (2 * half)}({one})^{{{2 * half}}}}}"
    assert equal(f"{factor}\\left|{one}\\right|", root)
    assert equal(root, f"{factor}\\left(({one})^{2}\\right)^{{1/2}}")
    assert not equal(f"{factor}{one}", root)
    assert not equal(f"{factor}{other}", root)


@pytest.mark.parametrize("function", [sympy.sin, sympy.cos])
@pytest.mark.parametrize("angle", ["2*x", "5*x", "x+y", "2*x-y", "x+pi/3", "3*x-pi/4", "x+pi/12"])
def test_trigonometric_identities_hold_and_what_is_beside_them_does_not(function, angle):
    short = function(sympy.sympify(angle))
    long = sympy.latex(sympy.expand_trig(short))
    assert equal(long, f"{sympy.latex(short)}")
    assert not equal(f"{long}+10^{{-30}}", sympy.latex(short))
    assert not equal("0", f"\\sin(1001({angle.replace('*', '').replace('pi', chr(92) + 'pi')}))")


@few
@given(st.integers(2, 30), st.integers(0, 12), st.integers(1, 12))
def test_binomials_of_variables_are_polynomials_and_vanish_nowhere_else(far_off, k, shift):
    n = sympy.Symbol("n")
    polynomial = sympy.latex(sympy.expand(sympy.ff(n, k) / sympy.factorial(k)))
    assert equal(polynomial, f"\\binom{{n}}{{{k}}}")
    assert not equal(polynomial, f"\\binom{{n}}{{{k}}}+\\binom{{n}}{{{k + 12 + far_off}}}")
    assert equal(f"\\frac{{(n+{shift})!}}{{n!}}", "".join(f"(n+{one})" for one in range(1, shift + 1)))


ZEROS = r"""
\sin^2 1+\cos^2 1-1
\sin 2-2\sin 1\cos 1
\sec^2 1-\tan^2 1-1
\arctan 2+\arctan\frac12-\frac{\pi}{2}
\tan(\arctan 3)-3
\sin(\arcsin\frac13)-\frac13
2^{\log_2 3}-3
2^{\pi}2^{-\pi}-1
e^{\ln 2+\ln 3}-6
e^{i\pi}+1
\ln 6-\ln 2-\ln 3
\sqrt2\sqrt3-\sqrt6
\cos\frac{\pi}{3}-\frac12
""".strip().splitlines()
UNDEFINED = r"""
0 = \frac{0}{ZERO}
0 = 0\cdot(ZERO)^{-1}
0 = 0\cdot(ZERO)^{-1/2}
0 = 0\cdot(ZERO)^{-\pi}
0 = 0\cdot\ln(ZERO)
0 = 0\cdot\cot(ZERO)
0 = 0\cdot\csc(ZERO)
0 = 0\cdot\log_{1+ZERO}2
0 = 0\cdot\tan(\frac{\pi}{2}+ZERO)
0 = 0\cdot 0^{ZERO}
1 = (ZERO)^0
1 = \frac{ZERO}{ZERO}
x = x+\frac{0}{ZERO}
""".strip().splitlines()


@pytest.mark.parametrize("zero", ZEROS)
def test_what_is_divided_by_a_hidden_zero_has_no_value(zero):
    pairs = [line.replace("ZERO", zero).split(" = ") for line in UNDEFINED]
    assert [answer for truth, answer in pairs if equal(truth, answer)] == []
    assert not equal("y=x", f"y=x+\\frac{{0}}{{{zero}}}")


@pytest.mark.parametrize(
    "number", ["\\sin^2 1", "\\pi-3", "\\arctan 2", "e^{-60}", "\\ln 2-\\ln 3", "2^{\\pi}", "\\sqrt2-1"]
)
def test_what_is_no_zero_may_divide(number):
    assert equal("0", f"\\frac{{0}}{{{number}}}")
    assert equal("1", f"\\frac{{{number}}}{{{number}}}")
    assert equal("1", f"({number})^0")


@pytest.mark.parametrize("which", range(3))
def test_a_field_has_the_order_and_the_angles_it_promises(which):
    step = 8 * 3 * 5 * 7 * 101
    prime = field._field(step, which)
    point, turns = field._circle(prime)

    def at(fraction):
        return field._to_the(point, int(turns * fraction), prime)

    assert sympy.isprime(prime)
    assert not field._is_square(-1, prime)
    assert all(field._is_square(one, prime) for one in (2, 3, 5, 7, 101))
    assert (point[0] ** 2 + point[1] ** 2) % prime == 1
    assert at(Fraction(1)) == (prime - 1, 0)
    assert at(Fraction(1, 2)) == (0, 1)
    assert 2 * at(Fraction(1, 3))[0] % prime == 1
    for part, root, twice in ((4, 2, 2), (6, 3, 2)):
        cosine = twice * at(Fraction(1, part))[0] % prime
        assert cosine**2 % prime == root
        assert field._is_square(cosine, prime)
