r"""Sums, products, integrals and limits, which math-verify reads.

`spo_verl.agent.grading.parsing` does not know them. Only numbers are compared here: math-verify's parser and sympy give
the value of such an expression to 50 digits, and both values must agree in 45 of them, relative to their size.
"""

from __future__ import annotations

import re
from typing import Any

from spo_verl.agent.grading.exact import TooHard, Undefined, value_of
from spo_verl.agent.grading.parsing import Answer, read

DIGITS = 50
AGREE = 45

_KNOWN = re.compile(r"\\(?:sum|prod|int|lim|lfloor|rfloor|lceil|rceil)(?![a-zA-Z])")
# Nothing that is read differently here and there: no words, no space between digits, no marks at numbers, no "=" but in
# limits of sums.
_DOUBTFUL = re.compile(r"\\text|[0-9]\s+[0-9.]|[0-9]\s*(?:'|_|%)|\\%|(?<!\\),|\\begin|<|>|\?|\|")


def is_foreign(text: str) -> bool:
    """Whether an answer that was not read has something that math-verify may read."""
    return bool(_KNOWN.search(text)) and not _DOUBTFUL.search(text) and "=" not in re.sub(r"_\s*\{[^{}]*\}", "", text)


def same_value(answer: str, truth: str) -> bool:
    """Whether both are the same number, one of them written with a sum, product, integral or limit.

    Raises:
        TooHard: a value is not found.
    """
    one, other = _value(answer), _value(truth)
    if one is None or other is None:
        return False
    import mpmath

    with mpmath.workdps(2 * DIGITS):
        largest = max(abs(one), abs(other))
        return bool(abs(one - other) <= largest * mpmath.mpf(10) ** -AGREE)


def _value(text: str) -> Any:
    answer = read(text)
    if answer.kind == "number" and answer.node is not None and not answer.unit:
        try:
            return value_of(answer.node, DIGITS)
        except Undefined:
            return None
    return _parsed(answer, text) if answer.kind == "other" and is_foreign(text) else None


def _parsed(answer: Answer, text: str) -> Any:
    import mpmath
    import sympy
    from math_verify import LatexExtractionConfig, parse

    found = parse(f"${text}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
    expression = next((one for one in found if isinstance(one, sympy.Expr)), None)
    if expression is None or expression.free_symbols:
        return None
    try:
        value = sympy.N(expression.doit(), DIGITS)
    except Exception as error:  # sympy raises whatever it meets; no value is no verdict
        raise TooHard(f"{type(error).__name__}: {error}") from error
    if not value.is_number or not value.is_finite:
        raise TooHard("a value that is not found")
    with mpmath.workdps(2 * DIGITS):
        return mpmath.mpc(*(mpmath.mpf(str(part)) for part in value.as_real_imag()))
