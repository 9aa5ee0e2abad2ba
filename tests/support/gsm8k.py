"""Real problems (GSM8K) as training rows, and a model and tokenizer that are made for them here.

The folder (``train.jsonl``, ``test.jsonl`` with ``question`` and ``answer``) is named by the environment variable
SPO_GSM8K; by default it is looked for beside the repository, in ``shared/data/gsm8k``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.rehearsal import stand_in
from spo_verl.small.model import ModelShape, build_model, save

FOLDER = Path(os.environ.get("SPO_GSM8K") or Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k")
THERE = (FOLDER / "train.jsonl").is_file()
TRIALS = 8
VOCABULARY = 2048
LONGEST_PROMPT = 329
"""Tokens of the longest prompt of both splits under :func:`build_tokenizer`, as measured."""

needs_gsm8k = pytest.mark.skipif(
    not THERE, reason=f"no train.jsonl in {FOLDER}: set SPO_GSM8K to a folder with the problems of GSM8K"
)


def problems(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def made_accuracy(number: int) -> float | None:
    """Eighths, decided by the row's number; every eleventh row has none."""
    return None if number % 11 == 0 else (number * 5 % (TRIALS + 1)) / TRIALS


def row(problem: dict[str, str], number: int, split: str = "train") -> dict[str, Any]:
    """As verl's own preprocessing of GSM8K lays it out, with an accuracy."""
    question = problem["question"] + ' Let\'s think step by step and output the final answer after "####".'
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem["answer"].rpartition("#### ")[2].replace(",", "")},
        "extra_info": {"split": split, "index": number, "accuracy": made_accuracy(number)},
    }


def rows(split: str) -> list[dict[str, Any]]:
    return [row(problem, number, split) for number, problem in enumerate(problems(split))]


def build_tokenizer(texts: Iterable[str]) -> Any:
    """The stand-in's tokenizer with a vocabulary for many texts."""
    return stand_in.build_tokenizer(texts, VOCABULARY)


def longest_prompt(tokenizer: Any, rows: Iterable[dict[str, Any]]) -> int:
    """Tokens of the longest prompt, the chat template included."""
    rendered = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows
    ]
    return max(len(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"])


def write_run(folder: Path, *, response_length: int) -> int:
    """``train.parquet``, ``val.parquet`` and ``model/`` for a run on all problems; returns the longest prompt."""
    train, held_out = rows("train"), rows("test")
    pq.write_table(pa.Table.from_pylist(train), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(held_out), folder / "val.parquet")
    tokenizer = build_tokenizer(row["prompt"][0]["content"] for row in train)
    longest = longest_prompt(tokenizer, [*train, *held_out])
    model = build_model(tokenizer, ModelShape(layers=2), seed=0)
    model.config.max_position_embeddings = longest + response_length
    save(model, tokenizer, folder / "model")
    return longest
