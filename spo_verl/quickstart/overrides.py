"""The ``key=value`` arguments of a call, checked against verl's configuration before anything is made."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from spo_verl.launching.launch import CPU_ENVIRONMENT, ENVIRONMENT
from spo_verl.launching.limits import RunError
from spo_verl.small.launches import Settings, refuse, training_overrides

OWN: dict[str, str] = {
    "algorithm.adv_estimator": "choose it with --estimator",
    "data.train_files": "the quickstart makes the task",
    "data.val_files": "the quickstart makes the task",
    "actor_rollout_ref.model.path": "the quickstart makes the model",
    "trainer.total_training_steps": "choose it with --steps",
    "trainer.default_local_dir": "choose the folder of all runs with --folder",
    "trainer.resume_mode": "--fresh starts a new run",
    "spo.initial.values": "--no-offline-values starts without them",
    "spo.estimate.output": "the quickstart estimates values itself",
    "spo.estimate.trials": "choose it with --offline-trials",
}
"""Keys that the quickstart sets itself and relies on."""

AT_LEAST_ONE = (
    "actor_rollout_ref.rollout.n",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.train_batch_size",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
    "trainer.save_freq",
    "trainer.total_epochs",
)
"""Keys that verl takes with any number, and fails on later; without checkpoints a run has no result."""

_ANSWER = "PROBLEMS "


def check_overrides(settings: Settings) -> None:
    """Compose what would be launched, in a process of its own since that loads all of verl. Nothing without overrides.

    Raises:
        SpoConfigError: something is no override, no key, of the wrong type or out of range; the message lists all.
        RunError: verl's configuration cannot be composed at all.
    """
    if not settings.overrides:
        return
    refuse(_not_for_verl(settings.overrides))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "spo_verl.quickstart.overrides"],
        input=json.dumps(settings.as_json()),
        env={**os.environ, **ENVIRONMENT, **CPU_ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode or len(answers) != 1:
        raise RunError(f"verl's configuration cannot be composed:\n{done.stderr.strip()[-2000:]}")
    refuse(json.loads(answers[0].removeprefix(_ANSWER)))


def _not_for_verl(overrides: Sequence[str]) -> list[str]:
    """What is wrong before verl is asked."""
    problems = []
    for override in overrides:
        key, equals, _ = override.lstrip("+~").partition("=")
        if not key or (not equals and not override.startswith("~")):
            problems.append(f"{override!r} is neither an option (--help lists them) nor of the form key=value")
        elif key in OWN:
            problems.append(f"{override}: {OWN[key]}")
    return problems


def problems_of(settings: Settings) -> list[str]:
    """Everything that would stop the launches of a run, found without starting any."""
    from omegaconf import OmegaConf

    from spo_verl.launching.composition import compose, type_problems
    from spo_verl.launching.composition import problems_of as launch_problems

    folder = Path("/quickstart")
    paths = {"model": folder / "model", "train": folder / "train.parquet", "held_out": folder / "held_out.parquet"}
    plain = dataclasses.replace(settings, overrides=())
    values = folder / "values.parquet" if settings.offline else None
    ours = ["+platform=cpu", *training_overrides(plain, **paths, checkpoints=folder, values=values)]
    before = compose(ours, config_name="ppo_trainer")
    given = compose(settings.overrides, config_name="ppo_trainer", known_good=ours)
    if problems := given.problems or type_problems(before.config, given.config):
        return problems
    problems = launch_problems(given)
    batch = given.config.data.train_batch_size
    if batch > settings.train_prompts:
        problems.append(f"data.train_batch_size={batch} is more than the {settings.train_prompts} training prompts")
    for key in AT_LEAST_ONE:
        value = OmegaConf.select(given.config, key)
        # SPO's own check names some of them; the group baseline has none.
        if (value is None or value < 1) and not any(key in problem for problem in problems):
            problems.append(f"{key}={value}: it has to be at least 1")
    return problems


if __name__ == "__main__":
    found = problems_of(Settings.from_json(json.load(sys.stdin)))
    print(_ANSWER + json.dumps(found))
