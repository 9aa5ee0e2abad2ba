"""Exact equality against independent oracles: fractions, pairs a + b sqrt(c), sympy."""

import contextlib
from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.agent.grading import exact
from spo_verl.agent.grading.comparing import same, with_algebra
from spo_verl.agent.grading.exact import TooHard
from spo_verl.agent.grading.parsing import read
from spo_verl.agent.grading.short_forms import quick_verdict
from tests.core.helpers import property_test

few = settings(property_test, max_examples=60)


def equal(answer, truth):
    return same(read(answer), read(truth), with_algebra)


def latex(value):
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


@st.composite
def rational_expressions(draw, depth=3):
    """LaTeX and its value, computed by Python's fractions."""
    if depth == 0:
        kind = draw(st.sampled_from(["whole", "fraction", "power", "factorial", "binomial", "decimal"]))
        if kind == "whole":
            value = draw(st.integers(-(10**6), 10**6))
            return (str(value) if value >= 0 else f"({value})"), Fraction(value)
        if kind == "fraction":
            value = draw(st.fractions(max_denominator=10**20))
            return f"({latex(value)})", value
        if kind == "power":
            base, exponent = draw(st.integers(2, 30)), draw(st.integers(-80, 80))
            return f"{base}^{{{exponent}}}", Fraction(base) ** exponent
        if kind == "factorial":
            n = draw(st.integers(0, 40))
            return f"{n}!", Fraction(int(sympy.factorial(n)))
        if kind == "binomial":
            n, k = draw(st.integers(0, 80)), draw(st.integers(0, 80))
            return f"\\binom{{{n}}}{{{k}}}", Fraction(int(sympy.binomial(n, k)))
        digits, places = draw(st.integers(0, 10**9)), draw(st.integers(1, 25))
        text = str(digits).rjust(places + 1, "0")
        return f"{text[:-places]}.{text[-places:]}", Fraction(digits, 10**places)
    (left, a), (right, b) = (
        draw(rational_expressions(depth - 1)),
        draw(rational_expressions(draw(st.integers(0, depth - 1)))),
    )
    sign = draw(st.sampled_from(["+", "-", "\\cdot ", "\\times ", "/", "frac"]))
    if sign in ("/", "frac") and b == 0:
        sign = "+"
    value = {"+": a + b, "-": a - b, "\\cdot ": a * b, "\\times ": a * b}[sign] if sign not in ("/", "frac") else a / b
    return (f"\\frac{{{left}}}{{{right}}}" if sign == "frac" else f"\\left({left}{sign}{right}\\right)"), value


@few
@given(rational_expressions(), st.integers(1, 10**6), st.sampled_from([-1, 1]))
def test_rational_expressions_are_compared_exactly(expression, large, sign):
    text, value = expression
    exact = latex(value)
    near = latex(value + Fraction(sign, value.denominator * large))
    if max(map(len, (text, exact, near))) > 400:
        return
    assert equal(text, exact)
    assert equal(exact, text)
    assert not equal(text, near)
    assert not equal(near, text)


def in_field(a, b, c):
    """a + b sqrt(c) as LaTeX."""
    return f"{latex(a)}{'+' if b >= 0 else '-'}{latex(abs(b))}\\sqrt{{{c}}}"


small = st.fractions(min_value=-50, max_value=50, max_denominator=30)


@few
@given(small, small, small, small, st.sampled_from([2, 3, 5, 6, 7, 10, 23, 101]), st.integers(20, 60))
def test_products_and_quotients_of_radicals_are_compared_exactly(a, b, d, e, c, places):
    left, right = f"\\left({in_field(a, b, c)}\\right)", f"\\left({in_field(d, e, c)}\\right)"
    product = (a * d + b * e * c, a * e + b * d)
    tiny = f"10^{{-{places}}}"
    assert equal(f"{left}{right}", in_field(*product, c))
    assert not equal(f"{left}{right}+{tiny}", in_field(*product, c))
    assert not equal(f"{left}{right}", in_field(product[0], product[1] + Fraction(1, 10**places), c))
    norm = d * d - e * e * c
    if norm:
        quotient = ((a * d - b * e * c) / norm, (b * d - a * e) / norm)
        assert equal(f"\\frac{{{left}}}{{{right}}}", in_field(*quotient, c))
        assert not equal(
            f"\\frac{{{left}}}{{{right}}}", in_field(quotient[0] + Fraction(1, 10**places), quotient[1], c)
        )


@few
@given(st.integers(1, 40), st.integers(2, 60), st.integers(2, 60))
def test_nested_radicals_are_compared_exactly(a, b, c):
    """(a + sqrt b + sqrt c)^2 under a root, as sympy expands it."""
    square = sympy.expand((a + sympy.sqrt(b) + sympy.sqrt(c)) ** 2)
    text = f"\\sqrt{{{sympy.latex(square)}}}"
    assert equal(text, f"{a}+\\sqrt{{{b}}}+\\sqrt{{{c}}}")
    wrong = sympy.latex(square + sympy.Rational(1, 10**40)).replace("\\frac", "\\frac")
    assert not equal(f"\\sqrt{{{wrong}}}", f"{a}+\\sqrt{{{b}}}+\\sqrt{{{c}}}")


@few
@given(
    st.lists(st.integers(-9, 9), min_size=2, max_size=5),
    st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    st.integers(0, 8),
)
def test_polynomials_are_compared_exactly(first, second, where):
    x = sympy.Symbol("x")
    p, q = (sum(c * x**k for k, c in enumerate(part)) for part in (first, second))
    product = f"\\left({sympy.latex(p)}\\right)\\left({sympy.latex(q)}\\right)"
    assert equal(product, sympy.latex(sympy.expand(p * q)))
    assert not equal(product, sympy.latex(sympy.expand(p * q + x**where)))
    assert not equal(product, sympy.latex(sympy.expand(p * q + sympy.Rational(1, 10**30))))


@pytest.mark.parametrize("q", [5, 7, 9, 12, 15, 17])
def test_sines_and_cosines_of_parts_of_pi(q):
    total = "+".join(f"\\cos\\frac{{{2 * k}\\pi}}{{{q}}}" for k in range(q))
    assert equal(total, "0")
    assert not equal(total + "+10^{-50}", "0")
    assert equal(f"\\cos\\frac{{2\\pi}}{{{q}}}", f"1-2\\sin^2\\frac{{\\pi}}{{{q}}}")
    assert not equal(f"\\cos\\frac{{2\\pi}}{{{q}}}", f"1-2\\sin^2\\frac{{\\pi}}{{{q + 1}}}")


@few
@given(small, small, st.integers(1, 30))
def test_combinations_with_pi_and_e(a, b, places):
    pi_and_e = f"{latex(a)}\\pi+{latex(b)}e".replace("+-", "-")
    assert equal(pi_and_e, f"{latex(b)}e+{latex(a)}\\pi".replace("+-", "-"))
    assert not equal(pi_and_e, f"{latex(b)}e+{latex(a + Fraction(1, 10**places))}\\pi".replace("+-", "-"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2^x", "2^{|x|}"),
        ("\\sin x", "\\sin|x|"),
        ("x", "|x|"),
        ("x", "\\sqrt{x^2}"),
        ("e^x", "e^{|x|}"),
        ("x+y", "|x+y|"),
    ],
)
def test_both_signs_of_a_variable_are_tried(one, other):
    assert equal(one, one)
    assert not equal(one, other)
    assert not equal(other, one)


@pytest.mark.parametrize(
    "text",
    ["9^{9^{9^{9}}}", "100000!", "\\binom{10^9}{10^8}", "2^{2^{40}}", "\\sqrt{2}^{100000}", "(1+\\sqrt2)^{9999}"],
)
def test_what_is_too_much_work_gets_no_verdict(text):
    with pytest.raises(TooHard):
        equal(text, "5\\sqrt{3}")


def test_the_separation_bound_is_needed():
    """Three pairs that agree in 16 to 40 digits and differ."""
    for one, other in [
        ("\\sqrt{10^{40}+1}", "10^{20}"),
        ("\\sqrt{1000001}+\\sqrt{1000025}+\\sqrt{1000031}+\\sqrt{1000084}+\\sqrt{1000087}+\\sqrt{1000134}+\\sqrt{1000158}+\\sqrt{1000182}+\\sqrt{1000198}",
         "\\sqrt{1000002}+\\sqrt{1000018}+\\sqrt{1000042}+\\sqrt{1000066}+\\sqrt{1000113}+\\sqrt{1000116}+\\sqrt{1000169}+\\sqrt{1000175}+\\sqrt{1000199}"),
        ("e^{\\pi\\sqrt{163}}", "640320^3+744"),
    ]:  # fmt: skip
        with contextlib.suppress(TooHard):
            assert not equal(one, other)


def test_neighbours_under_a_logarithm_are_told_apart():
    assert not equal("\\ln(10^{15}+37)", "\\ln(10^{15}+91)")
    assert not equal("\\ln(10^{300}+1)", "\\ln(10^{300}+2)")
    assert not equal("\\sin(\\sqrt{2})", "\\sin(\\sqrt{2}+10^{-30})")
    assert equal("\\sin(\\sqrt{8})", "\\sin(2\\sqrt{2})")


def test_irrational_numbers_never_cost_the_rewards_own_process_anything(monkeypatch):
    monkeypatch.setattr(exact, "_numeric", None)
    for text in (
        "\\sqrt{2}",
        "\\sqrt[3]{1+\\sqrt{2}}",
        "\\pi",
        "i",
        "(1+i)^2",
        "\\ln 2",
        "\\cos 1",
        "2^{\\sqrt{2}}",
        "\\arctan 1",
    ):
        assert quick_verdict(text, "5") is None
