"""The five benchmarks of the paper and its Table 1, read from ``table1.json``."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

AVERAGE = "average"


@dataclass(frozen=True)
class PaperTable:
    """Table 1 of the paper.

    Attributes:
        source: What it was read from.
        k: Responses per prompt.
        title_of: Data source -> name of the benchmark, in the paper's order.
        prompts_of: Data source -> number of its prompts.
        rows: Row -> ``maj`` and ``avg`` -> data source or ``average`` -> percent.
    """

    source: str
    k: int
    title_of: dict[str, str]
    prompts_of: dict[str, int]
    rows: dict[str, dict[str, dict[str, float]]]


@functools.cache
def paper_table() -> PaperTable:
    """The table of the package."""
    content: dict[str, Any] = json.loads(files(__package__).joinpath("table1.json").read_text(encoding="utf-8"))
    return PaperTable(
        source=content["source"],
        k=content["k"],
        title_of={name: one["title"] for name, one in content["benchmarks"].items()},
        prompts_of={name: one["prompts"] for name, one in content["benchmarks"].items()},
        rows=content["rows"],
    )


def title(source: str) -> str:
    """What a benchmark is called in tables: as in the paper, or the data source's own name."""
    return paper_table().title_of.get(source, source)


def in_order(sources: set[str]) -> list[str]:
    """Data sources in the paper's order, then the others by name."""
    known = list(paper_table().title_of)
    return [name for name in known if name in sources] + sorted(sources - set(known))
