"""Rollouts that are not trained on: what verl's replay buffer evicts, and what a batch does not wait for.

:func:`watched_buffer` gives a replay buffer of verl (stock, or a user's own) four abilities and changes nothing else:

- before a group is evicted, its verified outcomes are read, so that they become evidence;
- a batch takes what finished first instead of what was dispatched first;
- with ``spo.late.policy=drop`` or ``abort`` a batch takes no rollout that an earlier batch did not wait for;
- where all rollouts fail, the run ends: verl replaces failed ones for ever, also when the rollout engine is dead.

Where generation pauses after a complete batch, it also holds back replacements: the next policy version would generate
them, so the trainer dispatches them when that version is there.

Where a group finishes is seen when the buffer polls, so two that finish between two polls count as simultaneous and are
taken in the order of their dispatch.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import transfer_queue as tq

from spo_verl.config import SpoConfig
from spo_verl.errors import SpoRolloutError
from spo_verl.tracker.reports import Late, ObserveReport
from spo_verl.training.rewards import session_rewards
from spo_verl.training.sessions import read_sessions, response_tokens, version_spans

TRAIN = "train"
LEAST_FAILURES, BATCHES_OF_FAILURES, FAILING_SECONDS = 64, 4, 20.0
"""A run ends when so many rollouts, at least so many batches of them, failed in a row, for so long."""
CUT_OFF = ("aborted", "failed")
"""Endings in which tasks of verl's agent loop are cancelled, wherever they are."""


class Generated(NamedTuple):
    """A session's response tokens, and the oldest and newest policy version that generated it, -1 where unknown."""

    tokens: int
    first: int
    last: int


@dataclass(frozen=True)
class Evictions:
    """What was evicted in a step.

    Attributes:
        late: what the tracker does not know yet.
        absorbed: what it was given before draws of this step, with its answers.
        generated: of each evicted session with an outcome, by uid and session.
        ended_at: when each evicted rollout was first seen to have ended, monotonic seconds.
    """

    late: list[Late]
    absorbed: list[tuple[list[Late], ObserveReport]]
    generated: dict[tuple[str, int], Generated]
    ended_at: dict[str, float]

    @property
    def all(self) -> list[Late]:
        return [*(entry for late, _ in self.absorbed for entry in late), *self.late]

    @property
    def reports(self) -> list[ObserveReport]:
        """What the tracker answered before draws."""
        return [report for _, report in self.absorbed]

    @property
    def token_count(self) -> list[int]:
        """Response tokens of each evicted session with an outcome."""
        return [one.tokens for one in self.generated.values()]

    @property
    def uids(self) -> set[str]:
        """The rollouts that ended."""
        return {uid for entry in self.all for uid in entry.over}


class EvictedRollouts:
    """Outcomes of evicted rollouts, from their eviction to the next draw or report, whichever is first.

    A restart loses nothing: a checkpoint is written after the report of its step, and what is evicted later is still
    open in the tracker of that checkpoint and is found again, or issued again, after the restart.
    """

    def __init__(self, spo: SpoConfig, *, verified: Callable[[], bool]) -> None:
        """
        Args:
            spo: settings, for the reward's key and range.
            verified: whether rollouts carry their reward when they finish; a reward model that shares the accelerators
                scores them after they were chosen for a batch only.
        """
        self._spo, self._verified = spo, verified
        self._late: list[Late] = []
        self._absorbed: list[tuple[list[Late], ObserveReport]] = []
        self._generated: dict[tuple[str, int], Generated] = {}
        self._ended_at: dict[str, float] = {}
        self.seen: Mapping[str, float] = {}

    def add(self, kind: Any, uids: set[str], trajectories: dict[str, dict], partition: str) -> None:
        """Read what these groups have to tell; they are about to be cleared.

        Args:
            kind: why they are evicted, as for ``Tracker.settle``.
            uids: the groups.
            trajectories: tag by key of all trajectories in the partition.
        """
        now = time.monotonic()
        self._ended_at |= {uid: self.seen.get(uid, now) for uid in uids}
        keys = [key for key in trajectories if key.split("_")[0] in uids]
        if kind in CUT_OFF and keys and self._verified():
            keys = wholly_written(keys, partition)
        tags = [trajectories[key] for key in keys]
        sessions = read_sessions(keys, tags)
        if not keys or not self._verified():
            self._late.append(Late(kind, ended=sorted(uids)))
            return
        reward_S = session_rewards(keys, partition, sessions, self._spo.reward, "evicted rollout {}".format)
        made = zip(response_tokens(sessions, tags).tolist(), version_spans(sessions, tags).tolist(), strict=True)
        names = zip(sessions.uid_S, sessions.session_S.tolist(), strict=True)
        self._generated |= {name: Generated(tokens, *span) for name, (tokens, span) in zip(names, made, strict=True)}
        self._late.append(
            Late(
                kind,
                uids=sessions.uid_S,
                session_B=sessions.session_S,
                reward_B=reward_S,
                ended=sorted(uids),
            )
        )

    def drain(self) -> list[Late]:
        """What was added since the last call."""
        late, self._late = self._late, []
        return late

    def absorb(self, tracker: Any) -> None:
        """Pass what was added since the last call to the tracker: evidence for the next draw, and places for it.

        Args:
            tracker: the tracker or its client.
        """
        if late := self.drain():
            self._absorbed.append((late, tracker.absorb(late)))

    def drain_step(self) -> Evictions:
        """Everything since the last call."""
        found = Evictions(self.drain(), self._absorbed, self._generated, self._ended_at)
        self._absorbed, self._generated, self._ended_at = [], {}, {}
        return found


def wholly_written(keys: list[str], partition: str) -> list[str]:
    """The keys of sessions all of whose outputs have been written, in their order.

    verl registers the keys of a session before it writes the session's fields. A task that is cancelled in between
    leaves keys without a reward: such a session has delivered nothing, and counts as stopped.
    """
    missing = {_session(key) for key in _without_reward(keys, partition)}
    return [key for key in keys if _session(key) not in missing]


def _session(key: str) -> str:
    return key.rpartition("_")[0]


def _without_reward(keys: list[str], partition: str) -> list[str]:
    """Keys without a reward in TransferQueue. It refuses a request with one such key, so requests are halved."""
    try:
        tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=["rm_scores"])
    except ValueError:
        if len(keys) == 1:
            return keys
        middle = len(keys) // 2
        return _without_reward(keys[:middle], partition) + _without_reward(keys[middle:], partition)
    return []


class FailureStreak:
    """Rollouts that failed since one finished."""

    def __init__(self) -> None:
        self._count, self._since = 0, 0.0

    def note(self, finished: int, failed: int, *, batch: float, now: float) -> None:
        """These ended since the last call.

        Args:
            finished, failed: rollouts.
            batch: rollouts of a batch; infinite while it is not known.
            now: monotonic seconds.

        Raises:
            SpoRolloutError: see ``LEAST_FAILURES``.
        """
        if finished:
            self._count = 0
        if finished or not failed:
            return
        self._since = self._since if self._count else now
        self._count += failed
        lasted = now - self._since
        if self._count >= max(LEAST_FAILURES, BATCHES_OF_FAILURES * batch) and lasted >= FAILING_SECONDS:
            raise SpoRolloutError(
                f"the last {self._count} rollouts failed, for {lasted:.0f} s: the rollout engine, or something else "
                "that they need, is gone. What failed first is further up in the log, after 'Error in _run_prompt'. "
                "Correct it unless a process just died, and run the same command again: it continues from the last "
                "checkpoint."
            )


class WatchedBuffer:
    """Mixed in before a replay buffer's own class by :func:`watched_buffer`."""

    # Provided by the class that this is mixed into, and by watched_buffer.
    trainer_mode: str
    finished_keys: dict[str, set]
    failure_keys: dict[str, set]
    partitions: dict[str, dict[str, dict]]
    prompt_global_steps: dict[str, dict[str, int]]
    spo_evicted: EvictedRollouts
    spo_config: SpoConfig
    spo_seen: dict[str, float]
    spo_aborted: set[str]
    spo_wanted: float
    spo_streak: FailureStreak
    spo_refill: Callable[[int], Any]

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        if partition_id == TRAIN:
            self.spo_wanted = batch_size
        return super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]

    def _refill(self, count: int) -> None:
        """Replace evicted rollouts, unless the batch is complete and generation pauses after it.

        The colocated trainer makes up for those at the start of its next step.
        """
        complete = len(self.finished_keys[TRAIN]) >= self.spo_wanted
        if not (complete and self.trainer_mode == "colocate_async"):
            self.spo_refill(count)

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()  # type: ignore[misc]
        self._forget_aborted()
        now = time.monotonic()
        terminal = self.finished_keys[TRAIN] | self.failure_keys[TRAIN]
        new = terminal - self.spo_seen.keys()
        failed = len(new & self.failure_keys[TRAIN])
        self.spo_streak.note(len(new) - failed, failed, batch=self.spo_wanted, now=now)
        for uid in self.spo_seen.keys() - terminal:
            del self.spo_seen[uid]
        for uid in terminal:
            self.spo_seen.setdefault(uid, now)

    def _forget_aborted(self) -> None:
        """Clear what cancelled rollouts were just writing when they were cleared."""
        written = [key for key in self.partitions[TRAIN] if key.split("_")[0] in self.spo_aborted]
        if written:
            tq.kv_clear(keys=written, partition_id=TRAIN)
            for key in written:
                del self.partitions[TRAIN][key]

    def _terminal_eviction_reasons(self, global_steps: int, partition_id: str) -> tuple[set, set, set, Counter]:
        stale, filtered, failed, counts = super()._terminal_eviction_reasons(global_steps, partition_id)  # type: ignore[misc]
        if partition_id == TRAIN and self.spo_config.late.policy != "carry":
            # Recomputed by whoever evicts; here it only must be in the set that verl clears and replaces.
            stale = stale | self._left_behind(global_steps)
        return stale, filtered, failed, counts

    def _left_behind(self, global_steps: int) -> set[str]:
        """Finished rollouts that were dispatched for an earlier batch."""
        dispatched = self.prompt_global_steps[TRAIN]
        return {uid for uid in self.finished_keys[TRAIN] if dispatched.get(uid, global_steps) < global_steps}

    def _evict_terminal_groups(
        self, global_steps: int, partition_id: str, eviction_reasons: tuple[set, set, set, Counter]
    ) -> Any:
        if partition_id == TRAIN:
            stale, _, failed, _ = eviction_reasons
            surplus = stale & self._left_behind(global_steps) if self.spo_config.late.policy != "carry" else set()
            for kind, uids in (("surplus", surplus), ("stale", stale - surplus), ("failed", failed - stale)):
                if uids:
                    self.spo_evicted.add(kind, uids, self.partitions[TRAIN], TRAIN)
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)  # type: ignore[misc]

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        selected, partition, dispatched = super()._select_prompt_uids(partition_id, sampleable_keys, batch_size)  # type: ignore[misc]
        if partition_id == TRAIN:
            selected = first_to_finish(
                sampleable_keys, batch_size, self.spo_seen, dispatched, self.spo_config.late.length_bound
            )
        return selected, partition, dispatched


def first_to_finish(
    finished: set[str], size: int, seen: dict[str, float], dispatched: dict[str, int], bound: float | None
) -> list[str]:
    """The uids of a batch: by finish time, a share of it by dispatch order where a bound is set.

    First to finish favours short rollouts; with a bound the oldest dispatches get ``ceil(bound * size)`` places first,
    so that a long rollout that has finished cannot be overtaken for ever.

    Args:
        finished: uids to choose from, at least ``size``.
        seen: when each was first seen finished, in seconds.
        dispatched: training step of each dispatch.
        bound: share of the batch, in (0, 1], or None.

    Returns:
        ``size`` uids, those by dispatch order before the others.
    """
    oldest = sorted(finished, key=lambda uid: (dispatched.get(uid, 0), seen.get(uid, 0.0), uid))
    reserved = oldest[: math.ceil(bound * size)] if bound is not None else []
    rest = sorted(finished.difference(reserved), key=lambda uid: (seen.get(uid, 0.0), dispatched.get(uid, 0), uid))
    return [*reserved, *rest][:size]


@functools.cache
def watched_class(buffer_class: type) -> type:
    """The watched class for a replay buffer's class."""
    return type(f"Watched{buffer_class.__name__}", (WatchedBuffer, buffer_class), {"__module__": __name__})


def watched_buffer(buffer: Any, spo: SpoConfig, evicted: EvictedRollouts) -> Any:
    """Give a replay buffer, however it was built, the abilities of this module; returns it."""
    buffer_class: type = type(buffer)
    buffer.__class__ = watched_class(buffer_class)
    buffer.spo_config, buffer.spo_evicted = spo, evicted
    buffer.spo_seen, buffer.spo_aborted, buffer.spo_wanted = {}, set(), math.inf
    buffer.spo_streak = FailureStreak()
    evicted.seen = buffer.spo_seen
    if getattr(buffer, "refill_fn", None) is not None:
        buffer.spo_refill, buffer.refill_fn = buffer.refill_fn, buffer._refill
    return buffer
