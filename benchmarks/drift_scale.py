"""How well the policy's summed movement predicts each prompt's divergence, and on which scale.

    python benchmarks/drift_scale.py run --model MODEL --train TRAIN --held-out HELD_OUT FOLDER [--steps 20]
    python benchmarks/drift_scale.py fit FOLDER [FOLDER ...]

``run`` is one real launch with ``spo.forgetting.mode=kl``, in which the policy's movement is measured too (by the
policy loss that ``mode=drift`` uses); of a quickstart run it takes the model and the two data files. It leaves verl's
``metrics.jsonl``, and ``visits.jsonl`` with the exact divergence of every prompt of every step. ``fit`` adds up the
movement between a prompt's visits and compares. It also says how far retention is off where only some of a step's
prompts are measured (``spo.drift.max_prompts``).

For ``run`` this file is imported by verl's processes as well (``VERL_USE_EXTERNAL_MODULES``) and leaves a hook there.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VISITS_ENV, VISITS_NAME = "DRIFT_SCALE_VISITS", "visits.jsonl"
MINI_BATCHES = 4
LAGS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32))
HALF_LIVES = (0.06, 0.25)


# ---------------------------------------------------------------------- inside verl's processes


def _write_visits(module: Any) -> None:
    """Append slot and divergence of every prompt of a step to the file that the environment names."""
    inner = module.Rewarded.outcomes

    def outcomes(self: Any, divergence: Any) -> Any:
        record = {
            "step": self.recalled.version + 1,
            "slot": self.recalled.frozen.slot_B.tolist(),
            "divergence": [None if one != one else float(one) for one in divergence.divergence_B],
        }
        with open(os.environ[VISITS_ENV], "a") as file:
            file.write(json.dumps(record) + "\n")
        return inner(self, divergence)

    module.Rewarded.outcomes = outcomes


if VISITS_ENV in os.environ:
    import wrapt

    wrapt.register_post_import_hook(_write_visits, "spo_verl.training.step")


# ---------------------------------------------------------------------- the run


def run(folder: Path, model: Path, data: tuple[Path, Path], steps: int, learning_rate: float, more: list[str]) -> None:
    """One launch on the CPU, as the quickstart's, with both measures on."""
    from spo_verl.launching.launch import run_main_ppo
    from spo_verl.small.launches import Settings, training_overrides

    loss = "actor_rollout_ref.actor.policy_loss"
    settings = Settings(steps=steps, learning_rate=learning_rate, validate_every=-1, save_every=-1)
    overrides = training_overrides(
        settings, model=model, train=data[0], held_out=data[1], checkpoints=folder / "checkpoints", values=None
    )
    overrides += [
        "trainer.val_before_train=False",
        f"{loss}.loss_mode=spo_movement",
        f"{loss}._target_=spo_verl.training.movement.MeasuredPolicyLossConfig",
        f"+{loss}.wrapped_mode=vanilla",
        *more,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VISITS_NAME).unlink(missing_ok=True)
    path = os.pathsep.join([str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", "")])
    done = run_main_ppo(
        overrides,
        folder,
        env={
            "VERL_USE_EXTERNAL_MODULES": Path(__file__).stem,
            VISITS_ENV: str((folder / VISITS_NAME).resolve()),
            "PYTHONPATH": path,
        },
    )
    print(f"{done.outcome.status}: {done.log_path}")


# ---------------------------------------------------------------------- the fit


@dataclass
class Visits:
    """Visits of prompts with a stored response: lag in steps, exact D, and the movement since, composed in two ways."""

    step: Any
    lag: Any
    exact: Any
    total: Any
    root: Any


def read_visits(folder: Path) -> Visits:
    """Pair every divergence with the movement of the steps from the prompt's last visit up to before this one."""
    import numpy as np

    from spo_verl.launching.launch import read_metrics
    from spo_verl.training.movement import METRIC, TOKENS

    steps = {record["step"]: record["data"] for record in read_metrics(folder / "metrics.jsonl")}
    move = {
        step: data[METRIC] / data[TOKENS] * 2 * MINI_BATCHES / (MINI_BATCHES - 1)
        for step, data in steps.items()
        if METRIC in data
    }
    last: dict[int, int] = {}
    rows = []
    for line in (folder / VISITS_NAME).read_text().splitlines():
        record = json.loads(line)
        step = record["step"]
        for slot, exact in zip(record["slot"], record["divergence"], strict=True):
            if exact is not None and slot in last:
                between = np.array([move[at] for at in range(last[slot], step)])
                rows.append((step, step - last[slot], exact, between.sum(), np.sqrt((between**2).sum())))
            last[slot] = step
    print(f"{folder.name}: {len(move)} steps, movement per step {np.mean(list(move.values())):.4f} (mean)")
    return Visits(*np.array(rows).T)


def line_through_origin(x: Any, y: Any) -> tuple[float, float]:
    """Least-squares c of y = c x, and the share of the spread of y about 0 that it leaves."""
    scale = float((x * y).sum() / (x * x).sum())
    return scale, float(((y - scale * x) ** 2).sum() / (y * y).sum())


def matching_retention(x: Any, target: float, half_life: float) -> float:
    """The c for which c x has the mean retention ``target``; bisection, as retention falls with c."""
    from spo_verl.core import retention

    low, high = 1e-6, 1e4
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if retention(middle * x, half_life=half_life).mean() > target else (low, middle)
    return float((low * high) ** 0.5)


def fit(visits: Visits) -> None:
    """Print ratios by lag, both fits, and what they do to the retention."""
    import numpy as np

    from spo_verl.core import retention

    print(f"{len(visits.exact)} visits with a stored response; D: mean {visits.exact.mean():.4f}, quantiles 10/50/90 % "
          + "/".join(f"{q:.4f}" for q in np.quantile(visits.exact, [0.1, 0.5, 0.9])))  # fmt: skip
    print("lag   visits  mean D  sum    root   D/sum  D/root")
    for low, high in LAGS:
        of = (visits.lag >= low) & (visits.lag <= high)
        if of.any():
            exact, total, root = (column[of].mean() for column in (visits.exact, visits.total, visits.root))
            name = str(low) if low == high else f"{low}-{high}"
            print(f"{name:5} {of.sum():6}  {exact:.4f}  {total:.4f} {root:.4f} {exact / total:.3f}  {exact / root:.3f}")
    columns = {"sum": visits.total, "root of squares": visits.root}
    print("composition       least squares: scale, left over; ratio of means")
    for name, x in columns.items():
        scale, left = line_through_origin(x, visits.exact)
        print(f"{name:17} {scale:.3f}  {left:.3f}  {visits.exact.mean() / x.mean():.3f}")
    for half_life in HALF_LIVES:
        exact_rho = retention(visits.exact, half_life=half_life)
        floor = retention(np.array([np.inf]))[0]
        print(f"half_life {half_life}: exact rho mean {exact_rho.mean():.4f}, at rho_min "
              f"{(exact_rho <= floor).mean():.2f}; their mean for all is off by "
              f"{np.abs(exact_rho - exact_rho.mean()).mean():.4f}")  # fmt: skip
        for name, x in columns.items():
            for how, scale in (
                ("least squares", line_through_origin(x, visits.exact)[0]),
                ("same mean rho", matching_retention(x, exact_rho.mean(), half_life)),
                ("scale 1", 1.0),
            ):
                rho = retention(scale * x, half_life=half_life)
                print(f"  {name:15} {how:14} scale {scale:.3f}: rho mean {rho.mean():.4f}, mean |error| "
                      f"{np.abs(rho - exact_rho).mean():.4f}, at rho_min {(rho <= floor).mean():.2f}")  # fmt: skip


def budgets(visits: Visits, *, repeats: int = 200) -> None:
    """Print how far retention lies from the exact one where a share of each step's visits is measured only."""
    import numpy as np

    from spo_verl.core import retention

    rng = np.random.default_rng(0)
    for half_life in HALF_LIVES:
        rho = retention(visits.exact, half_life=half_life)
        for share in (0.25, 0.5):
            error, mean_error = [], []
            for _ in range(repeats):
                used = rho.copy()
                for step in np.unique(visits.step):
                    rows = np.flatnonzero(visits.step == step)
                    kept = rng.choice(rows, max(1, round(share * len(rows))), replace=False)
                    used[np.setdiff1d(rows, kept)] = rho[kept].mean()
                error.append(np.abs(used - rho).mean())
                mean_error.append(used.mean() - rho.mean())
            print(f"half_life {half_life}, budget {share:.0%}: mean |rho error| {np.mean(error):.4f}, "
                  f"of the mean retention {np.mean(mean_error):+.5f} (sd {np.std(mean_error):.5f})")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run")
    for name in ("model", "train", "held-out"):
        one.add_argument(f"--{name}", type=Path, required=True)
    one.add_argument("--steps", type=int, default=20)
    one.add_argument("--learning-rate", type=float, default=1e-4)
    one.add_argument("folder", type=Path)
    one.add_argument("overrides", nargs="*")
    many = verbs.add_parser("fit")
    many.add_argument("folder", type=Path, nargs="+")
    given = parser.parse_args()
    if given.verb == "run":
        data = (given.train.resolve(), given.held_out.resolve())
        run(given.folder, given.model.resolve(), data, given.steps, given.learning_rate, given.overrides)
        return
    for folder in given.folder:
        visits = read_visits(folder)
        fit(visits)
        budgets(visits)


if __name__ == "__main__":
    main()
