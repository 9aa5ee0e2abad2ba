"""A plan next to a real run on a CPU: what was predicted, and what the run measured.

    python benchmarks/plan_check.py FOLDER

Trains an untrained model of 190,000 parameters for some steps with verl and vLLM (one to three minutes) and prints, for
each figure that such a run reports, with the number of the plan. Needs the CPU environment of the quickstart.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from spo_verl.launching.composition import compose
from spo_verl.launching.launch import Run, relevant_tail, run_main_ppo
from spo_verl.planning.compute import drift_forwards
from spo_verl.planning.inputs import Assumptions, run_of
from spo_verl.planning.plan import Plan, make_plan
from spo_verl.planning.shapes import model_shape
from spo_verl.small.launches import Settings, training_overrides
from spo_verl.small.model import ModelShape, build_model, build_tokenizer, save

PROMPTS = 64
BATCH = 32
STEPS = 4


@dataclass(frozen=True)
class Compared:
    """One figure twice."""

    what: str
    predicted: float
    measured: float
    note: str = ""


def write_data(folder: Path) -> tuple[Path, Path]:
    """Sums of two numbers; the rewards of an untrained model do not matter here."""
    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{number}+{number % 7}="}],
            "reward_model": {"style": "rule", "ground_truth": str(number + number % 7)},
            "extra_info": {"index": number, "split": "train"},
        }
        for number in range(PROMPTS + 16)
    ]
    train, held_out = folder / "train.parquet", folder / "held_out.parquet"
    pd.DataFrame(rows[:PROMPTS]).to_parquet(train)
    pd.DataFrame(rows[PROMPTS:]).to_parquet(held_out)
    return train, held_out


def overrides(folder: Path) -> list[str]:
    """A run of the quickstart with both references, validation and checkpoints left out."""
    train, held_out = write_data(folder)
    tokenizer = build_tokenizer()
    save(build_model(tokenizer, ModelShape(), seed=0), tokenizer, folder / "model")
    settings = Settings(steps=STEPS, trajectories=BATCH, train_prompts=PROMPTS, offline_trials=0)
    return [
        *training_overrides(
            settings, model=folder / "model", train=train, held_out=held_out, checkpoints=folder / "ckpt", values=None
        ),
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "spo.drift.measure_both=True",
    ]


def plan_with(arguments: list[str], run: Run, model: Path) -> Plan:
    """The plan of this configuration for the lengths that the run had."""
    config = compose(["+platform=cpu", *arguments], config_name="ppo_trainer").config
    steps = range(1, STEPS + 1)
    prompt, response = (run.series(f"{name}_length/mean") for name in ("prompt", "response"))
    return make_plan(
        run_of(config),
        model_shape(str(model)),
        Assumptions(
            prompts=PROMPTS,
            prompt_tokens=sum(prompt[step] for step in steps) / STEPS,
            response_tokens=sum(response[step] for step in steps) / STEPS,
        ),
    )


def compare(plan: Plan, run: Run) -> list[Compared]:
    """The figures that a run reports."""
    last = {key: values[max(values)] for key in METRICS if (values := run.series(key))}
    tokens = run.series("perf/total_num_tokens")
    drift_tokens = run.series("spo/drift/tokens_total")
    stored_step = max(drift_tokens)
    stored, own = drift_forwards(plan.run)
    mean = plan["stored_response_mean"].value
    returned = plan.run.trajectories * (1 - last["spo/first_visit_share"])
    # Of every step's responses, and 20 bytes for each prompt that has one; below 65,536 tokens nothing is moved out.
    remembered = STEPS * BATCH * (mean - 20) + 20 * PROMPTS * last["spo/coverage"]
    scored = stored * returned + own * plan.run.trajectories
    per_sequence = plan["step_tokens"].value / plan.run.trajectories
    return [
        Compared("tokens per step", plan["step_tokens"].value, sum(tokens.values()) / len(tokens), "mean of the steps"),
        Compared("tokens of the longest step", plan["step_tokens_worst"].value, max(tokens.values()), "an upper bound"),
        Compared("bytes of the tracker's table", plan["tracker"].value, last["spo/bytes/tracker"]),
        Compared(
            "bytes of stored responses", remembered, last["spo/bytes/memory"],
            "mean length; so small a memory keeps what was replaced",
        ),
        Compared("at most", plan["response_memory_peak"].value, last["spo/bytes/memory"], "an upper bound"),
        Compared("forwards for the divergence", stored + own, last["spo/drift/forwards_total"]),
        Compared(
            "tokens in them", scored * per_sequence, drift_tokens[stored_step],
            "last step, mean lengths, prompts that returned",
        ),
    ]  # fmt: skip


METRICS = ("spo/bytes/tracker", "spo/bytes/memory", "spo/coverage", "spo/first_visit_share", "spo/drift/forwards_total")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for model, data, logs and metrics of the run")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    arguments = overrides(folder)
    run = run_main_ppo(arguments, folder / "run", time_limit_s=540)
    if not run.ok:
        print(relevant_tail(run.log()), file=sys.stderr)
        return 1
    plan = plan_with(arguments, run, folder / "model")
    print(f"{'':32}{'predicted':>14}{'measured':>14}")
    for line in compare(plan, run):
        print(f"{line.what:<32}{line.predicted:>14,.1f}{line.measured:>14,.1f}  {line.note}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
