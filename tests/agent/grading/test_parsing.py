"""Notations and names, against Python's and sympy's values."""

import math

import sympy
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.agent.grading.short_forms import quick_verdict
from tests.core.helpers import property_test

LETTERS = "ABDEGKPQRabdegkpqr"


@property_test
@given(st.text(LETTERS, min_size=3, max_size=6), st.text(LETTERS, min_size=3, max_size=6))
def test_names_with_capitals_keep_them(one, other):
    for shape in ("{}", "\\text{{{}}}", "\\triangle {}", "\\overline{{{}}}", "\\angle {}"):
        for name in (other, one.upper(), one.lower(), one.swapcase()):
            ordinary = all(text == text.lower() or text == text.capitalize() for text in (one, name))
            if one != name and not (ordinary and one.lower() == name.lower()):
                assert quick_verdict(shape.format(one), shape.format(name)) is not True


@property_test
@given(st.integers(0, 60), st.integers(0, 60))
def test_choose_over_and_double_factorials(n, k):
    for text in (f"{{{n} \\choose {k}}}", f"{n}\\choose {k}", f"{{}}_{{{n}}}C_{{{k}}}", f"^{{{n}}}C_{{{k}}}"):
        assert quick_verdict(text, str(math.comb(n, k))) is True
        assert quick_verdict(text, str(math.comb(n, k) + 1)) is False
    assert quick_verdict(f"{{}}_{{{n}}}P_{{{k}}}", str(math.perm(n, k))) is True
    assert quick_verdict(f"{n}!!", str(sympy.factorial2(n))) is True
    assert quick_verdict(f"({n % 6}!)!!", str(sympy.factorial2(math.factorial(n % 6)))) is True
    assert quick_verdict(f"{{{n} \\over {k + 1}}}", f"{n}/{k + 1}") is True


@property_test
@given(st.integers(1_000, 10**15), st.sampled_from([" ", "~", "\\ ", "\\;", "\u00a0"]))
def test_spaces_separate_thousands_of_a_whole_answer_only(number, space):
    answer = f"{number:,}".replace(",", space)
    assert quick_verdict(answer, str(number)) is True
    assert quick_verdict(f"-{answer}", f"-{number}") is True
    assert quick_verdict(f"{answer}.25", f"{number}.25") is True
    assert quick_verdict(answer, str(number + 1)) is False
    for other in (f"({answer},1)", f"{answer}, 1", f"{answer}\\text{{ cm}}", f"x={answer}", f"{answer}\\pi"):
        assert quick_verdict(other, other.replace(answer, str(number))) is not True
    for truth in (f"{number}\\text{{ cm}}", f"x={number}", answer.replace(space, ",\\quad "), f"{number}\\%"):
        assert quick_verdict(answer, truth) is not True
    assert quick_verdict(str(number), answer) is not True
