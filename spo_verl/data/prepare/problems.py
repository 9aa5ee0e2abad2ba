"""A source's row as problem and answer, checked: every error names the row and the field."""

import json
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
class SourceProblem:
    """What a source's row says.

    Attributes:
        row: number in the source, from 0.
        text: the problem, without instructions and outer white space.
        answer: the ground truth.
        source_id: the source's own identifier; "" without one.
        had_instruction: an instruction was taken away from the text.
        before: chat messages before the one with the problem.
    """

    row: int
    text: str
    answer: str
    source_id: str
    had_instruction: bool
    before: tuple[dict[str, str], ...] = ()


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


def read_problem(raw: RawRow, source: Source, release: Release) -> SourceProblem:
    """Check a row and read it.

    Raises:
        RowError: names row and field.
    """
    before: tuple[dict[str, str], ...] = ()
    if release.messages is None:
        before, content = _conversation(raw, release)
    else:
        content = _user_message(raw, release) if release.messages else raw.problem
    if not isinstance(content, str) or not content.strip():
        either = " or a list of chat messages" if release.messages is None else ""
        raise row_error(raw.row, release.problem, f"{_shown(content)}, and a problem is a text{either}.")
    # The processed release took its problems out of the instruction, at least for the most part.
    wrapped = release.messages or source.name == "dapo_math_17k"
    text, had_instruction = without_instruction(content) if wrapped else (content.strip(), False)
    if not text:
        raise row_error(raw.row, release.problem, "there is an instruction and no problem.")
    try:
        answer = read_answer(source.answer_rule, raw.answer, mathematics=is_mathematics(source.ability))
    except ValueError as error:
        raise row_error(raw.row, release.answer, f"{error}.") from error
    source_id = "" if raw.source_id is None else str(raw.source_id)
    for path, written in ((release.problem, text), (release.answer, answer), (release.source_id, source_id)):
        if not _is_unicode(written):
            raise row_error(raw.row, str(path), "it has half of a surrogate pair, which no file in UTF-8 can hold.")
    return SourceProblem(raw.row, text, answer, source_id, had_instruction, before)


def is_mathematics(ability: Any) -> bool:
    """Whether rows of an ability are graded by the mathematical reward, as far as their own words say."""
    return not isinstance(ability, str) or "math" in ability.lower()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _conversation(raw: RawRow, release: Release) -> tuple[tuple[dict[str, str], ...], Any]:
    """The messages before the last, and the content of the last; a text is one message of the user."""
    messages = _listed(raw.problem)
    if not isinstance(messages, list):
        return (), messages
    found: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        where = f"{release.problem}[{number}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise row_error(raw.row, where, f"{_shown(message)}, and a message has a role and a content.")
        if message["role"] not in ("system", "user", "assistant"):
            raise row_error(raw.row, f"{where}.role", f"{message['role']!r} instead of system, user or assistant.")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise row_error(raw.row, f"{where}.content", f"{_shown(message['content'])}, and a content is a text.")
        if not _is_unicode(message["content"]):
            raise row_error(raw.row, f"{where}.content", "it has half of a surrogate pair.")
        found.append({"role": message["role"], "content": message["content"]})
    if found and found[-1]["role"] != "user":
        where = f"{release.problem}[{len(found) - 1}].role"
        raise row_error(raw.row, where, f"{found[-1]['role']!r}, and the last message is the user's.")
    return tuple(found[:-1]), found[-1]["content"] if found else ""


def _listed(given: Any) -> Any:
    """Chat messages that a text writes as JSON, as in a CSV file; anything else as it is."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):
            return given
        if isinstance(found, list) and found and all(isinstance(one, dict) and "role" in one for one in found):
            return found
    return given


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
