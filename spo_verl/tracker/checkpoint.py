"""Writing and reading a tracker checkpoint: three Arrow IPC files and a manifest, no pickle.

| file | one row per | columns |
|---|---|---|
| ``prompts.arrow`` | prompt slot | key, alpha, beta, draws, visits, version; moved under ``forgetting_mode=drift`` |
| ``responses.arrow`` | stored response, by slot | slot, prompt_hash, token, mask, log_prob_<name>... |
| ``rollouts.arrow`` | rollout | uid, open, slot, value, n_eff, version, sessions |

Prompts of the dataset stand before those kept aside; ``mask`` holds eight tokens per byte; open rollouts
stand by uid before the ended ones by age, which have only uid and sessions.

How the folder is made and verified stands in :mod:`spo_verl.tracker.folder`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import spo_verl
from spo_verl.errors import SpoCheckpointError, SpoCheckpointVersionError, SpoConfigError, SpoError, SpoStateError
from spo_verl.tracker import folder as folders
from spo_verl.tracker.arguments import LARGEST, checked_whole, is_whole, plain, shown
from spo_verl.tracker.memory import MemoryView, ResponseMemory
from spo_verl.tracker.reports import WriteReport
from spo_verl.tracker.responses import PackedResponses
from spo_verl.tracker.rollouts import Ledger, Rollout
from spo_verl.tracker.settings import ADDED_LATER, COUNTERS, LATER_COUNTERS, PURPOSES, TrackerSettings
from spo_verl.tracker.snapshot import Snapshot, open_rows, recent_rows
from spo_verl.tracker.table import COLUMNS, KEY_BYTES, MOVED, NO_VERSION, PromptTable, fingerprint, usable

PROMPTS, RESPONSES, ROLLOUTS = "prompts.arrow", "responses.arrow", "rollouts.arrow"
BATCH_ROWS = 1_000_000

READ_ATTEMPTS, READ_POLL_SECONDS = 400, 0.005
"""How often a folder that is being replaced is read anew, and the pause before; a killed writer is waited for 2 s."""

_ROLLOUTS_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("open", pa.bool_()),
        ("slot", pa.int64()),
        ("value", pa.float64()),
        ("n_eff", pa.float64()),
        ("version", pa.int64()),
        ("sessions", pa.list_(pa.int64())),
    ]
)


def _prompt_types(*, moved: bool) -> Mapping[str, np.dtype]:
    return {**COLUMNS, **MOVED} if moved else COLUMNS


def _prompts_schema(columns: Mapping[str, np.dtype]) -> Any:
    return pa.schema(
        [("key", pa.binary(KEY_BYTES))]
        + [(name.removesuffix("_P"), pa.from_numpy_dtype(dtype)) for name, dtype in columns.items()]
    )


def _responses_schema(references: list[str]) -> Any:
    tokens = [("token", pa.list_(pa.int32())), ("mask", pa.list_(pa.uint8()))]
    log_probs = [(f"log_prob_{name}", pa.list_(pa.float16())) for name in references]
    return pa.schema([("slot", pa.int64()), ("prompt_hash", pa.uint64()), *tokens, *log_probs])


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
        yield pa.record_batch(columns, schema=_responses_schema(references))


def _rollout_batches(ledger: Ledger) -> Iterator[Any]:
    rows = [(uid, True, *rest) for uid, *rest in open_rows(ledger)]
    rows += [(uid, False, None, None, None, None, sessions) for uid, sessions in recent_rows(ledger)]
    if rows:
        columns = [
            pa.array(column, type=entry.type)
            for column, entry in zip(zip(*rows, strict=True), _ROLLOUTS_SCHEMA, strict=True)
        ]
        yield pa.record_batch(columns, schema=_ROLLOUTS_SCHEMA)


def _write_arrow(path: Path, schema: Any, batches: Iterator[Any]) -> dict[str, Any]:
    with folders.HashingFile(path) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return file.entry


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


def target_of(folder: str | Path) -> Path:
    """An absolute path; raises :class:`SpoCheckpointError` for what is no path."""
    try:
        path = Path(folder).absolute()
        os.fsencode(path)
    except (TypeError, ValueError, OSError) as error:
        raise SpoCheckpointError(
            f"{shown(folder)} is no place for a tracker checkpoint ({error}); pass a path."
        ) from error
    if "\0" in str(path):
        raise SpoCheckpointError(f"{shown(folder)} is no place for a tracker checkpoint (it holds a zero byte).")
    return path


def write(snapshot: Snapshot, folder: str | Path, *, step: int, extra: dict[str, Any] | None) -> WriteReport:
    """Write a checkpoint folder at once or not at all, replacing what stands there.

    Raises:
        SpoStateError: ``extra`` is not JSON, or ``step`` is not a whole number >= 0.
        SpoCheckpointError: the file system refused; what stood there is still there.
    """
    target, step, extra = target_of(folder), checked_whole("step", step), check_extra(extra)
    began = time.perf_counter()
    table, memory, ledger = snapshot.table, snapshot.memory, snapshot.ledger
    prompts = _prompts_schema(_prompt_types(moved=table.moved_P is not None))
    try:
        with folders.staged(target) as staging:
            files = {
                PROMPTS: _write_arrow(staging / PROMPTS, prompts, _prompt_batches(table, prompts)),
                RESPONSES: _write_arrow(
                    staging / RESPONSES, _responses_schema(sorted(memory.log_prob)), _response_batches(memory)
                ),
                ROLLOUTS: _write_arrow(staging / ROLLOUTS, _ROLLOUTS_SCHEMA, _rollout_batches(ledger)),
            }
            text = _manifest(snapshot, step, extra, files).dumps()
            with folders.HashingFile(staging / folders.MANIFEST) as file:
                file.write(text.encode())
    except OSError as error:
        raise SpoCheckpointError(
            f"writing the tracker checkpoint {target} failed: {error}. What stood there before has not been "
            "touched; make room or mend the folder's permissions and save again."
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
    )


@dataclass
class Saved:
    """What a checkpoint holds, with the slots as they were when it was saved."""

    folder: Path
    manifest: folders.Manifest
    table: PromptTable
    memory: ResponseMemory
    ledger: Ledger

    @property
    def settings(self) -> TrackerSettings:
        """The settings under which it was saved."""
        return TrackerSettings(**self.manifest.settings)

    def snapshot(self) -> Snapshot:
        """The state as it was saved."""
        return Snapshot(
            self.settings,
            self.table,
            self.memory.view(),
            self.ledger,
            self.manifest.counters,
            self.manifest.random,
            self.manifest.clock,
        )


def read(folder: str | Path) -> Saved:
    """Verify a checkpoint folder (manifest, sizes, checksums, digest) and read it. Changes nothing on disk.

    A folder that is replaced meanwhile is read anew, and waited for where the new one is just being put in place.

    Raises:
        SpoCheckpointError: there is no such folder, or it may not be read.
        SpoCheckpointDamagedError: something is missing, truncated, altered or inconsistent; names the file.
        SpoCheckpointVersionError: a newer format, or settings that this version does not know.
    """
    path = target_of(folder)
    for attempt in range(1, READ_ATTEMPTS + 1):
        before = folders.identity(path)
        try:
            return _read(path)
        except SpoCheckpointError:
            # A writer that put another folder in place meanwhile: what was read is a bit of each, so it is read anew.
            # Between its two renames there is none for an instant, and the former one stands beside the place.
            now = folders.identity(path)
            absent = now is None and not folders.replaced_beside(path) and folders.identity(path) is None
            if absent or (now is not None and now == before) or attempt == READ_ATTEMPTS:
                raise
        time.sleep(READ_POLL_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _read(path: Path) -> Saved:
    """One attempt at :func:`read`; every error names the folder, and the file where it is one file's."""
    try:
        return _read_whole(path)
    except SpoError:
        raise
    except OSError as error:
        name = error.filename or path
        raise SpoCheckpointError(
            f"tracker checkpoint {path}: {name} cannot be read ({error.strerror or error}); mend its permissions, or "
            f"the disk. {folders.REMEDY}"
        ) from error


def _read_whole(path: Path) -> Saved:
    manifest = folders.read_manifest(path)
    _check_names(path, manifest)
    folders.verify_files(path, manifest, {PROMPTS, RESPONSES, ROLLOUTS})
    _check_values(path, manifest)
    saved = Saved(
        folder=path,
        manifest=manifest,
        table=_read_prompts(path, manifest),
        memory=_read_responses(path, manifest),
        ledger=_read_rollouts(path, manifest),
    )
    if saved.snapshot().digest != manifest.digest:
        raise folders.damaged(path, folders.MANIFEST, "has a digest that the data files do not give")
    return saved


def _check_names(path: Path, manifest: folders.Manifest) -> None:
    """Refuse settings, counters, generators or clocks that this version does not know or that it misses.

    Those that were added since the format began may be missing.
    """
    known = {
        "settings": TrackerSettings.names(),
        "counters": {*COUNTERS, *LATER_COUNTERS},
        "random": set(PURPOSES),
        "clock": set(ADDED_LATER["clock"]),
    }
    for section, names in known.items():
        saved = getattr(manifest, section).keys()
        differing = (saved - names) | (names - saved - ADDED_LATER.get(section, frozenset()))
        if differing:
            raise SpoCheckpointVersionError(
                f"tracker checkpoint {path}: {section} in {folders.MANIFEST} are not those of this version "
                f"of spo_verl (they differ in {', '.join(map(plain, sorted(differing)))}); it was written by spo_verl "
                f"{manifest.spo_verl_version}, install that. {folders.REMEDY}"
            )


def _check_values(path: Path, manifest: folders.Manifest) -> None:
    """Refuse settings, a clock or generator states that were never saved like this."""
    try:
        TrackerSettings(**manifest.settings)
    except SpoConfigError as error:
        raise folders.damaged(path, folders.MANIFEST, f"has impossible settings ({error})") from error
    for name, now in manifest.clock.items():
        counts = is_whole(now) and 0 <= now <= LARGEST
        if not counts and not (name == "movement" and isinstance(now, float) and now >= 0):
            raise folders.damaged(path, folders.MANIFEST, f"has the {name} {shown(now)} as its clock")
    for purpose, state in manifest.random.items():
        generator = np.random.PCG64(0)
        try:
            generator.state = state
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            what = f"has a state of the generator {purpose!r} that cannot be restored ({shown(error)})"
            raise folders.damaged(path, folders.MANIFEST, what) from error
        if generator.state != state:
            raise folders.damaged(path, folders.MANIFEST, f"has an impossible state of the generator {purpose!r}")


@contextmanager
def _batches(path: Path, name: str, schema: Any) -> Iterator[Iterator[Any]]:
    """Yield the record batches of a file; its memory map is closed at the end, so copy what is to stay."""
    try:
        with pa.memory_map(str(path / name)) as source, pa.ipc.open_file(source) as reader:
            if not reader.schema.equals(schema):
                raise folders.damaged(path, name, f"has the columns {reader.schema.names} instead of {schema.names}")
            yield (_validated(reader.get_batch(index)) for index in range(reader.num_record_batches))
    except SpoError:
        raise
    except OSError as error:
        if error.errno is not None:  # otherwise it is Arrow's own, about the content
            raise
        raise folders.damaged(path, name, f"is not a readable Arrow file ({error})") from error
    except (pa.ArrowException, ValueError, IndexError, OverflowError) as error:
        raise folders.damaged(path, name, f"is not a readable Arrow file ({error})") from error


def _validated(batch: Any) -> Any:
    """A record batch whose offsets and texts hold what they say; raises where not, or where a value is missing."""
    batch.validate(full=True)
    return batch


def _read_prompts(path: Path, manifest: folders.Manifest) -> PromptTable:
    rows, active = manifest.counts["rows"], manifest.dataset["prompts"]
    dtypes = _prompt_types(moved="movement" in manifest.clock)
    first = 0
    with _batches(path, PROMPTS, _prompts_schema(dtypes)) as batches:
        if not active or rows * KEY_BYTES > manifest.files[PROMPTS]["bytes"]:
            raise folders.damaged(
                path, folders.MANIFEST, f"counts {rows} rows, {active} of the dataset; {PROMPTS} has others"
            )
        key_P = np.empty(rows, dtype=f"V{KEY_BYTES}")
        columns = {name: np.empty(rows, dtype=dtype) for name, dtype in dtypes.items()}
        for batch in batches:
            rows_of_batch = slice(first, first + batch.num_rows)
            key_buffer = batch.column("key").buffers()[1]
            key_P[rows_of_batch] = np.frombuffer(key_buffer, dtype=key_P.dtype, count=batch.num_rows)
            for name, column_P in columns.items():
                column_P[rows_of_batch] = batch.column(name.removesuffix("_P")).to_numpy()
            first += batch.num_rows
    if first != rows:
        raise folders.damaged(path, PROMPTS, f"has {first} rows instead of {rows}")
    table = PromptTable(active=active, key_P=key_P, **columns)
    wrong_R = ~usable(table.alpha_P, table.beta_P) | (table.draws_P < 0) | (table.visits_P < 0)
    wrong_R |= table.version_P < NO_VERSION
    if table.moved_P is not None:
        wrong_R |= ~((table.moved_P >= 0) & np.isfinite(table.moved_P))
    if wrong_R.any():
        at = int(np.argmax(wrong_R))
        row = ", ".join(f"{name} {column_P[at]}" for name, column_P in table.columns())
        raise folders.damaged(path, PROMPTS, f"has impossible values in row {at}: {row}")
    return table


def _read_responses(path: Path, manifest: folders.Manifest) -> ResponseMemory:
    references = list(manifest.settings["references"])
    memory = ResponseMemory(manifest.counts["rows"], references, manifest.settings["max_tokens"])
    with _batches(path, RESPONSES, _responses_schema(sorted(references))) as batches:
        for batch in batches:
            columns = {name: batch.column(name) for name in batch.schema.names}
            _check_responses(path, columns, references, manifest.counts["rows"])
            memory.extend(
                PackedResponses(
                    slot_B=columns["slot"].to_numpy(),
                    length_B=columns["token"].value_lengths().to_numpy(),
                    prompt_hash_B=columns["prompt_hash"].to_numpy(),
                    token_N=columns["token"].flatten().to_numpy(),
                    mask_byte_M=columns["mask"].flatten().to_numpy(),
                    log_prob={name: columns[f"log_prob_{name}"].flatten().to_numpy() for name in references},
                )
            )
    return memory


def _check_responses(path: Path, columns: Mapping[str, Any], references: list[str], rows: int) -> None:
    """Refuse slots that do not exist or occur twice, and columns of different lengths."""
    slot_B, length_B = columns["slot"].to_numpy(), columns["token"].value_lengths().to_numpy()
    fits = bool(((slot_B >= 0) & (slot_B < rows)).all() and (np.diff(slot_B) > 0).all())
    fits = fits and np.array_equal(columns["mask"].value_lengths().to_numpy(), (length_B + 7) // 8)
    for name in references:
        fits = fits and np.array_equal(columns[f"log_prob_{name}"].value_lengths().to_numpy(), length_B)
    if not fits:
        raise folders.damaged(path, RESPONSES, "has slots that do not exist, or columns that do not fit together")


def _rollout_problem(row: Mapping[str, Any], rows: int) -> bool:
    """Whether this is no open rollout."""
    present = None not in row.values()
    return not present or not (
        0 <= row["slot"] < rows and 0 <= row["value"] <= 1 and 0 <= row["n_eff"] < np.inf and row["version"] >= 0
    )


def _read_rollouts(path: Path, manifest: folders.Manifest) -> Ledger:
    open_rollouts: dict[str, Rollout] = {}
    recent: dict[str, tuple[int, ...]] = {}
    with _batches(path, ROLLOUTS, _ROLLOUTS_SCHEMA) as batches:
        for batch in batches:
            for row in batch.to_pylist():
                uid, is_open, sessions = row.pop("uid"), row.pop("open"), tuple(row.pop("sessions") or ())
                wrong = uid is None or is_open is None or None in sessions or uid in open_rollouts or uid in recent
                if wrong or (is_open and _rollout_problem(row, manifest.counts["rows"])):
                    raise folders.damaged(path, ROLLOUTS, f"has an impossible rollout {shown(uid)}")
                if is_open:
                    open_rollouts[uid] = Rollout(**row, sessions=sessions)
                else:
                    recent[uid] = sessions
    return Ledger(open_rollouts, recent)
