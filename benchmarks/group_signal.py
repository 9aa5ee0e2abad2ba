"""Signal that is left to a group baseline, step by step, from the rollouts that verl dumps: figure 3 of the paper.

    recipes/run.sh qwen3_8b_math_tir/grpo trainer.rollout_data_dir=rollouts/grpo
    recipes/run.sh qwen3_8b_math_tir/spo trainer.rollout_data_dir=rollouts/spo
    python benchmarks/group_signal.py rollouts/grpo
    python benchmarks/group_signal.py rollouts/spo --json figure_3_spo.json

Figure 3 of arXiv 2509.13232 compares advantages before any normalisation. A group is all responses to one prompt in one
step. Columns:

- ``degenerate``: share of the samples that are in groups whose rewards are all equal; figure 3a, GRPO.
- ``effective``: variance of reward minus group mean over the other samples; figure 3b, "GRPO Effective".
- ``all``: the same over all samples; degenerate groups count with advantage 0.
- ``reward``: variance of the rewards; figure 3b, "SPO No Baseline", where the run is one of SPO.

Variances have the divisor n - 1, as ``spo/advantage/raw_variance`` has. A response that is alone in its step has no
group baseline: it counts in ``samples`` and ``reward`` only. A run of single streams therefore has no other column.
Steps that were repeated after a restart count once, as verl overwrites their files.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.data.values.dumps import dump_lines, session_of
from spo_verl.errors import SpoError, SpoValuesError
from spo_verl.files import check_output

COLUMNS = ("degenerate", "effective", "all", "reward")
EQUAL = 1e-6
"""Rewards closer than this are equal: verl stores them in float32."""


@dataclass(frozen=True)
class Signal:
    """One step.

    Attributes:
        step: Training step.
        samples: Responses with a reward.
        degenerate: Share of the grouped samples that are in groups of equal rewards, in [0, 1]; None without groups.
        effective: Variance of reward minus group mean over samples of other groups; None without other groups.
        all: The same over all grouped samples; None without groups.
        reward: Variance of the rewards; None for one sample.
    """

    step: int
    samples: int
    degenerate: float | None
    effective: float | None
    all: float | None
    reward: float | None


def signal_of(step: int, groups: Sequence[Sequence[float]]) -> Signal:
    """Signal of one step, from the rewards of each of its groups."""
    rewards = [np.asarray(group, dtype=np.float64) for group in groups]
    grouped = [group for group in rewards if len(group) > 1]
    mixed = [group for group in grouped if np.ptp(group) > EQUAL]
    count = sum(map(len, grouped))
    return Signal(
        step=step,
        samples=sum(map(len, rewards)),
        degenerate=1 - sum(map(len, mixed)) / count if count else None,
        effective=_variance([group - group.mean() for group in mixed]),
        all=_variance([group - group.mean() for group in grouped]),
        reward=_variance(rewards),
    )


def _variance(parts: Sequence[np.ndarray]) -> float | None:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(values.var(ddof=1)) if len(values) > 1 else None


def reward_of(content: Mapping[str, Any], key: str, where: str) -> float:
    """A finite number out of an object of a file.

    Raises:
        SystemExit: It is not one; says where.
    """
    value = content.get(key)
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:  # JSON has integers of any length
        number = math.inf
    if not math.isfinite(number):
        raise SystemExit(f"{where}: {key} is {str(value)[:40]!r}, not a finite number")
    return number


def read_step(file: Path) -> list[list[float]]:
    """Rewards of each group of a file of verl's ``trainer.rollout_data_dir``; of a session's outputs the last counts.

    Raises:
        SystemExit: A line has no ``uid`` or no score; names file and line.
    """
    groups: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for number, line in dump_lines(file):
        where = f"{file}, line {number}"
        reward, session = reward_of(line, "score", where), session_of(line)
        if session is None:
            raise SystemExit(f"{where}: no uid that tells its group; verl 0.9.1 writes one in each line")
        groups[session[0]][session[1]] = reward
    if not groups:
        raise SystemExit(f"{file}: no rollout in it; was verl stopped while it wrote?")
    return [list(group.values()) for group in groups.values()]


def read_run(folder: Path) -> list[Signal]:
    """All steps of a run, in order.

    Raises:
        SystemExit: There is no dump, or one cannot be read.
    """
    files = sorted((file for file in folder.glob("*.jsonl") if file.stem.isdigit()), key=lambda file: int(file.stem))
    if not files:
        raise SystemExit(f"{folder}: no <step>.jsonl in it; name the folder of trainer.rollout_data_dir")
    try:
        return [signal_of(int(file.stem), read_step(file)) for file in files]
    except SpoError as error:
        raise SystemExit(str(error)) from error


def report(steps: Sequence[Signal]) -> None:
    """Print a line per step."""
    print("step  samples" + "".join(f"{name:>12}" for name in COLUMNS))
    for one in steps:
        values: Mapping[str, float | None] = asdict(one)
        cells = ("-" if values[name] is None else f"{values[name]:.4f}" for name in COLUMNS)
        print(f"{one.step:>4}  {one.samples:>7}" + "".join(f"{cell:>12}" for cell in cells))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="trainer.rollout_data_dir of a run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as well")
    args = parser.parse_args(argv)
    if args.json:
        try:
            check_output(args.json, SpoValuesError, makes_folders=False)
        except SpoError as error:
            raise SystemExit(str(error)) from error
    steps = read_run(args.folder)
    report(steps)
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in steps], indent=1) + "\n")


if __name__ == "__main__":
    main()
