"""Tasks with a character vocabulary: the quickstart's ladder, the ladder with scratchpads, sums with many answers.

A problem has a question, a level, and the whole numbers by which a response is graded. Numbers are written last digit
first, as in ``spo_verl.small.task``. Grading is arithmetic on token tensors, so it runs where the responses are.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spo_verl.small import task as ladder
from spo_verl.small.model import ASSISTANT, END, PAD, SPECIAL, USER

TOKEN = {text: index for index, text in enumerate((*SPECIAL, *ladder.CHARACTERS))}
VOCABULARY = len(TOKEN)
PADDING, STOP = TOKEN[PAD], TOKEN[END]
ZERO, EQUALS, PLUS, MINUS = TOKEN["0"], TOKEN["="], TOKEN["+"], TOKEN["-"]
LEVELS = 8


@dataclass(frozen=True)
class Problem:
    """``numbers`` is what grading reads; ``practice`` responses are drawn by the task."""

    level: int
    question: str
    numbers: tuple[int, ...]


class Kind(Protocol):
    """What tasks differ in."""

    name: str
    most_tokens: int
    exact: bool

    def draw(self, level: int, rng: np.random.Generator) -> Problem: ...
    def practice(self, problem: Problem, rng: np.random.Generator) -> str: ...
    def grade(self, token_RT: Tensor, number_RN: Tensor) -> Tensor: ...


def encoded(text: str) -> list[int]:
    return [TOKEN[character] for character in text]


def prompt_of(problem: Problem) -> list[int]:
    return [TOKEN[USER], *encoded(problem.question), TOKEN[ASSISTANT]]


def matches(token_RT: Tensor, start_R: Tensor, number_R: Tensor) -> Tensor:
    """Whether each row writes exactly this number from ``start`` on and then stops."""
    width = 6
    at_RT = start_R[:, None] + torch.arange(width, device=token_RT.device)
    padded = torch.nn.functional.pad(token_RT, (0, width + 1), value=PADDING)
    written = padded.gather(1, at_RT.clamp(max=padded.shape[1] - 1))
    power = 10 ** torch.arange(width, device=token_RT.device)
    digits = number_R[:, None] // power % 10 + ZERO
    length = (number_R[:, None] >= power).sum(1).clamp(min=1)
    place = torch.arange(width, device=token_RT.device)
    wanted = torch.where(place < length[:, None], digits, torch.where(place == length[:, None], STOP, PADDING))
    return (written == wanted).all(1)


class Ladder:
    """The quickstart's task: one right response."""

    name, most_tokens, exact = "ladder", ladder.MAX_RESPONSE_TOKENS, True

    def draw(self, level: int, rng: np.random.Generator) -> Problem:
        problem = ladder.draw_problem(level, rng)
        return Problem(level, problem.question, (problem.answer,))

    def practice(self, problem: Problem, rng: np.random.Generator) -> str:
        return ladder.written(problem.numbers[0])

    def grade(self, token_RT: Tensor, number_RN: Tensor) -> Tensor:
        return matches(token_RT, torch.zeros_like(number_RN[:, 0]), number_RN[:, 0])


class Quickstart(Ladder):
    """The ladder with the quickstart's own problems and warm starts, so that both can be held against each other."""

    name = "quickstart"


class Wide(Ladder):
    """The four levels of the ladder that have tens of thousands of problems, for tables of 14,000 prompts."""

    name = "wide"
    levels = (4, 5, 7, 8)

    def draw(self, level: int, rng: np.random.Generator) -> Problem:
        problem = ladder.draw_problem(self.levels[(level - 1) % 4], rng)
        return Problem(level, problem.question, (problem.answer,))


class Scratchpad(Ladder):
    """The ladder with any text before the answer, which follows the last ``=``: lengths are the policy's choice.

    Practice responses have no, one or two drafts of the answer, each wrong in one digit with probability 0.3.
    """

    name, most_tokens, exact = "scratchpad", 24, False

    def practice(self, problem: Problem, rng: np.random.Generator) -> str:
        answer = ladder.written(problem.numbers[0])
        drafts = []
        for _ in range(int(rng.integers(3))):
            draft = list(answer)
            if rng.random() < 0.3:
                draft[int(rng.integers(len(draft)))] = str(rng.integers(10))
            drafts.append("".join(draft) + "=")
        return "".join(drafts) + answer

    def grade(self, token_RT: Tensor, number_RN: Tensor) -> Tensor:
        place = torch.arange(1, token_RT.shape[1] + 1, device=token_RT.device)
        return matches(token_RT, ((token_RT == EQUALS) * place).amax(1), number_RN[:, 0])


class Terms:
    """Two numbers whose sum or difference is N, one of them ending in a given digit: up to hundreds of right responses.

    ``N+d=`` wants a+b = N with a ending in d, ``d+N=`` wants b ending in d; the same with ``-``. N has two digits on
    the levels 1 to 4 and three on 5 to 8. ``numbers``: N, d, sign, which of the two.
    """

    name, most_tokens, exact = "terms", 10, False

    def draw(self, level: int, rng: np.random.Generator) -> Problem:
        kind, low = (level - 1) % 4, 10 if level <= 4 else 100
        total, digit = int(rng.integers(low, 10 * low)), int(rng.integers(10))
        sign, second = 1 - 2 * (kind // 2), kind % 2
        mark, written = "+" if sign > 0 else "-", ladder.written(total)
        question = f"{digit}{mark}{written}=" if second else f"{written}{mark}{digit}="
        return Problem(level, question, (total, digit, sign, second))

    def practice(self, problem: Problem, rng: np.random.Generator) -> str:
        total, digit, sign, second = problem.numbers
        if sign > 0:
            one = digit + 10 * int(rng.integers((total - digit) // 10 + 1))
            a, b = (total - one, one) if second else (one, total - one)
        else:
            last = digit if second else (digit - total) % 10
            b = last + 10 * int(rng.integers(100))
            a = total + b
        return f"{ladder.written(a)}{'+' if sign > 0 else '-'}{ladder.written(b)}"

    def grade(self, token_RT: Tensor, number_RN: Tensor) -> Tensor:
        total, digit, sign, second = number_RN.unbind(1)
        operator = torch.where(sign > 0, PLUS, MINUS)
        place = torch.arange(token_RT.shape[1], device=token_RT.device)
        is_operator = token_RT == operator[:, None]
        split = (is_operator * place).amax(1)
        stops = token_RT == STOP
        end = (stops * place).amax(1)
        is_digit = (token_RT >= ZERO) & (token_RT < ZERO + 10)
        first, after = place < split[:, None], (place > split[:, None]) & (place < end[:, None])
        shaped = (is_operator.sum(1) == 1) & (stops.sum(1) == 1) & (split > 0) & (end > split + 1)
        shaped &= (is_digit | ~(first | after)).all(1)
        value = (token_RT - ZERO).clamp(0, 9)
        a = (value * first * 10 ** place.clamp(max=12)).sum(1)
        b = (value * after * 10 ** (place - split[:, None] - 1).clamp(0, 12)).sum(1)
        # A last written digit of 0 is a leading zero, unless the number is 0 itself.
        lead_a = value.gather(1, (split - 1).clamp(min=0)[:, None])[:, 0]
        lead_b = value.gather(1, (end - 1).clamp(min=0)[:, None])[:, 0]
        plain = ((lead_a > 0) | (split == 1)) & ((lead_b > 0) | (end == split + 2))
        ends = torch.where(second > 0, b, a) % 10 == digit
        return shaped & plain & ends & (a + sign * b == total)


KINDS: dict[str, Kind] = {kind.name: kind for kind in (Ladder(), Quickstart(), Scratchpad(), Terms(), Wide())}
SAME_MODEL = {"wide": "ladder"}
"""Tasks that start from the warm start of another."""
STARTS = {"quickstart": 5}
"""Warm-started checkpoints where they are not three: the five seeds of ``benchmarks/real_comparison.sh``."""


def starts(name: str) -> int:
    """Number of warm-started checkpoints: cells of seed s train number s mod this, on the problems of that number."""
    return STARTS.get(name, 3)


@dataclass(frozen=True)
class Problems:
    """Problems as tensors. ``prompt_PL`` is padded on the left, ``answer_PT`` (exact tasks only) on the right."""

    level_P: np.ndarray
    prompt_PL: Tensor
    number_PN: Tensor
    answer_PT: Tensor | None

    def __len__(self) -> int:
        return len(self.level_P)


PROMPT_TOKENS = 12


def padded(rows: Sequence[list[int]], width: int, *, left: bool = False) -> Tensor:
    """(rows, width) token ids."""
    filled = [[PADDING] * (width - len(row)) + row if left else row + [PADDING] * (width - len(row)) for row in rows]
    return torch.tensor(filled)


def tensors(kind: Kind, problems: Sequence[Problem], device: Any) -> Problems:
    prompt_PL = padded([prompt_of(problem) for problem in problems], PROMPT_TOKENS, left=True)
    numbers = torch.tensor([problem.numbers for problem in problems])
    answers = None
    if kind.exact:
        texts = [[*encoded(ladder.written(problem.numbers[0])), STOP] for problem in problems]
        answers = padded(texts, kind.most_tokens).to(device)
    level_P = np.array([problem.level for problem in problems])
    return Problems(level_P, prompt_PL.to(device), numbers.to(device), answers)


@dataclass(frozen=True)
class Sets:
    """Disjoint sets: trained on, held out, and the probe that steers the warm start."""

    train: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    probe: tuple[Problem, ...]


def distinct(kind: Kind, count: int, rng: np.random.Generator, taken: Collection[str]) -> tuple[Problem, ...]:
    """``count`` problems with different questions, none of them taken, the levels in turn."""
    seen, problems = set(taken), []
    for position in range(count):
        for _ in range(2000):
            problem = kind.draw(position % LEVELS + 1, rng)
            if problem.question not in seen:
                break
        else:
            raise ValueError(f"task {kind.name} has no {count} different problems; ask for fewer")
        seen.add(problem.question)
        problems.append(problem)
    return tuple(problems)


@functools.lru_cache(maxsize=12)
def build(name: str, seed: int, train: int) -> Sets:
    """The sets of a task; held-out and probe problems do not depend on the size of the training set."""
    if name == "quickstart":
        of = ladder.build_task(train=train, held_out=512, seed=seed)
        problems = (of.train, of.held_out, of.probe)
        return Sets(*(tuple(Problem(one.level, one.question, (one.answer,)) for one in part) for part in problems))
    kind = KINDS[name]
    held_rng, probe_rng, train_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence((seed, 0x1AB)).spawn(3)
    )
    held = distinct(kind, 512, held_rng, ())
    taken = {problem.question for problem in held}
    probe = distinct(kind, 256, probe_rng, taken)
    taken |= {problem.question for problem in probe}
    return Sets(distinct(kind, train, train_rng, taken), held, probe)
