"""Every setting under ``spo.*`` as a row, read from the dataclasses of :mod:`spo_verl.config`.

The meaning of a setting is the string below it in the class, as documentation tools read it.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

_NO_VALUE = object()


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted, as on the command line.
        type: ``float``, ``int``, ``bool``, ``str``...; ``or null`` where null is allowed.
        default: as YAML writes it.
        values: the allowed choices or range; empty where the type says all.
        meaning: one or more sentences; empty where the class says nothing.
    """

    name: str
    type: str
    default: str
    values: str
    meaning: str


def settings_of(cls: type, prefix: str = "spo") -> Iterator[Setting]:
    """Yield every setting of a tree of dataclasses, in the order of the tree."""
    hints = typing.get_type_hints(cls, include_extras=True)
    meanings = attribute_docstrings(cls)
    for entry in fields(cls):
        name, hint = f"{prefix}.{entry.name}", hints[entry.name]
        if is_dataclass(hint) and isinstance(hint, type):
            yield from settings_of(hint, name)
            continue
        plain, limits, nullable = _unwrap(hint)
        yield Setting(
            name=name,
            type=_type_name(plain) + (" or null" if nullable else ""),
            default=_yaml(_default_of(entry)),
            values=_values(plain, limits),
            meaning=meanings.get(entry.name, ""),
        )


def attribute_docstrings(cls: type) -> dict[str, str]:
    """The strings below the attributes of a class, with line breaks as blanks."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, below in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[statement.target.id] = " ".join(below.value.value.split())
    return found


def _default_of(entry: Field[Any]) -> Any:
    if entry.default is not MISSING:
        # pydantic keeps its own description of a field where a plain dataclass keeps the value.
        return getattr(entry.default, "default", entry.default)
    return entry.default_factory() if entry.default_factory is not MISSING else _NO_VALUE


def _unwrap(hint: Any) -> tuple[Any, list[Any], bool]:
    """A type hint as (type without Annotated and None, constraints, whether None is allowed)."""
    if typing.get_origin(hint) is typing.Annotated:
        base, *extras = typing.get_args(hint)
        plain, limits, nullable = _unwrap(base)
        return plain, [*limits, *_constraints(extras)], nullable
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = [_unwrap(part) for part in typing.get_args(hint) if part is not type(None)]
        nullable = type(None) in typing.get_args(hint)
        if len(others) == 1:
            return others[0][0], others[0][1], nullable
        return typing.Union[tuple(part for part, _, _ in others)], [], nullable  # noqa: UP007 - built at run time
    return hint, [], False


def _constraints(extras: list[Any]) -> Iterator[Any]:
    for extra in extras:
        yield from getattr(extra, "metadata", [extra])


def _type_name(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(dict.fromkeys(type(choice).__name__ for choice in inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(_unwrap(part)[0]) for part in inner)
    if origin is not None:
        parts = ", ".join("..." if part is Ellipsis else _type_name(_unwrap(part)[0]) for part in inner)
        return f"{origin.__name__}[{parts}]"
    return str(getattr(hint, "__name__", hint))


def _values(hint: Any, limits: list[Any]) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(str(choice) for choice in typing.get_args(hint))
    bounds = {
        name: _bound(getattr(limit, name))
        for limit in limits
        for name in ("ge", "gt", "le", "lt", "min_length")
        if getattr(limit, name, None) is not None
    }
    if "min_length" in bounds:
        return f"at least {bounds['min_length']} long"
    lower = next(((sign, bounds[name]) for name, sign in (("ge", "["), ("gt", "(")) if name in bounds), None)
    upper = next(((sign, bounds[name]) for name, sign in (("le", "]"), ("lt", ")")) if name in bounds), None)
    if lower and upper:
        return f"{lower[0]}{lower[1]}, {upper[1]}{upper[0]}"
    if lower:
        return f"{'>=' if lower[0] == '[' else '>'} {lower[1]}"
    if upper:
        return f"{'<=' if upper[0] == ']' else '<'} {upper[1]}"
    # A mapping or a list says nothing itself, but what it holds may be bounded.
    inner = [_unwrap(part) for part in typing.get_args(hint) if part is not Ellipsis]
    within = [text for text in (_values(plain, held) for plain, held, _ in inner) if text]
    return f"each {within[-1]}" if within else ""


def _bound(number: Any) -> str:
    """A bound in its most readable form: 9223372036854775808 is 2^63."""
    large_power = isinstance(number, int) and number >= 2**53 and number.bit_count() == 1
    return f"2^{number.bit_length() - 1}" if large_power else str(number)


def _yaml(value: Any) -> str:
    if value is _NO_VALUE:
        return "required"
    if isinstance(value, str):
        return value
    return json.dumps(value, default=list)
