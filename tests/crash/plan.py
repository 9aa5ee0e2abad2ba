"""What happens to which run, from a seed: shapes of runs, and what they meet one after the other."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal[
    "kill", "kill in save", "kill in merge", "kill at marker", "kill at start",
    "full disk", "read-only", "read-only start", "clock jump", "other ranks", "other rollout workers",
]  # fmt: skip

WEIGHTS: dict[Kind, int] = {
    "kill": 26,
    "kill in save": 14,
    "kill in merge": 14,
    "kill at marker": 6,
    "kill at start": 8,
    "full disk": 9,
    "read-only": 6,
    "read-only start": 3,
    "clock jump": 6,
    "other ranks": 4,
    "other rollout workers": 4,
}
PER_RUN = 10
"""What a run meets before it ends."""
MODES = ("sync", "colocate_async", "separate_async")


@dataclass(frozen=True)
class Shape:
    """A run's settings.

    Attributes:
        late: ``spo.late.policy``.
        rho: a fraction of two whole numbers, exact as a float.
        warmup: batches in flight beyond that of the step.
        failing: share of the rollouts that break off.
        ranks: training processes.
        keep: ``trainer.max_actor_ckpt_to_keep``.
    """

    mode: str
    late: str
    forgetting: str
    rho: tuple[int, int]
    batch: int
    prompts: int
    sessions: int
    sync_step: int
    warmup: float
    threshold: int | None
    failing: float
    save_freq: int
    keep: int | None
    ranks: int


@dataclass(frozen=True)
class Incident:
    """What a training process meets.

    Attributes:
        kind: see ``WEIGHTS``.
        moment: in [0, 1): share of the time, of the calls or of the space that is left until it happens.
        passed: saves or merges that are left alone before.
        delay: seconds between the chosen call and the kill; 0: instead of the call.
        jump: seconds of the wall clock.
        seed: of the training process.
    """

    kind: Kind
    moment: float
    passed: int
    delay: float
    jump: float
    seed: int


def shape(rng: random.Random) -> Shape:
    mode = rng.choice(MODES)
    sync_step = rng.choice([1, 2]) if mode == "separate_async" else 1
    batch = sync_step * rng.randint(1, 4)
    forgetting, rho = rng.choice([("constant", (1, 1)), ("constant", (1, 2)), ("version", (1, 1)), ("version", (1, 2))])
    return Shape(
        mode=mode,
        late=rng.choice(["carry", "drop", "abort"]),
        forgetting=forgetting,
        rho=rho,
        batch=batch,
        prompts=6 * batch + rng.randint(0, 30),
        sessions=rng.choice([1, 3]),
        sync_step=sync_step,
        warmup=rng.choice([0.5, 1.0, 1.5]),
        threshold=rng.choice([None, 1, 2]),
        failing=rng.choice([0.0, 0.3]),
        save_freq=rng.choice([1, 2, 3, 5]),
        keep=rng.choice([None, 1, 2]),
        ranks=rng.choice([1, 2, 4]),
    )


def incident(rng: random.Random) -> Incident:
    return Incident(
        kind=rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0],
        moment=rng.random(),
        passed=rng.randint(0, 2),
        delay=rng.choice([0.0, rng.uniform(0, 0.004)]),
        jump=rng.choice([-1, 1]) * 10 ** rng.uniform(1, 8),
        seed=rng.randrange(2**32),
    )


def run(seed: int, number: int, per_run: int = PER_RUN) -> tuple[Shape, list[Incident]]:
    """The run of this number in the campaign of a seed."""
    rng = random.Random(f"{seed} {number}")
    return shape(rng), [incident(rng) for _ in range(per_run)]


def changed(before: Shape, kind: Kind, seed: int) -> Shape:
    """The shape that a run is started with again, where its number of processes changes."""
    rng = random.Random(seed)
    changes: dict[str, Any] = {}
    if kind == "other ranks":
        changes["ranks"] = rng.choice([ranks for ranks in (1, 2, 4) if ranks != before.ranks])
    if kind == "other rollout workers":
        changes["warmup"] = rng.choice([warmup for warmup in (0.5, 1.0, 1.5, 2.0) if warmup != before.warmup])
    return replace(before, **changes)
