"""Whole-number arithmetic of the shell: ``$((a * (b + 1)))``."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

_LARGEST = 2**63
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.LShift: lambda one, other: one << other if 0 <= other < 63 else _refused(),
    ast.RShift: lambda one, other: one >> other if 0 <= other < 63 else _refused(),
    ast.Div: lambda one, other: _divided(one, other),
    ast.Mod: lambda one, other: one - other * _divided(one, other),
    ast.Pow: lambda one, other: one**other if 0 <= other < 63 else _refused(),
}
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _refused() -> int:
    raise ValueError


def _divided(one: int, other: int) -> int:
    if other == 0:
        raise ValueError
    quotient = abs(one) // abs(other)
    return quotient if (one < 0) == (other < 0) else -quotient


def evaluate(text: str, name: Callable[[str], int | None]) -> int | None:
    """The value of an expression; None where it is not known or is no expression of this kind.

    Args:
        text: the expression, with its ``$NAME`` already written as ``NAME``.
        name: the value of a variable.
    """
    if len(text) > 1000:
        return None
    text = re.sub(r"(?<![\w.])0+(?=[1-9])", "0o", text.strip())  # 010 is eight
    text = text.replace("&&", " and ").replace("||", " or ")
    text = re.sub(r"!(?!=)", " not ", text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's remarks on texts that are no Python
            parsed = ast.parse(f"({text})", mode="eval")
        return _value(parsed.body, name)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _value(node: ast.expr, name: Callable[[str], int | None]) -> int:
    result: int
    if isinstance(node, ast.Constant) and type(node.value) is int:
        result = node.value
    elif isinstance(node, ast.Name):
        found = name(node.id)
        if found is None:
            raise ValueError
        result = found
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        result = _BINARY[type(node.op)](_value(node.left, name), _value(node.right, name))
    elif isinstance(node, ast.UnaryOp):
        operand = _value(node.operand, name)
        if isinstance(node.op, ast.USub):
            result = -operand
        elif isinstance(node.op, ast.Not):
            result = int(not operand)
        else:
            raise ValueError
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        result = int(_COMPARED[type(node.ops[0])](_value(node.left, name), _value(node.comparators[0], name)))
    elif isinstance(node, ast.BoolOp):
        values = [_value(one, name) for one in node.values]
        result = int(all(values) if isinstance(node.op, ast.And) else any(values))
    else:
        raise ValueError
    if abs(result) >= _LARGEST:
        raise ValueError
    return result
