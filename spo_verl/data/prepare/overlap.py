"""Contamination: which problems of evaluation files are in the training data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spo_verl.data.prepare.data_errors import SpoDataError, row_error
from spo_verl.data.prepare.problem_texts import excerpt, overlap_hash, squeezed, without_instruction
from spo_verl.data.prepare.streams import open_files, values_of
from spo_verl.data.prepare.templates import without_template


@dataclass
class FileOverlap:
    """What one evaluation file shares with the training file.

    Attributes:
        file: the evaluation file.
        problems: different problems in it.
        shared: problems that are in the training data: row here, rows there (the first ten), beginning of the text,
            and both ground truths.
    """

    file: str
    problems: int
    shared: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class OverlapReport:
    """The overlap of one training file with each evaluation file."""

    train: str
    train_rows: int
    files: list[FileOverlap]

    @property
    def shared(self) -> int:
        """Problems of evaluation files that are in the training data."""
        return sum(len(one.shared) for one in self.files)


_ROWS_LISTED = 10


def overlap(train: Path, evaluation: Sequence[Path]) -> OverlapReport:
    """Look for the problems of evaluation files in a training file.

    Both are files in verl's columns. A problem is what ``extra_info.problem`` holds where that is in the last
    message of the user (prepared files), otherwise that message without a known instruction. Two problems are the same
    if `overlap_hash` is: typesetting does not count, and any other wording does, so a paraphrase is not found. The
    training file is streamed.

    Raises:
        SpoDataError: a file cannot be read; a row has no problem.
    """
    found: list[FileOverlap] = []
    places: dict[bytes, list[dict[str, Any]]] = {}
    for file in evaluation:
        rows: dict[bytes, dict[str, Any]] = {}
        for row, problem, answer in _problems(file):
            entry: dict[str, Any] = {
                "row": row,
                "train_rows": [],
                "problem": excerpt(problem),
                "answer": answer,
                "train_answer": None,
            }
            rows.setdefault(overlap_hash(problem), entry)
        for key, entry in rows.items():
            places.setdefault(key, []).append(entry)
        found.append(FileOverlap(str(file), len(rows), list(rows.values())))
    count = 0
    for row, problem, answer in _problems(train):
        count += 1
        for entry in places.get(overlap_hash(problem), ()):
            if entry["train_answer"] is None:
                entry["train_answer"] = answer
            if len(entry["train_rows"]) < _ROWS_LISTED:
                entry["train_rows"].append(row)
    for one in found:
        one.shared = [entry for entry in one.shared if entry["train_rows"]]
    return OverlapReport(str(train), count, found)


def _problems(file: Path) -> Iterator[tuple[int, str, str]]:
    """Row, problem and ground truth of each row of a file."""
    row = 0
    for table in open_files([file]).batches():
        if "prompt" not in table.column_names:
            raise SpoDataError(
                f"{file} has no column prompt (only {', '.join(table.column_names)}): give files in verl's columns, as "
                "`spo-verl data prepare` writes them."
            )
        stored = values_of(table, "extra_info.problem")
        truths = values_of(table, "reward_model.ground_truth")
        for problem, prompt, truth in zip(stored, values_of(table, "prompt"), truths, strict=True):
            asked = _last_of_user(prompt)
            # Prepared files hold the problem as it was; others may have anything under that name.
            stored_here = (
                isinstance(problem, str) and problem and (asked is None or squeezed(problem) in squeezed(asked))
            )
            text = problem if stored_here else _problem_of(file, row, asked)
            yield row, text, "" if truth is None else str(truth)
            row += 1


def _last_of_user(prompt: Any) -> str | None:
    for message in reversed(prompt if isinstance(prompt, list) else []):
        if isinstance(message, dict) and message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return None


def _problem_of(file: Path, row: int, content: str | None) -> str:
    if content is not None:
        return without_instruction(without_template(content))[0]
    raise SpoDataError(f"{file}, {row_error(row, 'prompt', 'there is no text of the user in it.')}")
