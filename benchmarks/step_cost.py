"""What a step of SPO costs over one of GRPO with the same trajectories, part by part, from two real runs.

    ./quickstart.sh --offline-trials 0 && ./quickstart.sh --estimator grpo
    python benchmarks/step_cost.py runs/quickstart/spo-... runs/quickstart/grpo-...

Reads what verl's file logger wrote (``metrics.jsonl``, anywhere below each folder): medians over the steps, the first
two left out. Shares are of the GRPO run's step.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

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
    """The metrics of each training step after the warm-up; of a step that was repeated after a resume the last."""
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
    return [steps[number] for number in sorted(steps)[WARM_UP:]]


def median(steps: list[dict[str, float]], key: str) -> float | None:
    """Over the steps that have the metric; None where none has."""
    found = [step[key] for step in steps if key in step]
    return statistics.median(found) if found else None


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
    print("\n".join(table(steps_of(given.spo), steps_of(given.grpo))))


if __name__ == "__main__":
    main()
