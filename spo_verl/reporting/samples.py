"""Which prompts, histories and rollouts of a run a page embeds, so that its size has a bound.

| what | how many |
|---|---|
| prompts | all, up to one for ``ROOM_PER_PROMPT`` bytes; texts are shortened until they are half the room |
| rollouts with their texts (samples) | ``MOST_SAMPLES``, evenly over at most ``SAMPLED_STEPS`` steps |
| histories, every rollout of a prompt | whole prompts, until the page is full |

Prompts come in the order in which they get their history: ``FIRST`` each of the most drifted, the hardest and the most
drawn, then by their key, which is a hash and so a random order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spo_verl.record.schema import ENDINGS
from spo_verl.reporting.aggregates import NO_SOURCE, Codes, Column, coded, numbers, steps_of

ROOM_PER_PROMPT = 300
"""Bytes of the page that a run needs for every prompt that is shown: its line, and some of its history."""
MOST_SAMPLES = 2_000
SAMPLED_STEPS = 200
FIRST = 100
PIECE = 250
"""Prompts whose histories are packed together."""
TEXT_LENGTHS = (2_000, 1_000, 500, 250, 120)
RESPONSE_CHARACTERS = 6_000
"""Of a longer response the middle is left out."""
MISSING = -(2**31)
"""What a number that is not there is in a packed history."""
HISTORY = (("step", 1), ("ending", 1), ("value", 1_000), ("n_eff", 10), ("reward", 1_000),
           ("advantage", 100), ("rho", 1_000), ("divergence", 10_000), ("tokens", 1),
           ("version_dispatch", 1))  # fmt: skip
"""Columns of a packed history, and what their numbers are multiplied with before they are rounded."""
COLUMNS = tuple(dict.fromkeys(("uid", "session", "key", "data_source", "seconds", *(name for name, _ in HISTORY))))


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of a run and the prompts of its page, sorted by prompt and then as they ended.

    Attributes:
        order_N: row of the table of each rollout.
        prompt_N: prompt of each rollout; ``len(start_P)`` for prompts that the page leaves out.
        start_P, count_P: first rollout of each prompt, and how many it has.
        table: the Arrow table, in its own order.
        prompts: columns of the page's table of prompts.
        left_out: prompts that the page leaves out.
    """

    order_N: Codes
    prompt_N: Codes
    start_P: Codes
    count_P: Codes
    table: Any
    prompts: dict[str, Any]
    left_out: int


def arrange(rollouts: Any, prompts: Any, room: int) -> Rollouts:
    """Put the prompts of a run in order, with what is known of each.

    Args:
        rollouts: Arrow table with ``COLUMNS``.
        prompts: Arrow table of the prompts; those that only rollouts name are added.
        room: bytes that the page has for the run; bounds how many prompts are shown, and the length of their texts.
    """
    drawn_N, drawn_keys = coded(rollouts["key"])
    table: dict[str, Any] = {name: prompts[name].to_pylist() for name in ("key", "row", "data_source", "value", "text")}
    place_of = {key: number for number, key in enumerate(table["key"])}
    for key in drawn_keys:
        if key not in place_of:
            place_of[key] = len(table["key"])
            for name, column in table.items():
                column.append(key if name == "key" else None)
    prompt_N = np.array([place_of[key] for key in drawn_keys], dtype=np.int64)[drawn_N]
    count = len(table["key"])
    by_prompt_N = np.lexsort((steps_of(rollouts["step"]), prompt_N))
    count_P = np.bincount(prompt_N, minlength=count)
    last_P = np.cumsum(count_P) - 1
    some_P = count_P > 0
    value_N, reward_N = numbers(rollouts["value"]), numbers(rollouts["reward"])
    start_P = np.array([np.nan if one is None else one for one in table["value"]], dtype=np.float64)

    def at_last(column: Column) -> Column:
        found = np.full(count, np.nan)
        found[some_P] = column[by_prompt_N][last_P[some_P]]
        return found

    final_P = np.where(some_P, at_last(value_N), start_P)
    there_N = np.isfinite(reward_N)
    with np.errstate(invalid="ignore", divide="ignore"):
        reward_P = np.bincount(prompt_N[there_N], reward_N[there_N], count) / np.bincount(
            prompt_N[there_N], minlength=count
        )
    first_P = np.full(count, np.nan)
    first_P[some_P] = value_N[by_prompt_N][(last_P - count_P + 1)[some_P]]
    drift_P = final_P - np.where(np.isfinite(start_P), start_P, first_P)
    order_P = _order(table["key"], drift_P, final_P, count_P)
    kept_P = order_P[: room // ROOM_PER_PROMPT]
    place_P = np.full(count, len(kept_P))
    place_P[kept_P] = np.arange(len(kept_P))
    prompt_N = place_P[prompt_N]
    order_N = np.lexsort((np.arange(len(prompt_N)), steps_of(rollouts["step"]), prompt_N))
    count_P = count_P[kept_P]
    shown = {
        **{name: [table[name][number] for number in kept_P.tolist()] for name in ("key", "row")},
        "source": [table["data_source"][number] or NO_SOURCE for number in kept_P.tolist()],
        "start": start_P[kept_P],
        "value": final_P[kept_P],
        "drift": drift_P[kept_P],
        "n_eff": at_last(numbers(rollouts["n_eff"]))[kept_P],
        "last": at_last(numbers(rollouts["step"]))[kept_P],
        "reward": reward_P[kept_P],
        "draws": count_P,
    }
    shown["text"], shown["text_length"] = _texts([table["text"][number] for number in kept_P.tolist()], room)
    return Rollouts(
        order_N, prompt_N[order_N], np.cumsum(count_P) - count_P, count_P, rollouts, shown, count - len(kept_P)
    )


def _order(keys: list[str], drift_P: Column, value_P: Column, count_P: Codes) -> Codes:
    drawn_P = count_P > 0
    drift = np.where(drawn_P, np.abs(np.nan_to_num(drift_P)), -1)
    hard = np.where(drawn_P, -np.nan_to_num(value_P), -2)
    leading = [np.argsort(-measure, kind="stable")[:FIRST] for measure in (drift, hard, count_P.astype(float))]
    by_key = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    return np.array(list(dict.fromkeys(np.concatenate([*leading, by_key]).tolist())), dtype=np.int64)


def _texts(texts: list[str | None], room: int) -> tuple[list[str | None], int]:
    """Texts shortened alike until they fit, and how many characters each may have."""
    for length in TEXT_LENGTHS:
        if sum(min(len(text or ""), length) for text in texts) <= room // 2:
            break
    return [None if text is None else shortened(text, length) for text in texts], length


def shortened(text: str, most: int) -> str:
    """The beginning and the end of a text, with what is left out said between them."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]}\n[... {len(text) - most:,} characters left out ...]\n{text[len(text) - (most - head) :]}"


def histories(rollouts: Rollouts) -> Iterator[bytes]:
    """The rollouts of ``PIECE`` prompts after the other: whole numbers of 32 bits, one column of ``HISTORY`` at a time.

    Numbers of the processor's byte order, which is little-endian wherever this runs and wherever browsers do.
    """
    columns = [_packed(rollouts, name, scale) for name, scale in HISTORY]
    for first in range(0, len(rollouts.count_P), PIECE):
        start = int(rollouts.start_P[first])
        end = start + int(rollouts.count_P[first : first + PIECE].sum())
        yield b"".join(column[start:end].tobytes() for column in columns)


def _packed(rollouts: Rollouts, name: str, scale: int) -> NDArray[np.int32]:
    if name == "ending":
        code_N, names = coded(rollouts.table[name])
        number_N = np.array([ENDINGS.index(str(one)) for one in names], dtype=np.float64)[code_N]
    else:
        number_N = numbers(rollouts.table[name])
    number_N = np.rint(number_N[rollouts.order_N] * scale)
    fits_N = np.abs(number_N) < 2**31  # False for NaN
    return np.where(fits_N, number_N, MISSING).astype("<i4")


def choose(rollouts: Rollouts, most: int = MOST_SAMPLES) -> Codes:
    """Rows of the table that are shown as samples, ascending: evenly over steps.

    Of each step one half are the rollouts with the largest |advantage|, the others are random; the seed is fixed.
    """
    step_N = steps_of(rollouts.table["step"])
    shown_N = np.zeros(len(step_N), dtype=bool)
    shown_N[rollouts.order_N[rollouts.prompt_N < len(rollouts.count_P)]] = True
    steps = np.unique(step_N)
    if len(steps) > SAMPLED_STEPS:
        steps = steps[np.linspace(0, len(steps) - 1, SAMPLED_STEPS).round().astype(np.int64)]
    chance = np.random.default_rng(0)
    surprise_N = np.nan_to_num(np.abs(numbers(rollouts.table["advantage"])), nan=-1.0)
    order = np.argsort(step_N, kind="stable")
    chosen: list[Codes] = []
    left = most
    for number, step in enumerate(steps.tolist()):
        low, high = np.searchsorted(step_N[order], (step, step + 1))
        row = order[low:high]
        row = row[shown_N[row]]
        share = left // (len(steps) - number)
        if len(row) > share:
            row = row[np.argsort(-surprise_N[row], kind="stable")]
            leading = (share + 1) // 2
            row = np.concatenate([row[:leading], chance.choice(row[leading:], share - leading, replace=False)])
        chosen.append(row)
        left -= len(row)
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))


def described(rollouts: Rollouts, chosen: Codes, responses: Mapping[tuple[str, int], Sequence[str]]) -> dict[str, Any]:
    """Columns of the chosen rollouts, newest first: ``COLUMNS``, ``prompt``, ``place`` in its history, ``output``.

    Args:
        rollouts: As arranged.
        chosen: Rows of the table.
        responses: uid and session -> the outputs that were dumped.
    """
    chosen = chosen[np.argsort(-steps_of(rollouts.table["step"])[chosen], kind="stable")]
    rank_N = np.empty(len(rollouts.order_N), dtype=np.int64)
    rank_N[rollouts.order_N] = np.arange(len(rollouts.order_N))
    prompt = rollouts.prompt_N[rank_N[chosen]]
    part = rollouts.table.take(chosen)
    found: dict[str, Any] = {name: part[name].to_pylist() for name in COLUMNS if name not in ("key", "data_source")}
    found["prompt"] = prompt.tolist()
    found["place"] = (rank_N[chosen] - rollouts.start_P[prompt]).tolist()
    sessions = zip(found["uid"], found["session"], strict=True)
    outputs = [responses.get((uid, -1 if session is None else session)) for uid, session in sessions]
    found["output"] = [None if one is None else shortened("\n\n".join(one), RESPONSE_CHARACTERS) for one in outputs]
    return found
