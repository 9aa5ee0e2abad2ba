"""What became of every row: printed, given as JSON, and kept in the metadata of the file."""

import datetime
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from spo_verl.files import parquet_reasons

METADATA_KEY = "spo_verl.prepared"
FORMAT_VERSION = 1
LISTED = 20

DUPLICATE, NOT_ENGLISH, CONFLICT, INVALID, TOO_LONG = "duplicate", "not_english", "conflict", "invalid", "too_long"
_MEANING = {
    DUPLICATE: "repeating an earlier row",
    NOT_ENGLISH: "not in English",
    CONFLICT: "whose problem has several answers",
    INVALID: "invalid",
    TOO_LONG: "with too long a prompt",
}


@dataclass
class PrepareReport:
    """Counts of one preparation. ``read == written + sum(dropped.values())``.

    Attributes:
        source: name of the source.
        release: name of the release; for files and unknown hub ids the columns that were read.
        origin: hub id or paths.
        split: split of the written rows.
        template: name of the template.
        conflict_rule: what was done with problems that have several answers.
        read, written: rows.
        dropped: reason (duplicate, not_english, conflict, invalid, too_long) -> rows.
        conflicting_problems: problems with several answers.
        conflicts: the first of them: problem (beginning) and answers.
        invalid: the first messages of rows that were dropped as invalid.
        instructions_removed: rows whose text was wrapped into the source's own instruction.
        answers_not_whole: written rows whose answer is no whole number.
        answers_only_text: written rows whose answer the mathematical reward compares as text only.
        documented_rows: what the source's page says, where it was looked up.
        details: what else was asked for, e.g. ``limit``.
    """

    source: str
    release: str
    origin: str
    split: str
    template: str
    conflict_rule: str
    read: int = 0
    written: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    conflicting_problems: int = 0
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    instructions_removed: int = 0
    answers_not_whole: int = 0
    answers_only_text: int = 0
    documented_rows: int | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def drop(self, reason: str, rows: int = 1) -> None:
        """Count dropped rows."""
        self.dropped[reason] = self.dropped.get(reason, 0) + rows

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def metadata(self) -> dict[str, str]:
        """What is written into the file: this report, its format, the version of spo_verl and the time."""
        import spo_verl

        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        stamped = {
            "format_version": FORMAT_VERSION,
            "spo_verl_version": spo_verl.__version__,
            "date": now,
            **self.as_json(),
        }
        return {METADATA_KEY: json.dumps(stamped, ensure_ascii=True)}

    def dropped_lines(self) -> list[str]:
        """Number and reason of the rows that were dropped."""
        return [f"{self.dropped[reason]} {text}" for reason, text in _MEANING.items() if self.dropped.get(reason)]

    def lines(self) -> list[str]:
        """The report for a reader."""
        lines = [
            f"source      {self.source} ({self.release}), from {self.origin}",
            f"template    {self.template}; split {self.split}",
            f"read        {counted(self.read, 'row')}{self._documented()}",
            *(f"dropped     {line}" for line in self.dropped_lines()),
            f"written     {counted(self.written, 'row')}",
        ]
        if self.instructions_removed:
            lines.append(
                f"            rows from which the source's own instruction was removed: {self.instructions_removed}"
            )
        if self.answers_not_whole:
            lines.append(f"            answers that are no whole numbers: {self.answers_not_whole}")
        if self.answers_only_text:
            lines.append(f"            answers that are right only if written alike: {self.answers_only_text}")
        if self.conflicting_problems:
            number = counted(self.conflicting_problems, "problem")
            lines.append(f"conflicts   {number} with several answers ({self.conflict_rule}):")
            lines += [f"            {' | '.join(one['answers'])}: {one['problem']}" for one in self.conflicts[:5]]
        lines += [f"            {message}" for message in self.invalid[:5]]
        return lines

    def _documented(self) -> str:
        if self.documented_rows is None or self.documented_rows == self.read:
            return "" if self.documented_rows is None else ", as documented"
        return f" (its page says {self.documented_rows})"


def counted(count: int, noun: str) -> str:
    """The noun with its number, in the plural where it needs one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def stored_report(file: Path) -> dict[str, Any] | None:
    """The report in a prepared Parquet file; None without one."""
    if file.suffix != ".parquet":
        return None
    try:
        with file.open("rb") as raw:
            metadata = pq.read_metadata(raw).metadata or {}
        found = json.loads(metadata[METADATA_KEY.encode()]) if METADATA_KEY.encode() in metadata else None
    except parquet_reasons():  # a damaged file is reported by the check that reads its rows
        return None
    return found if isinstance(found, dict) else None
