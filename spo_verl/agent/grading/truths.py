"""Ground truths: which are usable, and what several right answers look like.

The reward and ``spo-verl data check`` both ask here, so they refuse the same.
"""

from __future__ import annotations

import ast
import json
import math
from decimal import Decimal
from typing import Any

from spo_verl.agent.grading.parsing import read
from spo_verl.agent.grading.response import after_hashes, last_boxed
from spo_verl.agent.grading.tokens import MAX_EXPRESSION, Unbalanced, tokens

_MISSING = {"nan", "NaN", "NAN", "None", "null", "Null", "NULL", "<NA>", "NaT", "N/A", "NA"}
_INFINITE = {"inf", "+inf", "-inf", "Infinity", "-Infinity"}


class UnusableTruth(ValueError):
    """No answer can equal the ground truth; the message says why."""


def right_answers(ground_truth: Any) -> list[str]:
    r"""The right answers that a ground truth gives, each as text.

    A list means that any of its elements is right, and so does its text in JSON or Python where its elements are
    quoted (``["36", "37"]``) or a single number (``[36]``). ``[36, 37]`` is an interval. A text with a box, or in
    GSM8K's form with ``####``, is cut down to that answer.

    Raises:
        UnusableTruth: nothing, NaN, infinity, no text or number, or a text that no answer can equal.
    """
    given = ground_truth.tolist() if hasattr(ground_truth, "tolist") else ground_truth
    if isinstance(given, str):
        given = _listed(given.strip())
    if isinstance(given, (list, tuple)):
        if not given:
            raise UnusableTruth("a list without elements")
        return [_right_answer(one) for one in given]
    return [_right_answer(given)]


def _listed(text: str) -> Any:
    """The list that a text writes; the text itself where it writes none."""
    if not text.startswith("["):
        return text
    for load in (json.loads, ast.literal_eval):
        try:
            found = load(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        several = isinstance(found, list)
        if several and (len(found) < 2 or any(isinstance(one, (str, bool, type(None), list, dict)) for one in found)):
            return found
    if text.startswith(('["', "['")):
        raise UnusableTruth(f"{_shown(text)} begins like a list in JSON but is not one")
    return text


def _right_answer(given: Any) -> str:
    if given is None:
        raise UnusableTruth("nothing (a missing value)")
    if isinstance(given, bool) or not isinstance(given, (str, int, float, Decimal)):
        raise UnusableTruth(f"{_shown(given)} is not a text or a number")
    if not isinstance(given, str):
        if not math.isfinite(given):
            raise UnusableTruth(f"{given} is no answer (a missing value becomes NaN in pandas and JSON)")
        return str(int(given)) if given == int(given) else str(given)
    text = given.strip()
    boxed = last_boxed(text)
    text = (after_hashes(text) or text if boxed is None else boxed).strip()
    if text in _MISSING or text in _INFINITE:
        raise UnusableTruth(
            f"{text!r} is what a missing or broken number becomes as text; write \\text{{...}} if it is meant"
        )
    if not text:
        raise UnusableTruth("an empty text")
    if len(text) <= MAX_EXPRESSION:
        try:
            tokens(text)
        except Unbalanced as error:
            raise UnusableTruth(f"{_shown(text)}: {error}, so no boxed answer can equal it") from None
        except ValueError:  # it is compared as text
            return text
        if not read(text).text:
            raise UnusableTruth(f"{_shown(text)} has nothing but layout")
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
