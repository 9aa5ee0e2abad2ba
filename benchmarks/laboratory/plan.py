"""Which cells are run, the most important first."""

from __future__ import annotations

from collections.abc import Iterable

from .ledger import Cell
from .methods import METHODS

SEEDS = (1, 2, 3, 4, 5)
"""Seeds of the figures, paired over methods."""
TUNING_SEEDS = (101, 102)
"""Seeds of the learning rates. Rule: the rate of the grid with the largest mean area under the held-out curve over
these seeds, for each method and task; nothing of the seeds of the figures is read."""
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
MAIN = ("grpo", "no_baseline", "spo", "spo_offline", "spo_calibrated", "oracle")
ON_A_CPU = ("lean", "spo_offline_4")
"""Methods of the plan ``cpu`` alone."""
OTHERS = tuple(name for name in METHODS if name not in (*MAIN, *ON_A_CPU))
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
AT_RATES = tuple(name for name in METHODS if name not in ("oracle_uniform", *ON_A_CPU))
AT_256 = (*MAIN, "batch_whitened", "reinforce_pp", "spo_calibrated_draws", "plus_plus", "bspo", "spo_uniform", "rloo")


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
        cells(("grpo", "no_baseline", "spo"), range(5), "quickstart", batch=256, steps=32),
        cells(("spo_offline_4",), range(5), "quickstart", batch=256, steps=16),
        cells(quickstart, range(10), "quickstart"),
        *(cells(few, SEEDS, task) for task in ("terms", "scratchpad")),
        *(cells(few, TUNING_SEEDS, task, rate=rate) for rate in RATES[:3] for task in ("terms", "scratchpad")),
        *(cells(few, SEEDS, task, rate=rate) for rate in (3e-5, 3e-4) for task in ("terms", "scratchpad")),
    ]


def smoke() -> list[list[Cell]]:
    """Short cells of every task, for a test of the machinery."""
    small = {"batch": 16, "steps": 2, "train": 64}
    return [
        cells(("grpo", "spo_calibrated_draws", "dapo", "spo_offline", "spo_negative_tokens"), (1,), **small),
        cells(("spo", "grpo"), (1,), "terms", **small),
        cells(("plus_plus", "bspo"), (1,), "scratchpad", **small),
    ]


PLANS = {"gpu": gpu, "cpu": cpu, "smoke": smoke}


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
