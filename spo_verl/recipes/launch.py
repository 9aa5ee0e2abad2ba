"""``python -m spo_verl.recipes.launch FOLDER <experiment>/<name> [overrides]``: what ``recipes/run.sh`` runs.

Becomes ``python -m verl.trainer.main_ppo`` with the recipe below FOLDER as its configuration. It is Python, and not a
line of the script, because folders may have any name and hydra reads a grammar of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from spo_verl.recipes.locate import Recipe


def main() -> None:
    """Replaces this process."""
    root, name, *overrides = sys.argv[1:]
    command = Recipe(Path(root), name).command(overrides, sys.executable)
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
