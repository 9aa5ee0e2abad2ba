"""What a training process fed to its tracker, and what a tracker must know after it: counted here once more.

The journal is a file of JSON lines on a disk that nothing happens to. A line is synced before the tracker is asked to
do what it says; ``save`` comes before the snapshot of a checkpoint, ``ack`` after verl's marker.

Nothing of the tracker's arithmetic is used: evidence is a fraction, and a discount is a product.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

Line = list[Any]


class Journal:
    """Appends lines; each is on the disk for good when :meth:`write` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, *line: Any) -> None:
        os.write(self._file, (json.dumps(line, separators=(",", ":")) + "\n").encode())
        os.fsync(self._file)


def read(path: Path) -> list[Line]:
    """Every whole line, in order."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def surviving(lines: Sequence[Line]) -> list[Line]:
    """The lines whose future happened: a process that starts at a step makes what came after its save undone."""
    kept: list[Line] = []
    for line in lines:
        if line[0] == "start":
            kept = kept[: saved_at(kept, line[1])]
        else:
            kept.append(line)
    return kept


def saved_at(lines: Sequence[Line], step: int) -> int:
    """How many lines a checkpoint of this step holds.

    Raises:
        LookupError: no checkpoint of this step was begun.
    """
    if step == 0:
        return 0
    return max(place + 1 for place, line in enumerate(lines) if line == ["save", step])


def acknowledged(lines: Sequence[Line]) -> int:
    """The newest step whose marker had been written."""
    return max((line[1] for line in lines if line[0] == "ack"), default=0)


def newest(lines: Sequence[Line]) -> int:
    """The newest step that had been trained."""
    return max((line[1] for line in lines if line[0] == "finish"), default=0)


@dataclass
class Known:
    """A prompt."""

    alpha: Fraction = Fraction(1, 2)
    beta: Fraction = Fraction(1, 2)
    version: int = -1
    draws: int = 0
    visits: int = 0


@dataclass
class Open:
    """A rollout that was dispatched and has not ended."""

    slot: int
    version: int
    value: float
    n_eff: float
    sessions: list[int] = field(default_factory=list)


@dataclass
class Recount:
    """What must be known after some lines.

    Attributes:
        mode: ``constant`` or ``version``, as ``spo.forgetting.mode``.
        rho: the factor of a discount.
        prompts: by slot.
        open: by uid.
        rows: what the record must hold, (uid, session, slot, step, version, ending, reward).
        endings: rollouts by ending.
    """

    mode: str
    rho: Fraction
    prompts: dict[int, Known] = field(default_factory=lambda: defaultdict(Known))
    open: dict[str, Open] = field(default_factory=dict)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    observations: int = 0
    _waiting: list[tuple[Any, ...]] = field(default_factory=list)

    def replay(self, lines: Sequence[Line]) -> Recount:
        for name, *rest in lines:
            if name in ("dispatch", "redispatch", "absorb", "finish"):
                getattr(self, f"_{name}")(*rest)
        return self

    def _dispatch(self, uids: list[str], slots: list[int], version: int) -> None:
        for uid, slot in zip(uids, slots, strict=True):
            self.prompts[slot].draws += 1
            self.open[uid] = self._frozen(slot, version)

    def _redispatch(self, uids: list[str], version: int) -> None:
        for uid in uids:
            self.open[uid] = self._frozen(self.open[uid].slot, version)

    def _frozen(self, slot: int, version: int) -> Open:
        known = self.prompts[slot]
        mass = known.alpha + known.beta
        fades = self.rho ** (version - max(known.version, 0)) if self.mode == "version" else 1
        return Open(slot, version, float(known.alpha / mass), float(mass * fades))

    def _absorb(self, groups: list[Line]) -> None:
        self._waiting += self._request(groups)

    def _finish(self, step: int, groups: list[Line]) -> None:
        """The group that was trained on is the last one; others end their rollouts first."""
        rows = [*self._waiting, *self._request(groups)]
        self._waiting = []
        self.rows += [(uid, session, slot, step, *rest) for uid, session, slot, *rest in rows]

    def _request(self, groups: list[Line]) -> list[tuple[Any, ...]]:
        """(uid, session, slot, version, ending, reward) of what a request says, older versions first."""
        outcomes = [
            (self.open[uid].version, kind, uid, session, reward)
            for kind, uids, sessions, rewards, _ in groups
            for uid, session, reward in zip(uids, sessions, rewards, strict=True)
            if uid in self.open and session not in self.open[uid].sessions
        ]
        rows = []
        for version, kind, uid, session, reward in sorted(outcomes, key=lambda one: one[0]):
            self._observe(self.open[uid].slot, version, Fraction(reward))
            self.open[uid].sessions.append(session)
            rows.append((uid, session, self.open[uid].slot, version, kind, reward))
        for kind, uids, _, _, over in groups:
            for uid in over:
                if uid in self.open:
                    ended = self.open.pop(uid)
                    ending = "failed" if kind == "trained" and not ended.sessions else kind
                    self.endings[ending] += 1
                    if uid not in uids:
                        rows.append((uid, None, ended.slot, ended.version, ending, None))
        return rows

    def _observe(self, slot: int, version: int, reward: Fraction) -> None:
        known = self.prompts[slot]
        weight = Fraction(1)
        if self.mode == "version":
            known.version = max(known.version, 0)
            if version >= known.version:
                self._discount(known, self.rho ** (version - known.version))
            else:
                weight = self.rho ** (known.version - version)
        elif version > known.version:
            self._discount(known, self.rho)
        known.version = max(known.version, version)
        known.alpha += weight * reward
        known.beta += weight * (1 - reward)
        known.visits += 1
        self.observations += 1

    @staticmethod
    def _discount(known: Known, factor: Fraction) -> None:
        known.alpha *= factor
        known.beta *= factor


def groups_of(late: Sequence[Any]) -> Iterator[Line]:
    """``Late`` records as JSON: kind, uids, sessions, rewards, rollouts that end."""
    for one in late:
        yield [
            one.kind,
            [str(uid) for uid in one.uids],
            [int(session) for session in one.session_B],
            [float(reward) for reward in one.reward_B],
            [str(uid) for uid in one.over],
        ]
