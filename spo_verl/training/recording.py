"""What a run leaves in its record: rows of rollouts that ended, numbers of steps, prompts, and the run itself.

Rows are put together in the writer's thread, from what a step knew when it ended; see
:mod:`spo_verl.record.schema` for the columns. What was frozen at dispatch is remembered here until the rollout ends;
after a restart the tracker knows it. With ``spo.record=off`` nothing here does anything.

Suffixes: S sessions, P prompts.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

import spo_verl
from spo_verl.config import SpoConfig
from spo_verl.data.columns import column_batches, table_of
from spo_verl.data.identity import DatasetKeys, RowFields
from spo_verl.data.prompt_sources import COLUMN as SOURCE_COLUMN
from spo_verl.data.values.prompt_texts import last_user_message
from spo_verl.record.schema import FOLDER, PROMPTS, ROLLOUTS, TEXT_LENGTH
from spo_verl.record.writing import RecordWriter, as_table
from spo_verl.tracker.reports import Frozen, Late, ObserveReport
from spo_verl.training.checks import select
from spo_verl.training.in_flight import Evictions
from spo_verl.training.step import Rewarded
from spo_verl.training.stored_divergence import Divergence

CONFIG_KEYS = (
    "data.train_files",
    "data.val_files",
    "data.prompt_key",
    "data.train_batch_size",
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.rollout.n",
    "algorithm.adv_estimator",
    "trainer.default_local_dir",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
    "trainer.project_name",
    "trainer.experiment_name",
    "trainer.total_training_steps",
    "trainer.v1.trainer_mode",
)
"""Settings of verl that ``run.json`` repeats; ``spo`` follows whole."""

_GIB = 2**30


class Opened(NamedTuple):
    """An open rollout: what was frozen at its dispatch, and when that was in monotonic seconds (None: not known)."""

    slot: int
    value: float
    n_eff: float
    version: int
    at: float | None


class Ended(NamedTuple):
    """A session that ended; the columns of ``ROLLOUTS`` that its end says."""

    uid: str
    session: int | None
    ending: str
    reward: float
    raw_advantage: float = np.nan
    advantage: float = np.nan
    divergence: float = np.nan
    tokens: int | None = None
    version_first: int | None = None
    version_last: int | None = None
    at: float | None = None


class Prompts:
    """The prompts of the dataset, as the record names them."""

    def __init__(self, keys: DatasetKeys, dataset: Any) -> None:
        self._keys, self._dataset = keys, dataset
        self._source_P = pa.nulls(len(keys.key_P), pa.string()).dictionary_encode()
        self._aside: dict[int, str] = {}

    def note_aside(self, slots: Sequence[int], key_B: np.ndarray) -> None:
        """Keys of prompts with an open rollout that the dataset no longer has."""
        self._aside = dict(zip(slots, _hex(key_B), strict=True))

    def table(self, value_P: np.ndarray, n_eff_P: np.ndarray) -> pa.Table:
        """The rows of ``PROMPTS``; reads the dataset where it has a table that can be read without its own code.

        Args:
            value_P, n_eff_P: float64, at the start of the run.
        """
        texts, sources = self._texts()
        self._source_P = pa.array(sources, pa.string()).dictionary_encode()
        columns = {
            "key": _hex(self._keys.key_P),
            "slot": np.arange(len(self._keys.key_P)),
            "row": self._keys.row_of_slot_P,
            "data_source": self._source_P,
            "value": value_P,
            "n_eff": n_eff_P,
            "text": texts,
        }
        return as_table(columns, PROMPTS)

    def columns(self, slot_S: np.ndarray) -> dict[str, Any]:
        """The columns of ``ROLLOUTS`` that say which prompt it was."""
        size = len(self._keys.key_P)
        inside_S = slot_S < size
        at_S = np.where(inside_S, slot_S, 0)
        names = _hex(self._keys.key_P[at_S])
        for number in np.flatnonzero(~inside_S).tolist():
            names[number] = self._aside[int(slot_S[number])]
        return {
            "key": names,
            "slot": slot_S,
            "row": pa.array(self._keys.row_of_slot_P[at_S], mask=~inside_S),
            "data_source": self._source_P.take(pa.array(slot_S, mask=~inside_S)),
        }

    def _texts(self) -> tuple[list[str | None], list[str | None]]:
        """Last user message and data source of every prompt, None where the dataset does not say."""
        rows, table = self._keys.row_of_slot_P, table_of(self._dataset)
        texts: list[str | None] = [None] * len(rows)
        sources: list[str | None] = [None] * len(rows)
        if table is None:
            return texts, sources
        column = RowFields.of(self._dataset).prompt
        for start, batch in column_batches(table, [column, SOURCE_COLUMN], {}):
            size = len(next(iter(batch.values()), ()))
            for slot in range(*np.searchsorted(rows, (start, start + size)).tolist()):
                row = int(rows[slot]) - start
                texts[slot] = last_user_message(batch[column][row])[:TEXT_LENGTH] or None if column in batch else None
                source = batch[SOURCE_COLUMN][row] if SOURCE_COLUMN in batch else None
                sources[slot] = source if source is None else str(source)
        return texts, sources


class Recorder:
    """Writes the record of the run that a trainer trains; ``None`` as writer: records nothing."""

    def __init__(self, writer: RecordWriter | None, prompts: Prompts, *, mode: str, run: Mapping[str, Any]) -> None:
        """
        Args:
            writer: of the run's folder.
            prompts: of the dataset.
            mode: ``spo.forgetting.mode``.
            run: what ``run.json`` says.
        """
        self._writer, self._prompts, self._mode, self._run = writer, prompts, mode, run
        self._open: dict[str, Opened] = {}  # belongs to the writer's thread

    @classmethod
    def of(cls, config: Any, spo: SpoConfig, keys: DatasetKeys, dataset: Any, service: Mapping[str, str]) -> Recorder:
        """The recorder of a run of verl's trainer.

        Args:
            config: verl's configuration.
            spo: settings.
            keys: of the dataset.
            dataset: verl's training dataset.
            service: ``name`` and ``namespace`` of the tracker's actor.
        """
        folder = Path(os.path.abspath(config.trainer.default_local_dir)) / FOLDER
        writer = RecordWriter(folder, int(spo.record * _GIB)) if spo.record else None
        run = description(config, spo, service) | {"prompts": len(keys.key_P)}
        return cls(writer, Prompts(keys, dataset), mode=spo.forgetting.mode, run=run)

    # ------------------------------------------------------------------ start and end

    def begin(self, step: int, tracker: Any) -> None:
        """Training begins after a step, with the tracker as it is now: prompts and open rollouts."""
        if self._writer is None:
            return
        start = {"time": _now(), "step": step, "pid": os.getpid(), "host": socket.gethostname()}
        self._writer.resume(step)
        self._writer.describe({**self._run, "pid": start["pid"], "host": start["host"], "start": start})
        if uids := tracker.open_uids():
            frozen = tracker.recall(uids).frozen
            self._opened(uids, frozen, None)
            aside = sorted({slot for slot in frozen.slot_B.tolist() if slot >= tracker.size})
            self._prompts.note_aside(aside, tracker.keys(aside))
        value_P, (alpha_P, beta_P) = tracker.values(), tracker.evidence()
        self._writer.prompts(lambda: self._prompts.table(value_P, alpha_P + beta_P))

    def close(self) -> None:
        """The run ends, for whatever reason."""
        if self._writer is not None:
            self._writer.close(ended=_now())

    # ------------------------------------------------------------------ a step

    def dispatched(self, uids: Sequence[str], frozen: Frozen) -> None:
        """These rollouts were dispatched, or issued again, now."""
        self._opened(uids, frozen, time.monotonic())

    def _opened(self, uids: Sequence[str], frozen: Frozen, now: float | None) -> None:
        if self._writer is None:
            return

        def note() -> None:
            columns = (frozen.slot_B, frozen.value_B, frozen.n_eff_B, frozen.version_B)
            entries = zip(uids, *(column.tolist() for column in columns), strict=True)
            self._open |= {uid: Opened(slot, value, n_eff, number, now) for uid, slot, value, n_eff, number in entries}

        self._writer.call(note)

    def observed(
        self,
        step: int,
        rewarded: Rewarded,
        divergence: Divergence | None,
        evicted: Evictions,
        report: ObserveReport,
        ended: set[str],
        seen: Mapping[str, float],
    ) -> None:
        """An update has ended, and the tracker has observed it.

        Args:
            step: the running step.
            rewarded: the batch that was trained on.
            divergence: what the probe measured.
            evicted: what was not trained on.
            report: the tracker's report of the update.
            ended: rollouts that ended with the update, those that were trained on included.
            seen: when the replay buffer saw the rollouts finished, monotonic seconds.
        """
        if self._writer is None:
            return
        recalled = replace(rewarded.recalled, probe=None)  # which holds the batch's tokens
        batch, finished = replace(rewarded, recalled=recalled), dict(seen)
        moved_B = None if divergence is None else divergence.divergence_B

        def make() -> dict[str, Any]:
            requests = [(list(_evicted(late, evicted)), one) for late, one in evicted.absorbed]
            lost = sorted(ended.difference(recalled.sessions.uid_B))
            last = [*_trained(batch, moved_B, finished), *_evicted(evicted.late, evicted)]
            last += [Ended(uid, None, "failed", np.nan) for uid in lost]
            return self._rows([*requests, (last, report)])

        count = len(recalled.sessions) + sum(len(late.over) for late in evicted.all)
        self._writer.append_later(step, count, make)

    def numbers(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The numbers of a step are complete."""
        if self._writer is not None:
            self._writer.append_step(step, metrics)

    # ------------------------------------------------------------------ a checkpoint

    def cut(self, step: int) -> None:
        """A checkpoint of this step is being saved."""
        if self._writer is not None:
            self._writer.cut(step)

    def flush(self) -> None:
        """Wait until what was recorded is on the disk for good; says so where it is not."""
        if self._writer is not None:
            self._writer.flush()

    # ------------------------------------------------------------------ rows, in the writer's thread

    def _rows(self, requests: list[tuple[list[Ended], ObserveReport]]) -> dict[str, Any]:
        parts = [part for sessions, report in requests for part in self._rows_of(sessions, report)]
        if not parts:
            return {name: [] for name in ROLLOUTS.names}
        columns = {name: [row[name] for row in parts] for name in parts[0]}
        return columns | self._prompts.columns(np.array(columns["slot"], dtype=np.int64))

    def _rows_of(self, sessions: list[Ended], report: ObserveReport) -> Iterator[dict[str, Any]]:
        """The rows of what the tracker observed in one request, older versions first, as it folds them."""
        applied = _applied(report)
        known = [(one, self._open[one.uid]) for one in sessions if one.uid in self._open]
        for one, opened in sorted(known, key=lambda pair: pair[1].version):
            rho, moved = applied.get((opened.slot, opened.version), (None, None))
            row = one._asdict()
            at = row.pop("at")
            if self._mode == "drift":
                row["divergence"] = moved
            yield row | {
                "slot": opened.slot,
                "version_dispatch": opened.version,
                "value": opened.value,
                "n_eff": opened.n_eff,
                "rho": None if np.isnan(one.reward) else rho,
                "seconds": None if at is None or opened.at is None else at - opened.at,
            }
        for one in sessions:
            self._open.pop(one.uid, None)


def _trained(rewarded: Rewarded, moved_B: np.ndarray | None, seen: Mapping[str, float]) -> Iterator[Ended]:
    recalled, sessions = rewarded.recalled, rewarded.recalled.sessions
    divergence_S = np.full(len(sessions), np.nan) if moved_B is None else moved_B[sessions.prompt_S]
    advantage_S = np.where(rewarded.token_count_S > 0, rewarded.advantage_S, np.nan)
    columns = zip(
        sessions.uid_S,
        sessions.session_S.tolist(),
        rewarded.reward_S.tolist(),
        recalled.raw_advantage(rewarded.reward_S).tolist(),
        advantage_S.tolist(),
        divergence_S.tolist(),
        recalled.length_S.tolist(),
        recalled.span_S.tolist(),
        strict=True,
    )
    for uid, session, reward, raw, advantage, moved, tokens, (first, last) in columns:
        yield Ended(
            uid, session, "trained", reward, raw, advantage, moved, tokens, _known(first), _known(last), seen.get(uid)
        )


def _evicted(late: Sequence[Late], evicted: Evictions) -> Iterator[Ended]:
    """A row per outcome, and one per rollout that ended without any."""
    for group in late:
        pairs = zip(group.uids, np.asarray(group.session_B).tolist(), np.asarray(group.reward_B).tolist(), strict=True)
        for uid, session, reward in pairs:
            made = evicted.generated[uid, session]
            first, last = _known(made.first), _known(made.last)
            yield Ended(
                uid,
                session,
                group.kind,
                reward,
                tokens=made.tokens,
                version_first=first,
                version_last=last,
                at=evicted.ended_at.get(uid),
            )
        for uid in sorted(set(group.over).difference(group.uids)):
            yield Ended(uid, None, group.kind, np.nan, at=evicted.ended_at.get(uid))


def _applied(report: ObserveReport) -> dict[tuple[int, int], tuple[float, float | None]]:
    """(slot, version) to the retention that was applied, and the divergence that it follows from."""
    columns = (report.slot_B, report.version_B, report.rho_B, report.divergence_B, report.discounted_B)
    return {
        (slot, number): (rho, moved if discounted else None)
        for slot, number, rho, moved, discounted in zip(*(column.tolist() for column in columns), strict=True)
    }


def _known(number: int) -> int | None:
    return number if number >= 0 else None


def _hex(key_B: np.ndarray) -> list[str]:
    """Keys as 32 hex digits each."""
    digits = np.ascontiguousarray(key_B).tobytes().hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def description(config: Any, spo: SpoConfig, service: Mapping[str, str]) -> dict[str, Any]:
    """What ``run.json`` says of a run, as JSON values; arguments as for :meth:`Recorder.of`."""
    chosen = {key: select(config, key) for key in CONFIG_KEYS}
    plain = {
        key: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in chosen.items()
    }
    return {
        "config": {**plain, "spo": asdict(spo)},
        "verl": version("verl"),
        "spo_verl": spo_verl.__version__,
        "ray_address": ray.get_runtime_context().gcs_address if ray.is_initialized() else None,
        "tracker": dict(service),
    }
