"""Reading a tracker checkpoint; what its files hold is in :mod:`spo_verl.tracker.checkpoint.schema`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from spo_verl.errors import SpoCheckpointError, SpoCheckpointVersionError, SpoConfigError, SpoError
from spo_verl.tracker.arguments import LARGEST, is_whole, plain, shown
from spo_verl.tracker.checkpoint import folder as folders
from spo_verl.tracker.checkpoint.schema import (
    OUTCOMES,
    PROMPTS,
    RESPONSES,
    ROLLOUTS,
    feature_columns,
    files_of,
    outcomes_schema,
    prompt_columns,
    prompts_schema,
    responses_schema,
    rollouts_schema,
    target_of,
)
from spo_verl.tracker.checkpoint.snapshot import Snapshot
from spo_verl.tracker.features import MOST_FEATURES, is_scale
from spo_verl.tracker.ledger import Ledger, Rollout
from spo_verl.tracker.memory import ResponseMemory
from spo_verl.tracker.readout import MOST_SOURCES, NO_SOURCE, Calibration, features_of
from spo_verl.tracker.readout import OUTCOMES as OUTCOME_COLUMNS
from spo_verl.tracker.responses import PackedResponses
from spo_verl.tracker.settings import ADDED_LATER, COUNTERS, LATER_COUNTERS, PURPOSES, TrackerSettings
from spo_verl.tracker.table import KEY_BYTES, NO_VERSION, PromptTable, usable

Content = TypeVar("Content")

READ_ATTEMPTS, READ_POLL_SECONDS = 400, 0.005
"""How often a folder that is being replaced is read again, and the pause before; a killed writer is waited for 2 s."""


@dataclass
class Saved:
    """What a checkpoint holds, with the slots as they were when it was saved."""

    folder: Path
    manifest: folders.Manifest
    table: PromptTable
    memory: ResponseMemory
    ledger: Ledger
    calibration: Calibration | None = None

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
            self.calibration,
        )


def read(folder: str | Path) -> Saved:
    """Verify a checkpoint folder (manifest, sizes, checksums, digest) and read it. Changes nothing on disk.

    A folder that is replaced meanwhile is read again; while the new one is being put in place, it is waited for.

    Raises:
        SpoCheckpointError: there is no such folder, or it may not be read.
        SpoCheckpointDamagedError: something is missing, truncated, altered or inconsistent; names the file.
        SpoCheckpointVersionError: a newer format, or settings that this version does not know.
    """
    return _patiently(target_of(folder), _read_whole)


def read_prompts(folder: str | Path) -> tuple[folders.Manifest, PromptTable]:
    """The manifest and the table of prompts alone: stored responses and rollouts are neither read nor verified.

    A second for a million prompts, however many responses are stored.

    Raises:
        SpoCheckpointError: and its children, as for :func:`read`.
    """
    return _patiently(target_of(folder), _read_prompts_alone)


def _patiently(path: Path, reading: Callable[[Path], Content]) -> Content:
    """Read a folder, again where a writer replaces it meanwhile."""
    for attempt in range(1, READ_ATTEMPTS + 1):
        before = folders.identity(path)
        try:
            return _attempt(path, reading)
        except SpoCheckpointError:
            # A writer put another folder in place meanwhile: what was read is a mixture, so it is read again.
            # Between the writer's two renames there is no folder for an instant; the former one is next to the place.
            now = folders.identity(path)
            absent = now is None and not folders.replaced_beside(path) and folders.identity(path) is None
            if absent or (now is not None and now == before) or attempt == READ_ATTEMPTS:
                raise
        time.sleep(READ_POLL_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _attempt(path: Path, reading: Callable[[Path], Content]) -> Content:
    """One attempt; every error names the folder, and the file where it is one file's."""
    try:
        return reading(path)
    except SpoError:
        raise
    except OSError as error:
        name = error.filename or path
        raise SpoCheckpointError(
            f"tracker checkpoint {path}: {name} cannot be read ({error.strerror or error}); check its permissions, or "
            f"the disk. {folders.REMEDY}"
        ) from error


def _read_prompts_alone(path: Path) -> tuple[folders.Manifest, PromptTable]:
    manifest = folders.read_manifest(path)
    _check_names(path, manifest)
    folders.verify_files(path, manifest, files_of(calibrated=bool(manifest.readout)), contents={PROMPTS})
    _check_values(path, manifest)
    return manifest, _read_prompts(path, manifest)


def _read_whole(path: Path) -> Saved:
    manifest = folders.read_manifest(path)
    _check_names(path, manifest)
    folders.verify_files(path, manifest, files_of(calibrated=bool(manifest.readout)))
    _check_values(path, manifest)
    saved = Saved(
        folder=path,
        manifest=manifest,
        table=_read_prompts(path, manifest),
        memory=_read_responses(path, manifest),
        ledger=_read_rollouts(path, manifest),
        calibration=_read_calibration(path, manifest),
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
        **({"readout": {"sources", "coefficients", "version", "features"}} if manifest.readout else {}),
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
    if manifest.readout and not _is_readout(**manifest.readout):
        raise folders.damaged(
            path, folders.MANIFEST, "has a readout with impossible sources, features, coefficients or version"
        )
    for purpose, state in manifest.random.items():
        generator = np.random.PCG64(0)
        try:
            generator.state = state
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            what = f"has a state of the generator {purpose!r} that cannot be restored ({shown(error)})"
            raise folders.damaged(path, folders.MANIFEST, what) from error
        if generator.state != state:
            raise folders.damaged(path, folders.MANIFEST, f"has an impossible state of the generator {purpose!r}")


def _is_readout(sources: Any, coefficients: Any, version: Any, **given: Any) -> bool:
    """Whether the calibrated read-out was ever saved like this; ``given`` has the features, where there are any."""
    features = given.get("features", [])
    if not isinstance(features, list) or not all(
        isinstance(one, list) and one and is_scale(one[1:]) for one in features
    ):
        return False
    features = [one[0] for one in features]
    for names in (sources, features):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return False
    if sources != sorted(set(sources)) or len(sources) > MOST_SOURCES:
        return False
    if len(set(features)) < len(features) or len(features) > MOST_FEATURES or bool(features) != bool(given):
        return False
    listed = isinstance(coefficients, list) and len(coefficients) == features_of(len(sources), len(features))
    return (
        listed and all(isinstance(one, float) for one in coefficients) and is_whole(version) and 0 <= version <= LARGEST
    )


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
    dtypes = prompt_columns(moved="movement" in manifest.clock)
    first = 0
    with _batches(path, PROMPTS, prompts_schema(dtypes)) as batches:
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
    wrong_P = ~usable(table.alpha_P, table.beta_P) | (table.draws_P < 0) | (table.visits_P < 0)
    wrong_P |= table.version_P < NO_VERSION
    if table.moved_P is not None:
        wrong_P |= ~((table.moved_P >= 0) & np.isfinite(table.moved_P))
    if wrong_P.any():
        at = int(np.argmax(wrong_P))
        row = ", ".join(f"{name} {column_P[at]}" for name, column_P in table.columns())
        raise folders.damaged(path, PROMPTS, f"has impossible values in row {at}: {row}")
    return table


def _read_responses(path: Path, manifest: folders.Manifest) -> ResponseMemory:
    references = list(manifest.settings["references"])
    memory = ResponseMemory(manifest.counts["rows"], references, manifest.settings["max_tokens"])
    memory.reserve(manifest.files[RESPONSES]["bytes"])
    with _batches(path, RESPONSES, responses_schema(sorted(references))) as batches:
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
    raw, age = row.get("raw"), row.get("age")  # of a rollout that was dispatched without a read-out: None
    present = None not in (row["slot"], row["value"], row["n_eff"], row["version"]) and (raw is None) == (age is None)
    return not present or not (
        0 <= row["slot"] < rows
        and 0 <= row["value"] <= 1
        and 0 <= row["n_eff"] < np.inf
        and row["version"] >= 0
        and (raw is None or age is None or (0 <= raw <= 1 and age >= 0))
    )


def _read_rollouts(path: Path, manifest: folders.Manifest) -> Ledger:
    open_rollouts: dict[str, Rollout] = {}
    recent: dict[str, tuple[int, ...]] = {}
    with _batches(path, ROLLOUTS, rollouts_schema(calibrated=bool(manifest.readout))) as batches:
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


def _read_calibration(path: Path, manifest: folders.Manifest) -> Calibration | None:
    if not manifest.readout:
        return None
    saved = manifest.readout.get("features", [])
    features, scales = tuple(one[0] for one in saved), tuple((one[1], one[2]) for one in saved)
    schema = outcomes_schema(len(features))
    parts: dict[str, list[Any]] = {name: [] for name in schema.names}
    with _batches(path, OUTCOMES, schema) as batches:
        for batch in batches:
            for name, part in parts.items():
                # Copied: the file's memory map is about to be closed.
                part.append(np.array(batch.column(name).to_numpy()))
    joined = {
        field.name: np.concatenate([np.zeros(0, field.type.to_pandas_dtype()), *parts[field.name]]) for field in schema
    }
    columns = {name: joined[name.removesuffix("_N")] for name in OUTCOME_COLUMNS}
    extra_NF = np.stack([joined[name] for name in feature_columns(len(features))], axis=1) if features else None
    extra_NF = np.zeros((len(columns["reward_N"]), 0)) if extra_NF is None else extra_NF
    sources = tuple(manifest.readout["sources"])
    coefficient_F = np.array(manifest.readout["coefficients"], dtype=np.float64)
    found = Calibration(
        sources,
        coefficient_F,
        manifest.readout["version"],
        **columns,
        features=features,
        scales=scales,
        extra_NF=extra_NF,
    )
    wrong_N = ~((found.value_N >= 0) & (found.value_N <= 1) & (found.reward_N >= 0) & (found.reward_N <= 1))
    wrong_N |= ~((found.n_eff_N >= 0) & np.isfinite(found.n_eff_N)) | (found.age_N < 0)
    wrong_N |= (found.source_N < NO_SOURCE) | (found.source_N >= len(sources)) | ~np.isfinite(extra_NF).all(axis=1)
    if wrong_N.any():
        at = int(np.argmax(wrong_N))
        row = ", ".join(f"{name} {column_N[at]}" for name, column_N in joined.items())
        raise folders.damaged(path, OUTCOMES, f"has impossible values in row {at}: {row}")
    return found
