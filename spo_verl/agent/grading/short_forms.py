r"""Answers as short canonical strings, and what is settled without algebra.

`canonical` is what votes for a majority compare: ``0.5``, ``1/2``, ``\frac12`` and ``\dfrac{1}{2}`` are all ``1/2``.
It is cheap, so it is not complete: rational numbers and collections of them are brought to one form, other expressions
only lose their layout. ``\sqrt{12}`` and ``2\sqrt{3}`` stay two answers.

`quick_verdict` settles with fractions what they can settle, so that most rows never reach a grading process.
"""

from __future__ import annotations

from fractions import Fraction

from spo_verl.agent.grading.comparing import same, with_fractions
from spo_verl.agent.grading.exact import NeedsAlgebra, TooHard, Undefined, rational
from spo_verl.agent.grading.foreign import is_foreign
from spo_verl.agent.grading.parsing import Answer, read
from spo_verl.agent.grading.units import is_inert


def canonical(answer: str) -> str:
    """The string by which answers vote; "" for an empty answer."""
    return _canonical(read(answer))


def quick_verdict(answer: str, truth: str) -> bool | None:
    """Whether an answer equals the ground truth, where fractions and words tell; None where algebra is needed."""
    mine, theirs = read(answer), read(truth)
    if not mine.text:
        return False
    if "other" in (mine.kind, theirs.kind) and mine.text != theirs.text and (is_foreign(answer) or is_foreign(truth)):
        return None
    try:
        return (mine.kind == theirs.kind == "other" and mine.text == theirs.text) or same(mine, theirs, with_fractions)
    except (NeedsAlgebra, RecursionError):
        return None


def number_of(answer: str) -> Fraction | None:
    r"""The rational number that an answer is: 12, 1,234, 0.5, 1/2, ``\frac{1}{2}``, ``1\frac{1}{2}``; or None."""
    read_answer = read(answer)
    return _rational(read_answer) if read_answer.kind == "number" and not read_answer.unit else None


def _rational(answer: Answer) -> Fraction | None:
    try:
        return rational(answer.node) if answer.node is not None else None
    except (NeedsAlgebra, TooHard, Undefined, RecursionError):
        return None


def _canonical(answer: Answer) -> str:
    if answer.kind == "number":
        value = _rational(answer)
        text = answer.text if value is None else str(value)
        return (
            text
            if not answer.unit or is_inert(answer.unit)
            else f"{text}{'' if answer.unit == '%' else ' '}{answer.unit}"
        )
    named = len({part.names for part in answer.parts}) > 1  # x=1, y=2 is not x=2, y=1
    parts = [(f"{part.names[0]}=" if named and part.names else "") + _canonical(part) for part in answer.parts]
    if answer.kind == "equal":
        return parts[0] if len(set(parts)) == 1 else answer.text
    if answer.kind in {"set", "list"}:
        return "{" + ",".join(sorted(set(parts) if answer.kind == "set" else parts)) + "}"
    if answer.kind == "tuple" and answer.text[:1] in "([":
        return answer.text[0] + ",".join(parts) + answer.text[-1]
    if answer.kind == "union":
        return "\\cup".join(sorted(parts))
    return answer.text
