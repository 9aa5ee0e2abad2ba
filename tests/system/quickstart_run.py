"""The quickstart as a user starts it, small: out of time after its first step, then called again, then once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from spo_verl.launching.supervise import mapped_segments
from tests.system.harness import REPOSITORY

ARGUMENTS = [
    "--steps", "4", "--trajectories", "64", "--train-prompts", "128", "--held-out-prompts", "64",
    "--offline-trials", "2", "--warm-start-accuracy", "0.16", "--time-limit", "2700", "--silence-limit", "600",
    "trainer.save_freq=1",
]  # fmt: skip


OUT_OF_TIME = """
import sys
from spo_verl.quickstart import run
from spo_verl.quickstart.__main__ import main
launch = run.run_main_ppo
run.run_main_ppo = lambda *given, stop_after_s, **more: launch(
    *given, **more, stop_after_s=None if stop_after_s is None else 0.0)
sys.exit(main())
"""
"""The command with a trainer whose time is over when it begins, so after one step, however fast the machine is."""


@dataclass(frozen=True)
class Call:
    """A finished call of the quickstart.

    Attributes:
        result: what the run's ``result.json`` held at its end.
        segments: shared memory that its processes were seen to use.
        left: those segments that were there when it had ended.
    """

    name: str
    returncode: int
    output: str
    seconds: float
    folder: Path
    result: dict[str, Any]
    segments: frozenset[str]
    left: frozenset[str]


def call(folder: Path, name: str, *, program: tuple[str, ...] = ("-m", "spo_verl.quickstart")) -> Call:
    """Call the quickstart and wait for it."""
    began = time.monotonic()
    path = folder / f"{name}.log"
    command = [sys.executable, *program, "--folder", str(folder / "runs"), *ARGUMENTS]
    with path.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    segments: set[str] = set()
    while process.poll() is None:
        time.sleep(1.0)
        # Other lanes have processes of their own at the same time.
        if psutil.pid_exists(process.pid):
            for child in psutil.Process(process.pid).children(recursive=True):
                segments |= mapped_segments(child.pid).keys()
    found = next((folder / "runs").glob("spo-seed0-*/result.json"), None)
    return Call(
        f"quickstart {name}",
        process.returncode,
        path.read_text(),
        time.monotonic() - began,
        folder,
        json.loads(found.read_text()) if found else {},
        frozenset(segments),
        frozenset(segment for segment in segments if Path(segment).exists()),
    )


def stopped_and_finished(folder: Path) -> tuple[Call, Call, Call]:
    return (
        call(folder, "stopped", program=("-c", OUT_OF_TIME)),
        call(folder, "finished"),
        call(folder, "again"),
    )
