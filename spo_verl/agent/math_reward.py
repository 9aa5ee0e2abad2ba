r"""Outcome rewards for mathematics: 1 for a right boxed answer, 0 for anything else.

A reward function for verl::

    reward.custom_reward_function.path=pkg://spo_verl.agent.math_reward
    reward.custom_reward_function.name=compute_score

The answer is the last ``\boxed{...}`` of the model's final text: no tool output, no code, after the thinking
(`spo_verl.agent.grading.response`). Most answers are settled by their canonical form; the others are compared by
grading processes that are bounded in time and memory. ``docs/howto-rewards.md`` says it for users.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spo_verl.agent.grading.conditions import REFERENCE, all_met, chosen
from spo_verl.agent.grading.processes import ComparisonLimits, GradingError, Verdict, close_all, grader
from spo_verl.agent.grading.response import MAX_CHARACTERS, after_hashes, final_text, last_boxed
from spo_verl.agent.grading.short_forms import canonical, quick_verdict
from spo_verl.agent.grading.tokens import MAX_EXPRESSION
from spo_verl.agent.grading.truths import UnusableTruth, right_answers
from spo_verl.errors import SpoConfigError, SpoRewardError

__all__ = ["GradingError", "close_all", "compute_score", "require_math_verify"]

VERIFIERS = ("math_verify", "math_dapo")
HASHES_OF = ("gsm8k", "openai/gsm8k")
"""Data sources in which an answer after ``####`` counts where there is no box, as in the dataset's own solutions."""

REMEMBERED = 8192
FROM_VERL = {"reward_router_address", "reward_model_tokenizer"}
"""What verl passes besides, when a reward model is configured."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    verifier: str = "math_verify",
    conditions: str | Iterable[str] | None = None,
    strict_box: bool = False,
    seconds: float = 5.0,
    memory_mb: int = 2048,
    processes: int = 2,
    **other: Any,
) -> dict[str, Any]:
    """Grade one response.

    Args:
        data_source: Name of the dataset; returned, so that verl's validation dumps tell it.
        solution_str: The response as verl decodes it, tool output included.
        ground_truth: The right answer, in LaTeX or plain; a list, or its text in JSON, where several are right
            (`spo_verl.agent.grading.truths`).
        extra_info: Its ``index`` names the row in errors.
        verifier: ``math_verify`` for the exact comparison, with math-verify for what only that can read; ``math_dapo``
            for verl's own string comparison.
        conditions: Names of conditions on the form of a response (`spo_verl.agent.grading.conditions`), or
            ``reference`` for those of the reference recipe. A response that does not meet all of them is wrong.
        strict_box: With ``math_dapo``: the box must be in the last 100 characters and equal the ground truth
            character by character.
        seconds: Time limit of one symbolic comparison, > 0. Waiting for a free process does not count.
        memory_mb: Address space of a grading process in MiB.
        processes: How many grading processes this process starts at most, >= 1.

    Returns:
        ``score`` and ``acc``: 1.0 or 0.0. ``pred``: the answer in canonical form, that of the ground truth for a right
        one, "" without an answer; equal strings vote together. ``grading_timeout``: 1.0 where the comparison was given
        up, which counts as wrong. ``data_source``. With conditions also ``format_ok``.

    Raises:
        SpoConfigError: Unknown or impossible settings, or math-verify is not installed.
        SpoRewardError: There is no usable ground truth.
        GradingError: The grader itself does not work.
    """
    names = _checked(verifier, _hashable(conditions), seconds, memory_mb, processes, tuple(sorted(other)))
    truths = _truths(ground_truth, data_source, extra_info)
    # A lone surrogate cannot be written to a file or sent to a process.
    response = solution_str[-MAX_CHARACTERS:].encode("utf-8", "replace").decode("utf-8")
    outcome: dict[str, Any] = {"score": 0.0, "acc": 0.0, "pred": "", "grading_timeout": 0.0, "data_source": data_source}
    if names:
        outcome["format_ok"] = float(all_met(response, names))
        if not outcome["format_ok"]:
            return outcome
    if verifier == "math_dapo":
        # The recipe's conditions leave nothing but text after the thinking, and its own reward looks at the last
        # characters whatever they are: the same here, so that the reward is the same.
        as_recipe = strict_box and set(REFERENCE) <= set(names)
        right, outcome["pred"] = _math_dapo(response if as_recipe else final_text(response), truths, strict_box)
    else:
        text = final_text(response)
        answer = last_boxed(text)
        if answer is None and data_source in HASHES_OF:
            answer = after_hashes(text)
        verdict, outcome["pred"] = _math_verify(answer or "", truths, ComparisonLimits(seconds, memory_mb, processes))
        right, outcome["grading_timeout"] = verdict == "equal", float(verdict == "unanswered")
    outcome["score"] = outcome["acc"] = float(right)
    return outcome


def require_math_verify() -> None:
    """Raise SpoConfigError, with what to type, unless math-verify is installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise SpoConfigError(
            "verifier=math_verify needs the package math-verify: pip install 'math-verify[antlr4-9-3]' "
            "(or grade by string comparison with reward_kwargs.verifier=math_dapo)"
        )


def _math_verify(answer: str, truths: Sequence[str], limits: ComparisonLimits) -> tuple[Verdict, str]:
    """The verdict of the first ground truth that is equal, else of the last one that got none; and the vote."""
    answer = answer.strip()
    if len(answer) > MAX_EXPRESSION:
        return ("equal" if answer in truths else "different"), answer[:MAX_EXPRESSION]
    if not (vote := canonical(answer)):
        return "different", ""
    result: Verdict = "different"
    for truth in truths:
        verdict = _compared(answer, truth, limits)
        if verdict == "equal":
            return "equal", canonical(truth)
        result = verdict if verdict == "unanswered" else result
    # "2 m" is wrong for "2 km" and must not vote with it.
    return result, answer if vote in map(canonical, truths) else vote


def _compared(answer: str, truth: str, limits: ComparisonLimits) -> Verdict:
    quick = quick_verdict(answer, truth)
    if quick is not None:
        return "equal" if quick else "different"
    if len(truth) > MAX_EXPRESSION:
        return "different"
    pair = (truth, answer)
    if (known := _memory.get(pair)) is not None:
        return known
    verdict = grader(limits).compare(*pair)
    if verdict != "unanswered":  # a crowded machine may be to blame, so it may be asked again
        _memory.put(pair, verdict)
    return verdict


def _math_dapo(text: str, truths: Sequence[str], strict_box: bool) -> tuple[bool, str]:
    from verl.utils.reward_score.math_dapo import compute_score as dapo

    found = [dapo(text, truth, strict_box_verify=strict_box) for truth in truths]
    right = [truth for truth, one in zip(truths, found, strict=True) if one["score"] > 0]
    pred = found[0]["pred"]
    pred = "" if pred is None or pred == "[INVALID]" else str(pred)
    return bool(right), canonical(right[0] if right else pred[:MAX_EXPRESSION])


class _Memory:
    """The verdicts of the last pairs: the responses to one prompt repeat each other's answers."""

    def __init__(self) -> None:
        self._verdicts: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, pair: tuple[str, str]) -> Verdict | None:
        with self._lock:
            verdict = self._verdicts.get(pair)
            if verdict is not None:
                self._verdicts.move_to_end(pair)
            return verdict

    def put(self, pair: tuple[str, str], verdict: Verdict) -> None:
        with self._lock:
            self._verdicts[pair] = verdict
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._verdicts.clear()


_memory = _Memory()


def _hashable(conditions: str | Iterable[str] | None) -> str | tuple[str, ...] | None:
    return conditions if conditions is None or isinstance(conditions, str) else tuple(map(str, conditions))


@functools.lru_cache(maxsize=64)
def _checked(
    verifier: str,
    conditions: str | tuple[str, ...] | None,
    seconds: float,
    memory_mb: int,
    processes: int,
    other: tuple[str, ...],
) -> tuple[str, ...]:
    """The names of the conditions, after every setting was checked; all problems in one message."""
    problems = []
    if verifier not in VERIFIERS:
        problems.append(f"verifier={verifier}: choose from {', '.join(VERIFIERS)}")
    if unknown := [name for name in other if name not in FROM_VERL]:
        known = "verifier, conditions, strict_box, seconds, memory_mb, processes"
        problems.append(f"there is no setting {', '.join(unknown)}; there are {known}")
    for name, value, least in (("seconds", seconds, 1e-3), ("memory_mb", memory_mb, 256), ("processes", processes, 1)):
        if not value >= least:
            problems.append(f"{name}={value}: it must be at least {least:g}")
    if problems:
        raise SpoConfigError("reward.custom_reward_function.reward_kwargs: " + "; ".join(problems))
    names = chosen(conditions)
    if verifier == "math_verify":
        require_math_verify()
    return names


def _truths(ground_truth: Any, data_source: str, extra_info: Mapping[str, Any] | None) -> list[str]:
    try:
        return right_answers(ground_truth)
    except UnusableTruth as error:
        index = extra_info.get("index") if isinstance(extra_info, Mapping) else None
        where = "" if index is None else f" (extra_info.index {index})"
        raise SpoRewardError(
            f"a row of {data_source}{where} has a ground truth that nothing can equal: {error}. "
            "Correct reward_model.ground_truth in the data; `spo-verl data check FILE` lists all such rows"
        ) from None
