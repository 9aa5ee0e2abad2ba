"""How the answers of the sources are read: one function per rule, each returns the ground truth as text.

| rule | takes | gives |
|---|---|---|
| integer | a whole number or its text, also in ``$`` or with a degree sign | its digits without leading zeros |
| number_or_text | the same, or any other text | the digits, or the text without outer white space and ``$`` |
| after_hashes | GSM8K's solution | the whole number behind the last ``####``, without thousands separators |
| latex | a text | the text without outer white space and ``$`` |

Leading zeros go: AIME's "033" and a model's 33 are the same answer, and verifiers that compare texts would not see it.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from spo_verl.agent.grading.truths import right_answers
from spo_verl.data.prepare.published import AnswerRule

_WHOLE = re.compile(r"([+-]?)0*(\d+)(?:\.0*)?")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)\s*\Z")


def read_answer(rule: AnswerRule, value: Any) -> str:
    """The ground truth of a row.

    Raises:
        ValueError: the value is not what the rule takes, or no ground truth that the mathematical reward can use; says
            what it is.
    """
    text = _RULES[rule](value)
    right_answers(text)
    return text


def is_whole(answer: str) -> bool:
    """Whether a ground truth is a whole number as `read_answer` writes it."""
    return re.fullmatch(r"-?\d+", answer) is not None


def _integer(value: Any) -> str:
    text = _DEGREES.sub("", _text(value)).strip()
    match = _WHOLE.fullmatch(text)
    if match is None:
        raise ValueError(f"{value!r} is not a whole number")
    sign, digits = match.groups()
    return f"-{digits}" if sign == "-" and digits != "0" else digits


def _number_or_text(value: Any) -> str:
    text = _text(value)
    return _integer(text) if _WHOLE.fullmatch(text) else text


def _after_hashes(value: Any) -> str:
    _, mark, answer = _text(value).rpartition("####")
    if not mark:
        raise ValueError("there is no '####' before the answer")
    return _integer(answer.replace(",", "").replace("$", ""))


def _text(value: Any) -> str:
    """The value as text without white space and a pair of ``$`` around it."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"a {type(value).__name__} is no answer" if value is not None else "it is empty")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no answer")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    text = text.strip()
    inner = text.strip("$").strip()
    if "$" not in inner and text.startswith("$") and text.endswith("$"):
        text = inner
    if not text:
        raise ValueError("it is empty")
    return text


_RULES: dict[AnswerRule, Callable[[Any], str]] = {
    "integer": _integer,
    "number_or_text": _number_or_text,
    "after_hashes": _after_hashes,
    "latex": _text,
}
