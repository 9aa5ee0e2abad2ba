"""The upstream patches as files, and how to apply them to a copy of the installed verl."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "patches" / "upstream"
SERIES = (FOLDER / "series").read_text().split()
VERL = Path(str(importlib.metadata.distribution("verl").locate_file("verl")))


def touched(patch: str) -> tuple[set[str], set[str]]:
    """Files that a patch changes, and files that it creates."""
    pairs = re.findall(r"^--- (\S+)\n\+\+\+ b/(\S+)$", (FOLDER / patch).read_text(), flags=re.MULTILINE)
    created = {new for old, new in pairs if old == "/dev/null"}
    return {new for _, new in pairs} - created, created


def copy_touched(root: Path, patches: list[str]) -> None:
    """Copy the installed files that these patches change, and no others, into ``root``."""
    for name in set().union(*(touched(patch)[0] for patch in patches)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(VERL.parent / name, root / name)


def apply(root: Path, patch: str, *arguments: str) -> str:
    """Apply one patch with ``git apply``, which never guesses (no fuzz), and return what it says.

    git needs no repository for that, and must not find one above ``root``: there it would skip the files in silence.
    """
    done = subprocess.run(
        ["git", "apply", "--verbose", "-p1", *arguments, str(FOLDER / patch)],
        cwd=root,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent), "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{patch}: {said}"
    assert "Skipped patch" not in said, f"{patch}: {said}"
    return said


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}
