"""Supervised training of the quickstart model up to a chosen accuracy.

Reinforcement learning needs a model that is right sometimes. How often depends steeply on the number of supervised
steps, so training stops at an accuracy, and a step and a time limit only bound it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.small.task import CHARACTERS, LEVELS, Problem, draw_problem

IGNORED = -100


@dataclass(frozen=True)
class WarmStartSettings:
    """``target`` is the mean sampled accuracy on the probe problems at which training stops.

    After ``max_seconds`` it also stops with less, but not below ``floor``; after ``max_steps`` with whatever there is.
    """

    target: float = 0.37
    floor: float = 0.15
    max_steps: int = 3000
    max_seconds: float = 600.0
    batch_size: int = 192
    learning_rate: float = 2e-3
    ramp_steps: int = 50
    check_every: int = 10


@dataclass(frozen=True)
class WarmStartReport:
    steps: int
    seconds: float
    accuracy: float
    accuracy_by_level: tuple[float, ...]
    reached: bool


def encode(problems: Sequence[Problem], tokenizer: Any) -> tuple[Any, Any]:
    """Token ids and labels, both (B, T) int64, padded on the right; labels hold the response and its end token.

    Right padding needs no attention mask in a causal model: no real token looks to its right. The chat template is
    rendered once and its frame reused, since rendering it for each problem would take as long as the training.
    """
    import torch

    before, after = template_frame(tokenizer)
    id_of = tokenizer.get_vocab()
    length = max(len(problem.question) + len(problem.response) for problem in problems) + len(before) + len(after) + 1
    tokens = torch.full((len(problems), length), tokenizer.pad_token_id)
    labels = torch.full((len(problems), length), IGNORED)
    for row, problem in enumerate(problems):
        prompt = [*before, *(id_of[character] for character in problem.question), *after]
        answer = [*(id_of[character] for character in problem.response), tokenizer.eos_token_id]
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return tokens, labels


def template_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token ids that the chat template puts before and after the text of a question."""
    mark = CHARACTERS[0]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], add_generation_prompt=True, tokenize=False
    )
    before, _, after = rendered.partition(mark)
    return tuple(tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))  # type: ignore[return-value]


def answer_log_prob(model: Any, tokens: Any, labels: Any) -> Any:
    """Log-probability (B,) that sampling at temperature 1 writes exactly the labelled response."""
    import torch

    logits = model(input_ids=tokens).logits[:, :-1].float()
    wanted = labels[:, 1:]
    log_prob = torch.log_softmax(logits, dim=-1).gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (log_prob * (wanted != IGNORED)).sum(-1)


def sampled_accuracy(model: Any, tokenizer: Any, problems: Sequence[Problem], *, batch_size: int = 256) -> np.ndarray:
    """Expected 0/1 reward (B,) of a response sampled at temperature 1: its probability, so without sampling noise."""
    import torch

    batches = (problems[start : start + batch_size] for start in range(0, len(problems), batch_size))
    with torch.inference_mode():
        return np.concatenate([answer_log_prob(model, *encode(batch, tokenizer)).exp().numpy() for batch in batches])


def load_libraries() -> None:
    """Import what :func:`saved_accuracies` needs, which takes longer than its work."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM  # noqa: F401


def saved_accuracies(folder: Path, sets: Sequence[Sequence[Problem]]) -> list[np.ndarray]:
    """:func:`sampled_accuracy` of the model in a folder, as float64 (B,) for each set of problems."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [sampled_accuracy(model, tokenizer, problems).astype(np.float64) for problems in sets]


def mean_by_level(accuracy_B: np.ndarray, problems: Sequence[Problem]) -> tuple[float, ...]:
    """Mean of each level's entries; the levels follow :data:`LEVELS`."""
    level_B = np.array([problem.level for problem in problems])
    return tuple(float(accuracy_B[level_B == level].mean()) for level in range(1, len(LEVELS) + 1))


def practice(rng: np.random.Generator, count: int, reserved: frozenset[str]) -> list[Problem]:
    """Fresh problems of uniformly drawn levels, never a reserved one."""
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw_problem(int(rng.integers(1, len(LEVELS) + 1)), rng)
        if problem.question not in reserved:
            problems.append(problem)
    return problems


def warm_start(
    model: Any,
    tokenizer: Any,
    *,
    probe: Sequence[Problem],
    reserved: frozenset[str],
    settings: WarmStartSettings,
    seed: int,
    report: Callable[[int, float, float, Callable[[], dict[str, Any]]], None] = lambda *_: None,
    resume: Mapping[str, Any] | None = None,
) -> WarmStartReport:
    """Train ``model`` in place until its accuracy on ``probe`` reaches the target, or a limit is met.

    Args:
        report: called at each check as ``report(step, seconds, accuracy, snapshot)``; ``snapshot()`` is everything that
            the rest of the training depends on.
        resume: a snapshot of a model of the same settings. The training continues as if it had not ended.
    """
    import torch

    rng = np.random.default_rng(np.random.SeedSequence((seed, 0x3A53)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    done, started = 0, time.monotonic()
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        rng.bit_generator.state = resume["rng"]
        done, started = resume["step"], started - resume["seconds"]

    def snapshot() -> dict[str, Any]:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng.bit_generator.state}
        return {**state, "step": step, "seconds": seconds, "accuracy": accuracy, "by_level": by_level}

    for step in range(done + 1, settings.max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, step / settings.ramp_steps)
        model.train()
        tokens, labels = encode(practice(rng, settings.batch_size, reserved), tokenizer)
        loss = -answer_log_prob(model, tokens, labels).sum() / (labels != IGNORED).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % settings.check_every and step != settings.max_steps:
            continue
        model.eval()
        accuracy_B = sampled_accuracy(model, tokenizer, probe)
        accuracy, seconds = float(accuracy_B.mean()), time.monotonic() - started
        by_level = mean_by_level(accuracy_B, probe)
        report(step, seconds, accuracy, snapshot)
        late = seconds > settings.max_seconds and accuracy >= settings.floor
        if accuracy >= settings.target or late or step == settings.max_steps:
            return WarmStartReport(step, seconds, accuracy, by_level, accuracy >= settings.target)
    raise ValueError("max_steps must be at least 1")
