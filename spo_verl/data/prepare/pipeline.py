"""Preparing a source: read, check, drop what repeats, render, write.

Memory does not grow with the rows that are read but with those that differ: 16-byte hashes of each different row and
problem, the rows of one batch, and those of one row group.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from spo_verl.data.prepare.answers import is_only_text, is_whole
from spo_verl.data.prepare.data_errors import RowError, SpoDataError, row_error
from spo_verl.data.prepare.prepare_report import (
    CONFLICT,
    DUPLICATE,
    INVALID,
    LISTED,
    NOT_ENGLISH,
    TOO_LONG,
    PrepareReport,
)
from spo_verl.data.prepare.problem_texts import excerpt, is_english, problem_key, text_hash
from spo_verl.data.prepare.problems import RawRow, SourceProblem, is_mathematics, raw_rows, read_problem
from spo_verl.data.prepare.prompt_lengths import PromptLimit
from spo_verl.data.prepare.published import SOURCES, Release, Source, find_source
from spo_verl.data.prepare.streams import Stream, columns_of, find_release, open_source
from spo_verl.data.prepare.templates import Template, find_template, own_template
from spo_verl.data.prepare.writing import GroupWriter, check_target
from spo_verl.files import replacing

ConflictRule = Literal["drop", "first", "keep"]
Progress = Callable[[int, int], None]


def prepare(
    name: str | Source,
    output: Path,
    *,
    origin: Sequence[str] = (),
    config: str | None = None,
    split: str | None = None,
    template: str | None = None,
    instruction: str | None = None,
    system: str | None = None,
    conflicts: ConflictRule = "drop",
    drop_invalid: bool = False,
    prompt_limit: PromptLimit | None = None,
    limit: int | None = None,
    force: bool = False,
    progress: Callable[[int | None], Progress] | None = None,
) -> PrepareReport:
    """Bring a source into verl's columns and write them as Parquet.

    Args:
        name: of a published source (`spo_verl.data.prepare.published`), or one of the user's own (`named_source`).
        output: the Parquet file.
        origin, config, split: where the source is, see `spo_verl.data.prepare.streams.open_source`.
        template: name of the instruction after each problem; default: "boxed", and "none" where the ability is not
            mathematics.
        instruction: an instruction of the user's own instead of a template.
        system: a message of the system before each problem.
        conflicts: what becomes of a problem with several answers: all of its rows are dropped, the first answer
            is kept, or each answer is kept as a row of its own.
        drop_invalid: drop and count rows that are not what the source promises, instead of refusing the file.
        prompt_limit: drops and counts prompts with too many tokens; None keeps all.
        limit: read so many rows at most.
        force: replace an existing file.
        progress: called with the number of rows, where it is known; returns what is called with the rows read and
            kept so far after each batch.

    Returns:
        The report that the file holds, too.

    Raises:
        RowError: a row is wrong; names row and field.
        SpoDataError: an unknown name, a source that cannot be read, a target that may not be written, or no row left.
    """
    if isinstance(name, str) and name not in SOURCES and origin:
        raise SpoDataError(
            f"there is no source {name!r} in `spo-verl data list`; for data of your own name the columns with "
            f"--question and --answer; the columns are "
            f"{', '.join(columns_of(origin, config=config, split=split)) or '(none)'}."
        )
    source = find_source(name) if isinstance(name, str) else name
    if instruction is not None and template is not None:
        raise SpoDataError("--template and --instruction are both given: an instruction takes the template's place.")
    if instruction is not None:
        rendered = own_template(instruction)
    else:
        rendered = find_template(template or ("boxed" if is_mathematics(source.ability) else "none"))
    if system is not None and not system.strip():
        raise SpoDataError("the system prompt is empty: leave --system away.")
    check_target(output, force=force, inputs=[Path(one) for one in origin])
    stream = open_source(source, origin, config=config, split=split)
    run = _Preparation(source, rendered, stream, conflicts, drop_invalid, split, system, prompt_limit)
    tell = progress(stream.rows if limit is None else limit) if progress is not None else None
    with replacing(output, SpoDataError) as stage:
        first = stage()
        run.write(first, limit, tell)
        if conflicts == "drop" and run.conflicting:
            run.write_without_conflicts(first, stage())
        if run.report.written == 0:
            raise SpoDataError(
                f"no row of {stream.label} is left ({', '.join(run.report.dropped_lines())}): nothing was written."
            )
    return run.report


class _Preparation:
    """One run of `prepare`: what was seen so far, and the report."""

    def __init__(
        self,
        source: Source,
        template: Template,
        stream: Stream,
        conflicts: ConflictRule,
        drop_invalid: bool,
        split: str | None,
        system: str | None,
        prompt_limit: PromptLimit | None,
    ) -> None:
        self.system = [] if system is None else [{"role": "system", "content": system.strip()}]
        self.prompt_limit = prompt_limit
        self._counts_texts = is_mathematics(source.ability)
        self.source, self.template, self.stream = source, template, stream
        self.conflicts, self.drop_invalid = conflicts, drop_invalid
        shown = "test" if source.use == "evaluation" else (split or stream.split)
        self.report = PrepareReport(source.name, "", stream.label, shown, template.name, conflicts)
        self.report.details = dict(stream.details)
        if template.name == "own":
            self.report.details["instruction"] = template.instruction
        if system is not None:
            self.report.details["system"] = system.strip()
        if prompt_limit is not None:
            self.report.details |= {"model": prompt_limit.model, "max_prompt_length": prompt_limit.most}
        self.conflicting: dict[bytes, list[str]] = {}
        self._answer_of_problem: dict[bytes, str] = {}
        # Why repeats of a row are dropped, and whether it held an instruction; they need not be read again.
        self._end_of_row: dict[bytes, tuple[str, bool]] = {}
        self._shared: dict[tuple[str, bool], tuple[str, bool]] = {}

    def write(self, file: Path, limit: int | None, tell: Progress | None) -> None:
        """Write every different pair of problem and answer that the rules keep."""
        if limit is not None:
            self.report.details["limit"] = limit
        with file.open("wb") as sink, GroupWriter(sink) as writer:
            for raw, release in self._raw_rows(limit, tell):
                problem = self._keep(raw, release)
                if problem is not None:
                    writer.add(self._row(problem))
                    self.report.written += 1
                    self._count_answer(problem.answer, 1)
            self.report.conflicting_problems = len(self.conflicting)
            writer.finish({} if self.conflicts == "drop" and self.conflicting else self.report.metadata())
        if tell is not None:
            tell(self.report.read, self.report.written)

    def write_without_conflicts(self, written: Path, file: Path) -> None:
        """Copy what `write` wrote, row group by row group, without the problems that have several answers."""
        with pq.ParquetFile(written) as before, file.open("wb") as sink, GroupWriter(sink) as writer:
            for group in range(before.num_row_groups):
                for row in before.read_row_group(group).to_pylist():
                    before = row["prompt"][len(self.system) : -1]
                    if problem_key(before, row["extra_info"]["problem"]) in self.conflicting:
                        self.report.written -= 1
                        self.report.drop(CONFLICT)
                        self._count_answer(row["reward_model"]["ground_truth"], -1)
                    else:
                        writer.add(row)
            writer.finish(self.report.metadata())

    def _count_answer(self, answer: str, rows: int) -> None:
        if not is_whole(answer):
            self.report.answers_not_whole += rows
            self.report.answers_only_text += rows * (self._counts_texts and is_only_text(answer))

    def _raw_rows(self, limit: int | None, tell: Progress | None) -> Iterator[tuple[RawRow, Release]]:
        release: Release | None = None
        for table in self.stream.batches():
            if release is None:
                release = find_release(self.source, table.schema, self.stream.release)
                self._found(release, limit)
            left = None if limit is None else limit - self.report.read
            for raw in itertools.islice(raw_rows(table, release, self.report.read), left):
                self.report.read += 1
                yield raw, release
            if tell is not None:
                tell(self.report.read, self.report.written)
            if limit is not None and self.report.read >= limit:
                return

    def _found(self, release: Release, limit: int | None) -> None:
        if release is self.stream.release:
            self.report.release = release.name
            self.report.documented_rows = self.stream.rows if limit is None else None
        else:
            self.report.release = f"columns {release.problem} and {release.answer}"

    def _keep(self, raw: RawRow, release: Release) -> SourceProblem | None:
        """The problem, if it is to be written; otherwise the report says why not."""
        content = text_hash(f"{raw.problem!r}\0{raw.answer!r}")
        if content in self._end_of_row:
            end = self._end_of_row[content]
            self.report.drop(end[0])
            self.report.instructions_removed += end[1]
            return None
        try:
            problem = read_problem(raw, self.source, release)
            if self.system and any(message["role"] == "system" for message in problem.before):
                raise row_error(raw.row, release.problem, "it has a system message of its own: leave --system away.")
        except RowError as error:
            self._refuse_or_drop(error)
            return None
        reason = self._reason_to_drop(problem)
        end = (reason or DUPLICATE, problem.had_instruction)
        self._end_of_row[content] = self._shared.setdefault(end, end)
        self.report.instructions_removed += problem.had_instruction
        if reason is not None:
            self.report.drop(reason)
            return None
        return problem

    def _refuse_or_drop(self, error: RowError) -> None:
        if not self.drop_invalid:
            raise RowError(
                f"{self.stream.label}: {error} Correct the row, or drop such rows with --drop-invalid."
            ) from error
        if len(self.report.invalid) < LISTED:
            self.report.invalid.append(str(error))
        self.report.drop(INVALID)

    def _reason_to_drop(self, problem: SourceProblem) -> str | None:
        """Why a problem is not written; None where it is."""
        if self.source.english_only and not is_english(problem.text):
            return NOT_ENGLISH
        if self.prompt_limit is not None and self.prompt_limit.excess(self._messages(problem)) is not None:
            return TOO_LONG
        key = problem_key(problem.before, problem.text)
        if key not in self._answer_of_problem:
            self._answer_of_problem[key] = problem.answer
            return None
        answers = self.conflicting.get(key, [self._answer_of_problem[key]])
        if problem.answer in answers:
            return DUPLICATE
        self._note_conflict(key, answers, problem)
        return None if self.conflicts == "keep" else CONFLICT

    def _note_conflict(self, key: bytes, answers: list[str], problem: SourceProblem) -> None:
        answers.append(problem.answer)
        if key not in self.conflicting:
            self.conflicting[key] = answers
            if len(self.report.conflicts) < LISTED:
                self.report.conflicts.append({"problem": excerpt(problem.text), "answers": answers})

    def _messages(self, problem: SourceProblem) -> list[dict[str, str]]:
        return [*self.system, *problem.before, *self.template.messages(problem.text)]

    def _row(self, problem: SourceProblem) -> dict[str, Any]:
        return {
            "data_source": self.source.name,
            "prompt": self._messages(problem),
            "ability": self.source.ability,
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {
                "index": problem.row,
                "split": self.report.split,
                "source_id": problem.source_id,
                "problem": problem.text,
            },
        }
