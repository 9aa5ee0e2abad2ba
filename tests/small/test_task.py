"""The arithmetic ladder: right answers, disjoint sets, and the same problems for the same seed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.errors import SpoConfigError
from spo_verl.small.model import build_tokenizer
from spo_verl.small.reward import compute_score, read_answer
from spo_verl.small.task import (
    CHARACTERS,
    LEVELS,
    MAX_PROMPT_TOKENS,
    MAX_RESPONSE_TOKENS,
    Problem,
    build_task,
    data_source,
    draw_distinct,
    draw_problem,
    write_parquet,
)

SHAPE = {
    1: r"\d{2}\+\d=",
    2: r"\d{2}\+\d{2}=",
    3: r"\d{1,2}-\d{1,2}=",
    4: r"\d{3}\+\d{3}=",
    5: r"\d{3}-\d{3}=",
    6: r"\d{2}\*\d=",
    7: r"\d{4}\+\d{4}=",
    8: r"\d{2}\+\d{2}-\d{2}=",
}


def worked_out(question: str) -> int:
    """The answer by another route than the generator's: parse, add signed terms, multiply by repeated addition."""
    body = re.sub(r"\d+", lambda number: number[0][::-1], question.removesuffix("="))
    if "*" in body:
        first, second = map(int, body.split("*"))
        return sum(first for _ in range(second))
    return sum(int(term) for term in re.findall(r"[+-]?\d+", body))


@settings(deadline=None, max_examples=200)
@given(level=st.integers(1, len(LEVELS)), seed=st.integers(0, 2**32))
def test_every_answer_is_right_and_every_question_of_its_level(level: int, seed: int) -> None:
    problem = draw_problem(level, np.random.default_rng(seed))
    assert problem.answer == worked_out(problem.question) >= 0
    assert re.fullmatch(SHAPE[level], problem.question)
    assert problem.level == level
    assert set(problem.question) <= set(CHARACTERS)
    # Two role tokens around the question, one end token after the answer.
    assert len(problem.question) + 2 <= MAX_PROMPT_TOKENS
    assert len(problem.response) + 1 <= MAX_RESPONSE_TOKENS


def test_numbers_are_written_last_digit_first() -> None:
    assert Problem(1, "73+5=", 42).response == "24"
    assert Problem(2, "06+04=", 100).response == "001"
    # Two-digit numbers end in a digit that is not 0, so written this way they must.
    for level in (1, 2, 4, 6, 7, 8):
        for seed in range(50):
            first = re.match(r"\d+", draw_problem(level, np.random.default_rng(seed)).question)
            assert first is not None
            assert first[0][-1] != "0"


def test_sets_are_disjoint_and_levels_equally_frequent() -> None:
    task = build_task(train=512, held_out=256, seed=3, probe=128)
    questions = [{p.question for p in problems} for problems in (task.train, task.held_out, task.probe)]
    assert [len(found) for found in questions] == [512, 256, 128]
    assert len(set.union(*questions)) == 512 + 256 + 128
    assert task.reserved == questions[1] | questions[2]
    for problems in (task.train, task.held_out, task.probe):
        counts = Counter(problem.level for problem in problems)
        assert set(counts.values()) == {len(problems) // 8}
        assert set(counts) == set(range(1, 9))


def test_a_seed_determines_the_task_and_the_held_out_set_not_the_training_size() -> None:
    small, large = build_task(train=64, held_out=64, seed=0), build_task(train=128, held_out=64, seed=0)
    assert small == build_task(train=64, held_out=64, seed=0)
    assert small.held_out == large.held_out
    assert small.train == large.train[:64]
    assert small.held_out != build_task(train=64, held_out=64, seed=1).held_out


def test_more_problems_than_a_level_has_are_refused() -> None:
    # Level 6 has 90 * 8 = 720 different products.
    with pytest.raises(SpoConfigError, match="level"):
        draw_distinct(8 * 800, np.random.default_rng(0))


def test_the_files_are_in_verls_format(tmp_path: Path) -> None:
    task = build_task(train=64, held_out=32, seed=0, probe=8)
    train, held_out = write_parquet(task, tmp_path / "a folder")
    rows = pq.read_table(train).to_pylist()
    assert len(rows) == 64
    assert rows[5] == {
        "data_source": "ladder6",
        "prompt": [{"role": "user", "content": task.train[5].question}],
        "ability": "arithmetic",
        "reward_model": {"style": "rule", "ground_truth": str(task.train[5].answer)},
        "extra_info": {"index": 5, "level": 6, "split": "train"},
    }
    assert [row["extra_info"]["index"] for row in rows] == list(range(64))
    validation = pq.read_table(held_out).to_pylist()
    assert {row["extra_info"]["split"] for row in validation} == {"held_out"}
    assert {row["data_source"] for row in validation} == {data_source(level) for level in range(1, 9)}


@pytest.mark.parametrize(
    ("solution", "truth", "score", "prediction"),
    [
        ("24", "42", 1.0, "42"),
        ("42", "42", 0.0, "24"),
        ("001", "100", 1.0, "100"),
        ("1", "100", 0.0, "1"),
        ("240", "42", 0.0, "042"),  # a leading zero is another text than the answer
        ("24=", "42", 0.0, ""),
        ("-24", "42", 0.0, ""),
        ("", "42", 0.0, ""),
        ("²", "2", 0.0, ""),
    ],
)
def test_reward_is_exact_match(solution: str, truth: str, score: float, prediction: str) -> None:
    assert compute_score("ladder1", solution, truth, extra_info={"index": 0}, unknown=1) == {
        "score": score,
        "acc": score,
        "pred": prediction,
    }


@settings(deadline=None, max_examples=100)
@given(level=st.integers(1, len(LEVELS)), seed=st.integers(0, 2**32))
def test_the_right_response_earns_the_reward_through_the_tokenizer(level: int, seed: int) -> None:
    problem = draw_problem(level, np.random.default_rng(seed))
    tokens = TOKENIZER(problem.response, add_special_tokens=False)["input_ids"] + [TOKENIZER.eos_token_id]
    text = TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert read_answer(text) == str(problem.answer)
    assert compute_score(data_source(level), text, str(problem.answer))["score"] == 1.0


TOKENIZER = build_tokenizer()
