"""``python -m tests.resolve_extras``: a resolver is asked for the plain package and its extras; installs nothing.

Needs `uv` (``pip install uv``) and a package index. Prints a row for each extra and version of Python; what it printed
is in docs/compatibility.md. Ends with status 1 if one does not resolve.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
EXTRAS = ((), ("plots",), ("vllm",), ("megatron",), ("vllm", "megatron", "plots"))
PYTHONS = ("3.10", "3.11", "3.12")
SHOWN = ("verl", "torch", "vllm", "transformers", "megatron-core", "mbridge", "ray", "math-verify")


def resolved(extras: tuple[str, ...], python: str) -> dict[str, str] | str:
    """The versions of all packages, or why there are none."""
    chosen = [word for extra in extras for word in ("--extra", extra)]
    command = [sys.executable, "-m", "uv", "pip", "compile", str(REPOSITORY / "pyproject.toml"), *chosen]
    command += ["--quiet", "--no-header", "--no-annotate", "--no-python-downloads"]
    command += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return " ".join(done.stderr.split())
    return dict(line.split("==", 1) for line in done.stdout.splitlines() if "==" in line)


def main() -> int:
    status = 0
    print("| Python | extras | " + " | ".join(SHOWN) + " |")
    print("|---" * (2 + len(SHOWN)) + "|")
    for python in PYTHONS:
        for extras in EXTRAS:
            found = resolved(extras, python)
            name = ", ".join(extras) or "(plain)"
            if isinstance(found, str):
                status = 1
                print(f"| {python} | {name} | DOES NOT RESOLVE: {found}")
            else:
                versions = (found.get(package, "-").partition(" ")[0] for package in SHOWN)
                print(f"| {python} | {name} | " + " | ".join(versions) + " |", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
