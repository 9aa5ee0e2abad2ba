"""Which cells are run, the most important first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .ledger import SEEDS, TUNING_SEEDS, Cell
from .methods import METHODS
from .summary import Entry, tuned

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
MAIN = ("grpo", "no_baseline", "spo", "spo_offline", "spo_calibrated", "oracle")
LATER = ("lean", "spo_offline_4", "lean_negative_tokens")
"""Methods that the plan ``gpu`` has not."""
OTHERS = tuple(name for name in METHODS if name not in (*MAIN, *LATER))
ON_OTHER_TASKS = (
    "grpo",
    "no_baseline",
    "spo",
    "spo_offline",
    "spo_calibrated",
    "spo_calibrated_draws",
    "plus_plus",
    "reinforce_pp",
    "batch_whitened",
    "rloo",
    "dapo",
    "spo_uniform",
    "spo_no_forgetting",
    "spo_double_sided",
    "spo_negative_tokens",
    "spo_maxrl",
)
AT_RATES = tuple(name for name in METHODS if name not in ("oracle_uniform", *LATER))
AT_256 = (*MAIN, "batch_whitened", "reinforce_pp", "spo_calibrated_draws", "plus_plus", "bspo", "spo_uniform", "rloo")
AT_OWN_RATE = (
    "grpo",
    "no_baseline",
    "reinforce_pp",
    "spo",
    "spo_negative_tokens",
    "lean",
    "lean_negative_tokens",
    "plus_plus",
)
AT_ONE_RATE = (
    "oracle",
    "spo_offline",
    "rloo",
    "batch_whitened",
    "bspo",
    "grpo_prioritized",
    "spo_uniform",
    "spo_no_forgetting",
    "dapo",
)
"""Further methods on quickstart, all at one rate, that of most methods there.

Added after the results at own rates were seen: a look at what the choice of a rate did, not part of the rule.
"""
ONE_RATE = 3e-5
SIZES = (64, 240, 1024)
"""Batch, steps and prompts of a cell by default."""
OWN_RATE_TASKS = ("scratchpad", "terms", "quickstart")
OWN_RATES = (1e-5, 3e-5, 1e-4, 3e-4)


def cells(methods: Iterable[str], seeds: Iterable[int], task: str = "ladder", **other: float) -> list[Cell]:
    """Seed by seed, so that what a short run finishes is paired."""
    methods = tuple(methods)
    return [Cell(task, method, seed, **other) for seed in seeds for method in methods]  # type: ignore[arg-type]


def gpu() -> list[list[Cell]]:
    """Blocks of cells, in order of importance."""
    return [
        cells(MAIN, SEEDS),
        cells(OTHERS, SEEDS),
        cells(("no_baseline", "spo", "spo_calibrated", "spo_calibrated_draws", "oracle"), range(6, 16)),
        cells(ON_OTHER_TASKS, SEEDS, "terms"),
        cells(ON_OTHER_TASKS, SEEDS, "scratchpad"),
        *(cells(AT_RATES, TUNING_SEEDS, rate=rate) for rate in RATES),
        cells(AT_256, SEEDS, batch=256, steps=100),
        cells(
            ("no_baseline", "spo", "spo_calibrated", "spo_calibrated_draws"),
            SEEDS,
            "wide",
            batch=256,
            steps=60,
            train=14336,
        ),
        *(cells(AT_RATES, SEEDS, rate=rate) for rate in (3e-4, 1e-3, 3e-5)),
        *(cells(ON_OTHER_TASKS, SEEDS[:3], task, rate=3e-4) for task in ("terms", "scratchpad")),
    ]


def cpu() -> list[list[Cell]]:
    """From the quickstart's own models, and learning rates of the other tasks; hours on two cores."""
    quickstart = ("grpo", "no_baseline", "spo", "lean", "spo_offline", "oracle")
    few = ("grpo", "no_baseline", "spo", "lean")
    return [
        # The runs of benchmarks/real_comparison.sh: the same models, problems, trajectories and learning rate.
        cells(("grpo", "no_baseline", "spo", "spo_negative_tokens"), range(5), "quickstart", batch=256, steps=32),
        cells(("spo_offline_4",), range(5), "quickstart", batch=256, steps=16),
        cells(quickstart, range(10), "quickstart"),
        *(cells(few, SEEDS, task) for task in ("terms", "scratchpad")),
        *(cells(few, TUNING_SEEDS, task, rate=rate) for rate in RATES[:3] for task in ("terms", "scratchpad")),
        *(cells(few, SEEDS, task, rate=rate) for rate in (3e-5, 3e-4) for task in ("terms", "scratchpad")),
    ]


def rates() -> list[list[Cell]]:
    """The learning rates of each method, on the tuning seeds."""
    return [
        [cell for rate in OWN_RATES for cell in cells(AT_OWN_RATE, TUNING_SEEDS, task, rate=rate)]
        for task in OWN_RATE_TASKS
    ]


def own_rates(entries: Sequence[Entry]) -> list[list[Cell]]:
    """Each method at the learning rate that the tuning seeds chose, then quickstart at one rate.

    Raises:
        SystemExit: cells of the plan ``rates`` are not finished: a choice among some of the rates may be another.
    """
    done = {entry["key"] for entry in entries}
    if left := [cell.key for block in rates() for cell in block if cell.key not in done]:
        raise SystemExit(
            f"error: {len(left)} cells of the plan rates are not in the ledger, such as {left[0]}: run it."
        )
    chosen = tuned(entries)
    own = [
        [Cell(task, name, seed, rate=chosen[(task, name, *SIZES)]) for seed in SEEDS for name in AT_OWN_RATE]
        for task in OWN_RATE_TASKS
    ]
    planned = {cell for block in own for cell in block}
    one = cells((*AT_OWN_RATE, *AT_ONE_RATE), SEEDS, "quickstart", rate=ONE_RATE)
    return [*own, [cell for cell in one if cell not in planned]]


def smoke() -> list[list[Cell]]:
    """Short cells of every task, for a test of the machinery."""
    small = {"batch": 16, "steps": 2, "train": 64}
    return [
        cells(("grpo", "spo_calibrated_draws", "dapo", "spo_offline", "spo_negative_tokens"), (1,), **small),
        cells(("spo", "grpo"), (1,), "terms", **small),
        cells(("plus_plus", "bspo"), (1,), "scratchpad", **small),
    ]


PLANS: dict[str, Callable[[Sequence[Entry]], list[list[Cell]]]] = {
    "gpu": lambda _: gpu(),
    "cpu": lambda _: cpu(),
    "rates": lambda _: rates(),
    "own_rates": own_rates,
    "smoke": lambda _: smoke(),
}
"""Blocks of cells by the name of a plan, from what the ledger has."""


def stacks(blocks: list[list[Cell]], most: int) -> list[list[Cell]]:
    """Cells that can run in lock step, at most ``most`` together, in the order of the plan.

    Dynamic sampling has a stack of its own: the others would wait for its rounds.
    """
    result = []
    for block in blocks:
        alike: dict[tuple[object, ...], list[Cell]] = {}
        for cell in block:
            kind = (cell.task, cell.batch, cell.steps, cell.train, METHODS[cell.method].dynamic)
            alike.setdefault(kind, []).append(cell)
        for group in alike.values():
            count = -(-len(group) // most)
            size = -(-len(group) // count)
            result += [group[start : start + size] for start in range(0, len(group), size)]
    return result
