"""`stragglers.py real`: GRPO and SPO in verl's `colocate_async`, side by side on one CPU, same long-tailed waits."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.launching.launch import Run, run_main_ppo
from spo_verl.small.model import ModelShape, build_model, build_tokenizer, save
from spo_verl.small.task import MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS, build_task, write_parquet

GROUP = 8
ROOT = Path(__file__).parent


def overrides(estimator: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """The same trajectories per update and the same surplus for both; only the estimator and the grouping differ."""
    group = GROUP if estimator == "grpo" else 1
    prompts = args.trajectories // group
    warmup = f"trainer.v1.colocate_async.num_warmup_batches={args.surplus}"
    return [
        *(["+spo=plus_plus", f"spo.oversample={args.surplus}"] if estimator == "spo" else [warmup]),
        *([f"spo.late.policy={args.late}"] if estimator == "spo" else []),
        *(["algorithm.adv_estimator=grpo", f"actor_rollout_ref.rollout.n={GROUP}"] if estimator == "grpo" else []),
        "trainer.v1.trainer_mode=colocate_async",
        "trainer.v1.sampler.max_off_policy_threshold=null",
        f"data.train_files={folder}/data/train.parquet",
        f"data.val_files={folder}/data/held_out.parquet",
        f"data.train_batch_size={prompts}",
        f"data.max_prompt_length={MAX_PROMPT_TOKENS}",
        f"data.max_response_length={MAX_RESPONSE_TOKENS}",
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.actor.optim.lr=1e-6",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={args.trajectories}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={args.trajectories}",
        f"actor_rollout_ref.rollout.max_model_len={MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=waiting",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder}/agents.yaml",
        "reward.custom_reward_function.path=pkg://spo_verl.small.reward",
        f"trainer.total_training_steps={args.steps}",
        "trainer.total_epochs=1000000",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.resume_mode=disable",
    ]


def covered(begin_N: np.ndarray, end_N: np.ndarray, first: float, last: float) -> float:
    """Seconds of [first, last] in which at least one of the intervals runs."""
    total, reached = 0.0, first
    for begin, end in sorted(zip(begin_N.tolist(), end_N.tolist(), strict=True)):
        total += max(0.0, min(end, last) - max(begin, reached))
        reached = max(reached, min(end, last))
    return total


def measure(run: Run, events: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Updates per hour over the steps after the first ``args.skip``, and how many rollouts were under way."""
    ends = run.series("timing_s/step")
    steps = [step for step in sorted(ends) if step > args.skip]
    seconds = sum(ends[step] for step in steps)
    began_N, asked_N, ended_N = np.array([json.loads(line) for line in events.read_text().splitlines()]).T
    # The measured steps are the last ones of the run.
    last = ended_N.max()
    first = max(began_N.min(), last - seconds)
    grid = np.linspace(first, last, 2000)
    active = ((began_N[None] <= grid[:, None]) & (grid[:, None] < ended_N[None])).sum(axis=1)
    limit = args.trajectories * (1 + args.surplus)
    return {
        "updates": len(steps),
        "seconds": seconds,
        "updates_per_hour": 3600 * len(steps) / seconds,
        "generation_share": sum(run.series("timing_s/gen")[step] for step in steps) / seconds,
        "active_mean": float(active.mean()),
        "idle_share": float(1 - active.mean() / limit),
        "server_idle_share": 1 - covered(asked_N, ended_N, first, last) / (last - first),
        "wait_mean": float((asked_N - began_N).mean()),
        "rollouts": len(began_N),
        "timeline": {"seconds": (grid[::10] - grid[0]).round(2).tolist(), "active": active[::10].tolist()},
    }


def draw(found: dict[str, Any], places: float, path: Path) -> None:
    """Rollouts in flight over the measured time of both runs, and how many may be."""
    from stragglers import new_panels

    from spo_verl.drawing import COLOURS, SAVED
    from spo_verl.evaluation.figures import INCHES

    figure, [[axis]] = new_panels(1, 1, (INCHES, 3.6))
    for name, label, colour, style in (
        ("grpo", "GRPO, groups of 8", COLOURS[1], "--"),
        ("spo", "SPO", COLOURS[0], "-"),
    ):
        one = found[name]
        text = (
            f"{label}: {one['updates']} updates in {one['seconds']:.0f} s, {one['idle_share']:.0%} of the places idle"
        )
        axis.plot(one["timeline"]["seconds"], one["timeline"]["active"], style, color=colour, linewidth=1.5, label=text)
    axis.axhline(
        places, color="black", linewidth=1, linestyle=":", label=f"places: {places:g} rollouts in flight at most"
    )
    axis.set_xlabel("time since the first measured update, seconds", fontsize=9)
    axis.set_ylabel("rollouts in flight", fontsize=9)
    axis.set_ylim(0, places * 1.05)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **SAVED)


def run_real(args: argparse.Namespace) -> None:
    """Launch both, one after the other, and print them side by side; with ``--from`` only draw what was measured."""
    if args.measured is not None:
        found = json.loads(args.measured.read_text())
        draw(found, found["places"], args.plot or Path("stragglers_real.png"))
        return
    folder = Path(tempfile.mkdtemp(prefix="stragglers-", dir=args.folder))
    write_parquet(build_task(train=512, held_out=16, seed=args.seed), folder / "data")
    tokenizer = build_tokenizer()
    save(build_model(tokenizer, ModelShape(layers=2), seed=args.seed), tokenizer, folder / "model")
    (folder / "agents.yaml").write_text("- name: waiting\n  _target_: stragglers_agent.WaitingAgentLoop\n")
    found: dict[str, Any] = {}
    for estimator in ("grpo", "spo"):
        events = folder / f"{estimator}.events"
        env = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "STRAGGLERS_EVENTS": str(events),
            "STRAGGLERS_MEDIAN": str(args.median),
            "STRAGGLERS_SIGMA": str(args.sigma),
            "STRAGGLERS_SEED": str(args.seed),
        }
        began = time.monotonic()
        run = run_main_ppo(overrides(estimator, args, folder), folder / estimator, env=env, time_limit_s=args.limit)
        if not run.ok:
            raise SystemExit(f"{estimator} ended with {run.outcome.status}; see {run.log_path}")
        found[estimator] = measure(run, events, args)
        print(f"{estimator}: {time.monotonic() - began:.0f} s in all; {run.log_path}", flush=True)
    found["places"] = args.trajectories * (1 + args.surplus)
    found["ratio"] = found["spo"]["updates_per_hour"] / found["grpo"]["updates_per_hour"]
    if args.json:
        args.json.write_text(json.dumps({"settings": {k: str(v) for k, v in vars(args).items()}, **found}, indent=2))
    if args.plot:
        draw(found, found["places"], args.plot)
    print(f"\n{'':<34}{'grpo 8 x':>10}{'spo':>10}")
    for key in (
        "updates",
        "seconds",
        "updates_per_hour",
        "generation_share",
        "active_mean",
        "idle_share",
        "server_idle_share",
        "wait_mean",
    ):
        print(f"{key.replace('_', ' '):<34}{found['grpo'][key]:>10.2f}{found['spo'][key]:>10.2f}")
    print(f"\nupdates per hour, spo / grpo, one run each: {found['ratio']:.2f}")


def add_command(commands: Any) -> None:
    """The command ``real`` of ``stragglers.py``."""
    real = commands.add_parser("real", help="two real runs of verl on this CPU (about ten minutes)")
    real.add_argument("--steps", type=int, default=14)
    real.add_argument("--skip", type=int, default=4, help="first steps that are not measured")
    real.add_argument("--trajectories", type=int, default=64, help="per update, for both")
    real.add_argument("--surplus", type=float, default=0.5, help="in flight beyond a batch, as a share of it, for both")
    real.add_argument("--late", choices=("carry", "drop", "abort"), default="carry", help="spo.late.policy of SPO")
    real.add_argument("--median", type=float, default=3.0, help="seconds of the log-normal wait")
    real.add_argument("--sigma", type=float, default=1.1, help="its shape; 1.1 is that of the paper's case")
    real.add_argument("--seed", type=int, default=0)
    real.add_argument("--limit", type=float, default=900.0, help="seconds per run")
    real.add_argument("--folder", type=Path, default=None, help="where both runs write; default: the temporary folder")
    real.add_argument("--json", type=Path, metavar="FILE", help="write the figures and both timelines")
    real.add_argument("--from", dest="measured", type=Path, metavar="FILE", help="draw what --json wrote; no launch")
    real.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG of the rollouts under way")
    real.set_defaults(run=run_real)
