"""Running a recipe or a command line for two real steps, small: the same configuration through the same command, with
what :mod:`spo_verl.rehearsal.reduction` lists exchanged.

The stages, in order; a rehearsal stops at the first that fails and says so: the configuration composes, a stand-in
can take the model's place, verl's check and ours accept it, rows and stand-in are made, the reduced configuration is
accepted too, the engine is there, verl runs, and its results are judged.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf.errors import OmegaConfBaseException

from spo_verl.errors import SpoConfigError, SpoError
from spo_verl.files import read_yaml, writing
from spo_verl.launching.limits import Limits
from spo_verl.launching.recipes import Source, accepted, find_recipe
from spo_verl.rehearsal import reduction
from spo_verl.rehearsal.reduction import ONE, Change, Device, Files, Kind
from spo_verl.rehearsal.split import Split
from spo_verl.rehearsal.split import problems as split_problems
from spo_verl.rehearsal.verdict import Check, judge

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from spo_verl.launching.composition import Composed

RESULT_NAME = "rehearsal.json"
LIMITS = Limits(seconds=400.0, silence_s=200.0, memory_gib=12.0)


class _Stop(Exception):
    """Why a rehearsal stops; it becomes part of the result."""


@dataclass
class Rehearsal:
    """The result of a rehearsal. ``stages`` are those that were passed; ``stopped`` says why there are not more."""

    recipe: str
    kind: Kind
    engine: str
    mode: str
    device: Device
    folder: str
    ranks: int = 1
    tp: int = 1
    pp: int = 1
    sp: int = 1
    changes: list[Change] = field(default_factory=list)
    stages: list[Check] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    stopped: str | None = None
    seconds: float = 0.0
    launch_seconds: float | None = None
    peak_gib: float | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the run was made and everything that it should leave is there."""
        return self.stopped is None and bool(self.checks) and all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain data, with the verdict."""
        return {"passed": self.passed, **asdict(self)}


def rehearse(
    recipe: str | Source,
    overrides: Sequence[str] = (),
    *,
    data: Sequence[Path] = (),
    folder: Path,
    device: Device = "cpu",
    split: Split = ONE,
    limits: Limits = LIMITS,
    say: Callable[[str], None] = lambda line: None,
) -> Rehearsal:
    """Rehearse a recipe in ``folder``, which must be new or empty.

    Args:
        recipe: as for :func:`spo_verl.launching.recipes.find_recipe`, or what was found.
        overrides: hydra overrides that belong to the recipe's launch; what a rehearsal reduces wins over them.
        data: prepared Parquet files; empty takes the recipe's own.
        split: training processes.
        say: called with a line for each stage.

    Raises:
        SpoConfigError: no such recipe, overrides that hydra refuses, no rows, a folder that is in use, or numbers of
            processes that the run cannot have.
    """
    started = time.monotonic()
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise SpoConfigError(f"{folder} is no folder: name another one with --output.")
    with writing(folder, SpoConfigError):
        if folder.exists() and any(folder.iterdir()):
            raise SpoConfigError(f"{folder} is not empty: name another folder with --output, or remove it.")
    where: Source = find_recipe(recipe) if isinstance(recipe, str) else recipe
    composed = accepted(where, overrides)
    config = composed.config
    with _usable(where):
        found = Rehearsal(
            recipe=where.name,
            kind=reduction.kind_of(config),
            engine=str(config.actor_rollout_ref.actor.strategy),
            mode=str(config.trainer.v1.trainer_mode),
            device=device,
            folder=os.path.realpath(folder),
            **asdict(split),
        )
        _require_possible(split, config, device)
    with writing(folder, SpoConfigError):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        _stages(found, where, composed, list(overrides), data, limits, say)
    except _Stop as why:
        found.stopped = str(why)
    found.seconds = time.monotonic() - started
    with writing(folder / RESULT_NAME, SpoConfigError):
        (folder / RESULT_NAME).write_text(json.dumps(found.as_json(), indent=2, default=str) + "\n")
    return found


def _require_possible(split: Split, config: DictConfig, device: Device) -> None:
    from spo_verl.rehearsal.stand_in import SHAPE

    found = list(split_problems(split, config, device=device, rows=reduction.shared_rows(config), shape=SHAPE))
    if device == "gpu" and (there := accelerators()) < split.ranks:
        found.append(f"--ranks {split.ranks}: this machine has {there} accelerators: use --device cpu, or fewer ranks")
    if found:
        raise SpoConfigError("; ".join(found) + ".")


def accelerators() -> int:
    """CUDA devices that torch finds; 0 where VERL_PLATFORM says that there is none to use."""
    if os.environ.get("VERL_PLATFORM") == "cpu":
        return 0
    import torch

    return int(torch.cuda.device_count())


@contextmanager
def _usable(recipe: Source) -> Iterator[None]:
    """Where a recipe's values are read: null, texts or numbers in the place of others become one message."""
    try:
        yield
    except SpoError:
        raise
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError, LookupError, OverflowError) as reason:
        raise SpoConfigError(
            f"{recipe.where}, or an override, sets what a rehearsal cannot use ("
            f"{' '.join(str(reason).split())[:300]}): give that key a value as verl's own configuration has it."
        ) from reason


def absent_modules(config: DictConfig) -> list[str]:
    """Modules that the recipe names and Python does not find: reward function and agent loops.

    Raises:
        SpoConfigError: the file of agent loops is no list of them; names the file.
    """
    named = []
    reward = str(config.reward.custom_reward_function.path or "")
    if reward.startswith("pkg://"):
        named.append(reward.removeprefix("pkg://").replace("/", "."))
    elif reward and not os.path.isfile(reward):
        return [f"{reward} (reward.custom_reward_function.path)"]
    loops = config.actor_rollout_ref.rollout.agent.agent_loop_config_path
    if loops and not os.path.isfile(str(loops)):
        return [f"{loops} (actor_rollout_ref.rollout.agent.agent_loop_config_path)"]
    named += [target.rpartition(".")[0] for target in _loop_classes(Path(str(loops)))] if loops else []
    return [name for name in named if not _importable(name)]


def _loop_classes(path: Path) -> list[str]:
    """The classes that a file of agent loops names."""
    listed = read_yaml(path, SpoConfigError)
    if not isinstance(listed, list):
        raise SpoConfigError(f"{path} is no list of agent loops: begin each with `- name: ...`, and give its _target_.")
    classes = []
    for number, loop in enumerate(listed, 1):
        target = loop.get("_target_") if isinstance(loop, dict) else None
        if not isinstance(target, str) or "." not in target:
            raise SpoConfigError(f"{path}, agent loop {number}: no _target_ such as package.module.Class: add it.")
        classes.append(target)
    return classes


def stand_in_obstacle(config: DictConfig) -> str | None:
    """Why no stand-in can take the place of what a run names; None where one can.

    Raises:
        SpoConfigError: the file of agent loops is no list of them; names the file.
    """
    from verl.trainer.ppo.utils import need_critic

    from spo_verl.planning.shapes import not_dense

    model = str(config.actor_rollout_ref.model.path)
    if reason := not_dense(model):
        return f"{model} is {reason}; the stand-in is a dense decoder of text"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if need_critic(config):
            return "it trains a critic, which has no stand-in (algorithm.adv_estimator, critic.enable)"
    if config.reward.reward_model.enable:
        return "it asks a reward model, which has no stand-in (reward.reward_model.enable)"
    if reduction.calls_tools(config):
        loops = config.actor_rollout_ref.rollout.agent.agent_loop_config_path
        classes = _loop_classes(Path(str(loops))) if loops else []
        if not any(name.startswith("spo_verl.") for name in classes):
            loop = config.actor_rollout_ref.rollout.agent.default_agent_loop
            return f"the agent loop {loop} may call tools that the stand-in was not taught"
    return None


def engine_obstacle(config: DictConfig, device: Device) -> str | None:
    """Why the training engine of the recipe cannot start on this machine; None where nothing is known against it."""
    rollout, strategy = str(config.actor_rollout_ref.rollout.name), str(config.actor_rollout_ref.actor.strategy)
    if device == "cpu" and rollout != "vllm":
        return f"on a CPU only vLLM generates (actor_rollout_ref.rollout.name={rollout})"
    if device == "cpu" and strategy not in ("fsdp", "fsdp2", "megatron"):
        return f"on a CPU only FSDP and Megatron train (actor_rollout_ref.actor.strategy={strategy})"
    if strategy == "megatron" and not _importable("megatron.core"):
        return "megatron-core is not installed, which verl's Megatron engine is built on"
    return None


def _stages(
    found: Rehearsal,
    recipe: Source,
    composed: Composed,
    overrides: list[str],
    data: Sequence[Path],
    limits: Limits,
    say: Callable[[str], None],
) -> None:
    from spo_verl.launching.composition import problems_of, uses_spo

    config, device, folder = composed.config, found.device, Path(found.folder)

    def passed(name: str, text: str) -> None:
        found.stages.append(Check(name, True, text))
        say(f"{name}: {text}")

    passed("composed", f"{recipe.name} with {found.engine}, {found.mode}: {found.kind}")
    with _usable(recipe):
        absent = absent_modules(config)
        obstacle = None if absent else stand_in_obstacle(config)
    if absent:
        raise _Stop(f"not there: {', '.join(absent)}; install what it names, or override the key.")
    if obstacle is not None:
        raise _Stop(f"{obstacle}; nothing was started")
    if problems := problems_of(composed):
        raise _Stop("it is not accepted: " + " ".join(problems))
    passed("validated", "verl's check" + (" and SPO's" if uses_spo(config) else ""))
    with _usable(recipe):
        files, parameters = _prepare(config, folder, data)
        split = Split(found.ranks, found.tp, found.pp, found.sp)
        found.changes = reduction.changes(config, files, device=device, split=split)
    passed("data and stand-in", f"{files.train.name}, {files.held_out.name}, {parameters:,} parameters")
    reduced = recipe.compose([*overrides, *reduction.overrides(found.changes)])
    if problems := problems_of(reduced):
        raise _Stop("reduced, it is not accepted: " + " ".join(problems))
    passed("reduced", f"{len(found.changes)} keys differ")
    if obstacle := engine_obstacle(config, device):
        raise _Stop(f"{obstacle}; nothing was started")
    _launch(found, recipe, config, overrides, files, limits, say)


def _launch(
    found: Rehearsal,
    recipe: Source,
    config: DictConfig,
    overrides: list[str],
    files: Files,
    limits: Limits,
    say: Callable[[str], None],
) -> None:
    from spo_verl.launching.composition import uses_spo
    from spo_verl.launching.launch import failure, run_main_ppo

    recipe = recipe.launchable(files.folder)
    say(f"launched: python -m verl.trainer.main_ppo, at most {limits.seconds:.0f} s (log: {files.folder}/train.log)")
    run = run_main_ppo(
        [*recipe.base_overrides(), *overrides, *reduction.overrides(found.changes)],
        files.folder,
        configuration=recipe.options(),
        cpu=found.device == "cpu",
        time_limit_s=limits.seconds,
        silence_limit_s=limits.silence_s,
        memory_limit_bytes=limits.memory_gib * 2**30,
    )
    found.launch_seconds, found.peak_gib = run.outcome.seconds, run.outcome.peak_bytes / 2**30
    found.files = {
        name: str(files.folder / name) for name in ("command.txt", "train.log", "metrics.jsonl", "checkpoints")
    }
    if not run.ok:
        raise _Stop(failure(run, limits))
    found.stages.append(Check("ran", True, f"{run.outcome.seconds:.0f} s, at most {found.peak_gib:.1f} GiB"))
    validation_n = next(
        (int(change.rehearsal) for change in found.changes if change.key.endswith("val_kwargs.n")),
        int(config.actor_rollout_ref.rollout.val_kwargs.n),
    )
    found.checks = judge(
        run,
        files,
        found.kind,
        spo=uses_spo(config),
        tools=reduction.calls_tools(config),
        validation_n=validation_n,
    )


def _prepare(config: DictConfig, folder: Path, data: Sequence[Path]) -> tuple[Files, int]:
    """Write rows, made-up values and the stand-in; returns them with the stand-in's parameters."""
    from omegaconf import OmegaConf

    from spo_verl.rehearsal import stand_in
    from spo_verl.rehearsal.rows import take_rows
    from spo_verl.small.task import write_rows

    named = config.data.train_files
    own = [named] if isinstance(named, str) else list(named)
    sources = list(data) or [Path(os.path.expanduser(str(file))) for file in own]
    rows = take_rows(sources, train=reduction.train_prompts(config), held_out=reduction.HELD_OUT)
    train, held_out = folder / "train.parquet", folder / "held_out.parquet"
    write_rows(rows.train, train)
    write_rows(rows.held_out, held_out)
    values = folder / "values.parquet"
    _made_up_values(rows.train, values)
    template: Any = OmegaConf.to_container(config.data.apply_chat_template_kwargs, resolve=True)
    built = stand_in.build(
        folder / "model",
        rows.prompts(),
        response_tokens=reduction.response_tokens(config),
        template=template,
        tools=_tools(config),
    )
    return Files(folder, built.folder, train, held_out, values, built.longest_prompt), built.parameters


def _tools(config: DictConfig) -> list[dict[str, Any]] | None:
    """What the agent loop puts in front of every prompt."""
    if not reduction.calls_tools(config):
        return None
    from spo_verl.agent.loop import tool_schema

    return [tool_schema("code_interpreter")]


def _made_up_values(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Eighths by row number: no estimate of anything, but a file as an estimation writes it."""
    import numpy as np

    from spo_verl.data.identity import prompt_key
    from spo_verl.data.values import OfflineValues, provenance

    key_P = np.frombuffer(b"".join(prompt_key(row) for row in rows), dtype="V16")
    successes = np.array([number * 5 % 9 for number in range(len(rows))], dtype=np.float64)
    trials = np.full(len(rows), 8, dtype=np.int64)
    OfflineValues(key_P, successes, trials, (provenance("rehearsal", policy="made up"),)).write(file)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError, TypeError, SyntaxError, OSError):  # finding it imports its package
        return False
