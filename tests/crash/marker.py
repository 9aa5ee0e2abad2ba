"""verl's marker: which step a run continues from."""

from __future__ import annotations

from pathlib import Path

from spo_verl.tracker.checkpoint.folder import MANIFEST

MARKER = "latest_checkpointed_iteration.txt"


def marked(folder: Path) -> int | None:
    """The step that the marker names, 0 without one; None where it names no step."""
    path = folder / MARKER
    text = path.read_text() if path.exists() else "0"
    return int(text) if text.isdigit() else None


def complete(folder: Path) -> int:
    """The newest step whose folder has everything."""
    steps = [int(path.parent.parent.name.rsplit("_", 1)[1]) for path in folder.glob(f"global_step_*/spo/{MANIFEST}")]
    return max((step for step in steps if (folder / f"global_step_{step}" / "data.pt").exists()), default=0)


def follow_advice(folder: Path) -> int:
    """What the error about a marker without a step advises: name the newest complete step in it; returns it."""
    step = complete(folder)
    (folder / MARKER).write_text(str(step))
    return step
