"""What to run first on a machine with accelerators, and a report of it (report.md, report.json).

    benchmarks/first_gpu.sh --data-dir data              # both parts; part one needs verl[vllm], the model, the data
    benchmarks/first_gpu.sh --part shapes                # part two: torch and transformers, one GPU
    VERL_PLATFORM=cpu benchmarks/first_gpu.sh --dry-run  # both with small sizes on a CPU, one launch

Part one runs the recipe gsm8k_qwen3_0_6b for its first ten steps with SPO and with GRPO. Part two measures the probe
and the estimator next to the log-probs and the training of the same tokens, at the shapes of Qwen3-8B and Qwen3-0.6B
with random weights. Without --part everything runs that the installed packages allow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

METHODS = ("spo", "grpo")
EXPERIMENT = "gsm8k_qwen3_0_6b"
VERL_PARTS = ("gen", "reward", "old_log_prob", "ref", "adv", "update_actor", "update_weights")
"""verl's ``timing_s/*`` within a step; ``old_log_prob`` contains ``recall`` and ``probe`` of SPO."""
OWN_PARTS = ("draw", "dispatch", "recall", "probe", "observe")
"""``spo/seconds_total/*``."""
PACKAGES = ("verl", "vllm", "ray", "torch", "transformers", "numpy")
NOT_RUN = "not run"


# ---------------------------------------------------------------- part one


def overrides(method: str, args: argparse.Namespace) -> list[str]:
    """What differs from the recipe: ten steps, no validation, no checkpoint, no offline values, the places."""
    from spo_verl.launching.launch import hydra_value

    return [
        f"data_dir={hydra_value(os.path.realpath(args.data_dir))}",
        f"actor_rollout_ref.model.path={hydra_value(args.model)}",
        f"trainer.n_gpus_per_node={args.gpus}",
        f"trainer.total_training_steps={args.steps}",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.resume_mode=disable",
        *(["spo.initial.values=null"] if method == "spo" else []),
        *args.overrides,
    ]


def checked(method: str, args: argparse.Namespace) -> tuple[Any, list[str]]:
    """The recipe and its overrides, accepted by verl's check and by SPO's.

    Raises:
        SystemExit: lists what they refuse.
    """
    from spo_verl.launching.composition import problems_of
    from spo_verl.launching.recipes import find_recipe

    recipe, given = find_recipe(f"{EXPERIMENT}/{method}"), overrides(method, args)
    if problems := problems_of(recipe.compose(given)):
        raise SystemExit(f"error: {recipe.name} is not accepted:\n  - " + "\n  - ".join(problems))
    return recipe, given


def run_recipe(method: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the recipe's first steps and return verl's records.

    Raises:
        SystemExit: data are not there, or the run failed; says where its log is.
    """
    from spo_verl.launching.launch import relevant_tail, run_main_ppo

    recipe, given = checked(method, args)
    files = [Path(args.data_dir) / f"gsm8k_{split}.parquet" for split in ("train", "test")]
    if absent := [str(file) for file in files if not file.is_file()]:
        raise SystemExit(
            f"error: {', '.join(absent)} is not there: make it with `spo-verl data prepare gsm8k --split train -o "
            f"{files[0]}` (and test), or name its folder with --data-dir."
        )
    print(f"{method}: {shlex.join(recipe.command(given, 'python'))}", flush=True)
    run = run_main_ppo(
        [*recipe.base_overrides(), *given],
        args.output / method,
        configuration=recipe.options(),
        cpu=False,
        env={"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0")},
        time_limit_s=args.time_limit,
        silence_limit_s=args.time_limit,
    )
    if not run.ok:
        raise SystemExit(
            f"error: {method} ended with {run.outcome.status}; {run.log_path}:\n{relevant_tail(run.log())}"
        )
    return list(run.metrics)


def rehearse_recipe(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Two small steps of the SPO recipe on a CPU; its records have the metrics of a full run.

    Raises:
        SystemExit: the rehearsal did not pass.
    """
    from spo_verl.launching.launch import METRICS_NAME, read_metrics
    from spo_verl.rehearsal.rehearse import LIMITS, rehearse
    from spo_verl.small.task import build_task, write_parquet

    rows = Path(args.data_dir) / "gsm8k_train.parquet"
    if not rows.is_file():
        rows = args.output / "task" / "train.parquet"
        write_parquet(build_task(train=64, held_out=16, seed=0), rows.parent)
    limits = replace(LIMITS, seconds=args.time_limit, silence_s=args.time_limit)
    found = rehearse(f"{EXPERIMENT}/spo", data=[rows], folder=args.output / "spo", limits=limits, say=print)
    if not found.passed:
        failed = [f"{check.name}: {check.found}" for check in found.checks if not check.ok]
        raise SystemExit(f"error: the rehearsal did not pass: {found.stopped or '; '.join(failed)}")
    return list(read_metrics(args.output / "spo" / METRICS_NAME))


def summary(records: Iterable[Mapping[str, Any]], skip: int) -> dict[str, Any]:
    """Medians over the steps after the first ``skip``, which load and compile; rewards over all.

    Raises:
        ValueError: there is no such step.
    """
    by_step = {record["step"]: record["data"] for record in records if "timing_s/step" in record["data"]}
    measured = [data for step, data in sorted(by_step.items()) if step > skip]
    if not measured:
        raise ValueError(f"no step after step {skip} in the log, only {sorted(by_step)}; lower --skip")

    def median(key: str) -> float | None:
        values = [data[key] for data in measured if key in data]
        return statistics.median(values) if values else None

    def own(data: Mapping[str, Any], *names: str) -> float:
        return sum(data.get(f"spo/seconds_total/{name}", 0.0) for name in names)

    seconds = {name: median(f"timing_s/{name}") for name in VERL_PARTS}
    if seconds["old_log_prob"] is not None:
        seconds["old_log_prob"] = statistics.median(
            data["timing_s/old_log_prob"] - own(data, "recall", "probe") for data in measured
        )
    seconds |= {name: median(f"spo/seconds_total/{name}") for name in OWN_PARTS}
    seconds = {name: value for name, value in seconds.items() if value is not None}
    found: dict[str, Any] = {
        "steps": sorted(by_step),
        "measured_steps": len(measured),
        "step_s": median("timing_s/step"),
        "seconds": seconds,
        "tokens": median("perf/total_num_tokens"),
        "tokens_per_second_and_gpu": median("perf/throughput"),
        "peak_gib": {
            "allocated": median("actor/perf/max_memory_allocated_gb"),
            "reserved": median("actor/perf/max_memory_reserved_gb"),
        },
        "reward": [data.get("critic/score/mean") for _, data in sorted(by_step.items())],
        "response_tokens": median("response_length/mean"),
        "rollout_probs_diff_mean": median("training/rollout_probs_diff_mean"),
        "rollout_probs_diff_max": _largest(by_step.values(), "training/rollout_probs_diff_max"),
    }
    probed = [data for data in measured if data.get("spo/drift/tokens_total")]
    if probed:
        per_token = statistics.median(own(data, "probe") / data["spo/drift/tokens_total"] for data in probed)
        found["probe"] = {
            "share": statistics.median(own(data, "probe") / data["timing_s/step"] for data in probed),
            "tokens": statistics.median(data["spo/drift/tokens_total"] for data in probed),
            # Every prompt with a stored response as long as the batch's own: computed, not run.
            "share_if_all_stored": statistics.median(
                full / (data["timing_s/step"] - own(data, "probe") + full)
                for data in probed
                for full in [per_token * data["perf/total_num_tokens"]]
            ),
        }
    return found


def _largest(steps: Iterable[Mapping[str, Any]], key: str) -> float | None:
    return max((data[key] for data in steps if key in data), default=None)


# ---------------------------------------------------------------- part two


def run_shapes(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every setting.

    Raises:
        SystemExit: a package is not there, or no GPU.
    """
    absent = [name for name in ("torch", "transformers", "numpy", "pyarrow", "pydantic") if find_spec(name) is None]
    if absent:
        raise SystemExit(f"error: part two needs {', '.join(absent)}: pip install {' '.join(absent)}")
    import torch

    from benchmarks import first_gpu_shapes as shapes

    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU; --dry-run measures small sizes on a CPU.")
    device = torch.device("cpu" if args.dry_run else "cuda")
    found = {}
    for name in args.shapes:
        setting = shapes.SETTINGS[name].small() if args.dry_run else shapes.SETTINGS[name]
        found[name] = shapes.measure(
            setting,
            device,
            torch.float32 if args.dry_run else torch.bfloat16,
            micro_batches=args.micro_batches,
            repeats=args.repeats,
        )
        print("\n".join(shape_lines(found[name])), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


# ---------------------------------------------------------------- the report


def machine() -> dict[str, Any]:
    """Versions and devices."""
    import spo_verl

    versions = {"spo-verl": spo_verl.__version__, **{name: _version(name) for name in PACKAGES}}
    found: dict[str, Any] = {"python": platform.python_version(), "versions": versions, "devices": []}
    if find_spec("torch") is not None:
        import torch

        found["cuda"] = torch.version.cuda
        found["devices"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report as Markdown."""
    about = report["machine"]
    devices = ", ".join(about["devices"]) or "no accelerator"
    versions = ", ".join(f"{name} {found or 'absent'}" for name, found in about["versions"].items())
    title = "# First run on accelerators" + (
        " (dry run: small sizes on a CPU, no figure means anything)" * report["dry"]
    )
    lines = [title, "", f"Devices: {devices}. Python {about['python']}, {versions}.", ""]
    lines += [f"## Part one: {EXPERIMENT}", ""]
    lines += recipe_lines(report["recipes"])
    lines += ["", "## Part two: SPO's own work, random weights", ""]
    for found in report["shapes"].values():
        lines += [*shape_lines(found), ""]
    if not report["shapes"]:
        lines += [NOT_RUN, ""]
    return lines


def recipe_lines(recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A column for each method; what has no value says so."""
    rows: list[tuple[str, list[str]]] = []

    def row(label: str, cells: Sequence[str]) -> None:
        rows.append((label, list(cells)))

    columns = [recipes.get(method) for method in METHODS]

    def each(label: str, read: Any) -> None:
        row(label, [NOT_RUN if column is None else read(column) for column in columns])

    each("steps, measured", lambda one: f"{len(one['steps'])}, {one['measured_steps']}")
    each("seconds per step", lambda one: _number(one["step_s"]))
    for name in (*VERL_PARTS, *OWN_PARTS):
        if any(column is not None and name in column["seconds"] for column in columns):
            each(f"- {name}", lambda one, name=name: _number(one["seconds"].get(name)))
    each("probe, share of the step", lambda one: _percent(one.get("probe", {}).get("share")))
    each("- if all had a stored response", lambda one: _percent(one.get("probe", {}).get("share_if_all_stored")))
    each("tokens per step", lambda one: _number(one["tokens"]))
    each("tokens per second and GPU", lambda one: _number(one["tokens_per_second_and_gpu"]))
    each("memory allocated, reserved, GiB", lambda one: ", ".join(map(_number, one["peak_gib"].values())))
    each("reward, first and last step", lambda one: f"{_number(one['reward'][0])}, {_number(one['reward'][-1])}")
    each("rollout_probs_diff mean, max", lambda one: ", ".join(
        _number(one[f"rollout_probs_diff_{what}"]) for what in ("mean", "max")))  # fmt: skip
    head = ["| median per step | SPO | GRPO |", "|---|---|---|"]
    return [*head, *(f"| {label} | {' | '.join(cells)} |" for label, cells in rows)]


def shape_lines(found: Mapping[str, Any]) -> list[str]:
    """One setting of part two."""
    device, host, step = found["device"], found["host"], found["step"]
    kernel = device["attention"] + (f" ({device['attention_fallback']})" if device["attention_fallback"] else "")
    lines = [
        f"{found['model']} ({device['parameters'] / 1e9:.2f} billion parameters, {found['dtype']}), "
        f"{device['sequences']} sequences of {device['tokens']:,} tokens, longest {device['longest_sequence']:,} "
        f"(drawn with means of {found['mean_tokens'][0]} + {found['mean_tokens'][1]}); attention: {kernel}",
        "",
        "| on one GPU | ms, median (least to most) | tokens/s | TFLOP/s | peak GiB |",
        "|---|---|---|---|---|",
    ]
    for name, one in device["parts"].items():
        lines.append(
            f"| {name} | {_spread(one['milliseconds'], ',.0f')} | {one['tokens_per_second']:,.0f} | "
            f"{one['tflops']:.0f} | {one['peak_gib']:.1f} |"
        )
    own = ", ".join(f"{name} {_spread(one, ',.1f')}" for name, one in host["milliseconds"].items())
    lines += [
        "",
        f"- probe / training: {_spread(device['probe_over_training'], '.3f')}; probe / (old log-probs + training): "
        f"{_spread(device['probe_over_old_and_training'], '.3f')}, "
        f"planned {device['probe_over_old_and_training_planned']:.3f}",
        f"- probe without its forward, over these sequences: "
        f"{device['parts']['probe']['milliseconds']['median'] - device['probe_forward_ms']:,.0f} ms; divergence of the "
        f"unchanged policy: {device['divergence_of_the_same_policy']:.1e}",
        f"- host, {host['batch']:,} of {host['prompts']:,} prompts, {host['tokens']:,} tokens, ms: {own}",
        f"- a step on {found['gpus']} GPU{'s' if found['gpus'] > 1 else ''} without generation: old log-probs and "
        f"training {step['old_log_probs_and_training_s']:.1f} s, probe {step['probe_s']:.1f} s "
        f"({step['probe_share']:.1%}), estimator {step['estimator_s']:.2f} s ({step['estimator_share']:.2%})",
    ]
    return lines


def _spread(values: Mapping[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['least']:{form}} to {values['most']:{form}})"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


# ---------------------------------------------------------------- the command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("recipe", "shapes"), help="only this one")
    parser.add_argument("--dry-run", action="store_true", help="small sizes on a CPU; part one: two steps of SPO")
    parser.add_argument("--output", type=Path, default=Path("runs/first_gpu"), help="new folder")
    one = parser.add_argument_group("part one")
    one.add_argument("--model", default="Qwen/Qwen3-0.6B", help="a folder or a name of the hub")
    one.add_argument("--data-dir", default=os.environ.get("SPO_DATA_DIR", "data"), help="with gsm8k_train.parquet")
    one.add_argument("--gpus", type=int, help="default: all that torch sees")
    one.add_argument("--steps", type=int, default=10)
    one.add_argument("--skip", type=int, help="first steps that are not measured; default 2, in a dry run 0")
    one.add_argument("--time-limit", type=float, default=3600.0, help="seconds of each run")
    two = parser.add_argument_group("part two")
    two.add_argument("--shapes", nargs="+", choices=("qwen3_8b", "qwen3_0_6b"), default=["qwen3_8b", "qwen3_0_6b"])
    two.add_argument("--repeats", type=int, default=5)
    two.add_argument("--micro-batches", type=int, default=2, help="log-prob micro-batches that are measured")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="of both recipe runs")
    args = parser.parse_args(arguments)
    args.skip = (0 if args.dry_run else 2) if args.skip is None else args.skip
    return args


def parts(args: argparse.Namespace) -> list[str]:
    """Which parts run: the chosen one, or all that the installed packages allow."""
    if args.part:
        return [args.part]
    there = all(find_spec(name) is not None for name in ("verl", "vllm"))
    if not there:
        print("verl or vllm is not installed: part two only (pip install 'verl[vllm]' for part one)", flush=True)
    return ["recipe", "shapes"] if there else ["shapes"]


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise SystemExit(f"error: {args.output} is not empty: name a new folder with --output.")
    args.output.mkdir(parents=True, exist_ok=True)
    about = machine()
    args.gpus = args.gpus or max(1, len(about["devices"]))
    chosen = parts(args)
    report: dict[str, Any] = {"machine": about, "dry": args.dry_run, "recipes": {}, "shapes": {}}
    # The short part first, so that a long run that fails does not take it along.
    if "shapes" in chosen:
        report["shapes"] = run_shapes(args)
        write(report, args.output)
    if "recipe" in chosen:
        for method in METHODS:
            if args.dry_run:
                recipe, given = checked(method, args)
                print(f"{method}, accepted: {shlex.join(recipe.command(given, 'python'))}", flush=True)
            else:
                report["recipes"][method] = summary(run_recipe(method, args), args.skip)
                write(report, args.output)
        if args.dry_run:
            report["recipes"]["spo"] = summary(rehearse_recipe(args), args.skip)
    write(report, args.output)
    print("\n".join(report_lines(report)))
    print(f"everything is in {args.output}")


def write(report: Mapping[str, Any], folder: Path) -> None:
    """``report.md`` and ``report.json``."""
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "report.md").write_text("\n".join(report_lines(report)))


if __name__ == "__main__":
    main(sys.argv[1:])
