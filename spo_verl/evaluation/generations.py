"""Reading graded responses: verl's validation dumps and plain files.

| format | recognised by | prompt | response |
|---|---|---|---|
| plain ``.jsonl`` or ``.parquet`` | ``prompt_id`` and ``response`` | ``prompt_id`` | ``response`` |
| verl's dump, ``<step>.jsonl`` | ``input`` and ``output`` | ``input`` with ``gts`` | ``output`` |

Every row is a response of its own, except in verl's dumps, where a session may have several outputs: rows of the form
that verl writes, with a ``uid`` of the form that verl writes (`spo_verl.data.values.dumps.trajectory_of`). Columns that
happen to have these names in other files mean nothing here. Rows are counted: each is used, or set aside with a reason.

In both, the grade is ``acc``, else ``score``, and the answer ``pred``; the ground truth is ``gts`` or ``ground_truth``.
The benchmark is the line's ``data_source``; the reward `spo_verl.agent.math_reward` puts it into verl's dumps. Files
are read line by line, and responses are kept for exports only.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from spo_verl.core.evaluation import MISSING
from spo_verl.data.canonical import NotCanonicalError, canonical_json
from spo_verl.data.values.dumps import by_ground_truth, dump_lines, is_dump_line, matching_slots, trajectory_of
from spo_verl.data.values.prompt_texts import PromptText, squeeze
from spo_verl.errors import SpoError, SpoValuesError
from spo_verl.files import parquet_rows

GRADED_AT_A_TIME = 256
COLUMNS = ("prompt_id", "prompt", "response", "ground_truth", "input", "output", "gts", "score", "acc", "step", "pred",
           "uid", "data_source")  # fmt: skip
"""What is read of a Parquet file, next to the grade that is named."""
EARLIER = "earlier outputs of a session, of which the last counts"
REPEATED = "repeating a session that was read before"
GRADE_KEYS = ("acc", "score")
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
ANSWERS_MISSING = "no answers (field pred), so no maj@k; --regrade finds them"


class EvaluationError(SpoError, ValueError):
    """Generations cannot be read or do not fit together."""


@dataclass
class Prompt:
    """The graded responses of one prompt, in the order of the file.

    Attributes:
        correct: Grades in [0, 1].
        answers: What was graded; "" for none, None where the file does not say.
        asked, truth, responses: The prompt, its ground truth and the responses, where texts are kept.
    """

    correct: list[float] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    asked: str = ""
    truth: Any = None
    responses: list[str] = field(default_factory=list)


@dataclass
class Generations:
    """What one run generated.

    Attributes:
        name: Of the run.
        prompts: Data source -> key of the prompt -> its responses. Keys are the same in runs on the same prompts.
        expected: Data source -> number of prompts, where the data tell it.
        step: Training step of the dump, or None.
        problems: What is not as it should be, for the reader.
        notes: What else to know.
        rows: Rows that were read. ``rows == used + sum(set_aside.values())``.
        used: Rows that metrics look at.
        set_aside: Reason -> rows that they do not look at.
        regraded: Responses that were graded again, those whose grade changed, those given up; None without.
    """

    name: str
    prompts: dict[str, dict[str, Prompt]] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    step: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    used: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    regraded: tuple[int, int, int] | None = None

    def lay_aside(self, reason: str) -> None:
        """Count a row that is not used."""
        self.set_aside[reason] = self.set_aside.get(reason, 0) + 1

    def account(self) -> str:
        """What became of every row, in words."""
        said = f"{self.rows} {'row' if self.rows == 1 else 'rows'} read, {self.used} used"
        return said + "".join(f", {count} set aside ({reason})" for reason, count in self.set_aside.items())


Regrade = Callable[[str, str, Any], dict[str, Any]]
"""data source, response, ground truth -> what the reward function returns."""


@dataclass(frozen=True)
class _Line:
    where: str
    source: str
    key: str
    asked: str
    response: str
    truth: Any
    grade: float | None
    answer: str | None


def read_generations(
    path: Path,
    name: str,
    *,
    step: int | None = None,
    source: str | None = None,
    data: DataSources | None = None,
    grade_key: str | None = None,
    regrade: Regrade | None = None,
    threads: int = 4,
    keep_texts: bool = False,
) -> Generations:
    """Read the generations of one run.

    Args:
        path: A file, or a folder of files. Of a folder of verl's dumps one step is read.
        name: What the run is called.
        step: Which step of a folder of dumps; None takes the last.
        source: Benchmark of lines that do not tell theirs.
        data: The data that the prompts came from: tells the benchmark of lines of a dump, and how many prompts
            there are.
        grade_key: Field of the grade, in [0, 1]; None takes ``acc`` where there is one, else ``score``.
        regrade: Grades every response again; grades and answers of the file are then not used.
        threads: How many responses are graded at a time.
        keep_texts: Keep prompts and responses too, which then are all in memory.

    Raises:
        EvaluationError: There is nothing to read, or a line is incomplete. Names file, line and remedy.
    """
    files, chosen = files_of(path, step)
    found = Generations(name, step=chosen, expected=dict(data.expected) if data else {})
    lines = _lines(files, found, source, data, grade_key, graded=regrade is None)
    for line, grade, answer in _graded(lines, found, regrade, threads):
        found.used += 1
        prompt = found.prompts.setdefault(line.source, {}).setdefault(line.key, Prompt())
        prompt.correct.append(grade)
        prompt.answers.append(answer)
        if keep_texts:
            prompt.asked, prompt.truth = line.asked, line.truth
            prompt.responses.append(line.response)
    if not found.prompts:
        raise EvaluationError(f"{path}: there is no generation in it; was verl stopped before its validation ended?")
    if found.rows != found.used + sum(found.set_aside.values()):
        raise EvaluationError(f"{path}: rows are missing: {found.account()}; please report this")
    return found


def files_of(path: Path, step: int | None) -> tuple[list[Path], int | None]:
    """The files to read, and the step if they are dumps of one.

    Raises:
        EvaluationError: No file, or no dump of that step.
    """
    if os.path.isfile(path):
        return [path], _step_of(path)
    files = sorted(file for file in path.glob("*") if file.suffix in (".jsonl", ".parquet")) if path.is_dir() else []
    if not files:
        raise EvaluationError(
            f"{path}: no such file, or a folder without .jsonl or .parquet files; "
            "name verl's trainer.validation_data_dir"
        )
    steps = {file: _step_of(file) for file in files}
    dumps = {number: file for file, number in steps.items() if number is not None}
    if len(dumps) == len(files):
        wanted = max(dumps) if step is None else step
        if wanted not in dumps:
            there = ", ".join(map(str, sorted(dumps)))
            raise EvaluationError(f"{path}: no dump of step {wanted}; there are steps {there}")
        return [dumps[wanted]], wanted
    if step is not None:
        raise EvaluationError(f"{path}: --step {step} chooses among dumps <step>.jsonl, and there are other files too")
    if len(dumps) > 1:
        there = ", ".join(file.name for file in dumps.values())
        raise EvaluationError(
            f"{path} holds dumps of several training steps ({there}) and other files: name the file to read"
        )
    return files, None


def _step_of(file: Path) -> int | None:
    """The training step whose dump a file is, as its name says; None for other files, whatever they are called."""
    if file.suffix != ".jsonl" or not _NUMBER.fullmatch(file.stem):
        return None
    first = next((line for _, line in dump_lines_of(file)), None)
    # A dump that verl has just begun to write is empty.
    return int(file.stem) if first is None or (is_dump_line(first) and not _is_plain(first)) else None


def dump_lines_of(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`dump_lines` of any file of generations, with the errors of this module."""
    try:
        yield from dump_lines(file, only_dumps=False)
    except SpoValuesError as error:
        raise EvaluationError(str(error)) from error


class DataSources:
    """Prepared data, to tell which benchmark a rendered prompt belongs to."""

    def __init__(self, dataset: Any) -> None:
        from spo_verl.data.identity import dataset_keys
        from spo_verl.data.values.prompt_texts import first_rows, prompt_texts

        keys = dataset_keys(dataset)
        self._texts: list[PromptText] = prompt_texts(dataset, keys)
        self._candidates = by_ground_truth(self._texts)
        rows = first_rows(dataset, keys, {"data_source": None})
        places = zip(keys.row_of_slot_P.tolist(), rows, strict=False)  # a table without the column gives no rows
        self._source = [_benchmark_of(f"row {number} of the data", row) for number, row in places]
        if len(self._source) != len(self._texts):
            raise EvaluationError("the data have no column data_source, which tells the benchmark of each prompt")
        self.expected = {one: self._source.count(one) for one in dict.fromkeys(self._source)}

    def source_of(self, rendered: str, truth: Any) -> str | None:
        """The data source of the prompt that a rendered prompt holds; None if it holds none of the data."""
        slots = matching_slots(squeeze(rendered), self._candidates.get(canonical_json(truth), ()), self._texts)
        return self._source[slots[0]] if slots else None


def _benchmark_of(where: str, row: Mapping[str, Any]) -> str:
    found = _named(where, row, "data_source", absent_is_fine=False)
    assert found is not None
    return found


def _rows(files: Iterable[Path], grade_key: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    wanted = COLUMNS if grade_key is None else (*COLUMNS, grade_key)
    for file in files:
        if file.suffix == ".parquet":
            yield from ((f"{file}, row {number}", row) for number, row in parquet_rows(file, wanted, EvaluationError))
        else:
            yield from ((f"{file}, line {number}", line) for number, line in dump_lines_of(file))


def _lines(
    files: list[Path],
    found: Generations,
    source: str | None,
    data: DataSources | None,
    grade_key: str | None,
    *,
    graded: bool,
) -> Iterator[_Line]:
    """One line per response: of several outputs of a session in verl's dumps the last."""
    seen: set[tuple[str, int]] = set()
    steps: set[int] = set()
    strange = 0
    waiting: tuple[tuple[str, int, int], str, dict[str, Any]] | None = None

    def line(where: str, row: dict[str, Any]) -> _Line:
        return _line(where, row, source, data, grade_key, graded=graded)

    for where, row in _rows(files, grade_key):
        found.rows += 1
        trajectory = None if _is_plain(row) else trajectory_of(row)
        if is_dump_line(row) and not _is_plain(row):
            steps.add(row["step"])
            strange += trajectory is None and row.get("uid") is not None
        if waiting is not None and trajectory is not None and trajectory[:2] == waiting[0][:2]:
            if trajectory[2] > waiting[0][2]:
                found.lay_aside(EARLIER)
                waiting = trajectory, where, row
            else:
                found.lay_aside(REPEATED)
            continue
        if waiting is not None:
            yield line(*waiting[1:])
            waiting = None
        if trajectory is None:
            yield line(where, row)
        elif trajectory[:2] in seen:
            found.lay_aside(REPEATED)
        else:
            seen.add(trajectory[:2])
            waiting = trajectory, where, row
    if waiting is not None:
        yield line(*waiting[1:])
    if repeated := found.set_aside.get(REPEATED):
        found.problems.append(f"{repeated} lines repeat a session and were left out: is a file there twice?")
    if len(steps) > 1:
        listed = ", ".join(map(str, sorted(steps)))
        found.problems.append(f"lines of several training steps are mixed ({listed}): the figures are of no one policy")
    if strange:
        found.notes.append(f"{strange} lines have a uid that is not verl's; each counts as a response of its own")


def _is_plain(row: dict[str, Any]) -> bool:
    """Whether a row is a plain generation; one of verl's with further columns of these names is not."""
    return "prompt_id" in row and "response" in row and trajectory_of(row) is None


def _line(
    where: str,
    row: dict[str, Any],
    source: str | None,
    data: DataSources | None,
    grade_key: str | None,
    *,
    graded: bool,
) -> _Line:
    is_dump = not _is_plain(row) and isinstance(row.get("input"), str) and isinstance(row.get("output"), str)
    if not is_dump and not ("prompt_id" in row and isinstance(row.get("response"), str)):
        raise EvaluationError(
            f"{where}: neither a line of verl's validation dumps (input, output) nor a generation (prompt_id, response)"
        )
    truth = row.get("gts") if is_dump else row.get("ground_truth")
    benchmark = _named(where, row, "data_source", absent_is_fine=True) or source
    if benchmark is None and data is not None and is_dump:
        benchmark = data.source_of(row["input"], truth)
    if benchmark is None:
        raise EvaluationError(
            f"{where}: no data_source; give --source NAME if all lines are of one benchmark, or --data FILE with the "
            "data that the prompts came from"
        )
    prompt = [squeeze(row["input"]), truth] if is_dump else _named(where, row, "prompt_id", absent_is_fine=False)
    try:
        identity = canonical_json(prompt)
    except (NotCanonicalError, ValueError) as error:
        raise EvaluationError(f"{where}, gts: {error}") from error
    key = hashlib.blake2b(identity, digest_size=16).hexdigest()
    response = row["output"] if is_dump else row["response"]
    asked = row["input"] if is_dump else row.get("prompt")
    answer = row.get("pred")
    grade = _grade(where, row, grade_key) if graded else _grade_or_none(where, row, grade_key)
    asked = asked if isinstance(asked, str) else str(prompt)
    return _Line(where, benchmark, key, asked, response, truth, grade, None if answer is None else str(answer))


def _named(where: str, row: Mapping[str, Any], column: str, *, absent_is_fine: bool) -> str | None:
    """A name: a text or a whole number. Anything else could be equal for rows that differ."""
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():  # pandas makes such of whole numbers next to empty fields
        value = int(value)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    if value is None and absent_is_fine:
        return None
    raise EvaluationError(f"{where}: {column} is {value!r:.60} instead of a text or a whole number: correct the row")


def _grade(where: str, row: dict[str, Any], grade_key: str | None) -> float:
    grade = _grade_or_none(where, row, grade_key)
    if grade is None:
        names = "field " + grade_key if grade_key else "acc or score"
        raise EvaluationError(f"{where}: no {names} in [0, 1]; name it with --grade-key, or grade again with --regrade")
    return grade


def _grade_or_none(where: str, row: dict[str, Any], grade_key: str | None) -> float | None:
    for name in GRADE_KEYS if grade_key is None else (grade_key,):
        value = row.get(name)
        if isinstance(value, (bool, int, float)):
            return float(value) if 0 <= value <= 1 else None
        if value is not None:
            raise EvaluationError(
                f"{where}: {name} is {value!r:.60}, and a grade is a number in [0, 1]; name its field with --grade-key"
            )
    return None


def _graded(
    lines: Iterator[_Line], found: Generations, regrade: Regrade | None, threads: int
) -> Iterator[tuple[_Line, float, str | None]]:
    if regrade is None:
        for line in lines:
            assert line.grade is not None
            yield line, line.grade, line.answer
        return
    count = changed = given_up = 0
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(lines, GRADED_AT_A_TIME)):
            results = pool.map(lambda line: regrade(line.source, line.response, line.truth), chunk)
            for line, result in zip(chunk, results, strict=True):
                count += 1
                changed += line.grade is not None and line.grade != result["acc"]
                given_up += bool(result.get("grading_timeout"))
                yield line, float(result["acc"]), str(result["pred"] or MISSING)
    found.regraded = (count, changed, given_up)
