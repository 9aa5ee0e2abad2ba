"""The reward of the arithmetic ladder, as verl loads it (``reward.custom_reward_function``)."""

from __future__ import annotations

from typing import Any


def read_answer(solution: str) -> str:
    """The number that a response writes, most significant digit first; empty where it is not digits only."""
    digits = solution.strip()
    return digits[::-1] if digits.isascii() and digits.isdigit() else ""


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_unused: Any
) -> dict[str, Any]:
    """1 where the response is the answer exactly (no leading zero, nothing next to it), otherwise 0.

    ``acc`` is what verl's validation reports, ``pred`` what it takes majorities over.
    """
    prediction = read_answer(solution_str)
    score = float(prediction == ground_truth)
    return {"score": score, "acc": score, "pred": prediction}
