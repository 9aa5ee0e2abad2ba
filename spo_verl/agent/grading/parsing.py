r"""Answers read into a structure that says what they mean.

The reader is strict: what it does not know for certain it does not guess. Such an answer is kept as ``other`` and is
right only if the ground truth is written alike.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from spo_verl.agent.grading.tokens import MAX_EXPRESSION, Token, Unreadable, plain, tokens, words, written
from spo_verl.agent.grading.units import SCALES, unit_of

MAX_DIGITS = 400
"""Digits of one number."""

MAX_POWER = 400
"""Powers of ten that scientific notation may have."""


class Node(NamedTuple):
    """An expression.

    Attributes:
        op: ``num``, ``sym`` (variable), ``const`` (pi, e, i), ``add``, ``mul``, ``div``, ``neg``, ``pow``, ``root``
            (degree, radicand), ``fact`` (of a number, 2 for every second factor), ``binom``, ``abs``, ``deg``, ``pm``
            (either sign), ``log`` (base, argument), or the name of a function.
        args: the operands.
        name: of a variable, constant.
        value: of a number.
        places: decimal places, where a number is written as a decimal.
    """

    op: str
    args: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)
    places: int | None = None


def walk(node: Node) -> list[Node]:
    """An expression and all its parts."""
    return [node, *(inner for one in node.args for inner in walk(one))]


def variables(node: Node) -> set[str]:
    """The names of the variables of an expression."""
    return {one.name for one in walk(node) if one.op == "sym"}


@dataclass(frozen=True)
class Answer:
    """What an answer says.

    Attributes:
        kind: ``number`` (any expression), ``tuple`` (also an interval), ``set``, ``list`` (alternatives), ``union``,
            ``equal`` (sides that are all the same), ``equation``, ``relation``, ``matrix``, ``based`` (a numeral in a
            base), ``ratio`` (also a time), ``spaced`` (digits with ordinary spaces where thousands separators may
            be), ``words``, ``empty`` (the empty set), ``other``.
        text: how it is written; of words the words, of a relation its signs, of a tuple its brackets.
        node: the expression of a number or an equation (left side minus right side).
        parts: elements, in their order.
        unit: what a number counts, "" without a unit; of a list of relations ``and`` or ``or``.
        names: variables in front of ``=`` or in ``x \\in``.
    """

    kind: str
    text: str
    node: Node | None = None
    parts: tuple[Answer, ...] = ()
    unit: str = ""
    names: tuple[str, ...] = field(default=())


PI, E, IMAGINARY = (Node("const", name=name) for name in ("pi", "e", "i"))
INFINITY = Node("const", name="inf")

FUNCTIONS = words("sin cos tan cot sec csc arcsin arccos arctan ln exp")
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_GREEK = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell"
)
_CALLED = {*"fghFGHPQ", *("\\" + name for name in words("Gamma phi varphi psi zeta sigma tau Phi Psi"))}
_RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in", "\\approx": "="}
_IMPLIED = {"\\Rightarrow", "\\implies", "\\therefore", "\\rightarrow", "\\to"}
_TIMES = {"\\cdot", "\\times", "*"}
_MATRIX = re.compile(r"\\begin\s*\{([pb]?matrix)\}(.*)\\end\s*\{\1\}", re.DOTALL)
_SPACED = re.compile(r"[\s$]*(-?[1-9]\d{0,2}(?:(?: |~|\\[ ;:])\d{3})+(?:\.\d+)?)[\s$]*")
_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
    "sixteen": 16,
}


@functools.lru_cache(maxsize=2048)
def read(text: str) -> Answer:
    """What an answer says; kind ``other`` where that is not known for certain, with "" as text for no answer."""
    if len(text) > MAX_EXPRESSION:
        return Answer("other", " ".join(text.split()))
    if spaced := _SPACED.fullmatch(plain(text)):
        digits = re.sub(r"[^\d.-]", "", spaced[1])
        return Answer("spaced", spaced[1], node=Node("num", value=Fraction(digits)))
    try:
        matrix = _MATRIX.search(text)
        if matrix and not re.sub(
            r"[\s$]|\\left\s*[\[(]|\\right\s*[\])]|\\[\[\]()]|[A-Za-z]\s*=",
            "",
            text[: matrix.start()] + text[matrix.end() :],
        ):
            return _matrix(matrix[2])
        return _answer(tokens(text))
    except (Unreadable, RecursionError):
        return Answer("other", _spelt(text))


def _spelt(text: str) -> str:
    try:
        return written(tokens(text))
    except Unreadable:
        return " ".join(text.split())


def _answer(found: list[Token]) -> Answer:
    text = written(found)
    if not any(token.text.strip("{}()[]") for token in found) and "".join(token.text for token in found) != "{}":
        return Answer("other", "")
    items = _split(found)
    if len(items) == 1:
        return _item(items[0])
    if not all(items):
        return Answer("other", text)
    parts = tuple(_item(item) for item in items)
    # x < 1 or x > 2 is something, x < 1 and x > 2 nothing.
    joined = {"and": "and", "or": "or", "\\lor": "or", "\\vee": "or"}
    joints = {joined[token.text] for token in _outside(found) if token.text in joined}
    ranges = any(part.kind == "relation" or (part.kind == "tuple" and part.names) for part in parts)
    unit = joints.pop() if len(joints) == 1 and ranges else ""
    return Answer("list", ",".join(sorted(part.text for part in parts)), parts=_named_alike(parts), unit=unit)


def _named_alike(parts: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """``x = 2, 3`` names both."""
    names = parts[0].names
    if names and not any(part.names for part in parts[1:]):
        return tuple(Answer(**{**part.__dict__, "names": names}) for part in parts)
    return parts


def _split(found: list[Token]) -> list[list[Token]]:
    """The items between commas, semicolons, "and" and "or" outside of all brackets."""
    items: list[list[Token]] = [[]]
    depth = 0
    joining = False
    for token in found:
        depth += (token.text in {"(", "[", "{", "\\{"}) - (token.text in {")", "]", "}", "\\}"})
        word = token.kind == "word" and token.text in {"or", "and"}
        if depth == 0 and (word or token.text in {",", ";", "\\lor", "\\vee"}):
            if not (word and joining):  # "1, 2, or 3"
                items.append([])
            joining = token.text == ","
        else:
            items[-1].append(token)
            joining = False
    return items


def _item(found: list[Token]) -> Answer:
    text = written(found)
    try:
        while found and (found[0].text in _IMPLIED or (found[0].text in {"=", "\\approx", "\\sim"} and len(found) > 1)):
            found = found[1:]
        if len(found) > 1 and found[0].kind == "word" and found[0].text in {"about", "approximately", "roughly"}:
            found = found[1:]
        return _relation(found) if any(token.text in _RELATIONS for token in _outside(found)) else _value(found)
    except (Unreadable, RecursionError):
        return Answer("other", text)


def _outside(found: list[Token]) -> Iterator[Token]:
    """The tokens outside of all brackets."""
    depth = 0
    for token in found:
        closing = token.text in {")", "]", "}", "\\}"}
        depth -= closing
        if depth == 0 and not closing and token.text not in {"(", "[", "{", "\\{"}:
            yield token
        depth += token.text in {"(", "[", "{", "\\{"}


def _relation(found: list[Token]) -> Answer:
    sides: list[list[Token]] = [[]]
    signs: list[str] = []
    depth = 0
    for token in found:
        depth += (token.text in {"(", "[", "{", "\\{"}) - (token.text in {")", "]", "}", "\\}"})
        if depth == 0 and token.text in _RELATIONS:
            signs.append(_RELATIONS[token.text])
            sides.append([])
        else:
            sides[-1].append(token)
    if not all(sides):
        raise Unreadable("a side is missing")
    kinds = set(signs)
    if kinds == {"="}:
        return _equal(sides, written(found))
    if kinds == {"in"} and len(sides) == 2:
        name = _name(sides[0])
        inner = _answer(sides[1])
        if name is None or inner.kind not in {"tuple", "set", "union", "empty"}:
            raise Unreadable("no set")
        return Answer(**{**inner.__dict__, "names": (name,)})
    if "=" in kinds or "in" in kinds:
        raise Unreadable("mixed relations")
    return _inequality(sides, signs)


def _equal(sides: list[list[Token]], text: str) -> Answer:
    names = tuple(name for side in sides if (name := _name(side)) is not None)[:1]
    values = [side for side in sides if _name(side) is None]
    if not values:
        return _equation(sides, text, names)
    read_values = [_answer(side) if _split(side)[1:] else _value(side) for side in values]
    if any(value.kind in {"other", "words"} for value in read_values):
        raise Unreadable("a side that is not read")
    if len(values) > 1 and not names and any(variables(value.node) for value in read_values if value.node):
        return _equation(sides, text, ())
    if names and any(names[0] in variables(value.node) for value in read_values if value.node):
        return _equation(sides, text, ())
    if len(read_values) == 1:
        return Answer(**{**read_values[0].__dict__, "names": names})
    return Answer("equal", text, parts=tuple(read_values), names=names)


def _equation(sides: list[list[Token]], text: str, names: tuple[str, ...]) -> Answer:
    if len(sides) != 2:
        raise Unreadable("a chain of equations")
    left, right = (_expression(side) for side in sides)
    return Answer("equation", text, node=Node("add", (left, Node("neg", (right,)))), names=names)


def _name(side: list[Token]) -> str | None:
    r"""The name that a side of an equation is: ``x``, ``x_1``, ``f(x)``, ``AB``, ``\angle ABC``, ``\text{area}``."""
    text = written(side)
    letter = r"(?:[A-Za-z]|\\(?:" + "|".join(sorted(_GREEK)) + r"))"
    index = r"(?:_\{\w+\})?'{0,2}"
    if re.fullmatch(rf"{letter}{index}", text):
        return None if text in {"e", "i"} else text
    if re.fullmatch(rf"{letter}{index}\({letter}\)", text) or re.fullmatch(r"\\angle ?[A-Za-z]{1,4}|[A-Z]{2,4}", text):
        return text
    if re.fullmatch(r"\([A-Za-z](?:,[A-Za-z])+\)", text) and list(text[1:-1:2]) == sorted(text[1:-1:2]):
        return text  # (y,x)=(1,2) is another point than (1,2)
    if side and all(token.kind == "word" for token in side) and side[0].text not in {"not", "no"} and len(side) <= 4:
        return text
    return None


def _inequality(sides: list[list[Token]], signs: list[str]) -> Answer:
    if all(sign in {">", ">="} for sign in signs):
        sides, signs = sides[::-1], [sign.replace(">", "<") for sign in reversed(signs)]
    elif not all(sign in {"<", "<="} for sign in signs) and signs != ["!="]:
        raise Unreadable("mixed relations")
    parts = tuple(_value(side) for side in sides)
    if any(part.kind != "number" or part.unit for part in parts):
        raise Unreadable("a side is no number")
    names = [_name(side) for side in sides]
    where = [position for position, name in enumerate(names) if name is not None]
    ends = [parts[position] for position in range(len(parts)) if position not in where]
    if len(where) == 1 and signs != ["!="] and not any(variables(end.node) for end in ends if end.node):
        name = names[where[0]] or ""
        minus, plus = Answer("number", "-\\infty", Node("neg", (INFINITY,))), Answer("number", "\\infty", INFINITY)
        if len(parts) == 3 and where[0] == 1:
            low, high, left, right = parts[0], parts[2], signs[0], signs[1]
        elif len(parts) == 2:
            low, high = (parts[0], plus) if where[0] == 1 else (minus, parts[1])
            left, right = (signs[0], "<") if where[0] == 1 else ("<", signs[0])
        else:
            raise Unreadable("a chain of inequalities")
        brackets = ("[" if left == "<=" else "(") + ("]" if right == "<=" else ")")
        return Answer("tuple", f"{brackets[0]}{low.text},{high.text}{brackets[1]}", parts=(low, high), names=(name,))
    text = "".join(part.text + sign for part, sign in zip(parts, [*signs, ""], strict=True))
    return Answer("relation", text, parts=parts, unit=" ".join(signs))


def _value(found: list[Token]) -> Answer:
    text = written(found)
    if not found:
        raise Unreadable("nothing")
    joined = "".join(token.text for token in found)
    if joined in {"\\emptyset", "\\{\\}"}:
        return Answer("empty", "\\emptyset")
    if any(token.text == "\\cup" for token in _outside(found)):
        return _union(found)
    bracketed = _bracketed(found)
    if bracketed is not None:
        return bracketed
    if based := _based(found):
        return based
    if all(token.kind == "word" or (token.kind == "letter" and len(found) > 1) for token in found) and any(
        token.kind == "word" for token in found
    ):
        spelt = [token.text for token in found]
        if len(spelt) == 1 and len(spelt[0]) == 1:
            return Answer("number", spelt[0], Node("sym", name=spelt[0]))
        return Answer("words", " ".join(spelt))
    return _quantity(found, text)


def _union(found: list[Token]) -> Answer:
    pieces: list[list[Token]] = [[]]
    for token in found:
        if token.text == "\\cup":
            pieces.append([])
        else:
            pieces[-1].append(token)
    if not all(pieces):
        raise Unreadable("a union of nothing")
    parts = tuple(_value(piece) for piece in pieces)
    if any(part.kind not in {"tuple", "set"} for part in parts):
        raise Unreadable("a union of other things")
    return Answer("union", "\\cup".join(sorted(part.text for part in parts)), parts=parts)


def _bracketed(found: list[Token]) -> Answer | None:
    opening, closing = found[0].text, found[-1].text
    if opening not in {"(", "[", "\\{"} or closing not in {")", "]", "\\}"} or not _spans(found):
        return None
    inside = found[1:-1]
    if not inside:
        raise Unreadable("empty brackets")
    items = _split(inside)
    if (opening == "\\{") != (closing == "\\}"):
        raise Unreadable("brackets that do not match")
    if opening == "\\{":
        parts = tuple(_item(item) for item in items)
        if any(part.kind in {"other", "words"} and not part.text for part in parts) or any(
            part.kind in {"other", "relation"} or part.names for part in parts
        ):
            raise Unreadable("a set by its property")
        return Answer("set", "{" + ",".join(sorted(part.text for part in parts)) + "}", parts=parts)
    if any(token.kind == "word" and token.text in {"or", "and"} for token in _outside(inside)) or any(
        token.text == ";" for token in _outside(inside)
    ):
        raise Unreadable("words in brackets")
    if len(items) > 1:
        if not all(items):
            raise Unreadable("an element is missing")
        parts = tuple(_value(item) for item in items)
        return Answer("tuple", opening + ",".join(part.text for part in parts) + closing, parts=parts)
    if (
        opening == "("
        and closing == ")"
        and len(inside) == 1
        and inside[0].kind in {"letter", "word"}
        and len(inside[0].text) == 1
    ):
        return Answer("number", inside[0].text, Node("sym", name=inside[0].text))
    if opening != "(" or closing != ")":
        raise Unreadable("brackets around one number")
    return None


def _spans(found: list[Token]) -> bool:
    """Whether the first bracket closes with the last token."""
    depth = 0
    for position, token in enumerate(found):
        depth += (token.text in {"(", "[", "{", "\\{"}) - (token.text in {")", "]", "}", "\\}"})
        if depth == 0:
            return position == len(found) - 1
    return False


def _based(found: list[Token]) -> Answer | None:
    r"""``1010_2``, ``(2A)_{16}``, ``42_{\text{five}}``: a numeral with its base."""
    marks = [position for position, token in enumerate(found) if token.text == "_"]
    if len(marks) != 1 or found[-1].text != "}":
        return None
    numeral, base = found[: marks[0]], found[marks[0] + 2 : -1]
    while numeral and numeral[0].text in {"(", "{"} and numeral[-1].text in {")", "}"}:
        numeral = numeral[1:-1]
    digits = "".join(token.text for token in numeral)
    if not re.fullmatch(r"[0-9][0-9A-Za-z]*", digits) or any(token.space for token in numeral[1:]):
        return None
    name = "".join(token.text for token in base)
    size = _BASES.get(name) or (int(name) if re.fullmatch(r"[0-9]{1,2}", name) else 0)
    if not 2 <= size <= 36 or len(digits) > MAX_DIGITS:
        raise Unreadable("no base")
    try:
        int(digits, size)
    except ValueError:
        raise Unreadable("a digit that the base does not have") from None
    return Answer("based", f"{digits.lstrip('0').upper() or '0'}_{{{size}}}")


def _quantity(found: list[Token], text: str) -> Answer:
    """An expression and what it counts."""
    unit = ""
    if found[0].text in {"\\$", "€", "£", "¥", "₹"}:
        unit, found = unit_of([found[0].text]), found[1:]
    elif found[:1] and found[0].text == "-" and found[1:] and found[1].text == "\\$":
        unit, found = unit_of(["\\$"]), [found[0], *found[2:]]
    cut = next(
        (
            position
            for position, token in enumerate(found)
            if token.kind == "word" or token.text in {"%", "\\%", "\\$", "€", "£", "¥", "₹", "¢"}
        ),
        len(found),
    )
    after = [token.text for token in found[cut:]]
    scale = Fraction(1)
    while after and after[0] in SCALES:
        scale *= SCALES[after.pop(0)]
    if after and after[0] == "of":
        raise Unreadable("a part of something")
    if after:
        if unit and unit != unit_of(after):
            raise Unreadable("two units")
        unit = unit_of(after)
    times = "".join(token.text for token in found[:cut])
    if re.fullmatch(r"[0-9]+(?::[0-9]+)+", times):
        parts = tuple(Answer("number", part, Node("num", value=Fraction(int(part)))) for part in times.split(":"))
        return Answer("ratio", times + (f" {unit}" if unit else ""), parts=parts, unit=unit)
    node = _expression(found[:cut])
    if scale != 1:
        node = Node("mul", (Node("num", value=scale), node))
    inner = node.args[0] if node.op == "neg" else node
    if inner.op == "deg":
        if unit and unit not in {"celsius", "fahrenheit"}:
            raise Unreadable("two units")
        unit = unit or "degree"
        node = Node("neg", inner.args) if node.op == "neg" else inner.args[0]
    text = written(found[:cut]) if cut < len(found) else text
    return Answer("number", text, node=node, unit=unit)


def _matrix(body: str) -> Answer:
    rows = re.split(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-z])", body)
    if rows and not rows[-1].strip():
        rows = rows[:-1]
    parts = []
    for row in rows:
        cells = tuple(_value(tokens(cell)) for cell in row.split("&"))
        if any(cell.kind != "number" or cell.unit for cell in cells):
            raise Unreadable("a cell is no number")
        parts.append(Answer("row", "&".join(cell.text for cell in cells), parts=cells))
    return Answer(
        "matrix", "\\begin{matrix}" + "\\\\".join(part.text for part in parts) + "\\end{matrix}", parts=tuple(parts)
    )


def _expression(found: list[Token]) -> Node:
    parser = _ExpressionParser(found)
    node = parser.sum()
    if parser.position != len(found):
        raise Unreadable("something after the expression")
    return node


class _ExpressionParser:
    """Recursive descent over tokens. Whatever could be meant in two ways is refused."""

    def __init__(self, found: list[Token]) -> None:
        self.found, self.position = found, 0
        self.in_bars = 0

    def peek(self, ahead: int = 0) -> Token:
        place = self.position + ahead
        return self.found[place] if place < len(self.found) else Token("end", "")

    def next(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def expect(self, text: str) -> None:
        if self.next().text != text:
            raise Unreadable(f"{text} is missing")

    def sum(self) -> Node:
        node: Node | None = None
        while True:
            sign = self.peek().text
            if sign not in {"+", "-", "\\pm"}:
                if node is not None:
                    return node
                node = self.product()
                continue
            self.next()
            term = self.product()
            term = {"+": term, "-": Node("neg", (term,)), "\\pm": Node("pm", (term,))}[sign]
            node = term if node is None else Node("add", (node, term))

    def product(self) -> Node:
        node = self.signed()
        divided = False
        while True:
            token = self.peek()
            if token.text in _TIMES:
                self.next()
                node, divided = Node("mul", (node, self.signed())), False
            elif token.text in {"/", "\\div"}:
                self.next()
                node, divided = Node("div", (node, self.signed())), True
            elif self.begins_factor(token):
                if divided:
                    raise Unreadable("a/bc can mean two things")
                node = Node("mul", (node, self.power()))
            else:
                return node

    def begins_factor(self, token: Token) -> bool:
        if token.kind in {"number", "power"}:
            raise Unreadable("a number after another one")
        if token.kind == "letter" or token.text in {"(", "{"}:
            return True
        if token.text == "[":
            return True
        if token.text == "|":
            return not self.in_bars
        if token.kind != "command":
            return False
        known = {"\\frac", "\\sqrt", "\\pi", "\\binom", "\\log", "\\infty"}
        return token.text in known or token.text[1:] in FUNCTIONS or token.text[1:] in _GREEK

    def signed(self) -> Node:
        if self.peek().text == "-":
            self.next()
            return Node("neg", (self.signed(),))
        if self.peek().text == "+":
            self.next()
            return self.signed()
        return self.power()

    def power(self) -> Node:
        node = self.atom()
        raised = False
        while True:
            token = self.peek()
            if token.text == "!":
                self.next()
                step = 1
                while self.peek().text == "!" and not self.peek().space:
                    self.next()
                    step += 1
                if step > 2:
                    raise Unreadable("a factorial of more than two signs")
                node = Node("fact", (node, Node("num", value=Fraction(step))))
            elif token.text == "^":
                self.next()
                if [self.peek(ahead).text for ahead in range(3)] == ["{", "\\circ", "}"]:
                    self.position += 3
                    node = Node("deg", (node,))
                    continue
                if raised or node.op == "deg":
                    raise Unreadable("a power of a power")
                raised = True
                node = Node("pow", (node, self.braced() if self.peek().text == "{" else self.atom()))
            else:
                return node

    def braced(self) -> Node:
        self.expect("{")
        node = self.sum()
        self.expect("}")
        return node

    def atom(self) -> Node:
        token = self.next()
        if token.kind in {"number", "power"}:
            return self.number(token)
        if token.kind == "letter":
            return self.letter(token)
        if token.text == "{" and self.peek().text == "}" and self.peek(1).text in {"_", "^"}:
            self.next()
            return self.atom()
        if token.text in {"_", "^"}:
            return self.choices()
        if token.text in {"(", "[", "{"}:
            node = self.sum()
            self.expect({"(": ")", "[": "]", "{": "}"}[token.text])
            return node
        if token.text == "|":
            self.in_bars += 1
            node = self.sum()
            self.in_bars -= 1
            self.expect("|")
            return Node("abs", (node,))
        if token.kind == "command":
            return self.command(token.text[1:])
        raise Unreadable(f"{token.text} in an expression")

    def number(self, token: Token) -> Node:
        text = token.text
        if len(text) > MAX_DIGITS:
            raise Unreadable("a very long number")
        if token.kind == "power":
            digits, _, exponent = text.lower().partition("e")
            if abs(int(exponent)) > MAX_POWER:
                raise Unreadable("a very large exponent")
            return Node("num", value=Fraction(digits.rstrip(".")) * Fraction(10) ** int(exponent))
        after = self.peek()
        if after.text in {"\\overline", "\\dot"} and "." in text:
            return self.repeating(text)
        if after.kind == "command" and after.text in {"\\ldots", "\\overline", "\\dot"}:
            raise Unreadable("an unfinished number")
        if after.text in {"'", "_"}:
            raise Unreadable("a number with a mark")
        if text.endswith(".") and after.kind != "end" and after.text not in {")", "]", "}", "+", "-"}:
            raise Unreadable("a point without digits")
        if after.text == "." and not after.space:
            raise Unreadable("two points")
        value = Fraction(text.rstrip(".") or "0")
        places = len(text.partition(".")[2]) if "." in text else None
        if "." not in text and (part := self.mixed()) is not None:
            return Node("num", value=value + part)
        return Node("num", value=value, places=places)

    def mixed(self) -> Fraction | None:
        r"""The fraction of a mixed number, ``2 1/2`` or ``2\frac{1}{2}``, if one follows; it must be below 1."""
        ahead = [self.peek(place) for place in range(7)]
        texts = [token.text for token in ahead]
        if texts[:2] == ["{", "\\frac"]:
            raise Unreadable("a mixed number or a product")
        if ahead[0].kind == "number":
            if (
                not ahead[0].space
                or texts[1] not in {"/"}
                or ahead[2].kind != "number"
                or self.peek(3).text in {"/", "^", "!"}
            ):
                raise Unreadable("a number after another one")
            over, under, length = texts[0], texts[2], 3
        elif (
            texts[0] == "\\frac"
            and [texts[1], texts[3], texts[4], texts[6]] == ["{", "}", "{", "}"]
            and {ahead[2].kind, ahead[5].kind} == {"number"}
        ):
            over, under, length = texts[2], texts[5], 7
        else:
            return None
        if not (over.isdigit() and under.isdigit()) or int(over) >= int(under) or self.peek(length).text in {"^", "!"}:
            raise Unreadable("no mixed number")
        self.position += length
        return Fraction(int(over), int(under))

    def repeating(self, text: str) -> Node:
        r"""``0.1\overline{6}``, ``0.\dot{3}``, ``0.\dot{1}4\dot{2}``."""
        whole, _, fixed = text.partition(".")
        if self.next().text == "\\overline":
            self.expect("{")
            period = self.next().text
            self.expect("}")
        else:
            self.expect("{")
            period = self.next().text
            self.expect("}")
            middle = self.next().text if self.peek().kind == "number" else ""
            if self.peek().text == "\\dot":
                self.next()
                self.expect("{")
                period += middle + self.next().text
                self.expect("}")
            elif middle or len(period) != 1:
                raise Unreadable("no period")
        if not period.isdigit() or self.peek().kind in {"number", "power"} or len(period) > 60:
            raise Unreadable("no period")
        shift = 10 ** len(fixed)
        tail = Fraction(int(period), (10 ** len(period) - 1) * shift)
        return Node("num", value=Fraction(int((whole or "0") + fixed), shift) + tail)

    def letter(self, token: Token) -> Node:
        name = token.text
        if self.peek().text == "_":
            self.next()
            self.expect("{")
            index = ""
            while self.peek().text != "}":
                one = self.next()
                if one.kind not in {"number", "letter", "word"} and one.text not in {"+", "-"}:
                    raise Unreadable("an index")
                index += one.text
            self.expect("}")
            return Node("sym", name=f"{name}_{{{index}}}")
        if self.peek().text == "'":
            raise Unreadable("a derivative")
        if name in _CALLED and self.peek().text == "(":
            raise Unreadable("a function that is not known")
        return {"e": E, "i": IMAGINARY}.get(name) or Node("sym", name=name)

    def choices(self) -> Node:
        """``{}_{10}C_{3}``, ``{}^{10}C_{3}``, and with P for permutations."""
        over, letter = self.braced(), self.next().text
        self.expect("_")
        under = self.braced()
        if letter not in {"C", "P"}:
            raise Unreadable("an index in front")
        binomial = Node("binom", (over, under))
        orders = Node("fact", (under, Node("num", value=Fraction(1))))
        return binomial if letter == "C" else Node("mul", (binomial, orders))

    def command(self, name: str) -> Node:
        if name in {"frac", "binom"}:
            over, under = self.braced(), self.braced()
            return Node("div" if name == "frac" else "binom", (over, under))
        if name == "sqrt":
            degree = Node("num", value=Fraction(2))
            if self.peek().text == "[":
                self.next()
                degree = self.sum()
                self.expect("]")
            return Node("root", (degree, self.braced() if self.peek().text == "{" else self.atom()))
        if name == "pi":
            return PI
        if name == "infty":
            return INFINITY
        if name in _GREEK:
            return self.letter(Token("letter", "\\" + name))
        if name == "log" or name in FUNCTIONS:
            return self.function(name)
        raise Unreadable(f"\\{name}")

    def function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        if name == "log" and self.peek().text == "_":
            self.next()
            base = self.braced()
        if self.peek().text == "^":
            self.next()
            exponent = self.braced()
            if exponent == Node("neg", (Node("num", value=Fraction(1)),)):
                if name not in _INVERSE:
                    raise Unreadable("an inverse function")
                name, exponent = _INVERSE[name], None
        argument = self.argument()
        if name == "log":
            node = Node("log", (base, argument) if base else (argument,))
        elif name == "exp":
            node = Node("pow", (E, argument))
        else:
            node = Node(name, (argument,))
        return node if exponent is None else Node("pow", (node, exponent))

    def argument(self) -> Node:
        r"""What a function is applied to: brackets, or factors up to the next sign (``\sin 2x``)."""
        if self.peek().text in {"(", "{", "[", "|"}:
            node = self.atom()
            if self.peek().text == "!" or self.peek().text == "^":
                raise Unreadable("f(x)^2 can mean two things")
            return node
        node = self.power()
        while self.peek().kind == "letter" or self.peek().text in {"\\pi", "\\theta", "\\alpha", "\\sqrt", "\\frac"}:
            node = Node("mul", (node, self.power()))
        if self.peek().text in {"/", "\\cdot", "\\times", "*", "\\div", "("}:
            raise Unreadable("where the argument ends is not clear")
        return node
