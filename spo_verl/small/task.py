"""An arithmetic ladder: eight equally frequent levels, from one that a small model masters to ones it barely meets.

Numbers are written last digit first, in questions and answers alike: 37 + 5 = 42 is ``73+5=`` and ``24``. Carries then
arise in the order of writing, and digits that belong together are equally far apart, which is what a small causal
model can learn in a minute; :mod:`spo_verl.small.reward` turns the answer round again. Everything is a function of
a seed: the same seed gives the same problems in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.errors import SpoConfigError

MAX_PROMPT_TOKENS = 16
MAX_RESPONSE_TOKENS = 8
"""The longest question is ``9999+9999=`` with two role tokens, the longest answer five digits with the end token."""

CHARACTERS = "0123456789+-*="


@dataclass(frozen=True)
class Problem:
    """One question as it is written, with its answer, a non-negative integer. ``level`` counts from 1."""

    level: int
    question: str
    answer: int

    @property
    def response(self) -> str:
        """The text that earns the reward."""
        return written(self.answer)


def written(number: int) -> str:
    """Decimal digits, last digit first."""
    return str(number)[::-1]


def _digits(rng: np.random.Generator, count: int) -> int:
    low = 0 if count == 1 else 10 ** (count - 1)
    return int(rng.integers(low, 10**count))


def _sum(first: int, second: int) -> Callable[[np.random.Generator], tuple[str, int]]:
    def draw(rng: np.random.Generator) -> tuple[str, int]:
        a, b = _digits(rng, first), _digits(rng, second)
        return f"{written(a)}+{written(b)}=", a + b

    return draw


def _difference(count: int) -> Callable[[np.random.Generator], tuple[str, int]]:
    def draw(rng: np.random.Generator) -> tuple[str, int]:
        b, a = sorted((_digits(rng, count), _digits(rng, count)))
        return f"{written(a)}-{written(b)}=", a - b

    return draw


def _product(rng: np.random.Generator) -> tuple[str, int]:
    a, b = _digits(rng, 2), int(rng.integers(2, 10))
    return f"{written(a)}*{written(b)}=", a * b


def _sum_and_difference(rng: np.random.Generator) -> tuple[str, int]:
    a, b = _digits(rng, 2), _digits(rng, 2)
    c = int(rng.integers(10, min(99, a + b) + 1))
    return f"{written(a)}+{written(b)}-{written(c)}=", a + b - c


LEVELS: tuple[tuple[str, Callable[[np.random.Generator], tuple[str, int]]], ...] = (
    ("2d+1d", _sum(2, 1)),
    ("2d+2d", _sum(2, 2)),
    ("2d-2d", _difference(2)),
    ("3d+3d", _sum(3, 3)),
    ("3d-3d", _difference(3)),
    ("2d*1d", _product),
    ("4d+4d", _sum(4, 4)),
    ("2d+2d-2d", _sum_and_difference),
)
"""Name and generator of each level; ``3d`` is a number of three digits."""


def data_source(level: int) -> str:
    """verl's name for the prompts of a level; its validation metrics are grouped by it."""
    return f"ladder{level}"


def draw_problem(level: int, rng: np.random.Generator) -> Problem:
    question, answer = LEVELS[level - 1][1](rng)
    return Problem(level, question, answer)


def draw_distinct(
    count: int, rng: np.random.Generator, *, exclude: Collection[str] = frozenset(), attempts: int = 200
) -> list[Problem]:
    """``count`` problems with different questions, none of them in ``exclude``, the levels taking turns.

    Raises:
        SpoConfigError: a level has too few different problems left (``attempts`` draws per problem were not enough).
    """
    taken, problems = set(exclude), []
    for position in range(count):
        level = position % len(LEVELS) + 1
        for _ in range(attempts):
            problem = draw_problem(level, rng)
            if problem.question not in taken:
                break
        else:
            raise SpoConfigError(
                f"level {level} ({LEVELS[level - 1][0]}) has no {count // len(LEVELS)} different problems left; ask "
                "for fewer prompts (--train-prompts, --held-out-prompts)"
            )
        taken.add(problem.question)
        problems.append(problem)
    return problems


@dataclass(frozen=True)
class Task:
    """Three disjoint sets of problems. ``probe`` steers the warm start; ``held_out`` is only ever validated on."""

    train: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    probe: tuple[Problem, ...]

    @property
    def reserved(self) -> frozenset[str]:
        """Questions that the warm start must not practise."""
        return frozenset(problem.question for problem in self.held_out + self.probe)


def build_task(*, train: int, held_out: int, seed: int, probe: int = 256) -> Task:
    """Draw the three sets. The held-out and probe sets do not depend on the size of the training set."""
    held_rng, probe_rng, train_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence((seed, 0x1ADDE2)).spawn(3)
    )
    held = draw_distinct(held_out, held_rng)
    taken = {problem.question for problem in held}
    probes = draw_distinct(probe, probe_rng, exclude=taken)
    taken |= {problem.question for problem in probes}
    return Task(tuple(draw_distinct(train, train_rng, exclude=taken)), tuple(held), tuple(probes))


def verl_row(problem: Problem, index: int, split: str) -> dict[str, Any]:
    """One row of verl's dataset format."""
    return {
        "data_source": data_source(problem.level),
        "prompt": [{"role": "user", "content": problem.question}],
        "ability": "arithmetic",
        "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
        "extra_info": {"index": index, "level": problem.level, "split": split},
    }


def write_parquet(task: Task, folder: Path) -> tuple[Path, Path]:
    """Write ``train.parquet`` and ``held_out.parquet`` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = folder / "train.parquet", folder / "held_out.parquet"
    write_rows([verl_row(problem, index, "train") for index, problem in enumerate(task.train)], train)
    write_rows([verl_row(problem, index, "held_out") for index, problem in enumerate(task.held_out)], held_out)
    return train, held_out


def write_rows(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """As prepared data are in a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), file)
