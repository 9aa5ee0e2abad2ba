"""How the answers of the sources are read: one function per rule, each returns the ground truth as text.

| rule | takes | gives |
|---|---|---|
| integer | a whole number or its text, also in ``$`` or with a degree sign | its digits without leading zeros |
| number_or_text | the same, or any other text | the digits, or the text without outer white space and ``$`` |
| after_hashes | GSM8K's solution | the whole number after the last ``####``, without thousands separators |
| latex | a text | the text without outer white space and ``$`` |
| any | a text, a number, or a list of which any element is right | the text; of a list JSON with its texts |
| any_after_hashes, any_boxed | a text | what follows the last ``####``, what is in the last box |

Leading zeros go: AIME's "033" and a model's 33 are the same answer, and verifiers that compare texts would not see it.
"""

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from spo_verl.agent.grading.parsing import read
from spo_verl.agent.grading.response import last_boxed
from spo_verl.agent.grading.truths import right_answers
from spo_verl.data.prepare.published import AnswerRule

_WHOLE = re.compile(r"([+-]?)0*(\d+)(?:\.0*)?")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)\s*\Z")


def read_answer(rule: AnswerRule, value: Any, *, mathematics: bool = True) -> str:
    """The ground truth of a row.

    Args:
        rule: how it is read.
        value: what the row has.
        mathematics: whether the mathematical reward must be able to use it.

    Raises:
        ValueError: the value is not what the rule takes, or no ground truth that the mathematical reward can use; says
            what it is.
    """
    text = _RULES[rule](value)
    if mathematics:
        right_answers(text)
    return text


def is_whole(answer: str) -> bool:
    """Whether a ground truth is a whole number as `read_answer` writes it."""
    return re.fullmatch(r"-?\d+", answer) is not None


def is_only_text(answer: str) -> bool:
    """Whether the mathematical reward can do no more with a ground truth than compare how it is written."""
    return any(read(one).kind == "other" for one in right_answers(answer))


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


def _any(value: Any) -> str:
    if not isinstance(value, (list, tuple)):
        return _scalar(value)
    texts = [_scalar(one) for one in value]
    if not texts:
        raise ValueError("a list without elements is no answer")
    return texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)


def _scalar(value: Any) -> str:
    if isinstance(value, Decimal) and value.is_finite():
        return format(value.normalize(), "f")
    return value.strip() if isinstance(value, str) and value.strip() else _text(value)


def _any_after_hashes(value: Any) -> str:
    _, mark, answer = _text(value).rpartition("####")
    if not mark:
        raise ValueError("there is no '####' before the answer")
    return _scalar(answer)


def _any_boxed(value: Any) -> str:
    answer = last_boxed(_text(value))
    if answer is None:
        raise ValueError("there is no closed \\boxed{...} in the answer")
    return _scalar(answer)


_RULES: dict[AnswerRule, Callable[[Any], str]] = {
    "integer": _integer,
    "number_or_text": _number_or_text,
    "after_hashes": _after_hashes,
    "latex": _text,
    "any": _any,
    "any_after_hashes": _any_after_hashes,
    "any_boxed": _any_boxed,
}
