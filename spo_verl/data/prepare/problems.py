"""A source's row as problem and answer, checked: every error names the row and the field."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from spo_verl.data.prepare.answers import read_answer
from spo_verl.data.prepare.data_errors import row_error
from spo_verl.data.prepare.problem_texts import without_instruction
from spo_verl.data.prepare.published import Release, Source
from spo_verl.data.prepare.streams import values_of


@dataclass(frozen=True)
class Problem:
    """What a source's row says.

    Attributes:
        row: number in the source, from 0.
        text: the problem, without instructions and outer white space.
        answer: the ground truth.
        source_id: the source's own identifier; "" where there is none.
        had_instruction: an instruction was taken away from the text.
    """

    row: int
    text: str
    answer: str
    source_id: str
    had_instruction: bool


@dataclass(frozen=True)
class RawRow:
    """The three values of a row that count, as they were read."""

    row: int
    problem: Any
    answer: Any
    source_id: Any


def raw_rows(table: pa.Table, release: Release, first: int) -> Iterator[RawRow]:
    """The rows of a batch whose first row has the number ``first``."""
    problems, answers = values_of(table, release.problem), values_of(table, release.answer)
    ids = [None] * len(problems) if release.source_id is None else values_of(table, release.source_id)
    for number, (problem, answer, source_id) in enumerate(zip(problems, answers, ids, strict=True), first):
        yield RawRow(number, problem, answer, source_id)


def read_problem(raw: RawRow, source: Source, release: Release) -> Problem:
    """Check a row and read it.

    Raises:
        RowError: names row and field.
    """
    content = _user_message(raw, release) if release.messages else raw.problem
    if not isinstance(content, str) or not content.strip():
        raise row_error(raw.row, release.problem, f"{_shown(content)}, and a problem is a text.")
    # The processed release took its problems out of the instruction, at least for the most part.
    wrapped = release.messages or source.name == "dapo_math_17k"
    text, had_instruction = without_instruction(content) if wrapped else (content.strip(), False)
    if not text:
        raise row_error(raw.row, release.problem, "there is an instruction and no problem.")
    try:
        answer = read_answer(source.answer_rule, raw.answer)
    except ValueError as error:
        raise row_error(raw.row, release.answer, f"{error}.") from error
    return Problem(raw.row, text, answer, "" if raw.source_id is None else str(raw.source_id), had_instruction)


def _user_message(raw: RawRow, release: Release) -> Any:
    messages = raw.problem
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        raise row_error(raw.row, release.problem, f"{_shown(messages)}, and the source has one message per row.")
    if messages[0].get("role") != "user":
        raise row_error(raw.row, f"{release.problem}[0].role", f"{messages[0].get('role')!r} instead of 'user'.")
    return messages[0].get("content")


def _shown(value: Any) -> str:
    if value is None or value in ("", []):
        return "it is empty"
    text = repr(value)
    return f"it is {text if len(text) <= 60 else text[:57] + '...'}"
