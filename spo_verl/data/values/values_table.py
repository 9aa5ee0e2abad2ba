"""The table of offline values and its Parquet file.

| column | type | meaning |
|---|---|---|
| key | fixed_size_binary(16) | identity of the prompt (`spo_verl.data.identity`) |
| successes | float64 | sum of the rewards of its trials, each in [0, 1] |
| trials | int64 | number of trials; 0 where all of them failed technically |

The schema's metadata hold one JSON text under ``spo_verl.values``: ``format``, ``format_version``,
``identity_version``, ``spo_verl_version`` and ``source``, a list of provenances (see `provenance`): which policy was
sampled, how and when; and ``sha256`` of all of this, so that damage is noticed.
"""

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import spo_verl
from spo_verl.data.identity import IDENTITY_VERSION, KEY_BYTES, slots_of_keys
from spo_verl.errors import SpoValuesError
from spo_verl.files import parquet_file, parse_json, replacing

FORMAT = "spo_verl.values"
FORMAT_VERSION = 1

_KEY_TYPE = np.dtype(f"V{KEY_BYTES}")
_COLUMNS = pa.schema([("key", pa.binary(KEY_BYTES)), ("successes", pa.float64()), ("trials", pa.int64())])
_METADATA = {"format", "format_version", "identity_version", "spo_verl_version", "source", "sha256"}
_REQUIRED: dict[str, Any] = {"kind": str, "policy": (str, type(None)), "sampling": Mapping, "date": str}
_VALUE_BINS = 10


def provenance(
    kind: str,
    *,
    policy: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    date: str | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Where values come from: one entry of `OfflineValues.source`.

    Args:
        kind: Way in which they were obtained, e.g. "estimate" or "accuracy_column".
        policy: Model that was sampled; None where it is not known.
        sampling: Settings of the sampling, e.g. ``{"temperature": 1.0, "top_p": 1.0}``.
        date: ISO 8601; default: now, in UTC.
        details: Anything else that JSON can hold, e.g. ``file="train.json"``.
    """
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"kind": kind, "policy": policy, "sampling": dict(sampling or {}), "date": date or now, **details}


@dataclass(frozen=True, eq=False)
class OfflineValues:
    """Success counts of N distinct prompts. Immutable; the arrays are read-only copies.

    Attributes:
        key_N: (N,) dtype "V16", distinct.
        successes_N: (N,) float64, in [0, trials]; fractions are allowed (rewards between 0 and 1).
        trials_N: (N,) int64, >= 0.
        source: Provenances, each with at least ``kind``, ``policy``, ``sampling`` and ``date``; JSON only.

    Raises:
        SpoValuesError: Shapes or types differ from these, a key is there twice, or a count is out of its range.
    """

    key_N: np.ndarray
    successes_N: npt.NDArray[np.float64]
    trials_N: npt.NDArray[np.int64]
    source: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        columns = {
            "key_N": _as_column("key_N", self.key_N, _KEY_TYPE),
            "successes_N": _as_column("successes_N", self.successes_N, np.dtype(np.float64)),
            "trials_N": _as_column("trials_N", self.trials_N, np.dtype(np.int64)),
        }
        for name, column_N in columns.items():
            column_N.setflags(write=False)
            object.__setattr__(self, name, column_N)
        object.__setattr__(self, "source", _checked_source(self.source))
        _check_counts(self.key_N, self.successes_N, self.trials_N)

    def __len__(self) -> int:
        return len(self.key_N)

    @property
    def policies(self) -> tuple[str | None, ...]:
        """The sampled policies, each once; None is an unknown one."""
        return tuple(dict.fromkeys(entry["policy"] for entry in self.source))

    def digest(self) -> str:
        """SHA-256 over keys and counts, in their order."""
        sha = hashlib.sha256()
        for column_N in (self.key_N.view(np.uint8), self.successes_N, self.trials_N):
            sha.update(column_N.data)
        return sha.hexdigest()

    def write(self, path: str | Path) -> None:
        """Write the Parquet file at once or not at all: under another name, synced, then renamed into place.

        Raises:
            SpoValuesError: It cannot be written there.
        """
        with replacing(Path(path), SpoValuesError) as stage:
            pq.write_table(self._as_arrow(), stage(), compression="zstd")

    @classmethod
    def read(cls, path: str | Path) -> "OfflineValues":
        """Read and verify a file that `write` made.

        Raises:
            SpoValuesError: No such file, damaged, of another or a newer format, or of another identity version.
        """
        source = Path(path)
        try:
            with parquet_file(source, SpoValuesError) as file:
                table = file.read()
            metadata = _read_metadata(table.schema)
            values = cls(*_columns_of(table), source=metadata["source"])
        except SpoValuesError as error:
            named = str(error) if str(source) in str(error) else f"{source}: {error}"
            raise SpoValuesError(named) from error
        if metadata["sha256"] != _file_digest(metadata, values.digest()):
            raise SpoValuesError(
                f"{source}: its content is not what was written (sha256 differs): restore it from a copy"
            )
        return values

    def describe(self) -> dict[str, Any]:
        """A summary that JSON can hold: counts, values of the prompts with trials, and the provenances.

        ``value_histogram`` counts prompts by successes / trials in ten equal bins, the last one closed.
        """
        tried_N = self.trials_N > 0
        rate_N = self.successes_N[tried_N] / self.trials_N[tried_N]
        trials_N = self.trials_N[tried_N]
        return {
            "prompts": len(self),
            "prompts_without_trials": int((~tried_N).sum()),
            "trials": int(self.trials_N.sum()),
            "trials_per_prompt": _spread(trials_N),
            "value_mean": float(rate_N.mean()) if rate_N.size else None,
            "never_solved": int((rate_N == 0).sum()),
            "always_solved": int((rate_N == 1).sum()),
            "value_histogram": np.histogram(rate_N, bins=_VALUE_BINS, range=(0.0, 1.0))[0].tolist(),
            "policies": list(self.policies),
            "source": [dict(entry) for entry in self.source],
        }

    def _as_arrow(self) -> Any:
        key = pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(self), [None, pa.py_buffer(self.key_N)])
        metadata: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "identity_version": IDENTITY_VERSION,
            "spo_verl_version": spo_verl.__version__,
            "source": list(self.source),
        }
        metadata["sha256"] = _file_digest(metadata, self.digest())
        columns = [key, pa.array(self.successes_N), pa.array(self.trials_N)]
        return pa.table(columns, schema=_COLUMNS.with_metadata({FORMAT: json.dumps(metadata, allow_nan=False)}))


def _as_column(name: str, given: Any, dtype: np.dtype) -> np.ndarray:
    array = np.asarray(given)
    if array.ndim != 1 or not (array.dtype == dtype or (dtype.kind != "V" and np.can_cast(array.dtype, dtype))):
        raise SpoValuesError(f"{name} has type {array.dtype} and shape {array.shape}; it must be {dtype} of shape (N,)")
    return np.array(array, dtype=dtype, order="C")


def _check_counts(key_N: np.ndarray, successes_N: np.ndarray, trials_N: np.ndarray) -> None:
    if not len(key_N) == len(successes_N) == len(trials_N):
        raise SpoValuesError(f"{len(key_N)} keys, {len(successes_N)} successes and {len(trials_N)} trials: one each")
    wrong_N = np.flatnonzero(~((trials_N >= 0) & (successes_N >= 0) & (successes_N <= trials_N)))
    if wrong_N.size:
        at = int(wrong_N[0])
        raise SpoValuesError(
            f"entry {at} has {successes_N[at]} successes in {trials_N[at]} trials ({wrong_N.size} such entries): "
            "successes are a sum of rewards in [0, 1], one per trial"
        )
    if len(key_N) and len(slots_of_keys(key_N)[1]) != len(key_N):
        raise SpoValuesError("a key is in it more than once: add the counts up with merge")


def _checked_source(source: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(source, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in source):
        raise SpoValuesError("its source is no list of provenances: build each with provenance(...)")
    entries = tuple(dict(entry) for entry in source)
    for entry in entries:
        missing = [name for name in _REQUIRED if name not in entry]
        if missing:
            raise SpoValuesError(f"a provenance lacks {', '.join(missing)}: build it with provenance(...)")
        for name, kinds in _REQUIRED.items():
            if not isinstance(entry[name], kinds):
                raise SpoValuesError(f"{name} of a provenance is {entry[name]!r:.60}: build it with provenance(...)")
    try:
        return tuple(json.loads(json.dumps(entries, allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise SpoValuesError(f"a provenance holds something that JSON cannot ({error})") from error


def _file_digest(metadata: Mapping[str, Any], counts_digest: str) -> str:
    rest = {name: entry for name, entry in metadata.items() if name != "sha256"}
    return hashlib.sha256((json.dumps(rest, sort_keys=True) + counts_digest).encode()).hexdigest()


def _read_metadata(schema: Any) -> dict[str, Any]:
    text = (schema.metadata or {}).get(FORMAT.encode())
    metadata = None if text is None else parse_json(_text(text), "its metadata", SpoValuesError)
    if not isinstance(metadata, dict):
        raise SpoValuesError(
            f"not a file of offline values (there is no {FORMAT!r} in its metadata; its columns are {schema.names}); "
            "accuracies in a dataset are imported with `spo-verl values import`"
        )
    version = metadata.get("format_version")
    if (
        not isinstance(version, int)
        or isinstance(version, bool)
        or version > FORMAT_VERSION
        or metadata.keys() - _METADATA
    ):
        raise SpoValuesError(
            f"it has format {version}, this version of spo_verl reads {FORMAT_VERSION}: install spo_verl "
            f"{metadata.get('spo_verl_version')} or newer"
        )
    if metadata.get("identity_version") != IDENTITY_VERSION:
        raise SpoValuesError(
            f"it identifies prompts by version {metadata.get('identity_version')} of the identity, this version of "
            f"spo_verl by {IDENTITY_VERSION}, so no key could match: estimate or import the values again"
        )
    missing = sorted(_METADATA - metadata.keys())
    if missing or not schema.equals(_COLUMNS):
        raise SpoValuesError(
            f"it has the columns {schema.names} instead of {_COLUMNS.names}, or lacks the fields {missing}: restore it "
            "from a copy"
        )
    return metadata


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpoValuesError(f"its metadata are not UTF-8 ({error}): restore it from a copy") from error


def _columns_of(table: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if any(column.null_count for column in table.columns):
        raise SpoValuesError("a field is empty")
    key, successes, trials = (column.combine_chunks() for column in table.columns)
    key_N = np.frombuffer(b"".join(_chunk_keys(key)), dtype=_KEY_TYPE)
    return key_N, successes.to_numpy(zero_copy_only=False), trials.to_numpy(zero_copy_only=False)


def _chunk_keys(key: Any) -> list[bytes]:
    chunks = key.chunks if isinstance(key, pa.ChunkedArray) else [key]
    return [
        chunk.buffers()[1].slice(chunk.offset * KEY_BYTES, len(chunk) * KEY_BYTES).to_pybytes()
        for chunk in chunks
        if len(chunk)
    ]


def _spread(count_N: np.ndarray) -> dict[str, float] | None:
    if not count_N.size:
        return None
    return {"min": int(count_N.min()), "median": float(np.median(count_N)), "max": int(count_N.max())}
