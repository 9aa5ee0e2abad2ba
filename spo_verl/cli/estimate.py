"""``spo-verl values estimate``: sample every prompt with the initial policy, through verl's own rollout workers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spo_verl.cli.output import Debug, Json, Outcome, verb
from spo_verl.cli.values_text import show_description
from spo_verl.conf import chosen_platform
from spo_verl.errors import SpoConfigError, SpoValuesError
from spo_verl.files import check_output

if TYPE_CHECKING:
    from rich.console import Console

SHORT_HELP = "Measure success rates by sampling from a model."
HELP = """Measure how often MODEL solves each prompt in DATA, and write one Parquet file.

Runs `python -m verl.trainer.main_ppo` in the foreground with the OVERRIDES of your training run (model, rollout,
reward, cluster). After an interruption, the same command continues where it was."""

_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MODE = re.compile(r"\+{0,2}trainer\.v1\.trainer_mode=")
_GRACE_S = 30.0
"""Seconds that verl gets to end by itself: Ray needs a few to end its workers."""


@verb
def estimate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The initial policy: a folder or hub id, as actor_rollout_ref.model.path."
        ),
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Training data; separate several files with commas.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The Parquet file to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="OVERRIDES", help="Overrides of your training run, as on main_ppo's command line."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Responses per prompt; default: spo.estimate.trials.")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Number of prompts between two saves; default: spo.estimate.chunk.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, but do not run it.")] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    if os.path.isfile(output):
        raise SpoValuesError(f"{output} exists: remove it, or name another file with --output.")
    check_output(output, SpoValuesError)
    modes = [word for word in overrides or [] if _MODE.match(word)]
    if modes and _MODE.sub("", modes[-1]).strip("'\"") != "sync":
        raise SpoConfigError(
            f"{modes[-1]}: values are estimated by the synchronous trainer; leave that out. They serve every mode."
        )
    settings = {"output": output.absolute(), "trials": trials, "chunk": chunk}
    command = estimate_command(model, data.split(","), settings, overrides or [], os.environ)
    if dry_run:
        return Outcome({"command": command}, lambda console: print(shlex.join(command)))
    _refuse_missing(model, data.split(","), overrides or [])
    returncode, ended_by = _run(command, quiet=json_output)
    if returncode:
        return _failed(command, returncode, ended_by)

    from spo_verl.data.values import OfflineValues

    answer = {"file": str(output), **OfflineValues.read(output).describe()}

    def show(console: Console) -> None:
        show_description(console, answer)
        console.print(f"written; train with ++spo.initial.values={output}", markup=False, soft_wrap=True)

    return Outcome(answer, show)


def estimate_command(
    model: str,
    files: Sequence[str],
    settings: Mapping[str, Any],
    overrides: Sequence[str],
    environ: Mapping[str, str],
) -> list[str]:
    """The command that estimates; the user's overrides come last and win.

    Args:
        settings: values of ``spo.estimate``; None leaves a setting at its default.
    """
    from spo_verl.launching.launch import hydra_value

    files = [_absolute(file) for file in files]
    on_cpu = chosen_platform(environ) == "cpu" and "+platform=cpu" not in overrides
    return [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        *(["+platform=cpu"] if on_cpu else []),
        "algorithm.adv_estimator=spo",
        # Two plus signs: the section exists only where a preset is among the overrides.
        *(f"++spo.estimate.{name}={hydra_value(value)}" for name, value in settings.items() if value is not None),
        f"actor_rollout_ref.model.path={hydra_value(_absolute(model))}",
        f"data.train_files={hydra_value(files)}",
        f"data.val_files={hydra_value(files)}",
        # Nothing is trained, so these only have to pass verl's own checks, for any number of prompts and devices.
        "data.train_batch_size=1",
        "actor_rollout_ref.actor.use_dynamic_bsz=True",
        # The initial policy is wanted, not that of a checkpoint that lies in the default place.
        "trainer.resume_mode=disable",
        "trainer.val_before_train=False",
        "trainer.logger=[console]",
        *overrides,
    ]


def _refuse_missing(model: str, files: Sequence[str], overrides: Sequence[str]) -> None:
    """Look for the model and the data before verl is started, as ``spo-verl config`` does.

    Raises:
        SpoConfigError: names every one that is missing and that no override replaces.
    """
    from omegaconf import OmegaConf

    from spo_verl.launching.named_files import faults

    replaced = {word.partition("=")[0].lstrip("+") for word in overrides if "=" in word}
    named = {"actor_rollout_ref.model.path": model, "data.train_files": list(files)}
    config = OmegaConf.create({})
    for key in ({*named} - replaced) | ({"data.custom_cls.path"} & replaced):
        OmegaConf.update(config, key, named.get(key, "given"))
    arguments = {"actor_rollout_ref.model.path": "MODEL", "data.train_files": "DATA"}
    texts = [fault.text.replace(fault.key, arguments[fault.key], 1) for fault in faults(config) if fault.key in named]
    if texts:
        raise SpoConfigError("\n".join(texts))


def _absolute(place: str) -> str:
    """Workers may run in another folder; names of models and addresses stay as they are."""
    return str(Path(place).absolute()) if os.path.exists(place) else place


def _run(command: Sequence[str], *, quiet: bool) -> tuple[int, list[int]]:
    """Run in the foreground with its output passing through; with ``quiet`` nothing of it reaches stdout.

    Returns the exit status and the signals that asked this process to end.

    No process of verl outlives this one. The command has a session of its own, so that Ctrl-C reaches it once and
    through here only (a second one would break off Ray's own ending), and so that the session names everything that
    it started. Where this process is killed, the kernel kills the command, and its workers follow.
    """
    from spo_verl.launching.supervise import die_with_parent, end_session

    sys.stderr.flush()
    received: list[int] = []
    with _noting(_ENDING_SIGNALS, received):
        child = subprocess.Popen(
            list(command), stdout=2 if quiet else None, start_new_session=True, preexec_fn=die_with_parent
        )
        try:
            while child.poll() is None and not received:
                time.sleep(0.2)
        finally:
            end_session(child, grace_s=_GRACE_S)
        return child.wait(), received


@contextmanager
def _noting(signals: Sequence[int], received: list[int]) -> Iterator[None]:
    """Append to ``received`` instead of ending; signals that are ignored (nohup) stay ignored."""
    before = {number: signal.getsignal(number) for number in signals}
    listened = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in listened:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number in listened:
            signal.signal(number, before[number])


def _failed(command: Sequence[str], returncode: int, ended_by: Sequence[int]) -> Outcome:
    again = "start the same command again: finished parts are kept"
    if ended_by:
        why, fix = (
            f"verl was ended by {signal.Signals(ended_by[0]).name} (exit status {returncode})",
            f"to continue, {again}",
        )
    else:
        why, fix = f"verl ended with exit status {returncode}", f"correct what the last lines above name, and {again}"
    data = {"error": {"returncode": returncode, "fix": fix, "command": list(command)}}

    def show(console: Console) -> None:
        print(f"error: {why}; {fix}.", file=sys.stderr)

    return Outcome(data, show, status=1)
