"""Does a file have the rows that verl and this package expect? Every problem names row and field."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from spo_verl.agent.grading.truths import UnusableTruth, right_answers
from spo_verl.data.canonical import NotCanonicalError
from spo_verl.data.identity import prompt_key
from spo_verl.data.prepare.answers import is_only_text
from spo_verl.data.prepare.data_errors import RowError, SpoDataError, row_error
from spo_verl.data.prepare.prepare_report import LISTED, stored_report
from spo_verl.data.prepare.problem_texts import problem_key
from spo_verl.data.prepare.problems import is_mathematics, raw_rows, read_problem
from spo_verl.data.prepare.prompt_lengths import PromptLimit
from spo_verl.data.prepare.published import Source
from spo_verl.data.prepare.streams import Stream, find_release, open_files, open_source, values_of
from spo_verl.errors import SpoConfigError

REQUIRED = ("data_source", "prompt", "reward_model")
OPTIONAL = ("ability", "extra_info")
ROLES = ("system", "user", "assistant", "tool")


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        file: what was checked.
        kind: "verl" for rows in verl's columns, or the name of the source whose rows they should be.
        rows: rows that were read.
        data_sources: ``data_source`` -> rows; only for "verl".
        duplicates: rows whose prompt, ground truth and data source are those of an earlier row; of a source's rows
            those whose problem and answer are.
        only_text: rows whose ground truth the mathematical reward compares as text only; only for "verl".
        problems: the first problems, each with row and field.
        problem_count: all of them.
        prepared: the report that the file holds, if it was prepared.
    """

    file: str
    kind: str
    rows: int = 0
    data_sources: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    only_text: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    prepared: dict[str, Any] | None = None

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem_count == 0

    def note(self, problem: str) -> None:
        """Count a problem, and keep it if it is among the first."""
        self.problem_count += 1
        if len(self.problems) < LISTED:
            self.problems.append(problem)


def check_file(file: Path, prompt_limit: PromptLimit | None = None) -> CheckReport:
    """Check a file of verl's columns.

    Required are ``data_source``, ``prompt`` (messages of which the last is the user's) and
    ``reward_model.ground_truth`` (a text or a list of texts that the mathematical reward takes, unless ``ability``
    says that it is no mathematics); ``ability`` and ``extra_info`` (with ``index`` and ``split``) are checked where
    they are.

    Args:
        file: Parquet or JSON.
        prompt_limit: a prompt with too many tokens is a problem; None does not count tokens.

    Raises:
        SpoDataError: there is no such file, or it cannot be read at all.
    """
    report = CheckReport(str(file), "verl", prepared=stored_report(file))
    seen: set[bytes] = set()
    sources: Counter[str] = Counter()
    for row, fields in _rows(open_files([file]), report):
        try:
            check_row(row, fields)
            key = prompt_key(fields)
            report.only_text += is_mathematics(fields.get("ability")) and _is_only_text(fields)
            if prompt_limit is not None and (tokens := prompt_limit.excess(fields["prompt"])) is not None:
                raise row_error(row, "prompt", f"{tokens} tokens, and at most {prompt_limit.most} are allowed.")
        except RowError as error:
            report.note(str(error))
            continue
        except (SpoConfigError, NotCanonicalError) as error:
            report.note(f"row {row}: {error}")
            continue
        sources[fields["data_source"]] += 1
        report.duplicates += key in seen
        seen.add(key)
    report.data_sources = dict(sources)
    if report.rows == 0 and report.fine:
        report.note("there is no row")
    return report


def check_source(
    source: Source, origin: list[str], *, config: str | None = None, split: str | None = None
) -> CheckReport:
    """Check rows as `spo_verl.data.prepare.pipeline.prepare` does before it renders them.

    Raises:
        SpoDataError: it cannot be read, or the columns are not those of the source.
    """
    stream = open_source(source, origin, config=config, split=split)
    report = CheckReport(stream.label, source.name)
    release = None
    seen: set[tuple[bytes, str]] = set()
    for table in stream.batches():
        release = release or find_release(source, table.schema, stream.release)
        for raw in raw_rows(table, release, report.rows):
            try:
                problem = read_problem(raw, source, release)
            except RowError as error:
                report.note(str(error))
                continue
            content = problem_key(problem.before, problem.text), problem.answer
            report.duplicates += content in seen
            seen.add(content)
        report.rows += table.num_rows
    return report


def check_row(row: int, fields: Mapping[str, Any]) -> None:
    """Check one row of verl's columns.

    Raises:
        RowError: names row and field.
    """
    _check_text(row, "data_source", fields.get("data_source"))
    _check_prompt(row, fields.get("prompt"))
    reward = fields.get("reward_model")
    if not isinstance(reward, Mapping):
        raise row_error(row, "reward_model", f"{_shown(reward)} instead of a struct with ground_truth.")
    _check_truth(row, reward.get("ground_truth"), fields.get("ability"))
    if "ability" in fields:
        _check_text(row, "ability", fields["ability"])
    extra = fields.get("extra_info")
    if extra is None:
        return
    if not isinstance(extra, Mapping):
        raise row_error(row, "extra_info", f"{_shown(extra)} instead of a struct.")
    index = extra.get("index")
    if index is not None and (isinstance(index, bool) or not isinstance(index, (int, str))):
        raise row_error(row, "extra_info.index", f"{_shown(index)} instead of a number.")


def _is_only_text(fields: Mapping[str, Any]) -> bool:
    truth = fields["reward_model"]["ground_truth"]
    return any(is_only_text(one) for one in (truth if isinstance(truth, (list, tuple)) else [truth]))


def _check_prompt(row: int, prompt: Any) -> None:
    if not isinstance(prompt, list) or not prompt:
        raise row_error(row, "prompt", f"{_shown(prompt)} instead of a list of messages.")
    for number, message in enumerate(prompt):
        where = f"prompt[{number}]"
        if not isinstance(message, Mapping):
            raise row_error(row, where, f"{_shown(message)} instead of a message with role and content.")
        if message.get("role") not in ROLES:
            raise row_error(
                row, f"{where}.role", f"{_shown(message.get('role'))} instead of one of {', '.join(ROLES)}."
            )
        if not isinstance(message.get("content"), list):
            _check_text(row, f"{where}.content", message.get("content"))
    if prompt[-1]["role"] != "user":
        raise row_error(
            row, f"prompt[{len(prompt) - 1}].role", f"{prompt[-1]['role']!r}; the last message is the user's."
        )


def _check_truth(row: int, truth: Any, ability: Any) -> None:
    """What the mathematical reward refuses; of other abilities only that there is something."""
    name = "reward_model.ground_truth"
    if not isinstance(truth, (list, tuple)):
        _check_text(row, name, truth)
    if not is_mathematics(ability):
        return
    try:
        right_answers(truth)
    except UnusableTruth as error:
        raise row_error(row, name, f"{error}.") from None


def _check_text(row: int, name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise row_error(row, name, f"{_shown(value)} instead of a text.")
    if not value.strip():
        raise row_error(row, name, f"{_shown(value)} is an empty text; it needs some.")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rows(stream: Stream, report: CheckReport) -> Iterator[tuple[int, dict[str, Any]]]:
    for table in stream.batches():
        if report.rows == 0:
            _check_columns(table.schema, report.file)
        names = [name for name in (*REQUIRED, *OPTIONAL) if name in table.column_names]
        columns = [values_of(table, name) for name in names]
        for values in zip(*columns, strict=True):
            yield report.rows, dict(zip(names, values, strict=True))
            report.rows += 1


def _check_columns(schema: pa.Schema, file: str) -> None:
    missing = [name for name in REQUIRED if name not in schema.names]
    if missing:
        raise SpoDataError(
            f"{file} has no column {', '.join(missing)} (only {', '.join(schema.names)}): prepare it with "
            "`spo-verl data prepare`, or check it as rows of a source with --source NAME."
        )
