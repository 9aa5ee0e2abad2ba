"""Reading graded responses: verl's validation dumps and plain files.

| format | told by | prompt | response |
|---|---|---|---|
| verl's dump, ``<step>.jsonl`` | ``input`` and ``output`` | ``input`` with ``gts`` | ``output`` |
| plain ``.jsonl`` or ``.parquet`` | ``prompt_id`` and ``response`` | ``prompt_id`` | ``response`` |

In both, the grade is ``acc``, else ``score``, and the answer ``pred``; the ground truth is ``gts`` or ``ground_truth``.
The benchmark is the line's ``data_source``; the reward `spo_verl.agent.math_reward` puts it into verl's dumps. Files
are read line by line, and no response is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from spo_verl.core.evaluation import MISSING
from spo_verl.data.canonical import canonical_json
from spo_verl.data.values.dumps import by_ground_truth, dump_lines, matching_slots, session_of
from spo_verl.data.values.texts import PromptText, squeeze
from spo_verl.errors import SpoError, SpoValuesError

GRADED_AT_A_TIME = 256
GRADE_KEYS = ("acc", "score")
ANSWERS_MISSING = "no answers (field pred), so no maj@k; --regrade finds them"


class EvaluationError(SpoError, ValueError):
    """Generations cannot be read or do not fit together."""


@dataclass
class Prompt:
    """The graded responses of one prompt, in the order of the file."""

    correct: list[float] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)


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
        regraded: Responses that were graded again, those whose grade changed, those given up; None without.
    """

    name: str
    prompts: dict[str, dict[str, Prompt]] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    step: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    regraded: tuple[int, int, int] | None = None


Regrade = Callable[[str, str, Any], dict[str, Any]]
"""data source, response, ground truth -> what the reward function returns."""


@dataclass(frozen=True)
class _Line:
    where: str
    source: str
    key: str
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

    Raises:
        EvaluationError: There is nothing to read, or a line is incomplete. Names file, line and remedy.
    """
    files, chosen = files_of(path, step)
    found = Generations(name, step=chosen, expected=dict(data.expected) if data else {})
    lines = _lines(files, found, source, data, grade_key, graded=regrade is None)
    for line, grade, answer in _graded(lines, found, regrade, threads):
        prompt = found.prompts.setdefault(line.source, {}).setdefault(line.key, Prompt())
        prompt.correct.append(grade)
        prompt.answers.append(answer)
    if not found.prompts:
        raise EvaluationError(f"{path}: there is no generation in it; was verl stopped before its validation ended?")
    return found


def files_of(path: Path, step: int | None) -> tuple[list[Path], int | None]:
    """The files to read, and the step if they are dumps of one.

    Raises:
        EvaluationError: No file, or no dump of that step.
    """
    if path.is_file():
        return [path], int(path.stem) if path.suffix == ".jsonl" and path.stem.isdigit() else None
    files = sorted(file for file in path.glob("*") if file.suffix in (".jsonl", ".parquet")) if path.is_dir() else []
    if not files:
        raise EvaluationError(
            f"{path}: no such file, or a folder without .jsonl or .parquet files; "
            "name verl's trainer.validation_data_dir"
        )
    steps = {int(file.stem): file for file in files if file.suffix == ".jsonl" and file.stem.isdigit()}
    if len(steps) == len(files):
        wanted = max(steps) if step is None else step
        if wanted not in steps:
            there = ", ".join(map(str, sorted(steps)))
            raise EvaluationError(f"{path}: no dump of step {wanted}; there are steps {there}")
        return [steps[wanted]], wanted
    if step is not None:
        raise EvaluationError(f"{path}: --step {step} chooses among dumps <step>.jsonl, and there are other files too")
    return files, None


class DataSources:
    """Prepared data, to tell which benchmark a rendered prompt belongs to."""

    def __init__(self, dataset: Any) -> None:
        from spo_verl.data.identity import dataset_keys
        from spo_verl.data.values.texts import first_rows, prompt_texts

        keys = dataset_keys(dataset)
        self._texts: list[PromptText] = prompt_texts(dataset, keys)
        self._candidates = by_ground_truth(self._texts)
        self._source = [str(row["data_source"]) for row in first_rows(dataset, keys, {"data_source": None})]
        self.expected = {one: self._source.count(one) for one in dict.fromkeys(self._source)}

    def source_of(self, rendered: str, truth: Any) -> str | None:
        """The data source of the prompt that stands in a rendered prompt; None where there is none."""
        slots = matching_slots(squeeze(rendered), self._candidates.get(canonical_json(truth), ()), self._texts)
        return self._source[slots[0]] if slots else None


def _rows(files: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in files:
        if file.suffix == ".parquet":
            yield from _parquet_rows(file)
        else:
            yield from ((f"{file}, line {number}", line) for number, line in dump_lines(file, only_dumps=False))


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(GRADED_AT_A_TIME):
            for row in batch.to_pylist():
                yield f"{file}, row {number}", row
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise EvaluationError(f"{file} cannot be read as Parquet: {error}") from error


def _lines(
    files: list[Path],
    found: Generations,
    source: str | None,
    data: DataSources | None,
    grade_key: str | None,
    *,
    graded: bool,
) -> Iterator[_Line]:
    """One line per session: of several outputs of a session the last."""
    seen: set[tuple[str, ...]] = set()
    repeated = 0
    waiting: tuple[tuple[str, ...] | None, str, dict[str, Any]] | None = None
    try:
        for where, row in _rows(files):
            session = session_of(row)
            if waiting is not None and (session is None or session != waiting[0]):
                yield _line(waiting[1], waiting[2], source, data, grade_key, graded=graded)
                waiting = None
            if session is not None and waiting is None:
                if session in seen:
                    repeated += 1
                    continue
                seen.add(session)
            waiting = session, where, row
        if waiting is not None:
            yield _line(waiting[1], waiting[2], source, data, grade_key, graded=graded)
    except SpoValuesError as error:
        raise EvaluationError(str(error)) from error
    if repeated:
        found.problems.append(f"{repeated} lines repeat a session and were left out: is a file there twice?")


def _line(
    where: str,
    row: dict[str, Any],
    source: str | None,
    data: DataSources | None,
    grade_key: str | None,
    *,
    graded: bool,
) -> _Line:
    is_dump = isinstance(row.get("input"), str) and isinstance(row.get("output"), str)
    if not is_dump and not ("prompt_id" in row and isinstance(row.get("response"), str)):
        raise EvaluationError(
            f"{where}: neither a line of verl's validation dumps (input, output) nor a generation (prompt_id, response)"
        )
    truth = row.get("gts") if is_dump else row.get("ground_truth")
    benchmark = row.get("data_source") or source
    if benchmark is None and data is not None and is_dump:
        benchmark = data.source_of(row["input"], truth)
    if benchmark is None:
        raise EvaluationError(
            f"{where}: no data_source; give --source NAME if all lines are of one benchmark, or --data FILE with the "
            "data that the prompts came from"
        )
    identity = canonical_json([squeeze(row["input"]), truth] if is_dump else str(row["prompt_id"]))
    key = hashlib.blake2b(identity, digest_size=16).hexdigest()
    response = row["output"] if is_dump else row["response"]
    answer = row.get("pred")
    grade = _grade(where, row, grade_key) if graded else _grade_or_none(row, grade_key)
    return _Line(where, str(benchmark), key, response, truth, grade, None if answer is None else str(answer))


def _grade(where: str, row: dict[str, Any], grade_key: str | None) -> float:
    grade = _grade_or_none(row, grade_key)
    if grade is None:
        names = "field " + grade_key if grade_key else "acc or score"
        raise EvaluationError(f"{where}: no {names} in [0, 1]; name it with --grade-key, or grade again with --regrade")
    return grade


def _grade_or_none(row: dict[str, Any], grade_key: str | None) -> float | None:
    for name in GRADE_KEYS if grade_key is None else (grade_key,):
        value = row.get(name)
        if isinstance(value, (bool, int, float)):
            return float(value) if 0 <= value <= 1 else None
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
