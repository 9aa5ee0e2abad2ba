"""A path that a user names -> the run, its newest complete checkpoint and its record."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.errors import SpoError
from spo_verl.record.reading import Record
from spo_verl.record.schema import FOLDER as RECORD
from spo_verl.record.schema import RUN
from spo_verl.tracker.checkpoint.folder import MANIFEST

TRACKER = "spo"
_STEP = re.compile(r"global_step_(\d{1,18})")
_MARKER = "latest_checkpointed_iteration.txt"


class HistoryError(SpoError, ValueError):
    """There is no run, checkpoint, prompt or column of this name, or it lacks what was asked for."""


@dataclass(frozen=True)
class Place:
    """What a path leads to; at least one of checkpoint and record is there.

    Attributes:
        path: as the user wrote it.
        root: the run's folder (``trainer.default_local_dir``); None for a checkpoint that was moved out of one.
        checkpoint: the tracker's folder (``global_step_N/spo``): the one named, or the newest complete one.
        record: of the whole run; also where a checkpoint in its folder was named.
        named_checkpoint: the path names a checkpoint, so what came after its step is not looked at.
    """

    path: Path
    root: Path | None
    checkpoint: Path | None
    record: Record | None
    named_checkpoint: bool = False

    def require_checkpoint(self) -> Path:
        """The tracker's folder; raises :class:`HistoryError` where no checkpoint is complete."""
        if self.checkpoint is None:
            raise HistoryError(
                f"{self.path} has no complete checkpoint yet (global_step_N/{TRACKER}): wait for the first one "
                "(trainer.save_freq), or name another run."
            )
        return self.checkpoint

    def require_record(self) -> Record:
        """The record; raises :class:`HistoryError` without one."""
        if self.record is None:
            raise HistoryError(
                f"{self.path} has no record ({RECORD}/ in the run's folder): name the folder of the run, or train with "
                "spo.record on (it is off, or an older spo_verl trained this run)."
            )
        return self.record


def find(path: str | Path) -> Place:
    """Look at a path: a run's folder, ``global_step_N``, ``global_step_N/spo``, or a record's folder.

    A folder that holds the run in ``checkpoints/``, as the quickstart's, will do too.

    Raises:
        HistoryError: there is nothing of the kind.
        SpoError: the record cannot be read.
    """
    named = Path(path)
    folder = Path(os.path.abspath(named))
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "is not there"
        raise HistoryError(
            f"{named} {what}: name a run's folder (trainer.default_local_dir), or a checkpoint in it (global_step_N)."
        )
    if checkpoint := _tracker_in(folder):
        root = checkpoint.parent.parent if _STEP.fullmatch(checkpoint.parent.name) else None
        return Place(named, root, checkpoint, None if root is None else _record_in(root), named_checkpoint=True)
    for root in (folder, folder / "checkpoints", folder.parent):
        if root == folder.parent and not _is_record(folder):
            continue
        record, checkpoint = _record_in(root), newest_checkpoint(root)
        if record is not None or checkpoint is not None:
            return Place(named, root, checkpoint, record)
    raise HistoryError(
        f"{named} is neither a run's folder nor a checkpoint: there is no global_step_N/{TRACKER}/{MANIFEST} and no "
        f"{RECORD}/ in it. Name trainer.default_local_dir of a run trained with algorithm.adv_estimator=spo."
    )


def configuration(record: Record | None) -> dict[str, Any]:
    """The run's configuration as its record has it, some of verl's by dotted name; empty where it has none."""
    config = None if record is None else record.run.get("config")
    return config if isinstance(config, dict) else {}


def newest_checkpoint(root: Path) -> Path | None:
    """The tracker's folder of the newest checkpoint that verl's marker acknowledges; None without any.

    Without a readable marker, the newest whose tracker is complete: the manifest is written last.
    """
    steps = sorted((int(found[1]) for name in _names(root) if (found := _STEP.fullmatch(name))), reverse=True)
    complete = [step for step in steps if _is_tracker(root / f"global_step_{step}" / TRACKER)]
    marked = _marked_step(root)
    acknowledged = [step for step in complete if marked is None or step <= marked]
    step = next(iter(acknowledged or complete), None)
    return None if step is None else root / f"global_step_{step}" / TRACKER


def _marked_step(root: Path) -> int | None:
    try:
        text = (root / _MARKER).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _tracker_in(folder: Path) -> Path | None:
    return next((one for one in (folder, folder / TRACKER) if _is_tracker(one)), None)


def _is_tracker(folder: Path) -> bool:
    return os.path.isfile(folder / MANIFEST)


def _is_record(folder: Path) -> bool:
    return os.path.isfile(folder / RUN)


def _record_in(root: Path) -> Record | None:
    return Record.open(root / RECORD) if _is_record(root / RECORD) else None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
