"""The tracker: which prompts to train on next, what is known about each, and what its last response was.

A plain class: no Ray, no trainer. Order within a step: ``draw``, ``dispatch`` (which freezes the baseline, so
that a rollout is always scored by the value from before its own outcome), ``recall``, then ``observe``,
``remember`` and ``settle``; ``finish_step`` is the last three in one, and takes in late rollouts too. No verb
changes anything when it raises. All state is part of a checkpoint; after ``Tracker.load`` with the same dataset and
settings the tracker continues bit for bit as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl.errors import SpoStateError
from spo_verl.tracker import checkpoint
from spo_verl.tracker.arguments import as_integers, checked_uids, checked_version, checked_whole, shown
from spo_verl.tracker.checkpoint import Snapshot, reconcile
from spo_verl.tracker.drawing import Drawing
from spo_verl.tracker.features import PromptFeatures
from spo_verl.tracker.forgetting_rules import forgetting
from spo_verl.tracker.ledger import Ledger, Rollout, check_ending, frozen_of
from spo_verl.tracker.memory import ResponseMemory
from spo_verl.tracker.observing import Effects, checked_groups, joined, new_outcomes
from spo_verl.tracker.prompt_statistics import (
    KEPT_BINS,
    PromptSums,
    Readings,
    prompt_metrics,
    read_parts,
    source_metrics,
    value_histogram,
)
from spo_verl.tracker.quota import PromptSources
from spo_verl.tracker.readout import CalibratedReadOut, Calibration, ages
from spo_verl.tracker.reports import Draw, Frozen, Late, LoadReport, ObserveReport, Recall, StepReport
from spo_verl.tracker.responses import StoredResponses
from spo_verl.tracker.settings import COUNTERS, LATER_COUNTERS, Ending, TrackerSettings, make_generators
from spo_verl.tracker.table import PromptTable

MOST_BINS = 100_000
"""Bins of a histogram at most."""


class Tracker:
    """The state of all prompts; build one with :meth:`create` or :meth:`load`.

    Slots are positions in ``key_P``. A restart restores evidence, counters, stored responses, open rollouts, the
    clock and the random generators; weights, and which prompts are in flight, follow from them and are rebuilt.

    In event time (``forgetting_mode="version"``) the event of an outcome is the version of its rollout's dispatch,
    also where the rollout continued under newer versions: the first version is the one whose estimate was frozen as
    its baseline, it is known at dispatch for every rollout, and an outcome is never taken for newer than it is.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        table: PromptTable,
        memory: ResponseMemory,
        ledger: Ledger,
        counters: dict[str, int],
        generators: dict[str, np.random.Generator],
        sources: PromptSources | None = None,
        clock: dict[str, float] | None = None,
        calibration: Calibration | None = None,
        features: PromptFeatures | None = None,
    ) -> None:
        self.settings = settings
        self._rule = forgetting(settings)
        self._table = self._rule.fit(table)
        self._memory = memory
        self._ledger = ledger
        self._counters = counters
        self._covered = int(np.count_nonzero(table.draws_P[: table.active]))
        self._clock = self._rule.clock(clock or {}, self._table)
        self._readout: CalibratedReadOut | None = None
        if settings.readout == "calibrated":
            checked = _checked_sources(sources, table), _checked_features(features, table)
            self._readout = CalibratedReadOut(settings.window, table.active, *checked, calibration)
        self._drawing = Drawing(settings, self._rule, self._table, generators, sources, self._version, self._readout)
        self._sums = PromptSums(self._table, self._rule, self._readout)

    # -- making one

    @classmethod
    def create(
        cls,
        key_P: NDArray,
        settings: TrackerSettings,
        *,
        alpha_P: NDArray | None = None,
        beta_P: NDArray | None = None,
        sources: PromptSources | None = None,
        features: PromptFeatures | None = None,
        version: int = 0,
    ) -> Tracker:
        """A tracker of prompts that nothing but the given evidence is known of.

        Args:
            key_P: identities, V16 (P,) or uint8 (P, 16), each once.
            settings: see :class:`TrackerSettings`.
            alpha_P, beta_P: initial evidence (P,) as from ``core.initial_evidence``; (0.5, 0.5) without.
            sources: data source of each prompt; needed with ``settings.quota``, used by the calibrated read-out, and
                otherwise not looked at.
            features: further features of each prompt for the calibrated read-out, otherwise not looked at.
            version: policy version at which the run continues, not negative. In event time the given evidence is of
                this version (z_0) and decays from it.

        Raises:
            SpoStateError: keys or evidence are unusable; names the slot. Quota and sources do not fit together. The
                version is not a whole number >= 0.
        """
        _check_settings(settings)
        version = checked_version(version)
        table = forgetting(settings).enter(PromptTable.create(key_P, alpha_P, beta_P), version)
        memory = ResponseMemory(len(table), settings.references, settings.max_tokens)
        generators = make_generators(settings.seed, settings.purposes)
        counters = dict.fromkeys(COUNTERS, 0)
        return cls(settings, table, memory, Ledger(), counters, generators, sources, features=features)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        key_P: NDArray,
        settings: TrackerSettings,
        *,
        alpha_P: NDArray | None = None,
        beta_P: NDArray | None = None,
        sources: PromptSources | None = None,
        features: PromptFeatures | None = None,
        version: int | None = None,
    ) -> tuple[Tracker, LoadReport]:
        """Continue from a checkpoint folder; the dataset may have been reordered, extended or shrunk.

        Every known prompt keeps its evidence, counters and stored response; prompts that the dataset lost are
        kept aside and return with it; new ones start with the given evidence. The present settings hold,
        differences are reported. Another seed restarts the random generators.

        Args:
            folder: as written by :meth:`Snapshot.write`; it is only read.
            key_P, settings, alpha_P, beta_P, sources, features: as for :meth:`create`; quotas and features may differ
                from those of the checkpoint, which evidence does not depend on.
            version: policy version at which the run continues; None: the larger of the checkpoint's step and the newest
                version that it knows. In event time the evidence of new prompts is of this version, and that of
                all prompts where the checkpoint's forgetting mode was another.

        Raises:
            SpoStateError: keys or evidence are unusable, quota and sources do not fit together, or the version is not a
                whole number >= 0.
            SpoCheckpointError: the folder is unusable; see :func:`spo_verl.tracker.checkpoint.read`.
            SpoDatasetMismatchError: no prompt in common.
        """
        _check_settings(settings)
        version = None if version is None else checked_version(version)
        fresh = PromptTable.create(key_P, alpha_P, beta_P, to_write=False)
        saved, generators, report = reconcile.resume(checkpoint.read(folder), fresh, settings, version)
        counters, clock = dict(saved.manifest.counters), saved.manifest.clock
        parts = saved.table, saved.memory, saved.ledger, counters, generators, sources, clock, saved.calibration
        tracker = cls(settings, *parts, features)
        before = () if saved.calibration is None else saved.calibration.features
        after = () if tracker._readout is None else tracker._readout.state.features
        if before != after:
            report = replace(report, settings_changed={**report.settings_changed, "features": (before, after)})
        return tracker, report

    # -- the verbs of a step

    def draw(self, size: int, version: int | None = None) -> Draw:
        """Draw distinct prompts by the present weights (or uniformly): exact successive sampling.

        Prompts with ``settings.max_in_flight`` open rollouts are left out, exactly as if they had been drawn already.
        With quotas each data source gets its part of the batch, and the sampling happens within the sources; see
        :meth:`QuotaIndex.draw`.

        Args:
            size: prompts of the batch.
            version: policy version that will generate. Weights depend on it in event time with ``gamma`` or
                ``floor``; without it the newest version that the tracker knows.

        Raises:
            SpoStateError: fewer than one or more than there are, in all or of a data source; or more than prompts in
                flight leave; or a negative version.
        """
        version = None if version is None else checked_version(version)
        taken = self._taken()
        self._drawing.check(size, taken)
        if version is not None:
            self._clock.note_version(version)
        drawn = self._drawing.draw(size, taken, self._version)
        draws_B = self._table.draws_P[drawn.slot_B]
        self._covered += int((draws_B == 0).sum())
        self._table.draws_P[drawn.slot_B] = draws_B + 1
        self._counters["drawn"] += len(drawn.slot_B)
        return drawn

    def dispatch(self, uids: Sequence[str], slot_B: ArrayLike, version: int) -> Frozen:
        """Open rollouts, and freeze the value and effective sample size of their prompts.

        Args:
            uids: one per rollout, never used before.
            slot_B: (B,) their prompt slots.
            version: policy version that will generate, not negative.

        Raises:
            SpoStateError: a uid is known or occurs twice, a slot does not exist, or the version is negative.
        """
        uids, version = checked_uids(uids, "dispatch"), checked_version(version)
        slots = self._table.checked_slots(slot_B, len(uids))
        self._ledger.refuse_known(uids)
        rollouts = self._freeze(slots, version)
        self._clock.note_version(version)
        self._ledger.dispatch(uids, rollouts)
        self._counters["dispatched"] += len(uids)
        return frozen_of(rollouts)

    def redispatch(self, uids: Sequence[str], version: int) -> Frozen:
        """Freeze again what open rollouts are scored by, as they are issued again (after a restart, or a retry).

        They keep their uid and their place among those in flight; value, effective sample size and version are those
        of now, and in event time the version is the event of the outcome to come.

        Raises:
            SpoStateError: a uid is not open, or has been observed already.
        """
        uids, version = checked_uids(uids, "redispatch"), checked_version(version)
        open_B = self._ledger.require_open(uids, "redispatch")
        begun = [uid for uid, one in zip(uids, open_B, strict=True) if one.sessions]
        if begun:
            raise SpoStateError(f"redispatch: uid {begun[0]!r} has outcomes already; settle it and use a fresh uid.")
        rollouts = self._freeze(frozen_of(open_B).slot_B, version)
        self._clock.note_version(version)
        self._ledger.dispatch(uids, rollouts)
        return frozen_of(rollouts)

    def recall(self, uids: Sequence[str]) -> Recall:
        """The frozen records of open rollouts, and the stored responses of their prompts.

        Raises:
            SpoStateError: a uid is not open.
        """
        open_B = self._ledger.require_open(checked_uids(uids, "recall"), "recall")
        frozen = frozen_of(open_B)
        return Recall(frozen, self._memory.recall(frozen.slot_B))

    def observe(
        self, uids: Sequence[str], session_B: ArrayLike, reward_B: ArrayLike, divergence_B: ArrayLike | None = None
    ) -> ObserveReport:
        """Fold outcomes into the evidence, each ``(uid, session)`` once, however often it is passed.

        The evidence of a prompt is discounted at the first outcome of a policy version (that of the
        dispatch); further outcomes of the version, or of an older one, are added without another discount:
        ``alpha = rho alpha + sum r``, ``beta = rho beta + sum (1 - r)``, see ``core.update_evidence``. Under ``kl``
        and ``drift`` one request discounts a prompt once, however many versions it has of it. In event time
        every outcome has the weight of its own version instead, in whatever order they come: ``core.fold_events``.

        Args:
            uids: (B,) rollouts, open or lately settled (for repeats).
            session_B: (B,) which of the rollout's sessions.
            reward_B: (B,) in [0, 1].
            divergence_B: (B,) D of the prompt, at least 0; NaN or 0 without a stored response. Of several
                values for one prompt the largest counts. A prompt's first visit has D = 0. None where no D was
                measured: only ``forgetting_mode="kl"`` reads it.

        Raises:
            SpoRewardError: a reward is NaN or outside [0, 1].
            SpoStateError: lengths differ, a divergence is negative, a uid is unknown, or a new session came
                after its rollout was settled.
        """
        effects = self._commit(self._effects(Late("trained", uids, session_B, reward_B, divergence_B, ended=())))
        self._fit(effects)
        return effects.report

    def remember(self, uids: Sequence[str], responses: StoredResponses) -> None:
        """Replace the stored responses of open rollouts' prompts; ``row_B`` points into ``uids``.

        Of several for one prompt the last stays. One without tokens leaves its prompt without a stored
        response.

        Raises:
            SpoStateError: a uid is not open, a row points nowhere, or the log-prob columns are not the
                tracker's.
        """
        self._memory.remember(self._slots_to_remember(uids, responses), responses)

    def settle(self, uids: Sequence[str], kind: Ending = "trained") -> None:
        """These rollouts are over, and their prompts can be drawn again; settling again changes nothing.

        Every rollout counts under one kind, the first that it is settled with:

        | kind | why the rollout ends |
        |---|---|
        | ``trained`` | it was part of an update; without any outcome it counts as ``failed`` |
        | ``stale`` | evicted, as it is too old to be trained on |
        | ``surplus`` | dropped after it had finished, as the batch was full |
        | ``rejected`` | all its tokens were rejected |
        | ``failed`` | it broke off without a result |
        | ``aborted`` | it was stopped |

        The kind has no influence on evidence: outcomes that were observed stay, and one that never had any changes
        nothing. Settle a rollout when none of its outcomes is still to come; a new one would be refused.

        Raises:
            SpoStateError: a uid was never dispatched, or there is no such kind.
        """
        check_ending(kind)
        self._end(self._ledger.to_settle(checked_uids(uids, "settle")), kind)

    def absorb(self, late: Sequence[Late]) -> ObserveReport:
        """``observe`` and ``settle`` for rollouts that end without training, as one verb: all of it, or nothing.

        What was verified becomes evidence, whether it was trained on or not; repeats change nothing, as in ``observe``.

        Raises:
            SpoStateError, SpoRewardError: as for ``observe`` and ``settle``.
        """
        return self._commit(self._effects(Late("trained"), late)).report

    def advance(self, movement: float) -> None:
        """The policy has moved by so much; what is read at later visits is discounted by it (``drift``).

        Raises:
            SpoStateError: negative or not finite, or the forgetting mode is another.
        """
        self._clock.movement = self._rule.moved(self._clock, movement)

    def finish_step(
        self,
        uids: Sequence[str],
        session_B: ArrayLike,
        reward_B: ArrayLike,
        divergence_B: ArrayLike | None = None,
        *,
        remember_uids: Sequence[str] = (),
        responses: StoredResponses | None = None,
        settle_uids: Sequence[str] = (),
        late: Sequence[Late] = (),
        movement: float | None = None,
    ) -> StepReport:
        """``observe``, ``remember``, ``settle``, ``absorb``, ``advance``, ``metrics`` as one verb: all or nothing.

        The outcomes of ``late`` are observed together with the others, so that the report is that of the whole step.

        Args:
            uids, session_B, reward_B, divergence_B: outcomes of the rollouts that were trained on, see ``observe``.
            remember_uids, responses: see ``remember``.
            settle_uids: rollouts that were trained on, or that failed; see ``settle``.
            late: rollouts that end for another reason. Where one of ``settle_uids`` is here too, this is its kind.
            movement: see ``advance``; the outcomes of this step are discounted by what came before it.

        Raises:
            SpoStateError, SpoRewardError: as for the parts.
        """
        moved = self._clock.movement if movement is None else self._rule.moved(self._clock, movement)
        slots = None if responses is None else self._slots_to_remember(remember_uids, responses)
        trained = Late("trained", uids, session_B, reward_B, divergence_B, ended=settle_uids)
        effects = self._commit(self._effects(trained, late))
        if responses is not None and slots is not None:
            self._memory.remember(slots, responses)
        self._clock.movement = moved
        self._fit(effects)
        return StepReport(effects.report, self.metrics(), effects.untrained)

    # -- looking at it

    @property
    def size(self) -> int:
        """Prompts of the dataset."""
        return self._table.active

    @property
    def open_count(self) -> int:
        """Open rollouts."""
        return len(self._ledger.open)

    def open_uids(self) -> list[str]:
        """Uids of the open rollouts, sorted."""
        return sorted(self._ledger.open)

    @property
    def counters(self) -> dict[str, int]:
        """Running totals by name (``settings.COUNTERS``, ``settings.LATER_COUNTERS``).

        ``trained`` is what is left of ``settled``: every ended rollout counts under one kind.
        """
        totals = dict.fromkeys(LATER_COUNTERS, 0) | self._counters
        others = ("failed", "stale", "surplus", "rejected", "aborted")
        return totals | {"trained": totals["settled"] - sum(totals[kind] for kind in others)}

    @property
    def version(self) -> int | None:
        """The newest policy version that the tracker knows; None where the forgetting mode does not count them."""
        return self._clock.version

    @property
    def movement(self) -> float | None:
        """The policy's summed movement; None where the forgetting mode does not count it."""
        return self._clock.movement

    def evidence(self, slot_B: ArrayLike | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Copies of alpha and beta, of all prompts of the dataset or of these slots.

        They are as of each prompt's last discount, in event time as of its newest event.
        """
        slots = np.arange(self.size) if slot_B is None else self._table.checked_slots(slot_B)
        return self._table.alpha_P[slots], self._table.beta_P[slots]

    def keys(self, slot_B: ArrayLike) -> NDArray:
        """Identities V16 (B,) of prompts, those that are kept aside included.

        Raises:
            SpoStateError: there is no such slot.
        """
        slots = as_integers("keys: slots", slot_B)
        if slots.size and not 0 <= slots.min() <= slots.max() < len(self._table):
            raise SpoStateError(f"keys: slots {slots.min()} to {slots.max()} of {len(self._table)}; pass slots from 0.")
        return self._table.key_P[slots]

    def values(self) -> NDArray[np.float64]:
        """(P,) estimated success probabilities, in event time as read at the newest version.

        With the calibrated read-out what it reads, at the version of its last fit.
        """
        return np.concatenate([value_P for value_P, _ in self._readings()])

    def value_histogram(self, bins: int) -> NDArray[np.int64]:
        """(bins,) how many prompts have their value in each of ``bins`` equal parts of [0, 1].

        A number that divides ``KEPT_BINS`` costs what ``metrics`` does, another one reads all prompts.

        Raises:
            SpoStateError: ``bins`` is not a whole number from 1 to ``MOST_BINS``.
        """
        bins = checked_whole("number of bins", bins, least=1, most=MOST_BINS)
        if KEPT_BINS % bins == 0:
            return self._sums.value_histogram(self._version, bins)
        return value_histogram(self._readings(), bins)

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, by plain name.

        Only prompts near those with new evidence are read again (:class:`PromptSums`); all of them in event time, with
        the calibrated read-out and with quotas, which takes milliseconds below a million prompts.

        | name | meaning |
        |---|---|
        | ``prompts``, ``prompts_aside`` | prompts of the dataset; kept aside for their return |
        | ``coverage`` | share of the prompts that was ever drawn |
        | ``effective_prompts`` | how many equally likely prompts would be as spread out as the weights |
        | ``value_mean``, ``n_eff_mean`` | mean value and effective sample size over all prompts |
        | ``open`` | rollouts dispatched and not settled |
        | ``stored_responses`` | prompts that have a stored response |
        | ``memory_bytes``, ``table_bytes`` | bytes of the stored responses; of the prompt columns |
        | ``drawn`` ... ``trained`` | running totals, see ``counters`` |
        | ``source/<name>/value_mean`` | with quotas: mean value over the prompts of a data source |
        | ``readout_slope``, ``readout_intercept`` | with the calibrated read-out: coefficients of logit v and 1 |
        """
        sources = self._drawing.sources
        return {
            **prompt_metrics(self._sums.totals(self._version), self._table),
            "coverage": self._covered / self.size,
            "effective_prompts": self._drawing.index(self._version).effective_number(),
            "open": float(self.open_count),
            "stored_responses": float(self._memory.entries),
            "memory_bytes": float(self._memory.nbytes),
            **{name: float(total) for name, total in self.counters.items()},
            **(source_metrics(self._readings(), sources) if sources is not None else {}),
            **({} if self._readout is None else self._readout.metrics()),
        }

    def digest(self) -> str:
        """SHA-256 over all state that a checkpoint restores (see ``Snapshot.digest``)."""
        return self._state(self._table, self._ledger).digest

    def snapshot(self) -> Snapshot:
        """An immutable copy of the state, to be written while the tracker continues."""
        return self._state(self._table.copy(), self._ledger.copy())

    # -- how it is done

    def _state(self, table: PromptTable, ledger: Ledger) -> Snapshot:
        generators = self._drawing.generators.items()
        return Snapshot(
            settings=self.settings,
            table=table,
            memory=self._memory.view(),
            ledger=ledger,
            counters=dict(self._counters),
            random={purpose: dict(generator.bit_generator.state) for purpose, generator in generators},
            clock=self._clock.as_json(),
            calibration=None if self._readout is None else self._readout.state,
        )

    @property
    def _version(self) -> int:
        """The version at which evidence is read; without event time it plays no part."""
        return self._clock.version or 0

    def _readings(self) -> Readings:
        return read_parts(self._table, self._rule, self._version, self._readout)

    def _taken(self) -> NDArray[np.int64]:
        """Slots of the dataset that are not to be drawn now, ascending."""
        limit = self.settings.max_in_flight
        if limit is None:
            return np.empty(0, dtype=np.int64)
        slot_X = self._ledger.slots_in_flight(limit)
        return slot_X[slot_X < self.size]  # a prompt that was kept aside may still have an open rollout

    def _freeze(self, slot_B: NDArray[np.int64], version: int) -> list[Rollout]:
        """Records of rollouts of these prompts at a policy version."""
        alpha_B, beta_B, version_B = self._table.read_from(slot_B)
        raw_B, n_eff_B = self._rule.read(version, alpha_B, beta_B, version_B)
        slots, n_eff, versions = slot_B.tolist(), n_eff_B.tolist(), repeat(version)
        if self._readout is None:
            return list(map(Rollout, slots, raw_B.tolist(), n_eff, versions))
        age_B = ages(version_B, version)
        value_B = self._readout.value(raw_B, n_eff_B, age_B, slot_B)
        return list(map(Rollout, slots, value_B.tolist(), n_eff, versions, repeat(()), raw_B.tolist(), age_B.tolist()))

    def _effects(self, trained: Late, late: Sequence[Late] = ()) -> Effects:
        """What observing and settling these rollouts will do; changes nothing.

        Args:
            trained: rollouts that were trained on.
            late: those that end for another reason, which is then the kind of a rollout that is in both.
        """
        groups = checked_groups(trained, late)
        ending = [(group.kind, self._ledger.to_settle(group.over)) for group in (*groups[1:], groups[0])]
        outcomes = new_outcomes(groups, self._ledger)
        rows = self._table.touched(outcomes.slot_B)
        report = joined(self._rule.fold(rows, outcomes, self._clock), outcomes.duplicate)
        return Effects(rows, outcomes, report, ending)

    def _commit(self, effects: Effects) -> Effects:
        """Let them take place."""
        self._table.write(effects.rows)
        for uid, session in effects.outcomes.source_B:
            self._ledger.add_session(uid, session)
        # A prompt that was kept aside may still have an open rollout.
        slot_D = effects.rows.slot_D[effects.rows.slot_D < self.size]
        self._drawing.update(slot_D, self._version)
        self._sums.note(slot_D)
        self._counters["observations"] += effects.report.new
        self._counters["duplicates"] += effects.report.duplicate
        self._counters["first_visits"] += effects.report.first_visits
        for kind, uids in effects.ending:
            self._end(uids, kind)
        self._count("untrained", effects.untrained)
        if self._readout is not None:
            self._readout.note(effects.outcomes.rollout_B, effects.outcomes.reward_B)
        return effects

    def _fit(self, effects: Effects) -> None:
        """With the calibrated read-out: new coefficients, by all outcomes so far."""
        if self._readout is not None:
            self._readout.fit(effects.outcomes.version_B)
            self._drawing.refit()

    def _slots_to_remember(self, uids: Sequence[str], responses: StoredResponses) -> NDArray[np.int64]:
        self._memory.check(responses)
        slot_B = frozen_of(self._ledger.require_open(checked_uids(uids, "remember"), "remember")).slot_B
        wrong = responses.row_B[(responses.row_B < 0) | (responses.row_B >= len(slot_B))]
        if wrong.size:
            raise SpoStateError(f"remember: row {wrong[0]} of the responses points outside the {len(slot_B)} uids.")
        return slot_B[responses.row_B]

    def _end(self, uids: Sequence[str], kind: Ending) -> None:
        uids = [uid for uid in uids if uid in self._ledger.open]  # not those that another kind has just ended
        without_outcome = self._ledger.settle(uids)
        self._counters["settled"] += len(uids)
        if kind == "trained":
            self._counters["failed"] += without_outcome
        else:
            self._count(kind, len(uids))

    def _count(self, name: str, more: int) -> None:
        """Add to a counter that is there only where it is not 0."""
        if more:
            self._counters[name] = self._counters.get(name, 0) + more


def _checked_sources(sources: PromptSources | None, table: PromptTable) -> PromptSources | None:
    if sources is not None and (not isinstance(sources, PromptSources) or len(sources.source_P) != table.active):
        raise SpoStateError(
            f"sources are {shown(sources)} and there are {table.active} prompts; pass PromptSources of every slot, or "
            "None."
        )
    return sources


def _checked_features(features: PromptFeatures | None, table: PromptTable) -> PromptFeatures | None:
    if features is not None and (not isinstance(features, PromptFeatures) or len(features.feature_PF) != table.active):
        raise SpoStateError(
            f"features are {_described(features)} and there are {table.active} prompts; pass PromptFeatures of every "
            "slot, or None."
        )
    return features


def _described(features: object) -> str:
    return f"of {len(features.feature_PF)} slots" if isinstance(features, PromptFeatures) else shown(features)


def _check_settings(settings: TrackerSettings) -> None:
    if not isinstance(settings, TrackerSettings):
        raise SpoStateError(f"settings are {shown(settings)}; pass TrackerSettings.")
