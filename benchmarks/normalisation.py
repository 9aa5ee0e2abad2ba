"""Advantages of one update: normalised over its mini-batch, over all that the step has seen so far, or over the step.

    python benchmarks/normalisation.py
    python benchmarks/normalisation.py --steps 2000 --json normalisation.json

verl's `separate_async` trainer forms the updates of a step one after the other, so an update cannot be normalised
over the whole step. This asks what is lost, and whether a running normaliser (mean and standard deviation over the
updates of the step up to and with this one) would win it back.

The problem has an exact gradient: prompts with features x, a policy that answers right with probability
p = sigmoid(x w), reward 1 for a right answer, and a tracker value that is the mean of a Beta draw around p with the
mass of SPO's evidence. The gradient estimate of a step is the sum over its updates of mean(A (a - p) x), all at the
same policy. Printed: its cosine with the exact gradient of the expected reward, the mean cosine of single updates, and
the spread of the step's length (standard deviation over mean: a scale that jumps from step to step acts like a learning
rate that does). The three ways see the same rollouts, so the difference to the mini-batch's way is paired; +- is its
standard error. Needs numpy only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("mini-batch", "running", "step")


def normalised(raw_UB: np.ndarray, way: str) -> np.ndarray:
    """Normalise the raw advantages of a step's updates.

    Args:
        raw_UB: (updates, rollouts per update).
        way: one of :data:`WAYS`.
    """
    updates, size = raw_UB.shape
    if way == "mini-batch":
        mean_U1, std_U1 = raw_UB.mean(1, keepdims=True), raw_UB.std(1, ddof=1, keepdims=True)
    elif way == "step":
        mean_U1, std_U1 = np.full((updates, 1), raw_UB.mean()), np.full((updates, 1), raw_UB.std(ddof=1))
    else:
        flat = raw_UB.ravel()
        ends = [size * (update + 1) for update in range(updates)]
        mean_U1 = np.array([[flat[:end].mean()] for end in ends])
        std_U1 = np.array([[flat[:end].std(ddof=1)] for end in ends])
    return (raw_UB - mean_U1) / (std_U1 + 1e-8)


def cosine(a_XD: np.ndarray, b_D: np.ndarray) -> np.ndarray:
    """Cosine of each row with ``b_D``."""
    return (a_XD @ b_D) / (np.linalg.norm(a_XD, axis=-1) * np.linalg.norm(b_D) + 1e-30)


def measure(updates: int, size: int, steps: int, mass: float, seed: int) -> dict[str, dict[str, float]]:
    """The three ways on the same rollouts.

    Args:
        updates: per step.
        size: rollouts per update.
        steps: how many steps are drawn.
        mass: effective sample size of the values.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    prompts, width = 4000, 32
    feature_PD = rng.standard_normal((prompts, width)) / np.sqrt(width)
    # Difficulties as on a real set: many prompts near 0 and 1, few in between.
    p_P = 1 / (1 + np.exp(-(4 * feature_PD @ rng.standard_normal(width) * 0.5 - 1)))
    exact_D = ((p_P * (1 - p_P))[:, None] * feature_PD).mean(0)
    whole: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    single: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(steps):
        drawn_UB = rng.integers(prompts, size=(updates, size))
        p_UB = p_P[drawn_UB]
        right_UB = rng.random(p_UB.shape) < p_UB
        value_UB = rng.beta(mass * p_UB + 1e-3, mass * (1 - p_UB) + 1e-3)
        score_UBD = (right_UB - p_UB)[..., None] * feature_PD[drawn_UB]
        for way in WAYS:
            gradient_UD = (normalised(right_UB - value_UB, way)[..., None] * score_UBD).mean(1)
            whole[way].append(gradient_UD.sum(0))
            single[way].append(float(cosine(gradient_UD, exact_D).mean()))
    found = {}
    base = cosine(np.array(whole["mini-batch"]), exact_D)
    for way in WAYS:
        step_SD = np.array(whole[way])
        of_steps, length = cosine(step_SD, exact_D), np.linalg.norm(step_SD, axis=1)
        gain = of_steps - base
        found[way] = {
            "cosine": float(of_steps.mean()),
            "gain": float(gain.mean()),
            "gain_error": float(gain.std(ddof=1) / np.sqrt(steps)),
            "single": float(np.mean(single[way])),
            "spread": float(length.std(ddof=1) / length.mean()),
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--mass", type=float, default=8.0, help="effective sample size of the values")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    results: list[dict[str, Any]] = []
    print(f"{'updates x rollouts':<20}{'normalised over':<18}{'cosine':>8}{'gain':>20}{'single':>9}{'spread':>9}")
    for updates, size in ((2, 8), (8, 8), (2, 32), (8, 32), (2, 128), (8, 256)):
        for way, row in measure(updates, size, args.steps, args.mass, args.seed).items():
            results.append({"updates": updates, "size": size, "way": way, **row})
            gain = f"{row['gain']:+.4f} +- {row['gain_error']:.4f}"
            print(
                f"{f'{updates} x {size}':<20}{way:<18}{row['cosine']:>8.4f}{gain:>20}{row['single']:>9.4f}"
                f"{row['spread']:>9.4f}"
            )
    if args.json:
        args.json.write_text(json.dumps({"settings": {k: str(v) for k, v in vars(args).items()}, "rows": results}))


if __name__ == "__main__":
    main()
