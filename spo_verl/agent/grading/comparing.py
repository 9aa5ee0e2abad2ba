r"""Whether an answer says the same as the ground truth.

The structure is compared here, part by part; expressions are compared by `Equality`: with fractions only in the
process of the reward (`with_fractions`), with all of `spo_verl.agent.grading.exact` in a grading process
(`with_algebra`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from spo_verl.agent.grading import exact
from spo_verl.agent.grading.parsing import INFINITY, PI, Answer, Node
from spo_verl.agent.grading.units import PERCENT, is_inert

Equality = Callable[[Node, Node], bool]

MAX_PARTS = 24
"""Elements of a set or list that are matched with each other."""


def with_fractions(answer: Node, truth: Node) -> bool:
    """Equality of rational numbers.

    Raises:
        NeedsAlgebra: there is more in them.
    """
    if answer == truth:
        return True
    try:
        one, other = exact.rational(answer), exact.rational(truth)
    except exact.Undefined:
        return False
    return one == other or _rounded(answer, one, other) or _rounded(truth, other, one)


def _rounded(decimal: Node, value: Fraction, other: Fraction) -> bool:
    places = _places(decimal)
    if places < exact.APPROXIMATE_PLACES or abs(value) * 10**places < 10 ** (exact.APPROXIMATE_PLACES - 1):
        return False
    rounded = math.floor(other * 10**places + Fraction(1, 2))
    return not exact.is_finite_decimal(other.denominator) and rounded == value * 10**places


def with_algebra(answer: Node, truth: Node) -> bool:
    """Equality of expressions.

    Raises:
        TooHard: there is no verdict within the bounds.
    """
    if answer == truth:
        return True
    try:
        if exact.equal(answer, truth):
            return True
    except exact.Undefined:
        return False
    for decimal, other in ((answer, truth), (truth, answer)):
        if (places := _places(decimal)) and exact.rounds_to(other, exact.rational(decimal), places):
            return True
    return False


def _places(node: Node) -> int:
    inner = node.args[0] if node.op == "neg" else node
    return (inner.places or 0) if inner.op == "num" else 0


def same(answer: Answer, truth: Answer, equality: Equality) -> bool:
    """Whether an answer is right.

    Raises:
        NeedsAlgebra: the equality cannot tell.
        TooHard: no verdict within the bounds.
    """
    answer, truth = _spread(answer), _spread(truth)
    if answer.kind == "equal":
        # A chain is as right as each of its sides, so 41 = 42 is never right.
        named = (Answer(**{**part.__dict__, "names": answer.names}) for part in answer.parts)
        return all(same(part, truth, equality) for part in named)
    if truth.kind == "equal":
        named = (Answer(**{**part.__dict__, "names": truth.names}) for part in truth.parts)
        return all(same(answer, part, equality) for part in named)
    if answer.names and truth.names and answer.names != truth.names and "equation" not in (answer.kind, truth.kind):
        return False
    if "equation" in (answer.kind, truth.kind):
        return _same_equation(answer, truth, equality)
    if answer.node and answer.kind == "spaced" and truth.node and not truth.unit and not truth.names:
        return equality(answer.node, truth.node)
    if {answer.kind, truth.kind} == {"set", "list"}:
        return _same_elements(_distinct(answer, equality), _distinct(truth, equality), equality)
    if answer.kind != truth.kind:
        return False
    return _same_kind(answer, truth, equality)


def _same_kind(answer: Answer, truth: Answer, equality: Equality) -> bool:
    kind = answer.kind
    if kind in {"other", "words", "based", "empty", "spaced"}:
        return bool(answer.text) and answer.text == truth.text
    if kind == "number":
        return _same_number(answer, truth, equality)
    if (len(answer.parts) != len(truth.parts) and kind != "set") or {answer.unit, truth.unit} == {"and", "or"}:
        return False
    pairs = list(zip(answer.parts, truth.parts, strict=False))
    if kind == "tuple":
        return answer.text[:1] + answer.text[-1:] == truth.text[:1] + truth.text[-1:] and _all_same(pairs, equality)
    if kind in {"matrix", "row", "ratio"}:
        return answer.unit == truth.unit and _all_same(pairs, equality)
    if kind == "relation":
        swapped = answer.unit == "!=" and len(pairs) == 2
        turned = list(zip(answer.parts[::-1], truth.parts, strict=True))
        return answer.unit == truth.unit and (_all_same(pairs, equality) or (swapped and _all_same(turned, equality)))
    if kind == "set":
        return _same_elements(_distinct(answer, equality), _distinct(truth, equality), equality)
    return _same_elements(answer.parts, truth.parts, equality)


def _all_same(pairs: Sequence[tuple[Answer, Answer]], equality: Equality) -> bool:
    """Whether all pairs agree; what is certainly different is found before anything that needs algebra."""
    missing: exact.NeedsAlgebra | None = None
    for one, other in pairs:
        try:
            if not same(one, other, equality):
                return False
        except exact.NeedsAlgebra as error:
            missing = error
    if missing is not None:
        raise missing
    return True


def _same_elements(answer: Sequence[Answer], truth: Sequence[Answer], equality: Equality) -> bool:
    """Whether two collections agree, in any order."""
    if len(answer) != len(truth):
        return False
    if len(answer) > MAX_PARTS:
        return sorted(part.text for part in answer) == sorted(part.text for part in truth)
    left = sorted(truth, key=lambda part: part.text)
    for part in sorted(answer, key=lambda part: part.text):
        # What is written alike is tried first.
        for other in sorted(left, key=lambda other: other.text != part.text):
            if same(part, other, equality):
                left.remove(other)
                break
        else:
            return False
    return True


def _distinct(collection: Answer, equality: Equality) -> tuple[Answer, ...]:
    """The elements; of a set each once."""
    if collection.kind != "set" or len(collection.parts) > MAX_PARTS:
        return collection.parts
    found: list[Answer] = []
    for part in collection.parts:
        if not any(same(part, other, equality) for other in found):
            found.append(part)
    return tuple(found)


def _same_number(answer: Answer, truth: Answer, equality: Equality) -> bool:
    one, other = answer.node, truth.node
    assert one is not None
    assert other is not None
    if PERCENT in (answer.unit, truth.unit):
        return _same_percentage(answer, truth, equality)
    if answer.unit != truth.unit and not (
        (not truth.unit and is_inert(answer.unit)) or (not answer.unit and is_inert(truth.unit))
    ):
        return False
    if answer.unit != truth.unit and "degree" in (answer.unit, truth.unit) and (_has_pi(one) or _has_pi(other)):
        return False
    infinite = [_infinite(node) for node in (one, other)]
    if any(infinite):
        return infinite[0] == infinite[1]
    return equality(one, other)


def _same_percentage(answer: Answer, truth: Answer, equality: Equality) -> bool:
    """50% is right for 50% and 0.5, and for 50, as the question may ask how many percent; 0.5% is not right for 0.5."""
    one, other = answer.node, truth.node
    assert one is not None
    assert other is not None
    if {answer.unit, truth.unit} - {PERCENT, ""}:
        return False
    if answer.unit == truth.unit:
        return equality(one, other)
    percent, bare = (one, other) if answer.unit == PERCENT else (other, one)
    hundred = exact.number(100)
    if equality(Node("div", (percent, hundred)), bare):
        return True
    try:
        small = abs(exact.rational(bare)) <= 1
    except (exact.NeedsAlgebra, exact.Undefined):
        small = True
    return not small and equality(percent, bare)


def _has_pi(node: Node) -> bool:
    return node == PI or any(_has_pi(part) for part in node.args)


def _infinite(node: Node) -> int:
    if node == INFINITY:
        return 1
    return -1 if node.op == "neg" and node.args[0] == INFINITY else 0


def _same_equation(answer: Answer, truth: Answer, equality: Equality) -> bool:
    one, other = _as_equation(answer), _as_equation(truth)
    if one is None or other is None or answer.text == truth.text:
        return answer.text == truth.text and answer.kind == truth.kind
    if equality is with_fractions:
        raise exact.NeedsAlgebra
    try:
        return exact.proportional(one, other)
    except exact.Undefined:
        return False


def _as_equation(answer: Answer) -> Node | None:
    r"""Left side minus right side; of ``y = 2x`` as well, where the name is a variable."""
    if answer.kind == "equation":
        return answer.node
    if answer.kind == "number" and answer.names and answer.node is not None and not answer.unit:
        return Node("add", (Node("sym", name=answer.names[0]), Node("neg", (answer.node,))))
    return None


def _spread(answer: Answer) -> Answer:
    r"""``2 \pm 3`` as the list of its two values."""
    if answer.kind == "number" and answer.node is not None and (count := _signs(answer.node)):
        if count > 1:
            return Answer("other", answer.text)
        parts = tuple(
            Answer("number", f"{answer.text}{sign}", _chosen(answer.node, sign), unit=answer.unit, names=answer.names)
            for sign in "+-"
        )
        return Answer("list", answer.text, parts=parts)
    if answer.kind == "list":
        parts = tuple(_spread(part) for part in answer.parts)
        flat = tuple(inner for part in parts for inner in (part.parts if part.kind == "list" else (part,)))
        return Answer("list", answer.text, parts=flat, unit=answer.unit)
    return answer


def _signs(node: Node) -> int:
    r"""How many ``\pm`` there are."""
    return (node.op == "pm") + sum(_signs(one) for one in node.args)


def _chosen(node: Node, sign: str) -> Node:
    args = tuple(_chosen(one, sign) for one in node.args)
    if node.op == "pm":
        return args[0] if sign == "+" else Node("neg", args)
    return node._replace(args=args) if args else node
