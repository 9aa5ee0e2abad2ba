"""What an import matched and what it did not."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spo_verl.errors import SpoValuesError

_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 80


def _empty_rows() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class MatchReport:
    """How the entries of a source met the prompts of a dataset. Nothing that is left over goes unmentioned.

    Attributes:
        source: What was read, in words.
        prompts: Distinct prompts of the dataset.
        matched: Prompts that were given a value.
        entry: What an entry of the source is, a noun.
        entries: Entries of the source.
        unmatched_entries: Entries that belong to no prompt of the dataset, all of them.
        shared_entries: Entries that were given to several prompts because it cannot tell them apart.
        unmatched_row_U: First dataset row of each prompt without a value, all of them.
        notes: Anything else that was noticed.
    """

    source: str
    prompts: int
    matched: int
    entry: str
    entries: int
    unmatched_entries: tuple[str, ...] = ()
    shared_entries: tuple[str, ...] = ()
    unmatched_row_U: np.ndarray = field(default_factory=_empty_rows)
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every entry found its prompt and every prompt its value."""
        return self.matched == self.prompts and not self.unmatched_entries

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "source": self.source,
            "prompts": self.prompts,
            "matched": self.matched,
            "entries": self.entries,
            "unmatched_entries": list(self.unmatched_entries),
            "shared_entries": list(self.shared_entries),
            "unmatched_rows": self.unmatched_row_U.tolist(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        share = f" ({self.matched / self.prompts:.1%})" if self.prompts else ""
        yield f"{self.source}: {self.matched} of {self.prompts} prompts have a value{share}"
        if len(self.unmatched_row_U):
            rows = ", ".join(str(row) for row in self.unmatched_row_U[:_EXAMPLES])
            yield f"prompts without a value: {len(self.unmatched_row_U)}, e.g. dataset rows {rows}"
        if self.unmatched_entries:
            yield f"{_many(self.entry, self.unmatched_entries)} of no prompt: {_examples(self.unmatched_entries)}"
        if self.shared_entries:
            yield f"{_many(self.entry, self.shared_entries)} given to several prompts: {_examples(self.shared_entries)}"
        yield from self.notes


def _many(noun: str, entries: tuple[str, ...]) -> str:
    return f"{len(entries)} {noun}{'' if len(entries) == 1 else 's'}"


def _examples(entries: tuple[str, ...]) -> str:
    shown = (entry if len(entry) <= _EXAMPLE_CHARACTERS else entry[:_EXAMPLE_CHARACTERS] + "..." for entry in entries)
    return "; ".join(repr(text) for text, _ in zip(shown, range(_EXAMPLES), strict=False))


def require_some(report: MatchReport) -> None:
    """Refuse a source that gives no prompt of the dataset a value.

    Raises:
        SpoValuesError: With the report.
    """
    if not report.matched:
        raise SpoValuesError(
            f"nothing matched, so there is nothing to import. {report}\nCheck that source and dataset belong together: "
            "the same prompt column (data.prompt_key), the same template of the question, the same ground truths."
        )
