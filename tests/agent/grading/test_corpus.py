"""The labelled corpus: no wrong answer is graded right; right ones that are refused are listed, with reasons."""

import json
from collections import Counter
from pathlib import Path

import pytest

from spo_verl.agent.math_reward import compute_score
from spo_verl.data.prepare.published import SOURCES

pytest.importorskip("math_verify")

ROWS = [json.loads(line) for line in (Path(__file__).parent / "corpus.jsonl").read_text().splitlines()]


def graded_right(answer, truth):
    return compute_score("math", f"So it is \\boxed{{{answer}}}.", truth, seconds=30.0, processes=1)["score"] == 1.0


@pytest.fixture(scope="module")
def graded():
    return [(row, graded_right(row["answer"], row["truth"])) for row in ROWS]


def test_no_wrong_answer_is_graded_right(graded):
    assert [(row["truth"], row["answer"]) for row, right in graded if right and not row["right"]] == []


def test_right_answers_are_graded_right_but_for_those_that_are_listed_with_a_reason(graded):
    refused = {(row["truth"], row["answer"]) for row, right in graded if row["right"] and not right}
    assert refused == {(row["truth"], row["answer"]) for row in ROWS if "refused" in row}


def test_every_ground_truth_equals_itself():
    assert [truth for truth in {row["truth"] for row in ROWS} if not graded_right(truth, truth)] == []


def test_the_corpus_is_what_it_says():
    pairs = Counter((row["truth"], row["answer"]) for row in ROWS)
    assert max(pairs.values()) == 1
    assert len(ROWS) >= 400
    assert {row["source"] for row in ROWS} <= {*SOURCES, "math"}
    assert {"right", "form", "source", "truth", "answer"} <= set.intersection(*(set(row) for row in ROWS))
    assert all(row["right"] and row["refused"].strip() for row in ROWS if "refused" in row)
    both = Counter(row["right"] for row in ROWS)
    assert min(both[True], both[False]) > 300
