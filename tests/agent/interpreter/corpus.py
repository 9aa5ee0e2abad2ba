"""Ordinary programs, and what ``python`` says to them.

The programs are in ``programs/*.txt``, each below a line ``# %% name``. Those of the standard library are given to
``python`` when the tests run. For those that import a package, which takes a second each, what it said is kept in
``programs/expected.json``; a slow test asks it again, and this writes it anew:

    python -m tests.agent.interpreter.corpus
"""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from spo_verl.agent.interpreter import embedded
from spo_verl.agent.interpreter.containment import FOLDER
from spo_verl.agent.interpreter.zygote import PROGRAM

PROGRAMS = Path(__file__).with_name("programs")
EXPECTED = PROGRAMS / "expected.json"

LIBRARY = ("endings", "streams", "errors", "library", "models")
PACKAGES = ("numpy", "sympy", "pandas")


class Said(NamedTuple):
    """Status (negative: ended by a signal) and text of a program."""

    status: int
    stdout: str
    stderr: str


def programs_of(group: str) -> dict[str, str]:
    """name -> program."""
    _, *parts = re.split(r"^# %% ", (PROGRAMS / f"{group}.txt").read_text(), flags=re.MULTILINE)
    pairs = [part.split("\n", 1) for part in parts]
    found = dict(pairs)
    assert len(found) == len(pairs), "two programs have the same name"
    return found


def plain(code: str) -> Said:
    """What ``python`` says, with its output unbuffered as at a terminal, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, PROGRAM).write_text(code)
        environment = {
            **embedded._environment(),
            "HOME": folder,
            "TMPDIR": folder,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, PROGRAM],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=folder,
            env=environment,
            timeout=120,
            check=False,
        )
        texts = (text.decode(errors="replace").replace(folder, FOLDER) for text in (done.stdout, done.stderr))
        return comparable(done.returncode, *texts)


def all_plain(programs: dict[str, str]) -> dict[str, Said]:
    # A shell starts background jobs with SIGINT ignored, which children inherit; what is handled, they do not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(programs, pool.map(plain, programs.values()), strict=True))
    finally:
        signal.signal(signal.SIGINT, before)


def comparable(status: int, stdout: str, stderr: str) -> Said:
    """Without what differs between machines and runs: places of libraries, addresses, the documented name."""
    return Said(status, _comparable(stdout), _comparable(stderr))


def _comparable(text: str) -> str:
    for name in ("purelib", "stdlib"):
        text = text.replace(sysconfig.get_path(name), f"<{name}>")
    text = re.sub(r"\b0x[0-9a-f]{6,}", "0x", text)
    return text.replace(f'"{FOLDER}/{PROGRAM}"', f'"{PROGRAM}"').replace(f"{FOLDER}/{PROGRAM}:", f"{PROGRAM}:")


def record() -> None:
    said = {group: all_plain(programs_of(group)) for group in PACKAGES}
    EXPECTED.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    record()
