"""The ledger of rollouts, by uid: the open ones with their frozen baseline, and those that ended lately.

A restart restores both, so that a rollout dispatched before it keeps its baseline and a repeat after it is
seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from spo_verl.errors import SpoStateError
from spo_verl.tracker.arguments import shown
from spo_verl.tracker.reports import Frozen
from spo_verl.tracker.settings import Ending

RECENT_LIMIT = 16_384
"""Ended rollouts that are remembered; older ones are forgotten first."""


class Rollout(NamedTuple):
    """What was frozen when the rollout was dispatched, and the sessions observed since.

    With the calibrated read-out ``raw`` is the evidence's own value, from which ``value`` was read, and ``age`` the
    policy versions since the prompt's newest outcome; else both are None.
    """

    slot: int
    value: float
    n_eff: float
    version: int
    sessions: tuple[int, ...] = ()
    raw: float | None = None
    age: int | None = None


def frozen_of(rollouts: Sequence[Rollout]) -> Frozen:
    """The records of rollouts as columns."""
    return Frozen(
        slot_B=np.array([one.slot for one in rollouts], dtype=np.int64),
        value_B=np.array([one.value for one in rollouts], dtype=np.float64),
        n_eff_B=np.array([one.n_eff for one in rollouts], dtype=np.float64),
        version_B=np.array([one.version for one in rollouts], dtype=np.int64),
    )


def check_ending(kind: str) -> None:
    """Raise :class:`SpoStateError` where a rollout cannot end so."""
    if not isinstance(kind, str) or kind not in get_args(Ending):
        raise SpoStateError(f"a rollout ends as one of {', '.join(get_args(Ending))}, not as {shown(kind)}.")


def _some(uids: Iterable[str]) -> str:
    listed = list(uids)
    first = ", ".join(repr(uid) for uid in listed[:3])
    return first if len(listed) <= 3 else f"{first} and {len(listed) - 3} more"


@dataclass
class Ledger:
    """Open and recently ended rollouts. No method changes anything when it raises.

    ``open`` changes by :meth:`dispatch`, :meth:`add_session`, :meth:`settle` and :meth:`move_slots` only, which keep
    ``in_flight`` (prompt slot -> number of its open rollouts, none of them 0) up to date.
    """

    open: dict[str, Rollout] = field(default_factory=dict)
    recent: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Ended uid -> its observed sessions, in the order in which they ended."""
    in_flight: Counter[int] = field(init=False)

    def __post_init__(self) -> None:
        self.in_flight = Counter(one.slot for one in self.open.values())

    def copy(self) -> Ledger:
        """A copy that later changes do not reach (the records are immutable)."""
        return Ledger(dict(self.open), dict(self.recent))

    def dispatch(self, uids: Sequence[str], rollouts: Sequence[Rollout]) -> None:
        """Open rollouts, or replace what was frozen with open ones."""
        dispatched = dict(zip(uids, rollouts, strict=True))
        self.in_flight.update(one.slot for uid, one in dispatched.items() if uid not in self.open)
        self.open.update(dispatched)

    def slots_in_flight(self, at_least: int) -> NDArray[np.int64]:
        """Prompt slots with at least so many open rollouts, ascending."""
        slot_X = np.fromiter(self.in_flight.keys(), dtype=np.int64, count=len(self.in_flight))
        count_X = np.fromiter(self.in_flight.values(), dtype=np.int64, count=len(self.in_flight))
        return np.sort(slot_X[count_X >= at_least])

    def refuse_known(self, uids: Sequence[str]) -> None:
        """Raise :class:`SpoStateError` when a uid occurs twice, is open, or ended lately."""
        twice = [uid for uid, count in Counter(uids).items() if count > 1]
        if twice:
            raise SpoStateError(f"dispatch: uid {_some(twice)} occurs more than once in the request; pass each once.")
        taken = [uid for uid in uids if uid in self.open]
        if taken:
            raise SpoStateError(
                f"dispatch: uid {_some(taken)} is already open; settle it first, or use redispatch for a "
                "rollout that is issued again after a restart."
            )
        ended = [uid for uid in uids if uid in self.recent]
        if ended:
            raise SpoStateError(f"dispatch: uid {_some(ended)} has already ended; give every rollout a fresh uid.")

    def require_open(self, uids: Sequence[str], verb: str) -> list[Rollout]:
        """The open rollouts of these uids; raises :class:`SpoStateError` when one is not open."""
        missing = [uid for uid in uids if uid not in self.open]
        if missing:
            raise SpoStateError(
                f"{verb}: uid {_some(missing)} is not open ({len(self.open)} are); dispatch a rollout "
                "before, and settle it after, everything else is done with it."
            )
        return [self.open[uid] for uid in uids]

    def is_new(self, uid: str, session: int) -> bool:
        """Whether this outcome is new; raises :class:`SpoStateError` where there is no such rollout."""
        rollout = self.open.get(uid)
        if rollout is not None:
            return session not in rollout.sessions
        ended = self.recent.get(uid)
        if ended is None:
            raise SpoStateError(
                f"observe: uid {uid!r} is unknown: it was never dispatched, or ended more than "
                f"{RECENT_LIMIT} rollouts "
                "ago; dispatch every rollout before its outcome is observed."
            )
        if session not in ended:
            raise SpoStateError(
                f"observe: session {session} of uid {uid!r} came after the rollout was settled (sessions "
                f"{ended} were "
                "observed); settle a rollout only when all its outcomes have been observed."
            )
        return False

    def to_settle(self, uids: Sequence[str]) -> list[str]:
        """The uids that are still open, each once; raises :class:`SpoStateError` for unknown ones."""
        unknown = [uid for uid in uids if uid not in self.open and uid not in self.recent]
        if unknown:
            raise SpoStateError(
                f"settle: uid {_some(unknown)} was never dispatched (or ended long ago); check the uid."
            )
        return [uid for uid in dict.fromkeys(uids) if uid in self.open]

    def add_session(self, uid: str, session: int) -> None:
        """Note an observed outcome of an open rollout; raises :class:`SpoStateError` where it is not open."""
        one = self.open.get(uid)
        if one is None:
            raise SpoStateError(f"observe: uid {uid!r} is not open; dispatch a rollout before its outcomes.")
        # Not `_replace`, which took a quarter of the time of `observe`.
        self.open[uid] = Rollout(
            one.slot, one.value, one.n_eff, one.version, (*one.sessions, session), one.raw, one.age
        )

    def settle(self, uids: Sequence[str]) -> int:
        """Move open rollouts to the recent ones; returns how many of them never had an outcome.

        Raises:
            SpoStateError: a uid is not open, or occurs twice.
        """
        ending = dict(zip(uids, self.require_open(uids, "settle"), strict=True))
        if len(ending) < len(uids):
            raise SpoStateError("settle: a uid occurs more than once in the request; pass each once.")
        failed = 0
        for uid, one in ending.items():
            del self.open[uid]
            failed += not one.sessions
            self.recent[uid] = one.sessions
            self.in_flight[one.slot] -= 1
            if not self.in_flight[one.slot]:
                del self.in_flight[one.slot]
        surplus = max(0, len(self.recent) - RECENT_LIMIT)
        for uid in list(islice(self.recent, surplus)):
            del self.recent[uid]
        return failed

    def move_slots(self, new_slot_O: NDArray[np.int64]) -> None:
        """Rename the slots of the open rollouts."""
        self.open = {uid: one._replace(slot=int(new_slot_O[one.slot])) for uid, one in self.open.items()}
        self.__post_init__()
