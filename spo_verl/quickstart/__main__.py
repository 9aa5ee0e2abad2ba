"""Train a small model with SPO on a CPU, through verl's own command, and compare before and after."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from spo_verl.errors import SpoError
from spo_verl.launching.limits import Limits, RunError
from spo_verl.quickstart.compare import check, compare
from spo_verl.quickstart.run import quickstart
from spo_verl.quickstart.runs import finished_runs
from spo_verl.small.launches import Settings
from spo_verl.small.warmstart import WarmStartSettings


class _Parser(argparse.ArgumentParser):
    """Says on one line what is wrong, and where the options are listed."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")


def parser() -> argparse.ArgumentParser:
    default, limits, warm = Settings(), Limits(), WarmStartSettings()
    arguments = _Parser(
        prog="quickstart.sh",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="A second call with the same settings continues where the first one ended. Further arguments "
        "key=value go to verl unchanged, e.g. spo.sampling.mode=uniform; with --compare the arguments are run folders.",
    )
    run = arguments.add_argument_group("what is run")
    run.add_argument("--estimator", choices=("spo", "grpo"), default=default.estimator, help="method of training")
    for name, what in {
        "seed": "seed of task, model, warm start and sampling",
        "steps": "training steps",
        "trajectories": "responses per training step",
        "learning_rate": "learning rate of the training",
        "train_prompts": "prompts to train on",
        "held_out_prompts": "prompts kept for the comparison, not trained on",
        "offline_trials": "responses per prompt that estimate its value before training",
    }.items():
        value = getattr(default, name)
        run.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=what)
    run.add_argument(
        "--no-offline-values",
        dest="offline_trials",
        action="store_const",
        const=0,
        default=argparse.SUPPRESS,
        help="same as --offline-trials 0",
    )
    run.add_argument(
        "--warm-start-accuracy", type=float, default=warm.target, help="accuracy at which the warm start ends"
    )
    run.add_argument(
        "--warm-start-seconds", type=float, default=warm.max_seconds, help="seconds that the warm start may take"
    )
    call = arguments.add_argument_group("this call")
    call.add_argument("--fresh", action="store_true", help="start a new run, even if one can be continued")
    call.add_argument(
        "--compare", action="store_true", help="train nothing: compare finished runs in a table and a plot"
    )
    call.add_argument("--time-limit", type=float, default=limits.seconds, help="seconds for the whole call")
    call.add_argument(
        "--memory-limit", type=float, default=limits.memory_gib, help="GiB of memory for verl and its workers"
    )
    call.add_argument(
        "--silence-limit",
        type=float,
        default=limits.silence_s,
        help="seconds without output after which the run counts as hung",
    )
    call.add_argument(
        "--folder",
        type=Path,
        default=Path(os.environ.get("SPO_RUNS", "runs")) / "quickstart",
        help="folder for runs and warm-started models",
    )
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help=argparse.SUPPRESS)
    return arguments


def settings_from(given: argparse.Namespace) -> Settings:
    named = {field.name: getattr(given, field.name) for field in dataclasses.fields(Settings) if field.name in given}
    warm = WarmStartSettings(target=given.warm_start_accuracy, max_seconds=given.warm_start_seconds)
    return Settings(**{**named, "warm_start": warm, "overrides": tuple(given.overrides)})


def limits_from(given: argparse.Namespace) -> Limits:
    return Limits(seconds=given.time_limit, silence_s=given.silence_limit, memory_gib=given.memory_limit)


def path_line(command: str = "spo-verl") -> str | None:
    """The line that puts ``spo-verl`` on the PATH; None where this environment's is there already."""
    folder = Path(sys.executable).parent
    found = shutil.which(command)
    if found is not None and Path(found).parent.resolve() == folder.resolve():
        return None
    return f"\nTo have the command {command} in this shell:\n  export PATH={shlex.quote(str(folder))}:$PATH"


def execute(arguments: Sequence[str], say: Callable[[str], None]) -> tuple[int, dict[str, Any] | None]:
    """Do what the command line asks for.

    Returns:
        Exit status (0 after success, 1 after a failure with its reason on stderr, 2 for wrong settings) and the result.
    """
    given = parser().parse_args(arguments)
    # An exception, so that the training is ended before this process is.
    for one in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, lambda number, _: sys.exit(128 + number))
    try:
        if given.compare:
            found = compare(finished_runs(given.folder, tuple(given.overrides), check=check), given.folder)
            say(found.pop("text"))
            return 0, found
        found = quickstart(settings_from(given), given.folder, limits=limits_from(given), fresh=given.fresh, say=say)
        if (line := path_line()) is not None:
            say(line)
        return 0, found
    except SpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2, None
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1, None
    except KeyboardInterrupt:
        print(
            "\ninterrupted; the training and everything it had started were ended. The same call again continues.",
            file=sys.stderr,
        )
        return 130, None


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return execute(sys.argv[1:] if arguments is None else arguments, lambda line: print(line, flush=True))[0]


if __name__ == "__main__":
    sys.exit(main())
