"""Start the probes under a time limit and read their answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from spo_verl.cli.health.probe import MARK, PROBES


@dataclass(frozen=True)
class Answers:
    """What one probe answered.

    Attributes:
        values: question -> its answer, for those that succeeded.
        errors: question -> why there is none, for all others.
        remarks: lines on stderr that spo_verl itself wrote.
    """

    values: dict[str, Any]
    errors: dict[str, str]
    remarks: tuple[str, ...] = ()


def ask(names: Iterable[str], *, time_limit_s: float) -> dict[str, Answers]:
    """Run probes side by side; each may take ``time_limit_s`` seconds."""
    chosen = list(names)
    with ThreadPoolExecutor(max_workers=max(1, len(chosen))) as pool:
        return dict(zip(chosen, pool.map(lambda name: run_probe(name, time_limit_s), chosen), strict=True))


def run_probe(name: str, time_limit_s: float, *, module: str = "spo_verl.cli.health.probe") -> Answers:
    """Run one probe; whatever it started is ended with it."""
    questions = [question.__name__ for question in PROBES[name]]
    # Files, not pipes: a process that outlives the probe would keep a pipe open for ever.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, name],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
        try:
            child.wait(time_limit_s)
            ended = f"ended with exit status {child.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"did not answer within {time_limit_s:.0f} s"
        finally:
            _end(child)
        out.seek(0)
        log.seek(0)
        return read_answers(questions, out.read().decode(errors="replace"), log.read().decode(errors="replace"), ended)


def read_answers(questions: list[str], out: str, log: str, ended: str) -> Answers:
    """Put what a probe wrote into order; a question without an answer gets the end of the log as its error."""
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for line in out.splitlines():
        if line.startswith(MARK):
            found = json.loads(line.removeprefix(MARK))
            if "error" in found:
                errors[found["question"]] = found["error"]
            else:
                values[found["question"]] = found["value"]
    lines = [line for line in log.splitlines() if line.strip()]
    last = f" ({lines[-1].strip()[:300]})" if lines else ""
    for question in questions:
        if question not in values and question not in errors:
            errors[question] = f"the process that looked {ended}{last}"
    return Answers(values, errors, tuple(line for line in lines if line.startswith("spo_verl: ")))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the probe and its process group, which is its own; nothing in it has work to save."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
