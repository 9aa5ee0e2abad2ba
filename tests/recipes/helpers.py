"""The recipes of this repository, composed once per engine, and rows as `spo-verl data prepare` writes them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from spo_verl.launching.composition import Composed, leaves
from spo_verl.launching.recipes import Recipe, recipes_in
from tests.support import gsm8k

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "recipes"
RECIPES = recipes_in(ROOT)
ENGINES = ("dp", "megatron")
INSTRUCTION = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."


def composed(name: str, *overrides: str) -> Composed:
    """A recipe with overrides, FSDP unless they say otherwise; composed once, and not to be changed."""
    engine = [] if any(override.startswith("model_engine=") for override in overrides) else ["model_engine=dp"]
    return _composed(name, *engine, *overrides)


def values(name: str, *overrides: str) -> dict[str, Any]:
    """Every key of a composed recipe, resolved, by its dotted name."""
    return dict(leaves(OmegaConf.to_container(composed(name, *overrides).config, resolve=True)))


@functools.cache
def _composed(name: str, *overrides: str) -> Composed:
    return Recipe(ROOT, name).compose(overrides)


def row(question: str, answer: str, index: int = 0) -> dict[str, Any]:
    return {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": question + INSTRUCTION}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": index, "split": "train"},
    }


def sums(count: int) -> list[dict[str, Any]]:
    return [row(f"What is {number} + {number}?", str(2 * number), number) for number in range(count)]


def write(rows: list[dict[str, Any]], file: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def real_rows(file: Path, count: int = 200) -> Path:
    """The first problems of GSM8K."""
    problems = gsm8k.problems("train")[:count]
    answers = [problem["answer"].rpartition("#### ")[2].replace(",", "") for problem in problems]
    return write([row(p["question"], a, i) for i, (p, a) in enumerate(zip(problems, answers, strict=True))], file)
