"""The state of a tracker at one moment, the digest that identifies it, and the checkpoint that is written of it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import spo_verl
from spo_verl.errors import SpoCheckpointError, SpoStateError
from spo_verl.tracker.arguments import checked_whole
from spo_verl.tracker.checkpoint import folder as folders
from spo_verl.tracker.checkpoint.schema import (
    OUTCOMES,
    PROMPTS,
    RESPONSES,
    ROLLOUTS,
    outcomes_schema,
    prompt_columns,
    prompts_schema,
    responses_schema,
    rollouts_schema,
    target_of,
)
from spo_verl.tracker.ledger import Ledger
from spo_verl.tracker.memory import MemoryView
from spo_verl.tracker.readout import Calibration
from spo_verl.tracker.reports import WriteReport
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.tracker.table import KEY_BYTES, PromptTable, fingerprint

BATCH_ROWS = 1_000_000
"""Prompts that are written at a time."""


def open_rows(ledger: Ledger, *, calibrated: bool) -> list[list[Any]]:
    """Open rollouts as rows, sorted by uid: the order of dispatch has no effect on anything."""
    return [
        [
            *(uid, one.slot, one.value, one.n_eff, one.version, sorted(one.sessions)),
            *((one.raw, one.age) if calibrated else ()),
        ]
        for uid, one in sorted(ledger.open.items())
    ]


def recent_rows(ledger: Ledger) -> list[list[Any]]:
    """Ended rollouts as rows, in the order in which they will be forgotten."""
    return [[uid, sorted(sessions)] for uid, sessions in ledger.recent.items()]


@dataclass(frozen=True)
class Snapshot:
    """A copy of a tracker's state; the tracker may continue while it is written.

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
    """See :class:`spo_verl.tracker.forgetting_rules.Clock`; empty where the forgetting mode counts nothing."""
    calibration: Calibration | None = None
    """State of the calibrated read-out; None without one."""

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
            "open": open_rows(self.ledger, calibrated=self.calibration is not None),
            "recent": recent_rows(self.ledger),
            "references": sorted(self.memory.log_prob),
            **({"clock": self.clock} if self.clock else {}),
            **({"readout": self.calibration.as_json()} if self.calibration is not None else {}),
        }
        sha.update(json.dumps(scalars, sort_keys=True).encode())
        sha.update(self.table.key_P.view(np.uint8).data)
        for _, column_P in self.table.columns():
            sha.update(column_P.data)
        for column_N in () if self.calibration is None else self.calibration.columns().values():
            sha.update(np.ascontiguousarray(column_N).data)
        if self.calibration is not None:
            sha.update(np.ascontiguousarray(self.calibration.extra_NF).data)
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
        """Write the checkpoint folder; see :func:`write`."""
        return write(self, folder, step=step, extra=extra)


def check_extra(extra: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of what is to be saved along; raises :class:`SpoStateError` where JSON would change it."""
    if extra is not None and not isinstance(extra, dict):
        raise SpoStateError(f"extra is a {type(extra).__name__}; pass a dictionary.")
    try:
        copied = json.loads(json.dumps(extra or {}, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SpoStateError(f"extra cannot be saved as JSON: {error}; pass plain numbers, strings, lists.") from error
    if copied != (extra or {}):
        raise SpoStateError("extra would come back changed from JSON; use string keys, and lists for tuples.")
    return dict(copied)


def write(snapshot: Snapshot, folder: str | Path, *, step: int, extra: dict[str, Any] | None) -> WriteReport:
    """Write a checkpoint folder at once or not at all, replacing what is there.

    Raises:
        SpoStateError: ``extra`` is not JSON, or ``step`` is not a whole number >= 0.
        SpoCheckpointError: the file system refused; what stood there is still there.
    """
    target, step, extra = target_of(folder), checked_whole("step", step), check_extra(extra)
    began = time.perf_counter()
    table, memory, ledger, calibration = snapshot.table, snapshot.memory, snapshot.ledger, snapshot.calibration
    rollouts = rollouts_schema(calibrated=calibration is not None)
    prompts = prompts_schema(prompt_columns(moved=table.moved_P is not None))
    try:
        with folders.staged(target) as staging:
            files = {
                PROMPTS: _write_arrow(staging / PROMPTS, prompts, _prompt_batches(table, prompts)),
                RESPONSES: _write_arrow(
                    staging / RESPONSES, responses_schema(sorted(memory.log_prob)), _response_batches(memory)
                ),
                ROLLOUTS: _write_arrow(staging / ROLLOUTS, rollouts, _rollout_batches(ledger, rollouts)),
            }
            if calibration is not None:
                schema = outcomes_schema(len(calibration.features))
                columns = [*calibration.columns().values(), *map(np.ascontiguousarray, calibration.extra_NF.T)]
                outcomes = pa.record_batch(columns, schema=schema)
                files[OUTCOMES] = _write_arrow(staging / OUTCOMES, schema, iter([outcomes]))
            text = _manifest(snapshot, step, extra, files).dumps()
            with folders.HashingFile(staging / folders.MANIFEST) as file:
                file.write(text.encode())
    except OSError as error:
        raise SpoCheckpointError(
            f"writing the tracker checkpoint {target} failed: {error}. What stood there before has not been "
            "touched; make room or correct the folder's permissions and save again."
        ) from error
    nbytes = sum(entry["bytes"] for entry in files.values()) + len(text)
    return WriteReport(str(target), snapshot.digest, nbytes, time.perf_counter() - began)


def _manifest(snapshot: Snapshot, step: int, extra: dict[str, Any], files: dict[str, Any]) -> folders.Manifest:
    table, memory, ledger = snapshot.table, snapshot.memory, snapshot.ledger
    return folders.Manifest(
        format=folders.FORMAT,
        format_version=folders.FORMAT_VERSION,
        spo_verl_version=spo_verl.__version__,
        step=step,
        dataset={"prompts": table.active, "fingerprint": fingerprint(table.key_P[: table.active])},
        settings=snapshot.settings.as_json(),
        counts={
            "rows": len(table),
            "aside": len(table) - table.active,
            "stored_responses": len(memory),
            "stored_tokens": int(memory.length_E.sum()),
            "open": len(ledger.open),
            "recent": len(ledger.recent),
        },
        counters=snapshot.counters,
        random=snapshot.random,
        files=files,
        digest=snapshot.digest,
        extra=extra,
        clock=snapshot.clock,
        readout={} if snapshot.calibration is None else snapshot.calibration.as_json(),
    )


def _prompt_batches(table: PromptTable, schema: Any) -> Iterator[Any]:
    for first in range(0, len(table), BATCH_ROWS):
        rows = slice(first, first + BATCH_ROWS)
        key_P = table.key_P[rows]
        buffers = [None, pa.py_buffer(key_P.view(np.uint8))]
        keys = pa.Array.from_buffers(pa.binary(KEY_BYTES), len(key_P), buffers)
        columns = [pa.array(column_P[rows]) for _, column_P in table.columns()]
        yield pa.record_batch([keys, *columns], schema=schema)


def _ragged(length_B: NDArray, values_N: NDArray) -> Any:
    offset = np.zeros(len(length_B) + 1, dtype=np.int32)
    np.cumsum(length_B, out=offset[1:])
    return pa.ListArray.from_arrays(pa.array(offset), pa.array(values_N))


def _response_batches(memory: MemoryView) -> Iterator[Any]:
    references = sorted(memory.log_prob)
    for packed in memory.chunks():
        columns = [
            pa.array(packed.slot_B),
            pa.array(packed.prompt_hash_B),
            _ragged(packed.length_B, packed.token_N),
            _ragged((packed.length_B + 7) // 8, packed.mask_byte_M),
            *(_ragged(packed.length_B, packed.log_prob[name]) for name in references),
        ]
        yield pa.record_batch(columns, schema=responses_schema(references))


def _rollout_batches(ledger: Ledger, schema: Any) -> Iterator[Any]:
    calibrated = "raw" in schema.names
    rows = [(uid, True, *rest) for uid, *rest in open_rows(ledger, calibrated=calibrated)]
    unread = (None, None) if calibrated else ()
    rows += [(uid, False, None, None, None, None, sessions, *unread) for uid, sessions in recent_rows(ledger)]
    if rows:
        columns = [
            pa.array(column, type=entry.type) for column, entry in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        yield pa.record_batch(columns, schema=schema)


def _write_arrow(path: Path, schema: Any, batches: Iterator[Any]) -> dict[str, Any]:
    with folders.HashingFile(path) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return file.entry
