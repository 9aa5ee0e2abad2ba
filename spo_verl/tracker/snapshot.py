"""The state of a tracker at one moment, and the digest that identifies it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.tracker.memory import MemoryView
from spo_verl.tracker.reports import WriteReport
from spo_verl.tracker.rollouts import Ledger
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.tracker.table import PromptTable


def open_rows(ledger: Ledger) -> list[list[Any]]:
    """Open rollouts as rows, sorted by uid: the order of dispatch has no effect on anything."""
    return [
        [uid, one.slot, one.value, one.n_eff, one.version, sorted(one.sessions)]
        for uid, one in sorted(ledger.open.items())
    ]


def recent_rows(ledger: Ledger) -> list[list[Any]]:
    """Ended rollouts as rows, in the order in which they will be forgotten."""
    return [[uid, sorted(sessions)] for uid, sessions in ledger.recent.items()]


@dataclass(frozen=True)
class Snapshot:
    """A copy of a tracker's state; the tracker may go on while it is written.

    Prompt columns and open rollouts are copied. Stored responses are shared with the tracker, which never
    overwrites them (see :mod:`spo_verl.tracker.memory`), so a snapshot of many gigabytes of responses costs
    next to nothing.
    """

    settings: TrackerSettings
    table: PromptTable
    memory: MemoryView
    ledger: Ledger
    counters: dict[str, int]
    random: dict[str, Any]
    """Purpose -> state of its generator."""
    clock: dict[str, float] = field(default_factory=dict)
    """See :class:`spo_verl.tracker.reading.Clock`; empty where the forgetting mode counts nothing."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that a checkpoint restores.

        Equal keys, evidence, counters, responses, rollouts and generators give equal digests, wherever in
        memory the responses lie and whatever was deleted between them. The settings do not take part: they
        are not restored, the present ones hold.
        """
        sha = hashlib.sha256()
        scalars = {
            "active": self.table.active,
            "counters": self.counters,
            "random": self.random,
            "open": open_rows(self.ledger),
            "recent": recent_rows(self.ledger),
            "references": sorted(self.memory.log_prob),
            **({"clock": self.clock} if self.clock else {}),
        }
        sha.update(json.dumps(scalars, sort_keys=True).encode())
        sha.update(self.table.key_P.view(np.uint8).data)
        for _, column_P in self.table.columns():
            sha.update(column_P.data)
        for column_E in (self.memory.slot_E, self.memory.length_E, self.memory.prompt_hash_E):
            sha.update(column_E.data)
        for packed in self.memory.chunks():
            # Slots and lengths, hashed above, say where each entry of the chunk begins.
            sha.update(packed.token_N.data)
            sha.update(packed.mask_byte_M.data)
            for name in sorted(packed.log_prob):
                sha.update(packed.log_prob[name].data)
        return sha.hexdigest()

    def write(self, folder: str | Path, *, step: int = 0, extra: dict[str, Any] | None = None) -> WriteReport:
        """Write the checkpoint folder; see :func:`spo_verl.tracker.checkpoint.write`."""
        from spo_verl.tracker import checkpoint  # it builds on this module

        return checkpoint.write(self, folder, step=step, extra=extra)
