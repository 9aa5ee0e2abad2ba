"""What a step of SPO costs over one of GRPO with the same trajectories, part by part, from two real runs.

    ./quickstart.sh --offline-trials 0 && ./quickstart.sh --estimator grpo
    python benchmarks/step_cost.py runs/quickstart/spo-... runs/quickstart/grpo-...

Reads what verl's file logger wrote (``metrics.jsonl``, anywhere below each folder): medians over the steps, the first
two left out. Shares are of the GRPO run's step. Then what both spent until the held-out accuracy that GRPO ends with,
from ``result.json``: between checkpoints by interpolation, the seconds of training steps alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path

from spo_verl.quickstart.report import offline_trajectories

PARTS = {
    "generation": "timing_s/gen",
    "old log-probs": "timing_s/old_log_prob",
    "advantages": "timing_s/adv",
    "update": "timing_s/update_actor",
    "weights to the rollout": "timing_s/update_weights",
    "whole step": "timing_s/step",
}
SPO_PARTS = {
    "draw": "spo/seconds_total/draw",
    "dispatch": "spo/seconds_total/dispatch",
    "recall": "spo/seconds_total/recall",
    "probe": "spo/seconds_total/probe",
    "observe": "spo/seconds_total/observe",
}
OTHERS = {
    "tokens trained on": "perf/total_num_tokens",
    "tokens of the probe's forward": "spo/drift/tokens_total",
    "memory of the training process, GiB": "actor/perf/cpu_memory_used_gb",
}
WARM_UP = 2


def steps_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of each training step, in order; of a step that was repeated after a resume the last."""
    files = sorted(folder.rglob("metrics.jsonl"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise SystemExit(f"{folder}: no metrics.jsonl below it; give the folder of a finished run of the quickstart")
    steps = {}
    for file in files:
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if "timing_s/step" in entry["data"]:
                steps[entry["step"]] = entry["data"]
    if len(steps) <= WARM_UP:
        raise SystemExit(f"{folder}: {len(steps)} steps; at least {WARM_UP + 1} are needed")
    return [steps[number] for number in sorted(steps)]


def median(steps: list[dict[str, float]], key: str) -> float | None:
    """Over the steps that have the metric; None where none has."""
    found = [step[key] for step in steps if key in step]
    return statistics.median(found) if found else None


def step_at(curve: list[dict[str, float]], target: float) -> float | None:
    """The training step at which the held-out accuracy first reaches a target; None if it never does."""
    if curve[0]["held_out"] >= target:
        return curve[0]["step"]
    for before, after in itertools.pairwise(curve):
        if after["held_out"] >= target:
            share = (target - before["held_out"]) / (after["held_out"] - before["held_out"])
            return before["step"] + share * (after["step"] - before["step"])
    return None


def spent_at(step: float, steps: list[dict[str, float]], key: str) -> float:
    """Sum of a metric over the first ``step`` steps, a part of one counted as that part of it."""
    whole = int(step)
    rest = (step - whole) * steps[whole][key] if step > whole else 0.0
    return sum(one[key] for one in steps[:whole]) + rest


def to_target(folders: dict[str, Path]) -> list[str]:
    """Rows of a Markdown table: what each run spent until the accuracy that the last one ends with."""
    results = {name: json.loads((folder / "result.json").read_text()) for name, folder in folders.items()}
    target = list(results.values())[-1]["curve"][-1]["held_out"]
    lines = [
        f"| until a held-out accuracy of {target:.4f} | steps | trajectories | tokens | seconds |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        step = step_at(result["curve"], target)
        if step is None:
            lines.append(f"| {name} | not reached | | | |")
            continue
        steps = steps_of(folders[name])
        rollouts = offline_trajectories(result) + step * result["settings"]["trajectories"]
        tokens, seconds = (spent_at(step, steps, key) for key in ("perf/total_num_tokens", "timing_s/step"))
        lines.append(f"| {name} | {step:.1f} | {rollouts:,.0f} | {tokens:,.0f} | {seconds:.1f} |")
    return lines


def as_text(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


def table(spo: list[dict[str, float]], grpo: list[dict[str, float]]) -> list[str]:
    """Rows of a Markdown table."""
    whole = median(grpo, PARTS["whole step"])
    assert whole is not None
    lines = ["| seconds of a step | SPO | GRPO | difference, share of GRPO's step |", "|---|---|---|---|"]
    for name, key in PARTS.items():
        one, other = median(spo, key), median(grpo, key)
        difference = None if one is None or other is None else (one - other) / whole
        shown = "" if difference is None else f"{difference:+.1%}"
        lines.append(f"| {name} | {as_text(one)} | {as_text(other)} | {shown} |")
    for name, key in SPO_PARTS.items():
        if (one := median(spo, key)) is not None:
            lines.append(f"| of it SPO's {name} | {as_text(one)} | | {one / whole:+.1%} |")
    lines += [
        f"| {name} | {as_text(median(spo, key))} | {as_text(median(grpo, key))} | |" for name, key in OTHERS.items()
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spo", type=Path, help="folder of a run with SPO")
    parser.add_argument("grpo", type=Path, help="folder of a run with GRPO")
    given = parser.parse_args()
    print("\n".join(table(steps_of(given.spo)[WARM_UP:], steps_of(given.grpo)[WARM_UP:])))
    print()
    print("\n".join(to_target({"SPO": given.spo, "GRPO": given.grpo})))


if __name__ == "__main__":
    main()
