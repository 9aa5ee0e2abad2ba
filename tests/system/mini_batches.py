"""Who shares a mini-batch in a real run, worked out anew from the order of dispatch, and as the actor received it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Row = tuple[str, int]
"""uid and session; the outputs of one session are told apart by their number only."""


def real(mini: Sequence[tuple]) -> list[Row]:
    """The rows that are no padding."""
    return sorted((uid, session) for uid, session, _ in mini if not uid.startswith("pad"))


def by_step(trained: Sequence[Sequence[tuple]], prompts: int) -> list[list[list[Row]]]:
    """Mini-batches of each step: a new one begins with a prompt that the last, complete step did not have."""
    steps: list[list[list[Row]]] = []
    seen: set[str] = set()
    for mini in map(real, trained):
        new = {uid for uid, _ in mini} - seen
        if not steps or (len(seen) == prompts and new):
            steps.append([])
            seen, new = set(), {uid for uid, _ in mini}
        steps[-1].append(mini)
        seen |= new
    return steps


def dealt(rows: Sequence[Row], place: dict[str, int], count: int, *, seed: int, step: int, update: int = 0) -> list:
    """The mini-batches that these rows belong in."""
    ordered = sorted(rows, key=lambda row: (place[row[0]], row[1]))
    shuffled = np.random.default_rng((seed, step, update, 1)).permutation(len(ordered))
    return [sorted(ordered[number] for number in part) for part in np.array_split(shuffled, count)]


def places(dispatched: Sequence[Sequence[tuple[str, int]]]) -> dict[str, int]:
    """uid -> position in the order of all dispatches, the first one of each."""
    uids = dict.fromkeys(uid for batch in dispatched for uid, _ in batch)
    return {uid: place for place, uid in enumerate(uids)}


def check(steps: Sequence[list[list[Row]]], place: dict[str, int], *, seed: int, first: int) -> None:
    """Every step's mini-batches are those that seed, step and order of dispatch say."""
    for step, minis in enumerate(steps, first):
        rows = [row for mini in minis for row in mini]
        assert minis == dealt(rows, place, len(minis), seed=seed, step=step), f"step {step}"


def by_prompt(steps: Sequence[list[list[Row]]], dispatched: Sequence[Sequence[tuple[str, int]]]) -> list:
    """The same with dataset indices in place of verl's random names."""
    index = {uid: number for batch in dispatched for uid, number in batch}
    return [[sorted((index[uid], session) for uid, session in mini) for mini in step] for step in steps]
