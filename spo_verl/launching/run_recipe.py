"""``python -m spo_verl.launching.run_recipe FOLDER <experiment>/<name> [overrides]``: what ``recipes/run.sh`` runs.

Becomes ``python -m verl.trainer.main_ppo`` with the recipe below FOLDER as its configuration. It is Python, and not a
line of the script, because folders may have any name and hydra reads a grammar of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from spo_verl.errors import SpoConfigError
from spo_verl.files import require_file
from spo_verl.launching.recipes import Recipe
from spo_verl.visible import visible


def main() -> None:
    """Replaces this process."""
    if len(sys.argv) < 3:
        raise SystemExit("error: usage: python -m spo_verl.launching.run_recipe FOLDER <experiment>/<name> [overrides]")
    root, name, *overrides = sys.argv[1:]
    recipe = Recipe(Path(root), name)
    try:
        require_file(recipe.path, SpoConfigError)
    except SpoConfigError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        raise SystemExit(2) from None
    command = recipe.command(overrides, sys.executable)
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
