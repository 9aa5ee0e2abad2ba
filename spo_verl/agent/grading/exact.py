r"""Exact equality of two expressions, with a bound on the work.

**Rational numbers** are compared as fractions.

**Algebraic numbers** are compared with a separation bound (Burnikel, Fleischer, Mehlhorn, Schirra, "A strong and easily
computable separation bound for arithmetic expressions involving radicals", Algorithmica 27, 2000): an expression that
is not zero is at least ``1 / (u^(D-1) l)`` from zero, with ``u`` and ``l`` computed along the expression and ``D`` the
product of the degrees of its roots. So numerics with enough digits decide; no tolerance is chosen. Sines and cosines of
rational multiples of pi are algebraic too: ``2 cos`` is an algebraic integer, all conjugates of which are at most 2.

**Variables, pi, e, logarithms and other transcendental numbers** are replaced by rational numbers drawn at random, the
constants close to their values. Two expressions that differ agree at a random point with a probability of about
2^-40 (Schwartz and Zippel), and several points are tried. Sides that are equal only by a relation among such numbers
that is not known (is ``e + pi`` rational?) count as different.

**Functions, roots, absolute values and exponents with variables** must agree in finite fields too, as points do not
show what is on other branches (`spo_verl.agent.grading.field`).

Whatever exceeds the bounds raises `TooHard`: no verdict is better than a wrong one.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from spo_verl.agent.grading import field
from spo_verl.agent.grading.field import TooHard as TooHard
from spo_verl.agent.grading.field import Undefined as Undefined
from spo_verl.agent.grading.field import factorial, has_branches, prime_factors, with_number_for_i
from spo_verl.agent.grading.parsing import FUNCTIONS, IMAGINARY, PI, E, Node, variables, walk

QUICK_BITS = 4_096
MAX_BITS = 120_000
"""Bits of a number; beyond it there is no verdict. `QUICK_BITS` bounds what is done in the process of the reward."""

MAX_DEGREE = 64
POINTS = 5

STABLE_BITS = 20
"""Bits in which a divisor must not depend on the random digits of constants, which begin after 32 bits or later."""

APPROXIMATE_PLACES = 6
"""A decimal with so many places and digits may be the rounding of a number that has no finite decimal."""


class NeedsAlgebra(Exception):
    """More than rational numbers are involved."""


def number(value: int | Fraction) -> Node:
    """A number as an expression."""
    return Node("num", value=Fraction(value))


def rational(node: Node, bits: int = QUICK_BITS) -> Fraction:
    """The value of an expression of rational numbers.

    Raises:
        NeedsAlgebra: there are roots, constants, variables; or numbers of more bits than given.
        Undefined: it has no value.
    """
    try:
        folded = _Folding({}, bits).fold(node)
    except TooHard:
        raise NeedsAlgebra from None
    if folded.op != "num":
        raise NeedsAlgebra
    return folded.value


def equal(one: Node, other: Node) -> bool:
    """Whether two expressions are equal, wherever they are defined.

    Raises:
        TooHard: no verdict within the bounds.
        Undefined: a side has no value anywhere.
    """
    return vanishes(Node("add", (one, Node("neg", (other,)))), together=(one, other))


def proportional(one: Node, other: Node) -> bool:
    """Whether one expression is a constant multiple (not 0) of the other, as both sides of two equal equations.

    Raises:
        TooHard: no verdict within the bounds.
    """
    names = sorted(variables(one) | variables(other))
    if not names or variables(one) != variables(other):
        return False
    mode = _mode(one, other)
    first = _point(names, 1000, mode)
    at_first = [_Folding(first, MAX_BITS).fold(node) for node in (one, other)]
    if _is_zero(at_first[0]) or _is_zero(at_first[1]):
        return False
    crossed = Node("add", (Node("mul", (one, at_first[1])), Node("neg", (Node("mul", (other, at_first[0])),))))
    elsewhere = [_elsewhere(node) for node in (one, other)]
    formal = Node("add", (Node("mul", (one, elsewhere[1])), Node("neg", (Node("mul", (other, elsewhere[0])),))))
    return vanishes(crossed, together=(one, other), formal=formal)


def _elsewhere(node: Node) -> Node:
    """The expression with other variables."""
    return node._replace(name=node.name + "'" * (node.op == "sym"), args=tuple(map(_elsewhere, node.args)))


def rounds_to(node: Node, decimal: Fraction, places: int) -> bool:
    """Whether a decimal of six or more places and digits is the rounding of a number without a finite decimal."""
    digits = len(str(abs(decimal.numerator * 10**places // decimal.denominator)))
    if places < APPROXIMATE_PLACES or digits < APPROXIMATE_PLACES or variables(node):
        return False
    try:
        if _finite_decimal(node):
            return False
        value = value_of(node, digits + places)
    except Undefined:
        return False
    import mpmath

    with mpmath.workdps(digits + 2 * places + 20):
        shifted = value * 10**places
        return abs(shifted.imag) < 1e-9 and bool(mpmath.floor(shifted.real + 0.5) == decimal * 10**places)


def _finite_decimal(node: Node) -> bool:
    try:
        under = rational(node, MAX_BITS).denominator
    except NeedsAlgebra:
        return False
    return is_finite_decimal(under)


def is_finite_decimal(denominator: int) -> bool:
    """Whether fractions with this denominator can be written as decimals."""
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def vanishes(node: Node, *, together: tuple[Node, ...] = (), formal: Node | None = None) -> bool:
    """Whether an expression is zero wherever it is defined.

    The expressions in ``together`` must be defined at the same points. ``formal`` is the same expression without
    numbers that were computed, if it has any.

    Raises:
        TooHard: no verdict within the bounds.
        Undefined: it has no value at any point.
    """
    names = sorted(variables(node))
    mode = _mode(node)
    wanted = POINTS if names else 2 if _has_constants(node) else 1
    defined = 0
    for attempt in range(4 * wanted):
        point = _point(names, attempt, mode)
        folding = _Folding(point, MAX_BITS)
        states = [_is_defined(folding, part) for part in together]
        if states and any(states) != all(states):
            return False
        if states and not states[0]:
            continue
        try:
            folded = folding.fold(node)
        except Undefined:
            continue
        if not _is_zero(folded):
            return False
        defined += 1
        if defined == wanted:
            break
    else:
        raise Undefined
    if not names or (mode == "real" and not any(map(has_branches, walk(node)))):
        return True
    return field.vanishes(formal or node, together, _real_sign)


def _real_sign(node: Node) -> int:
    """The sign of an expression without variables."""
    return _sign(_Folding(_point([], 0, "real"), MAX_BITS).fold(node))


def _is_defined(folding: _Folding, node: Node) -> bool:
    try:
        folding.fold(node)
    except Undefined:
        return False
    return True


def value_of(node: Node, digits: int) -> Any:
    """The value of an expression without variables as a complex number of mpmath.

    Raises:
        TooHard: not within the bounds.
        Undefined: it has no value.
    """
    folded = _Folding(_point([], 0, "real", exact=True), MAX_BITS).fold(node)
    size = _bound(folded)[1]
    return _numeric(folded, 4 * digits + 2 * size + 64)


def _has_constants(node: Node) -> bool:
    """Whether there are numbers that are drawn: pi, e, values of functions, powers with irrational exponents."""
    return any(
        one.op in {"const", "log", *FUNCTIONS}
        or (one.op == "pow" and any(inner.op in {"root", "pow"} for inner in walk(one.args[1])))
        for one in walk(node)
    )


def _mode(*nodes: Node) -> str:
    """How variables are drawn: whole numbers in exponents, positive ones under factorials, angles under sines."""
    every = [one for node in nodes for one in walk(node)]
    if any(one.op in {"fact", "binom"} and variables(one) for one in every):
        return "natural"
    if any(one.op == "pow" and variables(one.args[1]) for one in every):
        return "whole"
    if any(one.op in FUNCTIONS - {"ln"} and variables(one) for one in every):
        return "angle"
    return "real"


def _point(names: list[str], attempt: int, mode: str, *, exact: bool = False) -> dict[str, Node]:
    """Values of the constants and variables at a random point, the same for the same attempt."""
    draw = random.Random(f"{attempt} {mode}")
    near = _near_constants()
    point = {
        name: number(value if exact else Fraction(round(value * 2**32) * 2**48 + draw.getrandbits(48), 2**80))
        for name, value in near.items()
    }
    for name in names:
        sign = 1 if attempt % 2 or mode == "natural" else -1
        if mode in {"natural", "whole"}:
            point["sym " + name] = number(sign * draw.randint(2, 11))
        elif mode == "angle":
            turn = number(Fraction(sign * draw.choice([1, 2, 3, 4, 5, 6, 8, 9]), draw.choice([7, 11, 13])))
            point["sym " + name] = Node("mul", (turn, PI))
        else:
            point["sym " + name] = number(
                Fraction(sign * draw.getrandbits(22) - draw.getrandbits(4), draw.choice([65537, 65539, 65543]))
            )
    return point


@functools.cache
def _near_constants() -> dict[str, Fraction]:
    """pi and e to 2,048 bits; random bits are added far below a double's."""
    import mpmath

    with mpmath.workprec(2100):
        return {
            name: Fraction(int(mpmath.floor(value * 2**2048)), 2**2048)
            for name, value in (("pi", +mpmath.pi), ("e", +mpmath.e))
        }


class _Folding:
    """Constants folded at one point: what is rational becomes one number, sines become algebraic where they are."""

    def __init__(self, point: Mapping[str, Node], bits: int) -> None:
        self.point, self.bits = point, bits
        self.quick = "pi" not in point
        self._opaque: list[tuple[str, tuple[Node, ...], Node]] = []

    @functools.cached_property
    def _twin(self) -> _Folding:
        """The same point with other random digits of the constants."""
        moved = {name: number(self.point[name].value + Fraction(1, 2**part)) for name, part in (("pi", 40), ("e", 41))}
        twin = _Folding({**self.point, **moved}, self.bits)
        twin.__dict__["_twin"] = twin
        return twin

    def fold(self, node: Node) -> Node:
        """The expression with all that is rational computed.

        Raises:
            TooHard: a number has too many bits, or an operation is not known for such operands.
            Undefined: it has no value.
        """
        if node.op == "num":
            return node
        if node.op == "sym":
            value = self.point.get("sym " + node.name)
            if value is None:
                raise TooHard(f"the variable {node.name}")
            return self.fold(value)
        if node.op == "const":
            if node.name == "i":
                return self._irrational(node)
            if node.name == "inf":
                raise Undefined
            if node.name not in self.point:
                raise TooHard(node.name)
            return self.point[node.name]
        if node.op == "pow":
            return self._power(*node.args)
        if node.op == "div":
            return self._div(self.fold(node.args[0]), self._nonzero(node.args[1]))
        if node.op in {"ln", "log", *FUNCTIONS}:
            self._irrational(node)
        if node.op in {"ln", "log"}:
            return self._logarithm(node)
        if node.op in FUNCTIONS:
            return self._trigonometric(node.op, node.args[0])
        if node.op == "pm":
            raise TooHard("two values")
        args = tuple(self.fold(one) for one in node.args)
        operation: Callable[..., Node] = getattr(self, "_" + node.op)
        return operation(*args)

    def _nonzero(self, node: Node) -> Node:
        """A folded divisor.

        Raises:
            Undefined: it is zero.
            TooHard: it may be: the random digits of constants decide about its value, as in ``sin^2 1 + cos^2 1 - 1``.
        """
        folded = self.fold(node)
        if _is_zero(folded):
            raise Undefined
        if _has_constants(node):
            one, other = (_numeric(part, 128 + _bound(part)[1]) for part in (folded, self._twin.fold(node)))
            if abs(one - other) > abs(one) * 2.0**-STABLE_BITS:
                raise TooHard("a divisor that may be zero")
        return folded

    def _irrational(self, node: Node) -> Node:
        """The expression, unless only fractions are wanted."""
        if self.quick:
            raise TooHard("no rational number")
        return node

    def _checked(self, value: Fraction) -> Node:
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > self.bits:
            raise TooHard("a very large number")
        return number(value)

    def _add(self, one: Node, other: Node) -> Node:
        if one.op == other.op == "num":
            return self._checked(one.value + other.value)
        return Node("add", (one, other))

    def _neg(self, one: Node) -> Node:
        return number(-one.value) if one.op == "num" else Node("neg", (one,))

    def _mul(self, one: Node, other: Node) -> Node:
        if one.op == other.op == "num":
            return self._checked(one.value * other.value)
        if any(factor.op == "num" and factor.value == 0 for factor in (one, other)):
            return number(0)
        return Node("mul", (one, other))

    def _div(self, one: Node, other: Node) -> Node:
        if one.op == other.op == "num":
            return self._checked(one.value / other.value)
        return Node("div", (one, other))

    def _deg(self, one: Node) -> Node:
        return self._mul(one, self._div(self.fold(PI), number(180)))

    def _abs(self, one: Node) -> Node:
        if one.op == "num":
            return number(abs(one.value))
        return self._neg(one) if _sign(one) < 0 else one

    def _fact(self, one: Node, step: Node) -> Node:
        value = _whole(one)
        if value < 0:
            raise Undefined
        if value > self.bits // 4 or math.lgamma(value + 1) / math.log(2) > self.bits:
            raise TooHard("a large factorial")
        return number(factorial(value, _whole(step)))

    def _binom(self, one: Node, other: Node) -> Node:
        over, under = _whole(one), _whole(other)
        if over < 0:
            raise TooHard("a binomial of a negative number")
        if not 0 <= under <= over:
            return number(0)
        if over > self.bits:
            raise TooHard("a large binomial")
        return self._checked(Fraction(math.comb(over, under)))

    def _root(self, degree: Node, radicand: Node) -> Node:
        k = _whole(degree)
        if not 2 <= k <= MAX_DEGREE:
            raise TooHard("a root of a large degree")
        if radicand.op == "num":
            value = radicand.value
            over, under = (_perfect_root(abs(part), k) for part in (value.numerator, value.denominator))
            sign = -1 if value < 0 else 1
            if value >= 0 or k % 2:
                if over is not None and under is not None:
                    return number(Fraction(sign * over, under))
                root = self._irrational(Node("root", (number(k), number(abs(value)))))
                return root if sign > 0 else Node("neg", (root,))
            if k != 2:
                raise TooHard("an even root of a negative number")
            return self._mul(IMAGINARY, self._root(number(2), number(-value)))
        if _is_zero(radicand):
            return number(0)
        if _is_real(radicand) and _sign(radicand) < 0:
            positive = self._root(degree, self._neg(radicand))
            if k % 2:
                return self._neg(positive)
            if k == 2:
                return self._mul(IMAGINARY, positive)
            raise TooHard("an even root of a negative number")
        if not _is_real(radicand) and k != 2:
            raise TooHard("a root of a complex number")
        return Node("root", (number(k), radicand))

    def _power(self, base: Node, exponent: Node) -> Node:
        if base == E:
            self._irrational(base)
        if base == E and (angle := self._turn(exponent, imaginary=True)) is not None:
            return Node("add", (self._cosine(angle), Node("mul", (IMAGINARY, self._cosine(Fraction(1, 2) - angle)))))
        if base == E and exponent.op == "ln":
            return self.fold(exponent.args[0])
        power, exponent = exponent, self.fold(exponent)
        base = self.fold(base) if exponent.op == "num" and exponent.value > 0 else self._nonzero(base)
        if _is_zero(base):
            self._nonzero(power)
        if exponent.op != "num":
            return self._named("pow", base, exponent)
        over, under = exponent.value.numerator, exponent.value.denominator
        if under > MAX_DEGREE or abs(over) > self.bits:
            if base.op == "num" and base.value in (1, -1) and under == 1:
                return number(base.value if over % 2 else 1)
            if under > MAX_DEGREE:
                return self._named("pow", base, exponent)
            raise TooHard("a large power")
        if under > 1:
            base = self._root(number(under), base)
        if base.op == "num":
            size = max(base.value.numerator.bit_length(), base.value.denominator.bit_length())
            if size * abs(over) > self.bits:
                raise TooHard("a large power")
            return number(base.value**over)
        if over < 0:
            return self._div(number(1), self._power_of(base, -over))
        return self._power_of(base, over)

    def _power_of(self, base: Node, exponent: int) -> Node:
        if exponent > 512:
            raise TooHard("a large power of an irrational number")
        if base.op == "root" and base.args[1].op == "num":
            k = _whole(base.args[0])
            size = max(base.args[1].value.numerator.bit_length(), base.args[1].value.denominator.bit_length())
            if size * exponent > self.bits:
                raise TooHard("a large power")
            whole, rest = divmod(exponent, k)
            outside = self._checked(base.args[1].value ** whole)
            return self._mul(outside, Node("pow", (base, number(rest)))) if rest else outside
        if exponent == 0:
            return number(1)
        return base if exponent == 1 else Node("pow", (base, number(exponent)))

    def _logarithm(self, node: Node) -> Node:
        if node.op == "log" and len(node.args) == 2:
            argument, base = (Node("ln", (one,)) for one in node.args[::-1])
            return self.fold(Node("div", (argument, base)))
        kind, argument = node.op, node.args[0]
        if kind == "ln" and argument == E:
            return number(1)
        if kind == "ln" and argument.op == "pow" and argument.args[0] == E:
            return self.fold(argument.args[1])
        folded = self._nonzero(argument)
        power = Fraction(1)
        while folded.op == "root":
            power, folded = power / _whole(folded.args[0]), folded.args[1]
        if folded.op != "num":
            return self._named(kind, folded)
        if folded.value <= 0:
            raise Undefined
        total: Node = number(0)
        for prime, exponent in prime_factors(folded.value).items():
            total = self._add(total, self._mul(number(power * exponent), self._constant(kind, number(prime))))
        return total

    def _trigonometric(self, name: str, argument: Node) -> Node:
        if name in {"arcsin", "arccos", "arctan"}:
            return self._inverse(name, self.fold(argument))
        if name not in {"sin", "cos"}:
            sine, cosine = (Node(one, (argument,)) for one in ("sin", "cos"))
            over, under = {
                "tan": (sine, cosine),
                "cot": (cosine, sine),
                "sec": (number(1), cosine),
                "csc": (number(1), sine),
            }[name]
            return self.fold(Node("div", (over, under)))
        turn = self._turn(argument)
        if turn is None:
            folded = self.fold(argument)
            if not _is_zero(folded):
                if _sign(folded) > 0:
                    return self._named(name, folded)
                positive = self._named(name, self._neg(folded))
                return self._neg(positive) if name == "sin" else positive
            turn = Fraction(0)
        return self._cosine(turn if name == "cos" else Fraction(1, 2) - turn)

    def _cosine(self, turn: Fraction) -> Node:
        """cos(turn * pi)."""
        turn = turn % 2
        turn = 2 - turn if turn > 1 else turn
        sign = 1
        if turn > Fraction(1, 2):
            turn, sign = 1 - turn, -1
        simple: dict[Fraction, int | Fraction] = {Fraction(0): 1, Fraction(1, 3): Fraction(1, 2), Fraction(1, 2): 0}
        if turn in simple:
            return number(sign * simple[turn])
        if turn.denominator > 360:
            raise TooHard("an angle with a large denominator")
        node = self._irrational(Node("cosine", value=turn))
        return node if sign > 0 else Node("neg", (node,))

    def _turn(self, argument: Node, *, imaginary: bool = False) -> Fraction | None:
        """The rational number r for which the argument is r * pi (or r * pi * i); None without one."""
        ratios = []
        for one, other in ((Fraction(355, 113), Fraction(17, 5)), (Fraction(22, 7), Fraction(13, 11))):
            point = {**self.point, "pi": number(one)}
            folding = _Folding(point, self.bits)
            try:
                value = folding.fold(with_number_for_i(argument, number(other)) if imaginary else argument)
            except (TooHard, Undefined):
                return None
            if value.op != "num":
                return None
            ratios.append(value.value / (one * other) if imaginary else value.value / one)
        return ratios[0] if ratios[0] == ratios[1] else None

    def _inverse(self, name: str, value: Node) -> Node:
        """An angle: a rational multiple of pi where it is one."""
        import mpmath

        approximate = _numeric(value, 128)
        square = self._mul(value, value)
        if abs(approximate.imag) > 1e-20 or (name != "arctan" and _sign(self._add(number(1), self._neg(square))) < 0):
            raise Undefined
        function = {"arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan}[name]
        with mpmath.workprec(128):
            real = approximate.real if name == "arctan" else max(min(approximate.real, mpmath.mpf(1)), mpmath.mpf(-1))
            ratio = function(real) / mpmath.pi * 120
            near = int(mpmath.nint(ratio))
            close = abs(ratio - near) < 1e-15
        if close:
            turn = Fraction(near, 120)
            back = {"arcsin": "sin", "arccos": "cos", "arctan": "tan"}[name]
            again = self.fold(Node(back, (Node("mul", (number(turn), PI)),)))
            if _is_zero(Node("add", (again, Node("neg", (value,))))):
                return self._mul(number(turn), self.fold(PI))
        return self._named(name, value)

    def _named(self, name: str, *args: Node) -> Node:
        """A transcendental number as a symbol: the same for the same function of equal arguments."""
        for known, given, symbol in self._opaque:
            pairs = zip(args, given, strict=True)
            if known == name and all(_is_zero(Node("add", (one, Node("neg", (other,))))) for one, other in pairs):
                return symbol
        symbol = self._constant(name, *args)
        self._opaque.append((name, args, symbol))
        return symbol

    def _constant(self, name: str, *args: Node) -> Node:
        """A random rational number near the value of a function, the same for the same arguments."""
        self._irrational(number(0))
        import mpmath

        with mpmath.workprec(128):
            values = [_numeric(one, 128) for one in args]
            functions: dict[str, Callable[..., Any]] = {
                "ln": mpmath.log, "log": mpmath.log10, "pow": mpmath.power, "sin": mpmath.sin, "cos": mpmath.cos,
                "arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan,
            }  # fmt: skip
            if name not in functions:
                raise TooHard(name)
            try:
                value = mpmath.mpc(functions[name](*values))
            except (ZeroDivisionError, ValueError, OverflowError):
                raise Undefined from None
            if abs(value.imag) > 1e-20 or not mpmath.isfinite(value) or abs(value.real) > 1e30:
                raise TooHard("no real number of moderate size")
            near = Fraction(int(mpmath.nint(value.real * 2**40)), 2**40)
        draw = random.Random(f"{name} {[_digest(one) for one in args]} {_digest(self.point['pi'])}")
        return number(near + Fraction(draw.getrandbits(48) - 2**47, 2**90))


def _digest(node: Node) -> str:
    """A short text that tells expressions apart, however long their numbers are."""
    parts = [node.op, node.name, hex(node.value.numerator), hex(node.value.denominator), *map(_digest, node.args)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _whole(node: Node) -> int:
    if node.op != "num" or node.value.denominator != 1:
        raise TooHard("a whole number is needed")
    return int(node.value)


def _perfect_root(value: int, degree: int) -> int | None:
    """The whole number whose power is the value; None without one."""
    if value < 2:
        return value
    root = 1 << -(-value.bit_length() // degree)  # Newton's method, from above
    while (better := ((degree - 1) * root + value // root ** (degree - 1)) // degree) < root:
        root = better
    return root if root**degree == value else None


def _bound(node: Node) -> tuple[float, int]:
    """The separation bound of a folded expression: bits of the smallest value above zero; and bits of its size."""
    roots: dict[Node, int] = {}
    turns: set[int] = set()
    memo: dict[Node, tuple[float, float]] = {}

    def log2(value: int) -> float:
        return max(0.0, float(value.bit_length()))

    def plus(one: float, other: float) -> float:
        return max(one, other) + 1

    def walk(one: Node) -> tuple[float, float]:
        if one not in memo:
            memo[one] = compute(one)
        return memo[one]

    def compute(one: Node) -> tuple[float, float]:
        if one.op == "num":
            return log2(abs(one.value.numerator)), log2(one.value.denominator)
        if one.op == "const":  # i
            roots[one] = 2
            return 0.0, 0.0
        if one.op == "cosine":
            turns.add(2 * one.value.denominator)
            return 1.0, 1.0
        parts = [walk(part) for part in one.args]
        if one.op == "neg":
            return parts[0]
        if one.op == "add":
            (u1, l1), (u2, l2) = parts
            return plus(u1 + l2, l1 + u2), l1 + l2
        if one.op == "mul":
            return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
        if one.op == "div":
            return parts[0][0] + parts[1][1], parts[0][1] + parts[1][0]
        if one.op == "pow":
            exponent = _whole(one.args[1])
            return parts[0][0] * exponent, parts[0][1] * exponent
        if one.op == "root":
            k = _whole(one.args[0])
            roots[one] = k
            u, lower = parts[1]
            if u >= lower:
                return (u + (k - 1) * lower) / k, lower
            return u, ((k - 1) * u + lower) / k
        raise TooHard(one.op)

    u, lower = walk(node)
    degree = math.prod(roots.values())
    if turns:
        degree *= _totient(math.lcm(*turns))
    largest = max(value for pair in memo.values() for value in pair)
    return float(min(degree - 1, 10**6)) * u + lower + 1, int(largest)


def _totient(n: int) -> int:
    return sum(1 for k in range(1, n + 1) if math.gcd(k, n) == 1) if n < 100_000 else n


def _clearly(node: Node, size: int) -> Any:
    """The value to a few digits where they show that it is not zero; else None."""
    value = _numeric(node, 128 + size)
    return value if abs(value) > 2.0**-40 else None


def _is_zero(node: Node) -> bool:
    if node.op == "num":
        return node.value == 0
    bits, size = _bound(node)
    if _clearly(node, size) is not None:
        return False
    if bits + size > MAX_BITS:
        raise TooHard("the numbers are too close to tell")
    import mpmath

    return bool(abs(_numeric(node, int(bits) + 2 * size + 128)) < mpmath.mpf(2) ** -int(bits + 2))


def _is_real(node: Node) -> bool:
    return not any(one == IMAGINARY for one in walk(node))


def _sign(node: Node) -> int:
    if node.op == "num":
        return (node.value > 0) - (node.value < 0)
    if not _is_real(node):
        raise TooHard("the sign of a complex number")
    bits, size = _bound(node)
    value = _clearly(node, size)
    if value is None:
        if _is_zero(node):
            return 0
        value = _numeric(node, int(bits) + 2 * size + 64)
    return 1 if value.real > 0 else -1


def _numeric(node: Node, bits: int) -> Any:
    """The value of a folded expression as a complex number of so many bits."""
    import mpmath

    if bits > 4 * MAX_BITS:
        raise TooHard("too many digits")
    memo: dict[Node, Any] = {}

    def value(one: Node) -> Any:
        if one not in memo:
            memo[one] = compute(one)
        return memo[one]

    def compute(one: Node) -> Any:
        if one.op == "num":
            return mpmath.mpc(mpmath.mpf(one.value.numerator) / one.value.denominator)
        if one.op == "const":
            return mpmath.mpc(0, 1)
        if one.op == "cosine":
            return mpmath.mpc(mpmath.cos(mpmath.pi * one.value.numerator / one.value.denominator))
        parts = [value(part) for part in one.args]
        if one.op == "neg":
            return -parts[0]
        if one.op == "add":
            return parts[0] + parts[1]
        if one.op == "mul":
            return parts[0] * parts[1]
        if one.op == "div":
            return parts[0] / parts[1] if parts[1] != 0 else mpmath.mpc(0)
        if one.op == "pow":
            return parts[0] ** _whole(one.args[1])
        if one.op == "root":
            if _is_real(one.args[1]):
                return mpmath.mpc(mpmath.root(abs(parts[1].real), _whole(one.args[0])))
            return mpmath.mpc(mpmath.sqrt(parts[1]))
        raise TooHard(one.op)

    with mpmath.workprec(bits):
        return value(node)
