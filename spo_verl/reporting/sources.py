"""The runs that are drawn: found by path, each with a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.errors import SpoError
from spo_verl.files import content_faults
from spo_verl.history.places import configuration, find
from spo_verl.history.responses import dump_folder
from spo_verl.record.reading import Record


class ReportError(SpoError, ValueError):
    """A page or picture cannot be made of these runs."""


@dataclass(frozen=True)
class Source:
    """A run to show.

    Attributes:
        name: what it is called.
        path: as the user named it.
        record: of the run.
        responses: folder of dumped responses (``trainer.rollout_data_dir``); None without dumps.
    """

    name: str
    path: Path
    record: Record
    responses: Path | None = None

    def faults(self) -> AbstractContextManager[None]:
        """Turns what Python raises over a record with other content than was written into a ``ReportError``."""
        return _faults(self.record)

    def tables(self, columns: Sequence[str]) -> tuple[Any, Any, Any]:
        """Arrow tables: rollouts with these columns, numbers of the steps, prompts.

        Raises:
            ReportError: no step has ended yet.
            SpoRecordError: the record cannot be read.
        """
        rollouts, steps, prompts = self.record.rollouts(columns), self.record.steps(), self.record.prompts()
        if not rollouts.num_rows:
            raise ReportError(f"{self.path} has no rollout in its record yet: wait for its first step to end.")
        return rollouts, steps, prompts


def open_runs(paths: Sequence[tuple[str | None, Path]]) -> list[Source]:
    """The runs that paths lead to, named as asked, or after ``trainer.experiment_name``, or after their folder.

    Args:
        paths: name, or None, and path of each run.

    Raises:
        HistoryError: a path leads to no run, or to one without a record.
        ReportError: two runs have one name, or one run is given twice.
    """
    found: list[Source] = []
    for name, path in paths:
        record = find(path).require_record()
        if any(one.record.path == record.path for one in found):
            raise ReportError(f"{path} is given twice: name each run once.")
        with _faults(record):
            recorded = configuration(record).get("trainer.experiment_name")
            found.append(Source(name or str(recorded or record.path.parent.name), path, record, dump_folder(record)))
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ReportError(f"two runs are called {name}: give them names of their own, as in before=RUN after=RUN.")
    return found


def _faults(record: Record) -> AbstractContextManager[None]:
    return content_faults(
        record.path, ReportError, "restore it from a copy, or update spo_verl if a newer one wrote it"
    )
