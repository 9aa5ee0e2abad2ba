"""Small stand-ins of each release, with its exact columns, nested types and file format; the problems are made up.

Where the schemas were looked up: docs/data.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'

_VERL = [
    ("data_source", pa.string()),
    ("prompt", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
    ("ability", pa.string()),
    ("reward_model", pa.struct([("ground_truth", pa.string()), ("style", pa.string())])),
    ("extra_info", pa.struct([("index", pa.string())])),
]
ORIGINAL = pa.schema(_VERL)
PROCESSED = pa.schema(
    [
        ("prompt", pa.string()),
        ("solution", pa.string()),
        ("data_source", pa.string()),
        ("source_prompt", _VERL[1][1]),
        *_VERL[2:],
    ]
)
MATH_ARENA = pa.schema(
    [
        ("problem_idx", pa.int64()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("problem_type", pa.list_(pa.string())),
    ]
)
H4 = pa.schema(
    [("id", pa.int64()), *((name, pa.string()) for name in ("problem", "solution", "answer", "url", "year"))]
)
MAXWELL_JIA = pa.schema(
    [("ID", pa.string()), ("Problem", pa.string()), ("Solution", pa.string()), ("Answer", pa.int64())]
)


def original(problem: str, answer: str, number: int = 0) -> dict[str, Any]:
    """A row of the original DAPO-Math-17k."""
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": f"{BEFORE}{problem}{AFTER}", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"{number:032x}"},
    }


def processed(problem: str, answer: str, number: int = 0) -> dict[str, Any]:
    """A row of the processed DAPO-Math-17k."""
    row = original(problem, answer, number)
    return {"prompt": problem, "solution": answer, **row, "source_prompt": row["prompt"]} | {"prompt": problem}


def write_parquet(file: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file, **options)
    return file


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@dataclass(frozen=True)
class Case:
    """A release in small: how it is written, and what its rows must become."""

    source: str
    release: str
    write: Callable[[Path], Path]
    expected: tuple[tuple[str, str, str], ...]  # problem, ground truth, source_id

    def __str__(self) -> str:
        return f"{self.source}-{self.release}"


def _matharena(folder: Path) -> Path:
    rows = [
        {"problem_idx": 1, "problem": "Find $x$.", "answer": "$\\frac{\\sqrt{3}}{2}$", "problem_type": ["Algebra"]},
        {"problem_idx": 2, "problem": "Find $y$.", "answer": "2^{99}", "problem_type": ["Algebra", "Geometry"]},
        {"problem_idx": 3, "problem": "Find both.", "answer": "$-1$, $3$", "problem_type": []},
    ]
    return write_parquet(folder / "train-00000-of-00001.parquet", rows, MATH_ARENA)


_LATEX = (
    ("Find $x$.", "\\frac{\\sqrt{3}}{2}", "1"),
    ("Find $y$.", "2^{99}", "2"),
    ("Find both.", "$-1$, $3$", "3"),
)


def _integers(names: tuple[str, ...], *columns: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


_TWO = ("How many ways?", "What is $m+n$?")

CASES = (
    Case(
        "dapo_math_17k",
        "processed",
        lambda folder: write_parquet(
            folder / "train.parquet",
            [processed("Sum of $1$ and $2$?", "3", 7), processed("What is $-2-1$?", "-3", 8)],
            PROCESSED,
        ),
        (("Sum of $1$ and $2$?", "3", f"{7:032x}"), ("What is $-2-1$?", "-3", f"{8:032x}")),
    ),
    Case(
        "dapo_math_17k",
        "original",
        lambda folder: write_parquet(
            folder / "dapo-math-17k.parquet",
            [original("Sum of $1$ and $2$?", "3", 7), original("Six?", "006", 9)],
            ORIGINAL,
        ),
        (("Sum of $1$ and $2$?", "3", f"{7:032x}"), ("Six?", "6", f"{9:032x}")),
    ),
    Case(
        "aime_2024",
        "Maxwell-Jia",
        lambda folder: write_parquet(
            folder / "aime_2024_problems.parquet",
            _integers(("ID", "Problem", "Solution", "Answer"), ("2024-I-1", "2024-II-4"), _TWO, ("s", "t"), (204, 33)),
            MAXWELL_JIA,
        ),
        ((_TWO[0], "204", "2024-I-1"), (_TWO[1], "33", "2024-II-4")),
    ),
    Case(
        "aime_2024",
        "HuggingFaceH4",
        lambda folder: write_parquet(
            folder / "train.parquet",
            _integers(H4.names, (60, 63), _TWO, ("s", "t"), ("204", "033"), ("u", "u"), ("2024", "2024")),
            H4,
        ),
        ((_TWO[0], "204", "60"), (_TWO[1], "33", "63")),
    ),
    Case(
        "aime_2024",
        "DAPO",
        lambda folder: write_parquet(
            folder / "aime-2024.parquet", [original(_TWO[0], "204"), original(_TWO[1], "33")], ORIGINAL
        ),
        ((_TWO[0], "204", ""), (_TWO[1], "33", "")),
    ),
    Case(
        "aime_2025",
        "yentinglin",
        lambda folder: write_parquet(
            folder / "train.parquet",
            _integers(("id", "problem", "answer"), (0, 1), _TWO, ("70", "588")),
            pa.schema([("id", pa.int64()), ("problem", pa.string()), ("answer", pa.string())]),
        ),
        ((_TWO[0], "70", "0"), (_TWO[1], "588", "1")),
    ),
    Case(
        "aime_2025",
        "math-ai",
        lambda folder: write_jsonl(
            folder / "test.jsonl", _integers(("problem", "answer", "id"), _TWO, ("70", "016"), ("0", "1"))
        ),
        ((_TWO[0], "70", "0"), (_TWO[1], "16", "1")),
    ),
    Case(
        "aime_2025",
        "opencompass",
        lambda folder: write_jsonl(
            folder / "aime2025-I.jsonl", _integers(("question", "answer"), _TWO, ("70", "336^\\circ"))
        ),
        ((_TWO[0], "70", ""), (_TWO[1], "336", "")),
    ),
    Case(
        "beyond_aime",
        "ByteDance-Seed",
        lambda folder: write_parquet(
            folder / "test.parquet",
            _integers(("problem", "answer"), _TWO, (12345678, 9)),
            pa.schema([("problem", pa.string()), ("answer", pa.int64())]),
        ),
        ((_TWO[0], "12345678", ""), (_TWO[1], "9", "")),
    ),
    Case("brumo_2025", "MathArena", _matharena, _LATEX),
    Case("hmmt_feb_2025", "MathArena", _matharena, _LATEX),
    Case(
        "gsm8k",
        "OpenAI",
        lambda folder: write_parquet(
            folder / "train.parquet",
            _integers(("question", "answer"), _TWO, ("So 2*700=<<2*700=1400>>1400.\n#### 1,400", "None.\n#### -5")),
            pa.schema([("question", pa.string()), ("answer", pa.string())]),
        ),
        ((_TWO[0], "1400", ""), (_TWO[1], "-5", "")),
    ),
)
