r"""Expressions with variables in finite fields, where no branch of an absolute value is out of reach.

Points near zero do not show that ``|x - 10^6|`` is something else than ``10^6 - x``, and no list of points would do. So
an expression is also computed in fields of p elements, at random elements. There a square counts as positive and any
other number as negative: p is chosen such that -1 is no square and the numbers in the expression are squares. Products,
quotients, roots and absolute values then have the rules that they have for real numbers, but the sign of ``x - 10^6``
is random. What is equal by these rules is equal here; what holds on one branch only is not.

Numbers of the form ``a + b i`` make up a field as well. Its elements with ``a^2 + b^2 = 1`` are the cosines and sines:
they form a cyclic group, so an angle is a power of one element, and pi is half a turn. Exponents and angles are exact,
not modulo p. All other functions get random values, the same for the same argument.

A sum whose form shows that it is positive may be no square; such points are left out.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

from spo_verl.agent.grading.parsing import FUNCTIONS, IMAGINARY, PI, E, Node, variables, walk

POINTS = 32
"""Points at which both sides must have a value."""

ATTEMPTS = 1_600
"""Points that are tried; most are left out where many sums must be positive."""

ATTEMPTS_IN_FIELD = 25
SMALL = 64
"""Numbers up to it are positive in every field, and have roots of such degrees."""

MAX_BITS = 20_000
"""Bits of an exponent or angle."""

PART = 59 * 61
"""Variables that may be no whole numbers are drawn as fractions with this denominator."""

LARGE_BITS = 64
"""Bits from which a number in an expression may be negative in a field."""

MAX_FACTORIAL = 4_096
_TEN = Node("num", value=Fraction(10))

Element = tuple[int, int]
"""``a + b i``."""


class TooHard(Exception):
    """The comparison would exceed the bounds."""


class Undefined(Exception):
    """The expression has no value, as 1/0."""


def vanishes(node: Node, together: tuple[Node, ...], real_sign: Callable[[Node], int]) -> bool:
    """Whether an expression is zero in finite fields, at all points where those in ``together`` have a value.

    Args:
        node: with at least one variable.
        together: expressions that must have a value at the same points.
        real_sign: the sign of an expression without variables.

    Raises:
        TooHard: too few points have a value.
    """
    every = [*walk(node), *(one for part in together for one in walk(part))]
    numbers = {part for one in every if one.op == "num" for part in (one.value.numerator, one.value.denominator)}
    step = math.lcm(8, *range(1, SMALL + 1), *(one for one in numbers if one and one.bit_length() < LARGE_BITS))
    signed = [*_sums(node), *_constants(node)] if any(map(has_branches, every)) else []
    natural, whole = (set().union(*map(variables, parts)) for parts in zip(*map(_counting, every), strict=True))
    real_sign = functools.cache(real_sign)
    found = 0
    for attempt in range(ATTEMPTS):
        point = _Point(step, attempt, natural, whole, real_sign)
        try:
            if not all(map(point.is_ordered, signed)):
                continue
            states = [point.has_value(one) for one in together]
            if any(states) != all(states):
                return False
            if not all(states):
                continue
            if point.value(node) != (0, 0):
                return False
        except (TooHard, Undefined):
            continue
        found += 1
        if found == POINTS:
            return True
    raise TooHard("too few points at which all is defined")


def has_branches(node: Node) -> bool:
    """Whether an expression is an absolute value, root or logarithm of something with variables."""
    if node.op == "pow":
        base, exponent = node.args
        return not (_is_whole(exponent) or variables(exponent)) and bool(variables(base))
    return node.op in {"abs", "root", "ln", "log"} and bool(variables(node))


def _counting(node: Node) -> tuple[Node, Node]:
    """The parts of an expression that must be natural and whole numbers: under factorials, and over what has a sign."""
    nothing = Node("num")
    if node.op in {"fact", "binom"}:
        return node, nothing
    powers = node.op == "pow" and (variables(node.args[0]) or not _never_negative(node.args[0]))
    return nothing, node.args[1] if powers else nothing


def with_number_for_i(node: Node, value: Node) -> Node:
    """The expression with a number in place of i."""
    if node == IMAGINARY:
        return value
    return node._replace(args=tuple(with_number_for_i(one, value) for one in node.args))


def _is_whole(node: Node) -> bool:
    inner = node.args[0] if node.op == "neg" else node
    return inner.op == "num" and inner.value.denominator == 1


def _constants(node: Node) -> Iterator[Node]:
    """The largest parts without variables that are no numbers."""
    if variables(node):
        for one in node.args:
            yield from _constants(one)
    elif node.op != "num":
        yield node


def _sums(node: Node) -> Iterator[Node]:
    """The largest sums of variables whose form shows that they are positive."""
    if node.op == "add" and variables(node) and _never_negative(node):
        yield node
        pieces = [node]
        while pieces:
            one = pieces.pop()
            if one.op == "add":
                pieces.extend(one.args)
            else:
                yield from _sums(one)
    else:
        for one in node.args:
            yield from _sums(one)


def _never_negative(node: Node) -> bool:
    """Whether the form of an expression shows that it is not negative for real variables."""
    if node.op in {"num", "const"}:
        return node.value >= 0 and node != IMAGINARY
    if node.op == "pow":
        base, exponent = node.args
        even = _is_whole(exponent) and exponent.value % 2 == 0
        return (even and not any(one == IMAGINARY for one in walk(base))) or _never_negative(base)
    return node.op in {"abs", "root"} or (node.op in {"add", "mul", "div"} and all(map(_never_negative, node.args)))


@functools.lru_cache(maxsize=64)
def _field(step: int, which: int) -> int:
    """A prime p with p + 1 divisible by ``step``: -1 is no square modulo p, the divisors of ``step`` are."""
    draw = random.Random(f"{step} {which}")
    while True:
        prime = step * draw.getrandbits(64) - 1
        if prime > SMALL and pow(2, prime - 1, prime) == pow(3, prime - 1, prime) == 1:
            return prime


@functools.lru_cache(maxsize=64)
def _circle(prime: int) -> tuple[Element, int]:
    """A point with ``a^2 + b^2 = 1`` of which all others are powers, and its power that is half a turn.

    The sine of pi/2 is 1; the cosines of pi/4, pi/5 and pi/6 are those with positive roots.
    """
    draw = random.Random(prime)
    size, factors = prime + 1, (2, 3, 5, 7, 11, 13)
    point = (0, 0)
    while point == (0, 0) or any(_to_the(point, size // factor, prime) == (1, 0) for factor in factors):
        a, b = draw.randrange(1, prime), draw.randrange(1, prime)
        point = _times((a, -b), _inverse((a, b), prime), prime)
    half, quarter, fifth, sixth = (_to_the(point, size // (2 * part), prime) for part in (2, 4, 5, 6))
    while True:
        times = 2 * draw.getrandbits(64) + 1
        if math.gcd(times, math.prod(factors)) > 1 or _to_the(half, times % 4, prime) != (0, 1):
            continue
        cosines = [_to_the(one, times % 120, prime)[0] for one in (quarter, fifth, sixth)]
        roots = (size // 2 * times, 2 * cosines[0], 4 * cosines[1] - 1, 2 * cosines[2])
        if all(_is_square(root, prime) for root in roots):
            return point, size // 2 * times


def _is_square(value: int, prime: int) -> bool:
    return pow(value % prime, (prime - 1) // 2, prime) == 1


def _times(one: Element, other: Element, prime: int) -> Element:
    (a, b), (c, d) = one, other
    return (a * c - b * d) % prime, (a * d + b * c) % prime


def _inverse(one: Element, prime: int) -> Element:
    a, b = one
    if a == b == 0:
        raise Undefined
    norm = pow(a * a + b * b, -1, prime)
    return a * norm % prime, -b * norm % prime


def _to_the(base: Element, exponent: int, prime: int) -> Element:
    if base == (0, 0):
        if exponent <= 0:
            raise Undefined
        return base
    if base[1] == 0:
        return pow(base[0], exponent % (prime - 1), prime), 0
    result = (1, 0)
    for bit in bin(exponent % (prime * prime - 1))[2:]:
        result = _times(result, result, prime)
        if bit == "1":
            result = _times(result, base, prime)
    return result


@functools.lru_cache(maxsize=256)
def prime_factors(value: Fraction) -> dict[int, int]:
    """Primes below 10,000 and what is left, with their exponents."""
    found: dict[int, int] = {}
    for part, sign in ((value.numerator, 1), (value.denominator, -1)):
        prime = 2
        while part > 1 and prime < 10_000:
            if prime * prime > part:
                break
            while part % prime == 0:
                part //= prime
                found[prime] = found.get(prime, 0) + sign
            prime += 1 if prime == 2 else 2
        if part > 1:
            found[part] = found.get(part, 0) + sign
    return {prime: exponent for prime, exponent in found.items() if exponent}


def factorial(n: int, step: int) -> int:
    """``n (n - step) (n - 2 step) ...``"""
    return math.factorial(n) if step == 1 else math.prod(range(n, 0, -step))


class _Point:
    """Random values of the variables in one field."""

    def __init__(
        self, step: int, attempt: int, natural: set[str], whole: set[str], real_sign: Callable[[Node], int]
    ) -> None:
        self.prime = _field(step, attempt // ATTEMPTS_IN_FIELD)
        self.step, self.attempt, self.natural, self.whole, self.real_sign = step, attempt, natural, whole, real_sign
        self.values: dict[int, tuple[Element, Node]] = {}

    def has_value(self, node: Node) -> bool:
        """Whether an expression is defined.

        Raises:
            TooHard: that is not known here.
        """
        try:
            self.value(node)
        except Undefined:
            return False
        return True

    def is_ordered(self, node: Node) -> bool:
        """Whether a sum that is positive, or a number, has the sign in this field that it really has."""
        real, imaginary = self.value(node)
        if imaginary or not real:
            return True
        return self._square_sign(real) == (1 if variables(node) else self.real_sign(node))

    def value(self, node: Node) -> Element:
        """The value at this point.

        Raises:
            TooHard: it is not known here.
            Undefined: it has no value.
        """
        if id(node) not in self.values:
            self.values[id(node)] = self._compute(node), node  # the node is kept, so that no other has its id
        return self.values[id(node)][0]

    def _compute(self, node: Node) -> Element:
        prime, args = self.prime, node.args
        if node == IMAGINARY:
            return 0, 1
        if node.op in {"num", "sym", "const"}:
            number = node.value if node.op == "num" else self._symbol(node)
            return number.numerator * pow(number.denominator, -1, prime) % prime, 0
        if node.op == "neg":
            return _times((prime - 1, 0), self.value(args[0]), prime)
        if node.op == "add":
            (a, b), (c, d) = map(self.value, args)
            return (a + c) % prime, (b + d) % prime
        if node.op == "mul":
            return _times(self.value(args[0]), self.value(args[1]), prime)
        if node.op == "div":
            return _times(self.value(args[0]), _inverse(self.value(args[1]), prime), prime)
        if node.op == "deg":
            degrees = _times(self.value(args[0]), self.value(PI), prime)
            return _times(degrees, _inverse((180, 0), prime), prime)
        if node.op == "abs":
            real = self._real(args[0])
            return self._sign(args[0], real) * real % prime, 0
        if node.op == "root":
            return self._root(self.exact(args[0]), args[1])
        if node.op == "pow":
            return self._power(*args)
        if node.op in {"fact", "binom"}:
            return self._counted(node.op, *map(self.exact, args))
        if node.op in {"ln", "log"}:
            base = E if node.op == "ln" else args[0] if args[1:] else _TEN
            return _times(self._logarithm(args[-1]), _inverse(self._logarithm(base), prime), prime)
        if node.op in FUNCTIONS:
            return self._trigonometric(node.op, args[0])
        raise TooHard(node.op)

    def _symbol(self, node: Node) -> Fraction:
        """The number that replaces a variable or constant; pi is half a turn, e is positive."""
        draw = random.Random(f"{self.attempt} {node.op} {node.name}")
        if node == PI:
            return Fraction(_circle(self.prime)[1], self.step)
        if node == E:
            return Fraction(draw.getrandbits(256) ** 2)
        if node.op == "const":
            raise Undefined
        if node.name in self.natural:
            return Fraction(draw.getrandbits([5, 12][self.attempt % 2]) + 2)
        number = draw.choice([-1, 1]) * (draw.getrandbits(256) + 2)
        return Fraction(number, 1 if node.name in self.whole else PART)

    def exact(self, node: Node) -> Fraction:
        """The value of an exponent or angle, not modulo the prime.

        Raises:
            TooHard: it is no fraction, or a very long one.
        """
        if node.op == "num":
            return node.value
        if node.op == "sym" or node == PI:
            return self._symbol(node)
        args = tuple(self.exact(one) for one in node.args)
        found: Fraction | None = None
        if node.op == "add":
            found = args[0] + args[1]
        elif node.op == "neg":
            found = -args[0]
        elif node.op == "mul":
            found = args[0] * args[1]
        elif node.op == "div":
            if args[1] == 0:
                raise Undefined
            found = args[0] / args[1]
        elif node.op == "deg":
            found = args[0] * self._symbol(PI) / 180
        elif node.op == "abs":
            found = args[0] * self._sign(node.args[0], self._real(node.args[0]))
        elif node.op == "pow" and args[1].denominator == 1 and (args[0] or args[1] > 0):
            size = max(args[0].numerator.bit_length(), args[0].denominator.bit_length())
            found = args[0] ** args[1].numerator if size * abs(args[1]) <= MAX_BITS else None
        if found is None or max(found.numerator.bit_length(), found.denominator.bit_length()) > MAX_BITS:
            raise TooHard("an exponent or angle that is no fraction of moderate size")
        return found

    def _real(self, node: Node) -> int:
        real, imaginary = self.value(node)
        if imaginary:
            raise TooHard("the sign of a complex number")
        return real

    def _sign(self, node: Node, value: int) -> int:
        """The sign of a value that is no complex number: the real sign where there are no variables."""
        return self._square_sign(value) if variables(node) else self.real_sign(node)

    def _square_sign(self, value: int) -> int:
        return (1 if _is_square(value, self.prime) else -1) if value else 0

    def _root(self, degree: Fraction, radicand: Node) -> Element:
        value = self._real(radicand)
        sign = self._sign(radicand, value)
        if degree.denominator != 1 or degree < 2 or self._square_sign(sign * value) < 0:
            raise TooHard("no root in this field")
        root = pow(sign * value, pow(degree.numerator, -1, (self.prime - 1) // 2), self.prime)
        if sign >= 0 or degree % 2:
            return sign * root % self.prime, 0
        if degree != 2:
            raise TooHard("an even root of a negative number")
        return 0, root

    def _power(self, base: Node, exponent: Node) -> Element:
        if base == E and exponent.op == "ln":
            return self.value(exponent.args[0])
        if base == E and any(one == IMAGINARY for one in walk(exponent)):
            once, twice = (with_number_for_i(exponent, Node("num", value=Fraction(times))) for times in (1, 2))
            if self.exact(twice) != 2 * self.exact(once):
                raise TooHard("an exponent that is no angle")
            return self._on_circle(once)
        try:
            power = self.exact(exponent)
        except TooHard:
            return self._random("pow", self.value(base), self.value(exponent)) ** 2 % self.prime, 0
        found = self.value(base) if power.denominator == 1 else self._root(Fraction(power.denominator), base)
        return _to_the(found, power.numerator, self.prime)

    def _counted(self, kind: str, over: Fraction, under: Fraction) -> Element:
        """A factorial or binomial."""
        if over.denominator != 1 or under.denominator != 1 or max(over, under) > MAX_FACTORIAL:
            raise TooHard("a factorial of a large number or of none")
        if over < 0 and kind == "fact":
            raise Undefined
        if over < 0:
            raise TooHard("a binomial of a negative number")
        n, k = over.numerator, under.numerator
        return (factorial(n, k) if kind == "fact" else math.comb(n, k) if k >= 0 else 0) % self.prime, 0

    def _logarithm(self, node: Node) -> Element:
        """The natural logarithm, which is defined for positive values."""
        value = self._real(node)
        if self._sign(node, value) <= 0:
            raise Undefined
        return self._logarithm_of_size(node), 0

    def _logarithm_of_size(self, node: Node) -> int:
        """The logarithm of the absolute value: of products a sum, of powers a product."""
        args, prime = node.args, self.prime
        if node == E:
            return 1
        if node.op == "num":
            return sum(count * self._random("ln", (one, 0)) for one, count in prime_factors(abs(node.value)).items())
        if node.op in {"mul", "div"}:
            one, other = map(self._logarithm_of_size, args)
            return (one + other if node.op == "mul" else one - other) % prime
        if node.op in {"neg", "abs"}:
            return self._logarithm_of_size(args[0])
        if node.op == "pow":
            return self._real(args[1]) * self._logarithm_of_size(args[0]) % prime
        if node.op == "root":
            return pow(self._real(args[0]), -1, prime) * self._logarithm_of_size(args[1]) % prime
        value = self._real(node)
        return self._random("ln", (min(value, prime - value), 0))

    def _trigonometric(self, name: str, argument: Node) -> Element:
        if name in {"arcsin", "arccos", "arctan"}:
            return self._random(name, self.value(argument)), 0
        cosine, sine = ((part, 0) for part in self._on_circle(argument))
        over, under = {
            "sin": (sine, (1, 0)),
            "cos": (cosine, (1, 0)),
            "tan": (sine, cosine),
            "cot": (cosine, sine),
            "sec": ((1, 0), cosine),
            "csc": ((1, 0), sine),
        }[name]
        return _times(over, _inverse(under, self.prime), self.prime)

    def _on_circle(self, angle: Node) -> Element:
        """The point with an angle; where the angle is no power of the first point, any, the same for the same angle."""
        try:
            power = self.exact(angle) * self.step
        except TooHard:
            power = Fraction(1, 2)
        if power.denominator != 1:
            real = self._real(angle)
            size = min(real, self.prime - real)
            power = Fraction(self._random("angle", (size, 0)) * (1 if size == real else -1))
        return _to_the(_circle(self.prime)[0], power.numerator % (self.prime + 1), self.prime)

    def _random(self, name: str, *args: Element) -> int:
        """The value of a function of which nothing is known here."""
        return random.Random(f"{name} {args} {self.prime}").randrange(1, self.prime)
