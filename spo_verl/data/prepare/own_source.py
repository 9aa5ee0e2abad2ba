"""A source of the user's own: any questions and answers, by the names of their columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from spo_verl.data.prepare.data_errors import SpoDataError
from spo_verl.data.prepare.published import SOURCES, AnswerRule, Release, Source

AnswerForm = Literal["whole", "hashes", "boxed"]
MATH = "math"

_RULES: dict[AnswerForm, AnswerRule] = {"whole": "any", "hashes": "any_after_hashes", "boxed": "any_boxed"}


def named_source(
    name: str,
    question: str | None,
    answer: str | None,
    *,
    source_id: str | None = None,
    answer_form: AnswerForm = "whole",
    ability: str = MATH,
) -> Source | None:
    """The source whose columns are named; None where no column is, so that ``name`` is a published one.

    Args:
        name: the ``data_source`` of the rows. Under the name of a published source its rules for answers hold.
        question: column of the question, a text or chat messages. Dots lead into structs, here and below.
        answer: column of the answer: a text, a number, or a list of which any element is right.
        source_id: column of an identifier.
        answer_form: where in the answer the ground truth is: all of it, after the last ``####``, in the last box.
        ability: verl's column; only of "math" answers are checked as the mathematical reward reads them.

    Raises:
        SpoDataError: no name, one column for both, or rules that a published source has already.
    """
    if question is None and answer is None:
        if (source_id, answer_form, ability) != (None, "whole", MATH):
            raise SpoDataError(
                "--id, --answer-form and --ability need the columns: name them with --question and --answer."
            )
        return None
    if not name.strip():
        raise SpoDataError("the name is empty: it becomes the rows' data_source.")
    if question == answer:
        raise SpoDataError(f"--question and --answer are both {question!r}: name two columns.")
    release = Release("own", "", ((None, "train"),), question or "", answer or "", source_id, messages=None)
    if name not in SOURCES:
        return Source(name, name, "train", _RULES[answer_form], (release,), ability=ability)
    if (answer_form, ability) != ("whole", MATH):
        raise SpoDataError(
            f"{name} has its own rules for answers: leave --answer-form and --ability away, or take another name."
        )
    return replace(SOURCES[name], releases=(release,))
