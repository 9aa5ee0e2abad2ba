"""Writes the record of a run in a thread of its own: a step of training waits for nothing.

A part of each step is written as soon as its rows are there, for readers of a run that is under way. A checkpoint cuts:
the parts since the last one become one file, which is on the disk for good before verl writes its marker. After a
restart at step N, rows of later steps belong to a future that did not happen; they are moved to ``aside/``.

The disk does not stop training. What cannot be written waits in memory, is tried again with everything that follows,
and the log says so once; if more than ``WAITING_ROWS`` rows wait, recording ends and the log says that too. When the
record has reached its limit, the oldest rows are dropped, those in ``aside/`` first and the numbers of steps last.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spo_verl.errors import SpoRecordError, SpoStateError
from spo_verl.files import parquet_reasons, read_json, replacing
from spo_verl.record.schema import (
    ASIDE,
    PROMPTS,
    PROMPTS_FILE,
    RUN,
    SCHEMA_VERSION,
    SCHEMAS,
    VERSION_KEY,
    Kind,
    Part,
    parts_in,
    uncovered,
)

logger = logging.getLogger(__name__)

WAITING_ROWS = 1_000_000
"""Rows that wait in memory at most, about 300 bytes each."""
MERGED_PARTS = 64
"""So many parts are merged also without a checkpoint, so that a run that never saves has few files."""
FLUSH_SECONDS = 120.0
"""A checkpoint waits for the record no longer than this."""

_TEMPORARY = ".*.writing-*"
_REASONS: tuple[type[Exception], ...] = (*parquet_reasons(), ArithmeticError, AttributeError)
"""What ends the record and not the run: whatever is wrong with rows or files."""


class RecordWriter:
    """The record of one run, in its folder; everything but :meth:`flush` and :meth:`close` returns at once."""

    def __init__(self, folder: Path, limit: int, *, waiting_rows: int = WAITING_ROWS) -> None:
        """
        Args:
            folder: the record's own folder; made when something is written.
            limit: bytes that its files may take. For the moment of a merge the part that is merged is there twice.
            waiting_rows: rows that wait in memory at most.
        """
        self.folder, self._limit, self._waiting_rows = folder, limit, waiting_rows
        self._jobs: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self._closed: dict[Kind, int] = {"rollouts": -1, "steps": -1}
        self._appended: dict[Kind, int] = {"rollouts": -1, "steps": -1}
        self._disk = _Disk(folder, limit)
        self._stopped = False
        self._failing = False
        self._waiting: dict[Part, pa.Table] = {}
        self._waiting_files: dict[str, Callable[[], None]] = {}
        self._going_back: Callable[[], None] | None = None
        self._held: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._passed_rows = self._taken_rows = 0
        self._thread = threading.Thread(target=self._work, name="spo-record", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ by the trainer

    def describe(self, run: Mapping[str, Any]) -> None:
        """Write ``run.json``; the starts of an earlier process of the run are kept.

        Args:
            run: JSON values. ``start`` (JSON object) is added to the list ``starts``.
        """
        self._do(self._describe, dict(run))

    def prompts(self, make: Callable[[], pa.Table]) -> None:
        """Write ``prompts.parquet``: what was known of a prompt stays, texts take half of the limit at most.

        Args:
            make: returns a table with the columns of ``PROMPTS``; called in the writer's thread.
        """
        self._do(self._write_prompts, make)

    def append(self, step: int, rows: Mapping[str, Any]) -> None:
        """Add rows of rollouts that ended; rows of one step may come in several calls.

        Args:
            step: the running step.
            rows: every column of ``ROLLOUTS`` but ``step``, all of one length: sequences, arrays (NaN and masked
                entries are null) or Arrow arrays.

        Raises:
            SpoStateError: a step before the last one that had rows, or one that was cut.
        """
        self.append_later(step, len(rows["uid"]), lambda: rows)

    def append_later(self, step: int, count: int, make: Callable[[], Mapping[str, Any]]) -> None:
        """Like :meth:`append`, with about ``count`` rows that ``make`` returns in the writer's thread."""
        self._note("rollouts", step)
        self._do_append("rollouts", step, count, make)

    def call(self, job: Callable[[], None]) -> None:
        """Run something in the writer's thread, after all that was passed before."""
        self._do(job)

    def append_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the numbers of a step; what is not a number is left out.

        Raises:
            SpoStateError: as :meth:`append`.
        """
        self._note("steps", step)
        numbers = {name: float(value) for name, value in metrics.items() if _is_number(value)}
        columns = {"name": list(numbers), "value": list(numbers.values())}
        self._do_append("steps", step, len(numbers), lambda: columns)

    def cut(self, step: int) -> None:
        """Merge what was appended since the last cut: a checkpoint of this step is being saved; then :meth:`flush`."""
        self._closed = {"rollouts": max(step, self._closed["rollouts"]), "steps": self._appended["steps"]}
        self._do(self._cut)

    def resume(self, step: int) -> None:
        """Begin, or continue after a step: rows of later steps, of an earlier process, are moved aside.

        Args:
            step: step of the checkpoint that training continues from; 0 for training from scratch, which moves all of
                an earlier record aside.
        """
        done = step if step > 0 else -1
        self._closed = {"rollouts": done, "steps": -1}
        self._appended = {"rollouts": done, "steps": -1}
        self._do(self._resume, done)

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until everything that was passed is on the disk for good; whether it is."""
        done = threading.Event()
        self._do(self._finish, done)
        end = time.monotonic() + seconds
        while not (self._stopped or done.wait(0.2)) and time.monotonic() < end:
            pass
        if not done.is_set() and not self._stopped:
            logger.error(
                "spo: the record in %s was not written within %.0f s; training continues.", self.folder, seconds
            )
        return done.is_set() and not self._waiting and not self._held and not self._stopped

    def close(self, **run: Any) -> None:
        """Write what is left and end the thread.

        Args:
            run: what to note in ``run.json``.
        """
        if self._thread.is_alive():
            self._do(self._cut)
            if run:
                self._do(self._update_run, run)
            self.flush()
            self._do(self._end)

    def _note(self, kind: Kind, step: int) -> None:
        if step <= self._closed[kind] or step < self._appended[kind]:
            last = max(self._closed[kind], self._appended[kind])
            raise SpoStateError(
                f"The record was passed {kind} of step {step} after step {last} was over; pass the rows of each step "
                "before its checkpoint."
            )
        self._appended[kind] = step

    def _do(self, job: Callable[..., None], *arguments: Any) -> None:
        if not self._stopped:
            self._jobs.put((job, arguments))

    def _do_append(self, kind: Kind, step: int, count: int, make: Callable[[], Mapping[str, Any]]) -> None:
        self._passed_rows += count
        queued = self._passed_rows - self._taken_rows
        if queued > self._waiting_rows and not self._stopped:  # the thread hangs in the disk
            self._stop(f"{queued} rows wait for the disk, more than are kept in memory")
        self._do(self._append, kind, step, count, make)

    # ------------------------------------------------------------------ by the thread

    def _work(self) -> None:
        try:
            while not self._stopped:
                self._held.append(self._jobs.get())
                while self._held and self._has_gone_back():
                    job, arguments = self._held.popleft()
                    job(*arguments)
                if self._held and self._held[-1][0] in (self._finish, self._end):  # nobody waits for the disk
                    job, arguments = self._held.pop()
                    job(*arguments)
        except _Ended:
            pass
        except _REASONS as reason:
            self._stop(f"{type(reason).__name__}: {reason}", exc_info=not isinstance(reason, OSError))
        finally:
            self._stopped = True
            self._waiting.clear()
            self._held.clear()

    def _stop(self, reason: str, *, exc_info: bool = False) -> None:
        if self._stopped:
            return
        self._stopped = True
        logger.error(
            "spo: recording ends (%s). Training continues without a record of what follows; %s is complete up to what "
            "was written. The next start of the run records again.",
            reason,
            self.folder,
            exc_info=exc_info,
        )

    def _append(self, kind: Kind, step: int, count: int, make: Callable[[], Mapping[str, Any]]) -> None:
        self._taken_rows += count
        columns = make()
        size = len(next(iter(columns.values())))
        table = as_table({**columns, "step": np.full(size, step)}, SCHEMAS[kind])
        part = Part(step, step, kind)
        latest = self._disk.latest(kind)
        if latest is not None and latest[0] == part:
            table = pa.concat_tables([latest[1], table])
        elif len(loose := self._disk.loose(kind)) >= MERGED_PARTS and not self._waiting:
            self._try(lambda: self._disk.merge(loose))
        self._disk.note(part, table)
        self._waiting[part] = table
        self._write_waiting()

    def _write_waiting(self) -> None:
        def write() -> None:
            for part in sorted(self._waiting):
                self._disk.store(part, self._waiting[part])
                del self._waiting[part]
            for name in list(self._waiting_files):
                self._waiting_files[name]()
                del self._waiting_files[name]

        if self._try(write):
            return
        rows = sum(len(table) for table in self._waiting.values())
        if rows > self._waiting_rows:
            self._stop(f"{rows} rows wait for the disk, more than are kept in memory")

    def _try(self, write: Callable[[], None]) -> bool:
        """Whether it could be written; the first failure is said, and the first success after it."""
        try:
            write()
        except OSError as reason:
            if not self._failing:
                logger.error(
                    "spo: the record cannot be written: %s. Training continues; rows wait in memory and are written "
                    "when the disk allows it. Free some space or correct the permissions, or set spo.record=off.",
                    reason,
                )
            self._failing = True
            return False
        if self._failing:
            logger.warning("spo: the record in %s is written again; nothing is missing.", self.folder)
        self._failing = False
        return True

    def _cut(self) -> None:
        self._write_waiting()
        if not self._waiting and not self._stopped:
            self._try(self._disk.cut)

    def _finish(self, done: threading.Event) -> None:
        self._write_waiting()
        done.set()

    def _end(self) -> None:
        raise _Ended

    def _resume(self, step: int) -> None:
        self._going_back = lambda: self._disk.resume(step)
        self._has_gone_back()

    def _has_gone_back(self) -> bool:
        """Whether rows of a future that did not happen are out of the way; what is passed later is held until then."""
        if self._going_back is not None and self._try(self._going_back):
            self._going_back = None
        return self._going_back is None

    def _describe(self, run: dict[str, Any]) -> None:
        starts = [*self._disk.run.get("starts", []), run.pop("start", {})]
        dropped = self._disk.run.get("dropped_through_step")
        start = {"schema_version": SCHEMA_VERSION, **run, "starts": starts}
        self._update_run({**start, "ended": None, "dropped_through_step": dropped})

    def _update_run(self, changes: dict[str, Any]) -> None:
        self._disk.run |= changes
        self._waiting_files[RUN] = self._disk.write_run
        self._write_waiting()

    def _write_prompts(self, make: Callable[[], pa.Table]) -> None:
        table = make()
        self._waiting_files[PROMPTS_FILE] = lambda: self._disk.write_prompts(table)
        self._write_waiting()


class _Ended(Exception):
    """Ends the thread."""


class _Disk:
    """The files of a record; used by the writer's thread alone. Every method raises OSError where the disk does."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._latest: dict[Kind, tuple[Part, pa.Table]] = {}
        self._cut_at: dict[Kind, int] = {"rollouts": -1, "steps": -1}
        self._said_full = False
        self.run: dict[str, Any] = {}

    def latest(self, kind: Kind) -> tuple[Part, pa.Table] | None:
        """The part of the newest step and its rows."""
        return self._latest.get(kind)

    def note(self, part: Part, table: pa.Table) -> None:
        self._latest[part.kind] = (part, table)

    def loose(self, kind: Kind) -> list[Part]:
        """Parts of single steps since the last cut."""
        return [part for part in self._since_cut(kind) if part.first == part.last]

    def _since_cut(self, kind: Kind) -> list[Part]:
        return [part for part in uncovered(self._parts(kind)) if part.first > self._cut_at[kind]]

    def _parts(self, kind: Kind, folder: Path | None = None) -> list[Part]:
        folder = folder or self._folder
        return parts_in(folder, kind) if folder.is_dir() else []

    # ------------------------------------------------------------------ parts

    def store(self, part: Part, table: pa.Table, replaced: Sequence[Part] = ()) -> bool:
        """Write a part, and make room for it; whether it fits.

        Args:
            part: its steps.
            table: its rows.
            replaced: parts that are removed once it is there.
        """
        data = _bytes_of(table, SCHEMAS[part.kind])
        fits = self._make_room(len(data), {part.name, *(other.name for other in replaced)})
        if fits:
            with replacing(self._folder / part.name, SpoRecordError) as stage:
                stage().write_bytes(data)
        elif not replaced:
            self._note_dropped(part.last)
        return fits

    def cut(self) -> None:
        """One part for what is there since the last cut."""
        for kind in SCHEMAS:
            parts = self._since_cut(kind)
            self.merge(parts)
            self._cut_at[kind] = max((part.last for part in parts), default=self._cut_at[kind])
            self._latest.pop(kind, None)

    def merge(self, parts: Sequence[Part]) -> None:
        if len(parts) < 2:
            return
        kind = parts[0].kind
        whole = Part(parts[0].first, parts[-1].last, kind)
        rows = pa.concat_tables([pq.read_table(self._folder / part.name, schema=SCHEMAS[kind]) for part in parts])
        if self.store(whole, rows, parts):
            for part in parts:
                (self._folder / part.name).unlink()

    # ------------------------------------------------------------------ the limit

    def _sizes(self) -> dict[Path, int]:
        """Bytes of every file of the record."""
        folders = [folder for folder in (self._folder, self._folder / ASIDE) if folder.is_dir()]
        return {path: path.stat().st_size for folder in folders for path in folder.iterdir() if path.is_file()}

    def _make_room(self, size: int, replaced: set[str]) -> bool:
        """Remove the oldest rows until so many bytes fit; whether they do."""
        sizes = self._sizes()
        used = sum(taken for path, taken in sizes.items() if path.parent != self._folder or path.name not in replaced)
        for path in self._droppable(replaced):
            if used + size <= self._limit:
                break
            used -= sizes[path]
            path.unlink()
            if path.parent == self._folder:
                self._note_dropped(int(path.stem.rsplit("-", 1)[1]))
        return used + size <= self._limit

    def _droppable(self, replaced: set[str]) -> Iterator[Path]:
        yield from sorted((self._folder / ASIDE).glob("*.parquet"))
        for kind in SCHEMAS:
            yield from (self._folder / part.name for part in self._parts(kind) if part.name not in replaced)

    def _note_dropped(self, step: int) -> None:
        if not self._said_full:
            logger.warning(
                "spo: the record in %s takes all of the %.3g GiB that spo.record allows: its oldest rows are dropped "
                "from now on. A larger spo.record keeps more.",
                self._folder,
                self._limit / 2**30,
            )
        self._said_full = True
        self.run["dropped_through_step"] = max(step, self.run.get("dropped_through_step") or 0)
        self.write_run()

    # ------------------------------------------------------------------ start

    def resume(self, step: int) -> None:
        if self._folder.is_dir():
            for left in self._folder.glob(_TEMPORARY):
                left.unlink(missing_ok=True)
            self.run = self._earlier_run()
            for kind in SCHEMAS:
                self._go_back(kind, step)
        self._latest = {}
        for kind in SCHEMAS:
            self._cut_at[kind] = max((part.last for part in self._parts(kind)), default=-1)

    def _earlier_run(self) -> dict[str, Any]:
        """What an earlier process wrote to ``run.json``; nothing where that is not there or damaged, which is said."""
        try:
            found = read_json(self._folder / RUN, SpoRecordError) if (self._folder / RUN).exists() else {}
        except SpoRecordError as reason:
            logger.warning("spo: the record begins a new %s: %s", RUN, reason)
            found = {}
        return found if isinstance(found, dict) else {}

    def _go_back(self, kind: Kind, step: int) -> None:
        """Move what comes after a step aside. A part that a checkpoint cuts through is rewritten up to it first."""
        schema, parts = SCHEMAS[kind], self._parts(kind)
        for part in uncovered(parts):
            if part.first <= step < part.last:
                try:
                    rows = pq.read_table(self._folder / part.name, schema=schema)
                except pa.ArrowException as reason:
                    logger.warning("spo: a damaged part of the record is moved aside: %s: %s", part.name, reason)
                    continue
                kept = rows.filter(pc.less_equal(rows["step"], step))
                self.store(Part(part.first, step, kind), kept, [part])
        covered = [part for part in parts if part not in uncovered(parts)]
        for part in (part for part in parts if part.last > step):
            if part in covered:
                (self._folder / part.name).unlink()
            else:
                self._move_aside(part)
        kept_parts = self._parts(kind)
        for part in (part for part in kept_parts if part not in uncovered(kept_parts)):
            (self._folder / part.name).unlink()

    def _move_aside(self, part: Part) -> None:
        aside = self._folder / ASIDE
        aside.mkdir(exist_ok=True)
        number = len(list(aside.iterdir()))
        while (target := aside / f"{number:06d}-{part.name}").exists():
            number += 1
        (self._folder / part.name).rename(target)

    # ------------------------------------------------------------------ other files

    def write_run(self) -> None:
        with replacing(self._folder / RUN, SpoRecordError) as stage:
            stage().write_text(json.dumps(self.run, indent=1) + "\n", encoding="utf-8")

    def write_prompts(self, table: pa.Table) -> None:
        path = self._folder / PROMPTS_FILE
        if path.exists():
            table = with_earlier(table, pq.read_table(path, schema=PROMPTS))
        data, half = _bytes_of(table, PROMPTS), self._limit // 2
        if len(data) > half:
            texts = pa.nulls(len(table), pa.string())
            bare = table.set_column(table.schema.get_field_index("text"), PROMPTS.field("text"), texts)
            # Texts in the order of slots, as many as fit: their size after compression is close to proportional.
            empty = _bytes_of(bare, PROMPTS)
            share = max(0.0, (half - len(empty)) / (len(data) - len(empty)))
            while len(data) > half and share > 0.01:
                kept = int(share * len(table))
                texts = pa.concat_arrays(
                    [table["text"].combine_chunks()[:kept], pa.nulls(len(table) - kept, pa.string())]
                )
                data = _bytes_of(
                    bare.set_column(bare.schema.get_field_index("text"), PROMPTS.field("text"), texts), PROMPTS
                )
                share *= 0.9
            data = data if len(data) <= half else empty
            logger.info("spo: the record leaves out texts of prompts, which would take more than half of spo.record.")
        if len(data) > half:
            logger.warning("spo: the record leaves out %s: it would take more than half of spo.record.", PROMPTS_FILE)
            return
        with replacing(path, SpoRecordError) as stage:
            stage().write_bytes(data)


def with_earlier(table: pa.Table, earlier: pa.Table) -> pa.Table:
    """A table of prompts with what an earlier one knew: first values, and prompts that are gone (no slot, no row)."""
    place = {key: number for number, key in enumerate(earlier["key"].to_pylist())}
    at = np.array([place.pop(key, -1) for key in table["key"].to_pylist()], dtype=np.int64)
    for name in ("value", "n_eff"):
        known = np.where(at >= 0, earlier[name].to_numpy()[at], table[name].to_numpy()) if len(earlier) else None
        if known is not None:
            table = table.set_column(table.schema.get_field_index(name), PROMPTS.field(name), pa.array(known))
    gone = earlier.take(pa.array(sorted(place.values()), pa.int64()))
    for name in ("slot", "row"):
        nulls = pa.nulls(len(gone), pa.int64())
        gone = gone.set_column(gone.schema.get_field_index(name), PROMPTS.field(name), nulls)
    return pa.concat_tables([table, gone])


def as_table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """A table of a schema from its columns, see :meth:`RecordWriter.append`."""
    arrays = [_as_array(columns[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _as_array(given: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(given, (pa.Array, pa.ChunkedArray)):
        return given.cast(kind)
    mask = None
    if isinstance(given, np.ma.MaskedArray):
        given, mask = given.data, np.broadcast_to(given.mask, given.shape)
    if pa.types.is_dictionary(kind):
        return pa.array(given, kind.value_type, mask=mask).dictionary_encode().cast(kind)
    return pa.array(given, kind, mask=mask, from_pandas=True)


def _bytes_of(table: pa.Table, schema: pa.Schema) -> bytes:
    """The Parquet file of a table."""
    sink = pa.BufferOutputStream()
    stamped = table.cast(schema).unify_dictionaries().replace_schema_metadata({VERSION_KEY: str(SCHEMA_VERSION)})
    pq.write_table(stamped, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float, np.integer, np.floating, np.bool_)):
        return True
    return getattr(value, "ndim", None) == 0 and hasattr(value, "item")
