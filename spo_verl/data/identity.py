"""Which prompt a row is: 128-bit keys of rows, and the slots that a dataset's distinct keys occupy.

The tracker's evidence belongs to a prompt, not to a row number, so a prompt is known by a hash of everything
that decides how hard it is and what counts as success:

- all messages: column ``data.prompt_key`` (default "prompt"), the only part that a row must have;
- pictures, films, sounds: columns ``data.image_key``, ``video_key``, ``audio_key`` ("images", "videos",
  "audios"); embedded content by its hash, a reference (path, address) by its text; no file is opened;
- the reward's definition: column "reward_model" with ground truth, style and whatever else is kept there,
  and column "data_source", by which verl chooses the reward function;
- tools: column "tools", and ``tools_kwargs``, ``tool_selection``, ``interaction_kwargs`` in "extra_info" or
  as columns;
- the agent loop: column "agent_name".

Rows with equal content are one prompt and share one slot. The keys are what checkpoints persist: they are the
same on every machine, in every process and Python version, and for every representation of a row (see
`spo_verl.data.canonical`), and do not depend on the row's position, its ``extra_info.index`` or its split.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spo_verl.data.canonical import NotCanonicalError, canonical_json, encode_plain, plain_members
from spo_verl.data.columns import column_batches, rows_of, table_of
from spo_verl.errors import SpoConfigError

logger = logging.getLogger(__name__)

# Changes whenever any rule of the identity changes. It enters every key and belongs into every manifest that
# persists keys: keys of different versions never match and must not be compared.
IDENTITY_VERSION = 1
KEY_BYTES = 16

_PERSON = f"spo_verl key {IDENTITY_VERSION}".encode("ascii")
_SECONDS_BETWEEN_REPORTS = 10.0
_ROWS_BETWEEN_CLOCKS = 256
_ROW_PARTS = ("reward_model", "data_source", "tools", "agent_name")
_EXTRA_PARTS = ("tools_kwargs", "tool_selection", "interaction_kwargs")


@dataclass(frozen=True)
class RowFields:
    """The names that the dataset's configuration gives to the columns of messages and media.

    They say where to look; a column of another name with the same content gives the same key.
    """

    prompt: str = "prompt"
    images: str = "images"
    videos: str = "videos"
    audios: str = "audios"

    @classmethod
    def of(cls, dataset: Any) -> "RowFields":
        """Take the names that verl's RLHFDataset was given (``prompt_key`` and so on), where present."""
        return cls(
            prompt=getattr(dataset, "prompt_key", cls.prompt),
            images=getattr(dataset, "image_key", cls.images),
            videos=getattr(dataset, "video_key", cls.videos),
            audios=getattr(dataset, "audio_key", cls.audios),
        )

    def column_of_part(self) -> dict[str, str]:
        """Name of the part in the identity -> name of the row's column."""
        named = {"prompt": self.prompt, "images": self.images, "videos": self.videos, "audios": self.audios}
        return named | {part: part for part in _ROW_PARTS + _EXTRA_PARTS}


@dataclass(frozen=True)
class DatasetKeys:
    """The distinct prompts of a dataset (N rows, P prompts) and the two ways between rows and slots.

    Attributes:
        key_P: (P,) dtype "V16": the prompts' keys; slots are numbered in order of first appearance.
        slot_of_row_N: (N,) int64 in [0, P): the slot of each row.
        row_of_slot_P: (P,) int64 in [0, N): the first row of each slot; increasing.

    All arrays are read-only.
    """

    key_P: np.ndarray
    slot_of_row_N: np.ndarray
    row_of_slot_P: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.key_P, self.slot_of_row_N, self.row_of_slot_P):
            array.setflags(write=False)

    @property
    def rows(self) -> int:
        """N, the rows of the dataset."""
        return len(self.slot_of_row_N)

    @property
    def prompts(self) -> int:
        """P, the distinct prompts."""
        return len(self.row_of_slot_P)

    @property
    def duplicates(self) -> int:
        """N - P, the rows that share the slot of an earlier row."""
        return self.rows - self.prompts


def prompt_key(row: Mapping[str, Any], *, fields: RowFields | None = None) -> bytes:
    """The key of one row: BLAKE2b-128 over the canonical encoding of the parts listed above.

    A part that is absent, ``None``, NaN or empty does not count, so all of these give the same key. Items of
    verl's RLHFDataset serve as rows too, with one difference: RLHFDataset decodes embedded pictures, and a
    decoded picture is hashed by its pixels, an embedded file by its bytes. `dataset_keys` never decodes.

    Args:
        row: Column name -> value, in any representation that `spo_verl.data.canonical` knows. Messages are
            also found under "raw_prompt".
        fields: Names of the columns of messages and media; default those of verl.

    Returns:
        16 bytes.

    Raises:
        SpoConfigError: There are no messages, or a field holds something without a canonical form; names the
            field.
    """
    return _key_of_row(row, (fields or RowFields()).column_of_part(), None)


def content_key(content: Any) -> bytes:
    """A key from any content of your own, for the ``key_fn`` of `dataset_keys`.

    Args:
        content: What identifies the prompt, e.g. ``(item["question"], item["answer"])``.

    Returns:
        16 bytes; equal for equal content by the rules of `spo_verl.data.canonical`.

    Raises:
        NotCanonicalError: The content holds a value without a canonical form.
    """
    return _digest(canonical_json(content))


def dataset_keys(dataset: Any, key_fn: Callable[[Any], bytes] | None = None) -> DatasetKeys:
    """Identify every row of a dataset and give each distinct prompt a slot.

    For verl's RLHFDataset, and for a bare `datasets.Dataset`, the needed columns are read in batches from the
    underlying table without tokenizing or decoding anything. Any other dataset, and every dataset when
    ``key_fn`` is given, is read item by item with ``dataset[row]``.

    Args:
        dataset: A map-style dataset: ``len(dataset)`` and ``dataset[row]``.
        key_fn: Item -> 16 bytes, instead of `prompt_key`; build them with `content_key`.

    Returns:
        DatasetKeys.

    Raises:
        SpoConfigError: The dataset is empty or cannot be indexed, a row has no messages, a field has no
            canonical form, or ``key_fn`` returns something else than 16 bytes. Names the field and the row,
            counted from 0 in the dataset as it is trained on (after verl's length filter).
    """
    rows = _rows_to_identify(dataset)
    table = table_of(dataset) if key_fn is None else None
    if table is not None:
        keys = _keys_by_column(table, RowFields.of(dataset))
    else:
        keys = _keys_by_item(dataset, rows, key_fn, RowFields.of(dataset))
    key_N = np.frombuffer(_collect(keys, rows), dtype=f"V{KEY_BYTES}")
    slot_of_row_N, row_of_slot_P = slots_of_keys(key_N)
    found = DatasetKeys(key_N[row_of_slot_P], slot_of_row_N, row_of_slot_P)
    logger.info("%d rows hold %d distinct prompts (%d duplicates)", rows, found.prompts, found.duplicates)
    return found


def slots_of_keys(key_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct keys in order of first appearance: O(N log N), no Python object per key.

    Args:
        key_N: (N,) dtype "V16".

    Returns:
        slot_of_row_N (N,) int64 in [0, P), and row_of_slot_P (P,) int64: the first row of each slot.
    """
    half_N2 = np.ascontiguousarray(key_N).view(np.uint64).reshape(-1, 2)
    # lexsort is stable, so the first row of a run of equal keys is that key's first appearance.
    order_N = np.lexsort((half_N2[:, 1], half_N2[:, 0]))
    sorted_N2 = half_N2[order_N]
    starts_N = np.ones(len(order_N), dtype=bool)
    starts_N[1:] = (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)
    first_row_P = order_N[starts_N]
    by_appearance_P = np.argsort(first_row_P)
    slot_of_run_P = np.empty_like(by_appearance_P)
    slot_of_run_P[by_appearance_P] = np.arange(len(by_appearance_P))
    slot_of_row_N = np.empty(len(order_N), dtype=np.int64)
    slot_of_row_N[order_N] = slot_of_run_P[np.cumsum(starts_N) - 1]
    return slot_of_row_N, first_row_P[by_appearance_P].astype(np.int64)


def _key_of_row(row: Mapping[str, Any], column_of_part: Mapping[str, str], number: int | None) -> bytes:
    parts = _parts_of_row(row, column_of_part)
    try:
        members = plain_members(parts)
        for part in [part for part, value in members.items() if _holds_nothing(value)]:
            del members[part]
        encoded = encode_plain(members)
    except (NotCanonicalError, RecursionError, ValueError) as error:
        raise _field_error(parts, column_of_part, number, error) from error
    if "prompt" not in members:
        raise SpoConfigError(
            f"{_name_of_row(number)}, field {column_of_part['prompt']!r}: there are no messages, so the "
            "prompt cannot be identified. Set data.prompt_key to the column of messages, or remove the row."
        )
    return _digest(encoded)


def _parts_of_row(row: Mapping[str, Any], column_of_part: Mapping[str, str]) -> dict[str, Any]:
    parts = {part: row.get(column) for part, column in column_of_part.items()}
    if parts["prompt"] is None:
        parts["prompt"] = row.get("raw_prompt")
    extra = row.get("extra_info")
    if isinstance(extra, Mapping):
        parts.update({part: extra[part] for part in _EXTRA_PARTS if extra.get(part) is not None})
    return parts


def _holds_nothing(value: Any) -> bool:
    """An empty list (no media), or NaN: pandas marks a missing field with it."""
    return (type(value) is list and not value) or (type(value) is float and value != value)


def _field_error(
    parts: Mapping[str, Any], column_of_part: Mapping[str, str], number: int | None, error: Exception
) -> SpoConfigError:
    """Find the field that failed by encoding one at a time: the fast path keeps no account of where it is."""
    where = _name_of_row(number)
    for part, value in parts.items():
        try:
            canonical_json(value)
        except (NotCanonicalError, RecursionError, ValueError):
            where = f"{where}, field {column_of_part[part]!r}"
            break
    return SpoConfigError(
        f"{where}: {error}. Correct the row, or identify prompts by content of your choice with a key function "
        "(spo_verl.data.dataset_keys(dataset, key_fn=...))."
    )


def _name_of_row(number: int | None) -> str:
    return "the row" if number is None else f"row {number} of the dataset"


def _keys_by_column(table: Any, fields: RowFields) -> Iterator[bytes]:
    column_of_part = fields.column_of_part()
    if fields.prompt not in table.column_names:
        raise SpoConfigError(
            f"the dataset has no column {fields.prompt!r} of messages, only {sorted(table.column_names)}: "
            "set data.prompt_key to the right one"
        )
    names = [*column_of_part.values(), "extra_info"]
    for start, columns in column_batches(table, names, {"extra_info": _EXTRA_PARTS}):
        present = tuple(columns)
        for number, values in enumerate(zip(*columns.values(), strict=True), start):
            yield _key_of_row(dict(zip(present, values, strict=True)), column_of_part, number)


def _keys_by_item(dataset: Any, rows: int, key_fn: Callable[[Any], bytes] | None, fields: RowFields) -> Iterator[bytes]:
    column_of_part = fields.column_of_part()
    for number in range(rows):
        item = dataset[number]
        if key_fn is not None:
            yield _checked_key(key_fn(item), number)
        elif isinstance(item, Mapping):
            yield _key_of_row(item, column_of_part, number)
        else:
            raise SpoConfigError(
                f"{_name_of_row(number)} is a {type(item).__name__}, not a mapping of columns, so its prompt "
                "cannot be found: pass key_fn to dataset_keys, e.g. key_fn=lambda item: content_key(item[0])"
            )


def _checked_key(key: Any, number: int) -> bytes:
    if isinstance(key, bytes) and len(key) == KEY_BYTES:
        return key
    raise SpoConfigError(
        f"{_name_of_row(number)}: key_fn must return {KEY_BYTES} bytes and returned {key!r}; "
        "wrap the content in content_key(...)"
    )


def _collect(keys: Iterator[bytes], rows: int) -> bytearray:
    """Lay the keys end to end, and tell from time to time how far it is."""
    laid = bytearray()
    started = reported = time.monotonic()
    for row, key in enumerate(keys, 1):
        laid += key
        if row % _ROWS_BETWEEN_CLOCKS == 0 and time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            speed = row / (reported - started)
            logger.info("identified %d of %d rows (%.0f rows/s)", row, rows, speed)
    return laid


def _rows_to_identify(dataset: Any) -> int:
    rows = rows_of(dataset)
    if rows == 0:
        raise SpoConfigError(
            "the dataset is empty: check data.train_files, data.train_max_samples and whether "
            "data.max_prompt_length filtered every row out"
        )
    return rows


def _digest(encoded: bytes) -> bytes:
    return hashlib.blake2b(encoded, digest_size=KEY_BYTES, person=_PERSON).digest()
