"""Areas under reward curves, paired by replicate: the figures of Tables 1 and 2 of SPO++ (arXiv 2608.24870).

    python benchmarks/reward_curves.py spo=rollouts/spo_1,rollouts/spo_2 spo_plus_plus=rollouts/plus_1,rollouts/plus_2
    python benchmarks/reward_curves.py --steps 10 spo=... trajectory=... spo_plus_plus=...

Each name is a variant, each path after it one replicate; the n-th replicates of all variants belong together (same
seed). A path is the folder of a run's ``trainer.rollout_data_dir``, or the file that verl's logger ``file`` writes
(``trainer.logger=[console,file]``). A restart keeps the folder and overwrites the file.

With the mean rewards r_1 ... r_T of the steps:

- ``area``: normalised trapezoidal area, sum of (r_t + r_{t+1}) / 2 over t, divided by T - 1; r_1 for T = 1
  (equation 7; the paper's area of ALFWorld).
- ``mean``: mean of all r_t (the paper's area of Math-TIR).
- ``end``: mean of the last five.
- ``composite``: (area + end) / 2; with ``--steps 10`` this is C10 (equation 8).

Replicates that belong together are cut to their common number of steps. Differences are later variant minus earlier
one, in points (hundredths), as mean and sample standard deviation over the replicates.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_verl.data.values.dumps import dump_lines
from spo_verl.errors import SpoError, SpoValuesError
from spo_verl.files import check_output

if __package__:
    from benchmarks.group_signal import read_step, reward_of
else:  # run as a file
    from group_signal import read_step, reward_of

KEY = "critic/score/mean"
LAST = 5


def measures(rewards: Sequence[float]) -> dict[str, float]:
    """The four figures of one curve of T >= 1 rewards."""
    pairs = list(itertools.pairwise(rewards))
    area = sum((one + other) / 2 for one, other in pairs) / len(pairs) if pairs else rewards[0]
    end = statistics.fmean(rewards[-LAST:])
    return {"area": area, "mean": statistics.fmean(rewards), "end": end, "composite": (area + end) / 2}


def read_curve(path: Path, key: str = KEY) -> list[float]:
    """Mean reward of each step, from step 1.

    Args:
        path: A folder of ``<step>.jsonl`` rollouts, or a file of verl's logger.
        key: The metric, for a file.

    Raises:
        SystemExit: There is no such run, or steps are missing in it.
    """
    try:
        of_step = dict(_dumped(path) if path.is_dir() else _logged(path, key))
    except SpoError as error:
        raise SystemExit(str(error)) from error
    if not of_step:
        what = "no <step>.jsonl with rollouts" if path.is_dir() else f"no step with {key}"
        raise SystemExit(f"{path}: {what} in it")
    missing = sorted(set(range(1, max(of_step) + 1)) - set(of_step))
    if missing:
        raise SystemExit(f"{path}: step {missing[0]} is missing ({len(missing)} in all), and an area needs each step")
    return [of_step[step] for step in sorted(of_step)]


def _dumped(folder: Path) -> Iterator[tuple[int, float]]:
    for file in folder.glob("*.jsonl"):
        if file.stem.isdigit():
            yield int(file.stem), statistics.fmean(itertools.chain.from_iterable(read_step(file)))


def _logged(file: Path, key: str) -> Iterator[tuple[int, float]]:
    for number, line in dump_lines(file, only_dumps=False):
        where, data = f"{file}, line {number}", line.get("data")
        if not isinstance(data, Mapping) or not isinstance(line.get("step"), int):
            raise SystemExit(f"{where}: no step with data, so this is no file of verl's logger")
        if key in data:  # the validation before training logs a line of its own
            yield line["step"], reward_of(data, key, where)


def compared(curves: Mapping[str, Sequence[Sequence[float]]], steps: int | None = None) -> dict[str, Any]:
    """Means of each variant, and paired differences in points.

    Args:
        curves: Variant -> its replicates' rewards; the same number of replicates in each.
        steps: Only the first so many steps; every replicate must have them.

    Raises:
        SystemExit: Replicates or steps are missing.
    """
    counts = {name: len(of_name) for name, of_name in curves.items()}
    if len(set(counts.values())) != 1:
        raise SystemExit(f"the variants must have equally many replicates, to be paired; they have {counts}")
    lengths = [min(map(len, together)) for together in zip(*curves.values(), strict=True)]
    if steps is not None and min(lengths) < steps:
        short = lengths.index(min(lengths))
        raise SystemExit(f"replicate {short + 1} has {lengths[short]} of {steps} steps; leave it out of all variants")
    taken = [steps or length for length in lengths]
    found = {
        name: [measures(curve[:length]) for curve, length in zip(of_name, taken, strict=True)]
        for name, of_name in curves.items()
    }
    return {
        "steps": taken,
        "variants": {
            name: {what: statistics.fmean(one[what] for one in of_name) for what in of_name[0]}
            for name, of_name in found.items()
        },
        "differences": {
            f"{later} - {earlier}": {
                what: _points([two[what] - one[what] for one, two in zip(found[earlier], found[later], strict=True)])
                for what in found[later][0]
            }
            for earlier, later in itertools.combinations(found, 2)
        },
    }


def _points(differences: Sequence[float]) -> dict[str, float | None]:
    spread = 100 * statistics.stdev(differences) if len(differences) > 1 else None
    return {"mean": 100 * statistics.fmean(differences), "sd": spread}


def report(result: Mapping[str, Any]) -> None:
    """Print both tables."""
    names = [*result["variants"], *result["differences"]]
    width, columns = max(map(len, names)), list(next(iter(result["variants"].values())))
    print(f"{len(result['steps'])} replicates of {', '.join(map(str, result['steps']))} steps")
    print("".ljust(width) + "".join(f"{what:>18}" for what in columns))
    for name, row in result["variants"].items():
        print(name.ljust(width) + "".join(f"{row[what]:>18.3f}" for what in columns))
    for name, row in result["differences"].items():
        cells = (f"{one['mean']:+.2f}" + ("" if one["sd"] is None else f" +- {one['sd']:.2f}") for one in row.values())
        print(name.ljust(width) + "".join(f"{cell:>18}" for cell in cells))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", metavar="NAME=PATH,PATH", help="a variant and its replicates, in order")
    parser.add_argument("--steps", type=int, help="only the first so many steps; 10 for C10")
    parser.add_argument("--key", default=KEY, help=f"metric of a logger's file; {KEY} by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables as well")
    args = parser.parse_args(argv)
    if args.json:
        try:
            check_output(args.json, SpoValuesError, makes_folders=False)
        except SpoError as error:
            raise SystemExit(str(error)) from error
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps}: give 1 or more")
    curves: dict[str, list[list[float]]] = {}
    for variant in args.variants:
        name, sign, paths = variant.partition("=")
        if not name or not sign or not all(paths.split(",")) or name in curves:
            parser.error(f"{variant}: write NAME=PATH,PATH, each name once")
        curves[name] = [read_curve(Path(path), args.key) for path in paths.split(",")]
    result = compared(curves, args.steps)
    report(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
