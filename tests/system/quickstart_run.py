"""The quickstart as a user starts it, small: terminated while it trains, then called again, then once more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.system.harness import REPOSITORY

ARGUMENTS = [
    "--steps", "4", "--trajectories", "64", "--train-prompts", "128", "--held-out-prompts", "64",
    "--offline-trials", "2", "--warm-start-accuracy", "0.16", "--time-limit", "1500", "--silence-limit", "600",
    "trainer.save_freq=1",
]  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A finished call of the quickstart."""

    name: str
    returncode: int
    output: str
    seconds: float
    folder: Path


def call(folder: Path, name: str, *, end_when: str | None = None) -> Call:
    """Call the quickstart; SIGTERM, as from a closed terminal, as soon as ``end_when`` stands in its output."""
    began = time.monotonic()
    path = folder / f"{name}.log"
    command = [sys.executable, "-m", "spo_verl.quickstart", "--folder", str(folder / "runs"), *ARGUMENTS]
    with path.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    while process.poll() is None:
        time.sleep(0.2)
        if end_when is not None and end_when in path.read_text():
            process.send_signal(signal.SIGTERM)
            process.wait()
    return Call(f"quickstart {name}", process.returncode, path.read_text(), time.monotonic() - began, folder)


def interrupted_and_finished(folder: Path) -> tuple[Call, Call, Call]:
    return (
        call(folder, "interrupted", end_when="step    2/4"),
        call(folder, "finished"),
        call(folder, "again"),
    )
