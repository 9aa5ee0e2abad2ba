"""The canonical encoding of a value: the same content gives the same bytes, however it is held.

A prompt's identity is persisted in checkpoints, so its bytes must not depend on who holds the row. A row
that was built by hand, read back from Parquet, served by pandas, or handed over as numpy and Arrow objects
has the same content, and this module reduces all of them to one ASCII JSON text with sorted keys and no
spaces. The rules, in full:

- Text: a JSON string, ASCII with ``\\u`` escapes. No Unicode normalisation: code points matter.
- Integer, Boolean: JSON number, ``true`` or ``false``; so 1, ``true`` and "1" are three values.
- Floating point: the shortest text that reads back as the same double. A whole number is written as an
  integer, because Arrow stores 1 as 1.0 as soon as its column also holds 1.5. ``NaN`` and ``Infinity`` are
  values of their own.
- List, tuple, array, tensor: a JSON array of the elements; ``None`` elements stay.
- Mapping: a JSON object with text keys. Members that are ``None`` or an empty mapping are left out, at every
  depth, because Arrow fills the fields that a row lacks with ``None``.
- Bytes: BLAKE2b-128 of the content under a reserved key.
- PIL image: BLAKE2b-128 of mode, size, palette and pixels under a reserved key.
- Mapping whose ``bytes`` are embedded: without its ``path``; the content is the same in whatever file it lay.
- Date, time, decimal number: its text under a reserved key. Path object: its text.

Everything else (sets, complex numbers, objects) is refused rather than guessed at.
"""

import datetime
import decimal
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

# Keys of the encoding's own objects begin with this character, and a mapping that uses it is refused, so that
# no content can imitate, say, the hash of a picture.
_RESERVED = "\0"
_DIGEST_BYTES = 16
# Array kinds whose `tolist()` is lossless: object, text, bytes, Boolean, integers, floats. Times are not:
# nanoseconds would turn into bare integers.
_ARRAY_KINDS = frozenset("OUSbiuf")

_encode = json.JSONEncoder(
    ensure_ascii=True, sort_keys=True, separators=(",", ":"), check_circular=False, allow_nan=True
).encode


class NotCanonicalError(TypeError):
    """A value has no canonical form; the message names the type. Callers add the row and the field."""


def canonical_json(value: Any) -> bytes:
    """Encode a value canonically (the rules are in the module's docstring).

    Args:
        value: Any nesting of the types listed there.

    Returns:
        ASCII bytes of a JSON text.

    Raises:
        NotCanonicalError: A value of another type, a mapping key that is not text or begins with ``"\\0"``.
        RecursionError: A value that contains itself.
        ValueError: An integer of more digits than Python converts to text.
    """
    return encode_plain(plain(value))


def encode_plain(value: Any) -> bytes:
    """The second half of `canonical_json`, for what `plain` or `plain_members` returned."""
    return _encode(value).encode("ascii")


def plain(value: Any) -> Any:
    """Reduce a value to str, int, bool, float, None, list and dict, by the rules of the module."""
    kind = type(value)
    if kind is str or value is None or kind is int or kind is bool:
        return value
    if kind is dict:
        return plain_members(value)
    if kind is list or kind is tuple:
        return [plain(element) for element in value]
    if kind is float:
        return int(value) if value.is_integer() else value
    return _plain_other(value)


def plain_members(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a mapping's members and leave out those that hold nothing (``None`` or an empty mapping)."""
    members: dict[str, Any] = {}
    for name, member in mapping.items():
        if member is None:
            continue
        kept = member if type(member) is str else plain(member)
        if kept is None or (type(kept) is dict and not kept):
            continue
        if not isinstance(name, str) or name.startswith(_RESERVED):
            raise NotCanonicalError(
                f"mapping key {name!r} is not usable: keys must be text and must not begin with '\\0'"
            )
        members[name] = kept
    if "path" in members and isinstance(mapping.get("bytes"), (bytes, bytearray, memoryview)):
        del members["path"]
    return members


def _plain_other(value: Any) -> Any:
    """The rarer types; exact built-in types never come here."""
    # Before Mapping: Arrow's struct scalars are mappings too, of further scalars.
    if isinstance(value, pa.Scalar):
        return plain(value.as_py())
    if isinstance(value, Mapping):
        return plain_members(value)
    if isinstance(value, np.ndarray):
        return _plain_array(value)
    if isinstance(value, np.generic):
        return _plain_array(np.asarray(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {_RESERVED + "bytes": _digest(bytes(value))}
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        return plain(value.to_pylist())
    if isinstance(value, torch.Tensor):
        return _plain_array(value.detach().cpu().numpy())
    if _is_pandas_missing(value):
        return None
    if _is_picture(value):
        return {_RESERVED + "image": _digest_of_picture(value)}
    if isinstance(value, (datetime.date, datetime.time, decimal.Decimal)):
        return {_RESERVED + "text": str(value)}
    if isinstance(value, os.PathLike):
        return plain(os.fspath(value))
    return _plain_subclass(value)


def _plain_subclass(value: Any) -> Any:
    """Subclasses of built-in types count as their content: named tuples, integer enumerations, deques."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Sequence):
        return [plain(element) for element in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return plain(float(value))
    raise NotCanonicalError(
        f"a value of type {type(value).__module__}.{type(value).__qualname__} has no canonical form: "
        "store it as text, a number, bytes, a list or a mapping"
    )


def _plain_array(array: np.ndarray) -> Any:
    if array.dtype.kind not in _ARRAY_KINDS:
        raise NotCanonicalError(
            f"an array of dtype {array.dtype} has no canonical form: store it as text or as numbers"
        )
    return plain(array.tolist())


def _is_pandas_missing(value: Any) -> bool:
    """pandas' own marks for a missing value, recognised without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and (value is pandas.NA or value is pandas.NaT)


def _is_picture(value: Any) -> bool:
    """Whether the value is a PIL image; where PIL was never imported, there can be none."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _digest_of_picture(picture: Any) -> str:
    header = [picture.mode, list(picture.size), picture.getpalette() if picture.mode == "P" else None]
    return _digest(_encode(header).encode("ascii") + picture.tobytes())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
