"""Start ``python -m verl.trainer.main_ppo``, by default on a CPU, and report how it went.

:func:`run_main_ppo` is what the quickstart and rehearsals of recipes use: its own Ray cluster in a directory of its
own, a time limit, a silence limit, verl's metrics as a list, and no process left.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.cpu.weight_transfer import SILENCE_LIMIT
from spo_verl.errors import SpoStateError
from spo_verl.files import read_json_lines
from spo_verl.launching.deadline import STOP_AT, STOPPED
from spo_verl.launching.limits import Limits
from spo_verl.launching.supervise import CommandEnd, supervise

LOG_NAME, METRICS_NAME, COMMAND_NAME = "train.log", "metrics.jsonl", "command.txt"

_PLAIN = re.compile(r"[A-Za-z0-9_./:@-]+")
_OF_ANOTHER_TYPE = re.compile(r"null|true|false|[+-]?(?:inf|nan|[0-9.][0-9_.]*(?:e[+-]?[0-9_]+)?)", re.IGNORECASE)
"""Texts that hydra would read as nothing, a truth value or a number."""

_RAY_PATH_LIMIT = 40
"""Ray puts sockets about 65 characters below its directory, and Linux allows 107 in all."""

ENVIRONMENT: dict[str, str] = {
    "HYDRA_FULL_ERROR": "1",
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
}
CPU_ENVIRONMENT: dict[str, str] = {
    "VERL_PLATFORM": "cpu",
    # More threads than idle cores make OpenMP wait in a spin, which slows a model of this size down twentyfold.
    "OMP_NUM_THREADS": "1",
}


_NOT_INHERITED = ("RAY_ADDRESS", "RAY_NAMESPACE", STOP_AT, SILENCE_LIMIT)


@dataclass(frozen=True)
class Run:
    """A finished or ended run. ``metrics`` holds verl's records ``{"step": ..., "data": {...}}`` in order."""

    outcome: CommandEnd
    folder: Path
    metrics: tuple[dict[str, Any], ...]

    @property
    def log_path(self) -> Path:
        return self.folder / LOG_NAME

    @property
    def ok(self) -> bool:
        return self.outcome.status == "finished"

    @property
    def stopped_early(self) -> bool:
        """Whether the trainer ended by itself because its time was nearly over (``stop_after_s``)."""
        return self.ok and STOPPED in self.log()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def series(self, key: str) -> dict[int, float]:
        """Values of one metric by step, where it was reported."""
        return {record["step"]: record["data"][key] for record in self.metrics if key in record["data"]}


def hydra_value(value: object, *, resolved: bool = True) -> str:
    """Text that hydra reads back as ``value``, whatever characters a path or a name has: the one place that quotes.

    Args:
        value: None, a number, a text, a path, or a list of such.
        resolved: whether OmegaConf resolves the value later, for which ``${`` is escaped; hydra takes its search path
            as it is.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(hydra_value(item, resolved=resolved) for item in value)}]"
    text = str(value)
    if isinstance(value, (int, float)) or (_PLAIN.fullmatch(text) and not _OF_ANOTHER_TYPE.fullmatch(text)):
        return text
    if resolved:
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    # Backslashes are ordinary in quotes, except before a quote, the closing one included.
    escaped = re.sub(r"(\\+)('|\Z)", r"\1\1\2", text).replace("'", "\\'")
    return f"'{escaped}'"


def main_ppo_command(
    overrides: Sequence[str], *, configuration: Sequence[str] = (), python: str = sys.executable
) -> list[str]:
    """The stock command with hydra overrides.

    Args:
        configuration: hydra's options that choose another configuration, such as ``--config-name``.
    """
    return [python, "-m", "verl.trainer.main_ppo", *configuration, *overrides]


def ray_directory() -> Path:
    """A fresh directory for one Ray cluster, with a path short enough for its sockets."""
    base = Path(os.environ.get("SPO_RAY_TMP") or tempfile.gettempdir())
    if len(str(base)) > _RAY_PATH_LIMIT - len("/spo-12345678"):
        base = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix="spo-", dir=base))


def child_environment(folder: Path, extra: Mapping[str, str] | None = None, *, cpu: bool = True) -> dict[str, str]:
    """This process's environment with what a run of its own needs.

    Another cluster that RAY_ADDRESS names is never joined, and Ray's token is made for this run: two first runs
    would otherwise write the user's token file at the same time.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    own = {
        "VERL_FILE_LOGGER_PATH": str(folder / METRICS_NAME),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    return {**inherited, **ENVIRONMENT, **(CPU_ENVIRONMENT if cpu else {}), **own, **(extra or {})}


def run_main_ppo(
    overrides: Sequence[str],
    folder: Path,
    *,
    configuration: Sequence[str] = (),
    cpu: bool = True,
    env: Mapping[str, str] | None = None,
    time_limit_s: float = 1200.0,
    stop_after_s: float | None = None,
    silence_limit_s: float = 300.0,
    memory_limit_bytes: float = math.inf,
    on_text: Callable[[str], None] = lambda text: None,
    python: str = sys.executable,
) -> Run:
    """Run verl's trainer with ``overrides`` in ``folder`` (made if need be) and wait for it, within the limits.

    Added to ``overrides``, which come last and therefore win: with ``cpu`` the platform group, a Ray cluster of the
    run's own, verl's file logger, and the place of hydra's and the trainer's output. ``configuration`` is as for
    :func:`main_ppo_command`. ``folder`` receives ``train.log``,
    ``metrics.jsonl``, ``command.txt`` and ``checkpoints``; after a failure also Ray's own logs.

    Args:
        stop_after_s: seconds after which the trainer should have ended by itself, after a step and with a checkpoint
            (:mod:`spo_verl.launching.deadline`); less than ``time_limit_s``, at which it is ended wherever it is.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ray = ray_directory()
    try:
        # A group can be chosen only once, and comes before the values that override it.
        given = [override for override in overrides if override != "+platform=cpu"]
        platform = ["+platform=cpu"] if cpu else []
        command = main_ppo_command(
            [*platform, *_run_overrides(folder, ray), *given], configuration=configuration, python=python
        )
        (folder / COMMAND_NAME).write_text("\n".join(command) + "\n")
        outcome = supervise(
            command,
            log_path=folder / LOG_NAME,
            env=child_environment(folder, {**_bounds(stop_after_s, silence_limit_s), **(env or {})}, cpu=cpu),
            cwd=folder,
            time_limit_s=time_limit_s,
            silence_limit_s=silence_limit_s,
            memory_limit_bytes=memory_limit_bytes,
            on_text=on_text,
        )
        if outcome.status != "finished":
            keep_ray_logs(ray, folder / "ray_logs")
    finally:
        shutil.rmtree(ray, ignore_errors=True)
    return Run(outcome, folder, tuple(read_metrics(folder / METRICS_NAME)))


def _bounds(stop_after_s: float | None, silence_limit_s: float) -> dict[str, str]:
    """What the processes of a launch need to know of its limits."""
    stop = {} if stop_after_s is None else {STOP_AT: repr(time.monotonic() + stop_after_s)}
    return {**stop, SILENCE_LIMIT: repr(silence_limit_s)}


def _run_overrides(folder: Path, ray: Path) -> list[str]:
    return [
        "+ray_kwargs.ray_init.address=local",
        f"+ray_kwargs.ray_init._temp_dir={hydra_value(ray)}",
        "trainer.logger=[console,file]",
        f"trainer.default_local_dir={hydra_value(folder / 'checkpoints')}",
        f"hydra.run.dir={hydra_value(folder / 'hydra')}",
    ]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """verl's file log. A last line that is still being written is left out.

    Raises:
        SpoStateError: a line is no record of verl's logger; names file and line.
    """
    if not os.path.lexists(path):
        return []
    records = []
    for number, record in read_json_lines(path, SpoStateError, finished=True):
        known = isinstance(record, dict) and isinstance(record.get("step"), int)
        if not known or not isinstance(record.get("data"), dict):
            raise SpoStateError(f"{path}, line {number}: no step with data as verl logs them: remove the line")
        records.append(record)
    return records


def keep_ray_logs(ray: Path, destination: Path, *, at_most_bytes: int = 5_000_000) -> None:
    """Copy the ends of Ray's own logs: a worker that died in native code reports only there."""
    for log in sorted(ray.glob("session_*/logs/*")):
        if log.is_symlink() or not log.is_file() or log.stat().st_size == 0:
            continue
        destination.mkdir(parents=True, exist_ok=True)
        with log.open("rb") as source:
            source.seek(max(0, log.stat().st_size - at_most_bytes))
            (destination / log.name).write_bytes(source.read())


def stated_reason(log: str) -> str | None:
    """What the last error of spo_verl in a log says, wherever it was raised; None without an error."""
    found = re.findall(r"^(?:\([^()]*\) )?spo_verl(?:\.\w+)*\.\w+Error: (.+)$", log, flags=re.MULTILINE)
    return str(found[-1]) if found else None


def relevant_tail(log: str, *, lines: int = 40) -> str:
    """The part of a log that says why a run failed: the last traceback, or simply its end."""
    text = log.splitlines()
    starts = [number for number, line in enumerate(text) if "Traceback (most recent call last)" in line]
    if starts and len(text) - starts[-1] <= 4 * lines:
        return "\n".join(text[starts[-1] :][: 2 * lines])
    return "\n".join(text[-lines:])


def failure(run: Run, limits: Limits) -> str:
    """Why a launch did not finish, with the part of the log that matters."""
    outcome, reason = run.outcome, stated_reason(run.log())
    why = {
        "failed": f"verl's trainer ended with exit status {outcome.returncode}" + (f": {reason}" if reason else ""),
        "silent": f"verl printed nothing for {limits.silence_s:.0f} s and was ended as hung (silence limit)",
        "time limit": f"verl was not done after {outcome.seconds:.0f} s (--time-limit) and was ended",
        "memory limit": f"verl used {outcome.peak_bytes / 2**30:.1f} GiB, more than {limits.memory_gib:g} GiB "
        "(--memory-limit), and was ended",
    }[outcome.status]
    return f"{why}. The end of {run.log_path}:\n\n{relevant_tail(run.log())}\n\n{why}. Whole log: {run.log_path}"
