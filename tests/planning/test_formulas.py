"""Formulae: what is printed is what is computed."""

import pytest

from spo_verl.errors import SpoArgumentError
from spo_verl.planning.formulas import FORMULAS, SYMBOLS, evaluate, figure, names_of


def test_an_expression_is_evaluated_as_it_is_written():
    assert evaluate("2*a + ceil(b/3) - min(a, 1)", {"a": 5, "b": 7}) == 12
    assert evaluate("max(1, n//t)", {"n": 8, "t": 16}) == 1


def test_whole_numbers_stay_exact():
    answer = figure("layer_parameters", "", h=2**40, q=1, k=1, f=2**40 + 1, d=1, g=1, b_qkv=0, b_o=0, b_mlp=0).value
    assert answer == 4 * 2**40 + 3 * 2**40 * (2**40 + 1) + 2 * 2**40 + 2


def test_a_division_by_zero_names_what_is_zero():
    with pytest.raises(SpoArgumentError, match=r"h // a divides by 0, as a is 0"):
        evaluate("h // a", {"h": 1, "a": 0})


def test_nothing_but_arithmetic_is_evaluated():
    with pytest.raises(SpoArgumentError, match="no part of a formula"):
        evaluate("__import__('os').getpid()", {})
    with pytest.raises(SpoArgumentError, match="no part of a formula"):
        evaluate("a.real", {"a": 1})


def test_inputs_must_be_the_symbols_of_the_expression():
    with pytest.raises(SpoArgumentError, match="takes .'Q', 'k_P'."):
        figure("tracker", "", Q=1)
    with pytest.raises(SpoArgumentError):
        figure("tracker", "", Q=1, k_P=48, L=3)


def test_every_symbol_has_a_meaning_and_is_used():
    used = {name for formula in FORMULAS.values() for name in names_of(formula.expression)}
    assert used == SYMBOLS.keys()
