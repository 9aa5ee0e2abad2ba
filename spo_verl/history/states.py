"""What is known of every prompt at one moment: from a checkpoint, or from the record of a run without one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spo_verl import core
from spo_verl.core.evidence import UNTRIED_EVIDENCE
from spo_verl.history.places import HistoryError, Place, configuration
from spo_verl.record.reading import Record
from spo_verl.record.schema import PROMPTS_FILE
from spo_verl.tracker import checkpoint
from spo_verl.tracker.checkpoint.folder import Manifest
from spo_verl.tracker.forgetting_rules import forgetting
from spo_verl.tracker.prompt_statistics import read_parts
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.tracker.table import KEY_BYTES, PromptTable, match_keys

Column = NDArray[np.float64]
Drift = Literal["divergence", "movement", "age"]
"""What ``drift_P`` holds: the divergence measured at the prompt's last visit (record); the policy's movement since then
(``forgetting_mode=drift``); the policy versions since then."""


@dataclass(frozen=True)
class PromptStates:
    """The prompts of the dataset at one step, one entry each; those kept aside are left out.

    Attributes:
        step: training step.
        source: ``checkpoint``, or ``record`` (:func:`from_record`).
        key_P: V16.
        value_P: in [0, 1], of the evidence as it is at this step; the calibrated read-out plays no part.
        n_eff_P: effective sample size.
        draws_P, visits_P: times drawn, outcomes observed; with ``source="record"`` draws are dispatches with an end.
        known_P: there is evidence: an outcome, or an initial value.
        drift_P: see ``drift``; NaN where nothing is known.
        drift: what ``drift_P`` is.
        row_P, source_P: row of the dataset and data source (text) from the record; None without it.
        initial_P: value at the start of the run, from the record; None without it.
        settings: the tracker's settings, or an empty dictionary.
        aside: prompts kept aside.
        open: open rollouts; None where unknown.
        counters: running totals since the first step.
    """

    step: int
    source: Literal["checkpoint", "record"]
    key_P: NDArray[np.void]
    value_P: Column
    n_eff_P: Column
    draws_P: NDArray[np.int64]
    visits_P: NDArray[np.int64]
    known_P: NDArray[np.bool_]
    drift_P: Column
    drift: Drift
    row_P: NDArray[np.int64] | None = None
    source_P: NDArray[np.object_] | None = None
    initial_P: Column | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    aside: int = 0
    open: int | None = None
    counters: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.key_P)


def states_of(place: Place) -> PromptStates:
    """The newest states that a place has.

    Raises:
        SpoCheckpointError: and its children: the checkpoint cannot be read.
        HistoryError: neither checkpoint nor record hold any prompt.
    """
    if place.checkpoint is None:
        return from_record(place.require_record())
    return from_checkpoint(*checkpoint.read_prompts(place.checkpoint), place.record)


def from_checkpoint(manifest: Manifest, table: PromptTable, record: Record | None = None) -> PromptStates:
    """The states that a checkpoint holds; the record of its run adds rows, data sources and divergences."""
    settings = TrackerSettings(**manifest.settings)
    rule, rows = forgetting(settings), slice(0, table.active)
    version = max(manifest.step, int(manifest.clock.get("version", 0)), int(table.version_P.max(initial=0)))
    parts = list(read_parts(table, rule, version))
    key_P = table.key_P[rows]
    visits_P = table.visits_P[rows].astype(np.int64)
    untried_P = (table.alpha_P[rows] == UNTRIED_EVIDENCE) & (table.beta_P[rows] == UNTRIED_EVIDENCE)
    more = {} if record is None else _of_prompts(record, key_P)
    drift: Drift = "age"
    drift_P = (manifest.step - 1 - table.version_P[rows]).clip(min=0).astype(np.float64)
    if table.moved_P is not None:
        drift, drift_P = "movement", float(manifest.clock.get("movement", 0.0)) - table.moved_P[rows]
    drift_P[visits_P == 0] = np.nan
    if record is not None:
        divergence_P = last_divergence(record, key_P, manifest.step)
        if np.isfinite(divergence_P).any():
            drift, drift_P = "divergence", divergence_P
    return PromptStates(
        step=manifest.step,
        source="checkpoint",
        key_P=key_P,
        value_P=np.concatenate([value_P for value_P, _ in parts]),
        n_eff_P=np.concatenate([n_eff_P for _, n_eff_P in parts]),
        draws_P=table.draws_P[rows].astype(np.int64),
        visits_P=visits_P,
        known_P=(visits_P > 0) | ~untried_P,
        drift_P=drift_P,
        drift=drift,
        settings=settings.as_json(),
        aside=len(table) - table.active,
        open=manifest.counts["open"],
        counters=dict(manifest.counters),
        **more,
    )


def from_record(record: Record) -> PromptStates:
    """The states that a record alone tells.

    The evidence of a prompt is what was frozen at its last dispatch with an outcome, discounted as the record says,
    with the outcomes of that dispatch added. That is exact unless several rollouts of one prompt were in flight
    (``spo.sampling.max_in_flight`` above 1), or values were read calibrated (``spo.value.readout``): then the evidence
    has the value that was read.

    Raises:
        HistoryError: it holds no prompts yet.
    """
    prompts = prompts_of(record)
    prompts = prompts.filter(pc.is_valid(prompts["slot"]))
    if not prompts.num_rows:
        raise HistoryError(
            f"{record.path} holds no prompts yet, and the run has no checkpoint: wait for its first step to end."
        )
    key_P = keys_of(prompts["key"])
    size = len(key_P)
    initial_P, initial_n_eff_P = floats(prompts["value"]), floats(prompts["n_eff"])
    rollouts = record.rollouts(["key", "uid", "step", "value", "n_eff", "reward", "rho"])
    at_N, step_N = match_rows(key_P, rollouts["key"]), integers(rollouts["step"])
    uid_N = rollouts["uid"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    reward_N = floats(rollouts["reward"])
    alpha_P, beta_P = initial_P * initial_n_eff_P, (1 - initial_P) * initial_n_eff_P
    seen_N = np.flatnonzero(np.isfinite(reward_N) & (at_N >= 0))
    # Of several assignments to one place the last one stays: the last row with an outcome of each prompt.
    last_P = np.full(size, -1, dtype=np.int64)
    last_P[at_N[seen_N]] = seen_N
    slot_B = np.flatnonzero(last_P >= 0)
    row_B = last_P[slot_B]
    count_N = np.bincount(uid_N[seen_N], minlength=int(uid_N.max(initial=-1)) + 1)
    total_N = np.bincount(uid_N[seen_N], weights=reward_N[seen_N], minlength=len(count_N))
    kept_B = np.nan_to_num(floats(rollouts["rho"])[row_B], nan=1.0)
    if _event_time(record):  # what was frozen had decayed to the version of the outcome already
        kept_B = np.ones(len(row_B))
    value_B, mass_B = floats(rollouts["value"])[row_B], floats(rollouts["n_eff"])[row_B] * kept_B
    alpha_P[slot_B] = value_B * mass_B + total_N[uid_N[row_B]]
    beta_P[slot_B] = (1 - value_B) * mass_B + count_N[uid_N[row_B]] - total_N[uid_N[row_B]]
    _, first_N = np.unique(uid_N, return_index=True)
    visits_P = np.bincount(at_N[seen_N], minlength=size)
    step = int(step_N.max(initial=0))
    return PromptStates(
        step=step,
        source="record",
        key_P=key_P,
        value_P=core.value(alpha_P, beta_P),
        n_eff_P=core.effective_sample_size(alpha_P, beta_P),
        draws_P=np.bincount(at_N[first_N[at_N[first_N] >= 0]], minlength=size),
        visits_P=visits_P,
        known_P=(visits_P > 0) | (alpha_P != UNTRIED_EVIDENCE) | (beta_P != UNTRIED_EVIDENCE),
        drift_P=last_divergence(record, key_P, step),
        drift="divergence",
        row_P=integers(prompts["row"]),
        source_P=names_in(prompts["data_source"]),
        initial_P=initial_P,
    )


def _event_time(record: Record) -> bool:
    spo = configuration(record).get("spo")
    forgetting_section = spo.get("forgetting") if isinstance(spo, dict) else None
    return isinstance(forgetting_section, dict) and forgetting_section.get("mode") == "version"


def last_divergence(record: Record, key_P: NDArray[np.void], step: int) -> Column:
    """(P,) the divergence that was measured at each prompt's last visit up to a step; NaN for none."""
    rollouts = record.rollouts(["key", "step", "divergence"])
    divergence_N, step_N = floats(rollouts["divergence"]), integers(rollouts["step"])
    kept_N = np.flatnonzero(np.isfinite(divergence_N) & (step_N <= step))
    kept_N = kept_N[np.argsort(step_N[kept_N], kind="stable")]
    at_N = match_rows(key_P, rollouts["key"].take(kept_N))
    found_P = np.full(len(key_P), np.nan)
    found_P[at_N[at_N >= 0]] = divergence_N[kept_N][at_N >= 0]
    return found_P


def _of_prompts(record: Record, key_P: NDArray[np.void]) -> dict[str, Any]:
    """Row, data source and initial value of each prompt, as the record of the run's start has them."""
    prompts = prompts_of(record)
    if not prompts.num_rows:
        return {}
    at_P = match_keys(keys_of(prompts["key"]), key_P)
    there_P = at_P >= 0
    source_P = names_in(prompts["data_source"])[at_P]
    source_P[~there_P] = None
    return {
        "row_P": np.where(there_P, integers(prompts["row"])[at_P], -1),
        "source_P": source_P,
        "initial_P": np.where(there_P, floats(prompts["value"])[at_P], np.nan),
    }


def prompts_of(record: Record) -> Any:
    """``record.prompts()``, read once as long as the file stays what it is."""
    path = record.path / PROMPTS_FILE
    return _prompts_of(record, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=2)
def _prompts_of(record: Record, changed: int) -> Any:
    return record.prompts()


# -- columns of Arrow tables as arrays


def keys_of(column: Any) -> NDArray[np.void]:
    """V16 keys of a column of texts of 32 hexadecimal digits.

    Raises:
        HistoryError: a text is something else.
    """
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    texts = whole.cast(pa.string())
    try:
        if texts.null_count or set(pc.unique(pc.binary_length(texts)).to_pylist()) - {2 * KEY_BYTES}:
            raise ValueError("another length")
        first = int(np.frombuffer(texts.buffers()[1], dtype=np.int32)[texts.offset]) if len(texts) else 0
        size = 2 * KEY_BYTES * len(texts)
        digits = texts.buffers()[2][first : first + size].to_pybytes() if size else b""
        return np.frombuffer(bytes.fromhex(digits.decode("ascii")), dtype=f"V{KEY_BYTES}")
    except ValueError as error:
        raise HistoryError(f"the record holds prompt keys that are not 32 hexadecimal digits ({error}).") from error


def names_in(column: Any) -> NDArray[np.object_]:
    """A column of names as texts; None for null."""
    encoded = column.combine_chunks()
    encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
    names = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    return names[np.asarray(encoded.indices.fill_null(len(names) - 1), dtype=np.int64)]


def hex_of(key_P: NDArray[np.void]) -> list[str]:
    """Keys as texts of 32 hexadecimal digits."""
    digits, size = np.ascontiguousarray(key_P).tobytes().hex(), 2 * KEY_BYTES
    return [digits[at : at + size] for at in range(0, len(digits), size)]


def match_rows(key_P: NDArray[np.void], column: Any) -> NDArray[np.int64]:
    """For each key of a column, which may repeat, its place in ``key_P``; -1 where it is not there."""
    encoded = column.combine_chunks().dictionary_encode()
    at_P = match_keys(key_P, keys_of(encoded.dictionary))
    return at_P[encoded.indices.to_numpy()] if len(column) else np.zeros(0, dtype=np.int64)


def floats(column: Any) -> Column:
    """A numeric column as float64; null is NaN."""
    return np.asarray(column.to_numpy(), dtype=np.float64)


def integers(column: Any) -> NDArray[np.int64]:
    """A whole-number column as int64; null is -1."""
    return np.asarray(column.fill_null(-1).to_numpy(), dtype=np.int64)
