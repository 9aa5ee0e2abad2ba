"""Whether the embedded interpreter of tool-integrated recipes can hold programs in on this machine."""

from __future__ import annotations

import json
import subprocess
import sys

from spo_verl.cli.health.findings import Finding

GROUP = "machine"
NAME = "embedded interpreter"
_ELSEWHERE = "for tool-integrated recipes set interpreter.backend=sandbox_fusion"


def interpreter_finding(time_limit_s: float) -> Finding:
    """Ask ``python -m spo_verl.agent.interpreter``, which tries every limit."""
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "spo_verl.agent.interpreter"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=time_limit_s,
        )
    except subprocess.TimeoutExpired:
        return Finding(GROUP, NAME, "warn", f"did not answer within {time_limit_s:.0f} s", _ELSEWHERE)
    return read_answer(asked.stdout, asked.stderr)


def read_answer(out: str, log: str) -> Finding:
    """The finding for what was printed."""
    try:
        answer = json.loads(out)
    except ValueError:
        last = (log.strip().splitlines() or ["no output"])[-1]
        return Finding(GROUP, NAME, "warn", f"does not start: {last[:300]}", _ELSEWHERE)
    missing = [name for name, held in answer["limits"].items() if not held]
    if missing:
        return Finding(GROUP, NAME, "warn", f"does not hold programs to: {', '.join(missing)}", _ELSEWHERE)
    folder = "with" if answer["folder"] else "without"
    return Finding(GROUP, NAME, "ok", f"holds all limits; programs {folder} a folder of their own")
