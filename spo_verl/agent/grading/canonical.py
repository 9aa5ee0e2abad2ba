r"""Answers as short canonical strings.

`canonical` is what votes for a majority compare: ``0.5``, ``1/2``, ``\frac12`` and ``\dfrac{1}{2}`` are all ``1/2``.
It is cheap, so it is not complete: numbers, fractions, mixed numbers, and lists of them are brought to one form, other
expressions only lose their layout (``\left``, spaces, units, ...). ``\sqrt{12}`` and ``2\sqrt{3}`` stay two answers.

`quick_verdict` settles by the same means what it can settle for certain, so that most rows never reach a symbolic
comparison.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_EXPRESSION = 500
"""Characters up to which an answer is compared symbolically; a longer one is right only if it is written alike."""

MAX_DIGITS = 60

_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|\\?\$")  # not the line break \\ before a parenthesis
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|[Bb]igg?[lr]?)(?![a-zA-Z])|(?<!\\)\\[,;:! ]|\\q?quad(?![a-zA-Z])|~"
)
_DEGREES = re.compile(r"\^\{?\\circ\}?|\\degree(?![a-zA-Z])|°|\\text(?:rm)?\{ *degrees?\}")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d}])\s*\\(?:text|textrm|mathrm|mbox)\s*\{\s*[a-zA-Z./ ]+\s*\}(?:\^\{?\d\}?)?\s*$")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\w)")
_INTEGER = re.compile(r"[+-]?\d+")
_GROUPED = re.compile(r"([+-]?\d{1,3}(?:,\d{3})+)(\.\d+)?")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)")
_SLASHED = re.compile(r"([+-]?\d+)/(\d+)")
_FRACTION = re.compile(r"([+-]?)(\d*)\\frac\{([+-]?\d+)\}\{([+-]?\d+)\}")
_ASSIGNED = re.compile(r"[a-zA-Z](?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?=(?!=)")
_CHOICE = re.compile(r"\(([a-zA-Z])\)")
_WORD = re.compile(r"[a-zA-Z]{3,}")
_ALIKE = str.maketrans({"−": "-", "–": "-", "—": "-", "×": "*", "，": ",", "（": "(", "）": ")", "\u00a0": " "})


def tidy(answer: str) -> str:
    r"""An answer without layout: dollars, ``\left``, double spaces, degrees, a unit at the end."""
    text = " ".join(answer.translate(_ALIKE).split())
    text = _DELIMITERS.sub("", text).replace("\\%", "%").replace("{,}", ",")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    text = _DEGREES.sub("", _LAYOUT.sub(" ", text))
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text))
    text = _UNIT.sub("", text).strip().rstrip(".,;\\").strip()
    while text.startswith("{") and text.endswith("}") and _one_group(text):
        text = text[1:-1].strip()
    return text


def canonical(answer: str) -> str:
    """The string by which answers vote; "" for an empty answer."""
    text = _compact(tidy(answer))
    assigned = _ASSIGNED.match(text)
    if assigned and "," not in text and "=" not in text[assigned.end() :]:
        text = text[assigned.end() :]
    return _canonical_value(text)


def quick_verdict(answer: str, truth: str) -> bool | None:
    """Whether an answer equals the ground truth, where that is certain without algebra; None where it is not.

    Certain are: the same text apart from layout; two numbers that are equal; two different whole numbers; two words
    (letters only, three or more), which are compared as words and not as products of variables.
    """
    tidied, expected = tidy(answer), tidy(truth)
    if not tidied:
        return False
    mine, theirs = _compact(tidied), _compact(expected)
    if mine == theirs or _canonical_value(mine) == _canonical_value(theirs):
        return True
    if mine.endswith("%") or theirs.endswith("%"):
        return _percent_verdict(mine, theirs)
    number, wanted = number_of(mine), number_of(theirs)
    if number is not None and wanted is not None and number.denominator == wanted.denominator == 1:
        return False
    if _WORD.fullmatch(mine) and _WORD.fullmatch(theirs):
        return mine.lower() == theirs.lower()
    return None


def number_of(text: str) -> Fraction | None:
    r"""The number that a compact text writes: 12, 1,234, 0.5, 1/2, ``\frac{1}{2}``, ``1\frac{1}{2}``; or None."""
    if sum(character.isdigit() for character in text) > MAX_DIGITS:
        return None
    if _INTEGER.fullmatch(text):
        return Fraction(int(text))
    if grouped := _GROUPED.fullmatch(text):
        return Fraction(grouped[1].replace(",", "") + (grouped[2] or ""))
    if _DECIMAL.fullmatch(text):
        return Fraction(text if text[-1] != "." else text[:-1])
    if slashed := _SLASHED.fullmatch(text):
        return Fraction(int(slashed[1]), int(slashed[2])) if int(slashed[2]) else None
    if written := _FRACTION.fullmatch(text):
        return _written_fraction(*written.groups())
    return None


def _written_fraction(sign: str, whole: str, over: str, under: str) -> Fraction | None:
    if not int(under):
        return None
    part = Fraction(int(over), int(under))
    if whole and part < 0:
        return None
    return (-1 if sign == "-" else 1) * ((int(whole) if whole else 0) + part)


def _compact(text: str) -> str:
    """Without any space, text commands opened."""
    previous = None
    while previous != text:
        previous, text = text, _TEXT.sub(r"\1", text)
    return re.sub(r"\s+", "", text)


def _canonical_value(text: str) -> str:
    number = number_of(text)
    if number is not None:
        return str(number)
    if choice := _CHOICE.fullmatch(text):
        return choice[1]
    ends = (text[:1], text[-1:])
    if text.startswith("\\{") and text.endswith("\\}"):
        return _listed(_split(text[2:-2]), "{", "}", ordered=False)
    if ends[0] in ("(", "[") and ends[1] in (")", "]") and len(parts := _split(text[1:-1])) > 1:
        return _listed(parts, *ends, ordered=True)
    parts = _split(text)
    return _listed(parts, "{", "}", ordered=False) if len(parts) > 1 and all(parts) else text


def _listed(parts: list[str], opening: str, closing: str, *, ordered: bool) -> str:
    found = [str(part if number is None else number) for part in parts for number in [number_of(part)]]
    return opening + ",".join(found if ordered else sorted(set(found))) + closing


def _split(text: str) -> list[str]:
    """The parts between commas outside of all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _one_group(text: str) -> bool:
    """Whether the brace at the beginning closes at the end, and not before."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position == len(text) - 1
    return False


def _percent_verdict(mine: str, theirs: str) -> bool | None:
    r"""50% is right for 50%, for 50 (the question may ask how many percent) and for 0.5; 50 and 0.5 are for 50%."""
    number, wanted = number_of(mine.rstrip("%")), number_of(theirs.rstrip("%"))
    if number is None or wanted is None:
        return None
    if number == wanted:
        return True
    if mine.endswith("%") and theirs.endswith("%"):
        return False
    return number / 100 == wanted if mine.endswith("%") else number == wanted / 100
