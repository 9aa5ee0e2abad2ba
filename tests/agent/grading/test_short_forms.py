"""Canonical strings and what is certain without algebra."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.agent.grading.short_forms import canonical, number_of, quick_verdict
from tests.core.helpers import property_test

ALIKE = [
    [
        "0.5",
        "1/2",
        "\\frac12",
        "\\frac{1}{2}",
        "\\dfrac{1}{2}",
        "\\tfrac{ 1 }{ 2 }",
        "$0.50$",
        ".5",
        "\\frac{2}{4}",
        "x = 1/2",
    ],
    ["1234", "1,234", "1{,}234", "1\\,234", "\\$1,234", "1234.", "1234.0", "01234", "\\(1234\\)", "{1234}", "n=1234"],
    ["12", "12\\text{ cm}", "12 \\mathrm{cm}^2", "\\text{12}", "+12", "12^\\circ", "12°", "12^{\\circ}"],
    ["-3/4", "-\\frac{3}{4}", "−0.75", "\\frac{-3}{4}"],
    ["3/2", "1\\frac{1}{2}", "1.5"],
    ["(0.5, 3)", "\\left(\\frac12,3\\right)", "( 1/2 , 3 )"],
    ["1,2", "2, 1", "\\{1,2\\}", "\\left\\{2, 1\\right\\}", "\\{1,1,2\\}"],
    ["A", "(A)", "\\text{(A)}", "\\textbf{A}", "\\mathrm{(A)}"],
    ["\\sqrt{2}", "\\sqrt2", "\\sqrt 2"],
    ["[0,1)", "\\left[0, 1\\right)", "[0,\\,1)"],
    ["x+1", "x + 1", "y=x+1"],
]


@pytest.mark.parametrize("forms", ALIKE, ids=lambda forms: forms[0])
def test_forms_of_one_answer_are_one_string(forms):
    assert len({canonical(form) for form in forms}) == 1, {form: canonical(form) for form in forms}


def test_different_answers_are_different_strings():
    assert len({canonical(forms[0]) for forms in ALIKE}) == len(ALIKE)
    pairs = [("(1,2)", "(2,1)"), ("[0,1]", "[0,1)"), ("x=1,y=2", "x=2,y=1"), ("50%", "50"), ("2^{10}", "210")]
    for one, other in [*pairs, ("1\\\\2", "12"), ("\\frac{1}{23}", "\\frac{12}{3}"), ("-1", "1"), ("(1,2)", "(1,2]")]:
        assert canonical(one) != canonical(other), (one, other)


def test_nothing_is_no_answer():
    assert [canonical(text) for text in ("", " ", "$$", "\\text{}", "\\,", "{}", ".")] == [""] * 7


@pytest.mark.parametrize(
    ("answer", "truth", "verdict"),
    [
        ("5", "5", True),
        ("5", "6", False),
        ("5", "5.5", False),
        ("\\frac{10}{4}", "2.5", True),
        ("0.333333", "1/3", True),
        ("0.333334", "1/3", False),
        ("50\\%", "50", True),
        ("50\\%", "0.5", True),
        ("50", "50\\%", True),
        ("\\frac12", "50\\%", True),
        ("50\\%", "60\\%", False),
        ("50\\%", "5", False),
        ("x\\%", "5", None),
        ("yes", "\\text{Yes}", True),
        ("yes", "sey", False),
        ("\\sqrt{12}", "2\\sqrt{3}", None),
        ("", "5", False),
        ("\\text{even}", "odd", False),
    ],
)
def test_what_is_certain_without_algebra(answer, truth, verdict):
    assert quick_verdict(answer, truth) is verdict


@property_test
@given(st.fractions(max_denominator=10**6))
def test_a_fraction_is_read_in_every_form(fraction):
    over, under = fraction.numerator, fraction.denominator
    for text in (f"{over}/{under}", f"\\frac{{{over}}}{{{under}}}"):
        assert number_of(text) == fraction
    assert canonical(f"\\dfrac{{{over}}}{{{under}}}") == str(fraction)


@property_test
@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_a_decimal_is_read(number, places):
    text = str(Decimal(number).scaleb(-places).quantize(Decimal(1).scaleb(-places)))
    assert number_of(text) == Fraction(number, 10**places)


@property_test
@given(st.text(max_size=80), st.text(max_size=80))
def test_no_text_breaks_it_and_the_result_is_stable(answer, truth):
    assert "\n" not in canonical(answer)
    assert quick_verdict(answer, truth) in (True, False, None)
    assert quick_verdict(answer, answer) in (True, False)
