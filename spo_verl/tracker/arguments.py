"""Arguments of the tracker's verbs, checked and converted before anything is changed.

Callers are programs of others, and a value that is taken today is state tomorrow: a version of 1.5 would only fail when
an outcome of it arrives, a uid that is no UTF-8 when the checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl.errors import SpoStateError

LARGEST = int(np.iinfo(np.int64).max)
"""Largest version, step or session that the columns hold."""


def shown(given: object) -> str:
    """A value for a message: short, and printable whatever it holds."""
    try:
        text = ascii(given)
    except Exception:  # noqa: BLE001 - nested too deep, too many digits, a __repr__ that fails: the type has to do
        text = f"<{type(given).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain(name: str) -> str:
    """A name for a message, quoted where it might not print."""
    return name if name.isidentifier() and name.isascii() else shown(name)


def is_whole(given: object) -> TypeGuard[int]:
    """Whether it is an integer of Python or numpy; True, False and 3.0 are not."""
    return isinstance(given, (int, np.integer)) and not isinstance(given, bool)


def checked_whole(name: str, given: Any, *, least: int = 0, most: int = LARGEST) -> int:
    """A whole number within bounds, as an int; raises :class:`SpoStateError` for anything else."""
    if not is_whole(given) or not least <= int(given) <= most:
        raise SpoStateError(f"{name} {shown(given)} is not a whole number from {least} to {most}.")
    return int(given)


def checked_version(given: Any) -> int:
    """A policy version as an int; raises :class:`SpoStateError` for anything else."""
    if is_whole(given) and given < 0:
        raise SpoStateError(f"policy version {shown(given)} is negative; count versions from 0.")
    return checked_whole("policy version", given)


def checked_uids(given: Any, verb: str) -> list[str]:
    """Uids as a list; raises :class:`SpoStateError` unless they are strings that can be saved (UTF-8).

    Any iterable will do except a single string and a mapping, which are slips.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise SpoStateError(f"{verb}: uids are {shown(given)}; pass a list of strings.")
    try:
        uids = list(given)
    except TypeError as error:  # a numpy array without an axis
        raise SpoStateError(f"{verb}: uids are {shown(given)}; pass a list of strings.") from error
    kinds = set(map(type, uids))
    for kind in kinds:
        if not issubclass(kind, str):
            wrong = next(uid for uid in uids if type(uid) is kind)
            raise SpoStateError(f"{verb}: uid {shown(wrong)} is a {kind.__name__}; pass strings.")
    try:
        "".join(uids).encode()
    except UnicodeEncodeError as error:
        raise SpoStateError(f"{verb}: uid {shown(error.object)} cannot be saved as UTF-8; pass valid text.") from error
    return uids if kinds <= {str} else [str(uid) for uid in uids]


def as_array(name: str, given: ArrayLike) -> NDArray[Any]:
    """An array of anything that numpy takes; raises :class:`SpoStateError` for the rest."""
    try:
        return np.asarray(given)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # ragged, not on this device, ...
        raise SpoStateError(f"{name} cannot be read as an array ({error}); pass numbers.") from error


def as_floats(name: str, given: ArrayLike) -> NDArray[np.float64]:
    """A new float64 array; raises :class:`SpoStateError` for what is not real numbers, such as text or None."""
    array = as_array(name, given)
    if array.dtype.kind not in "biuf":
        raise SpoStateError(f"{name} has type {array.dtype}; pass floats.")
    with np.errstate(over="ignore"):  # a longer float: infinite is judged by its reader
        return array.astype(np.float64)


def as_integers(name: str, given: ArrayLike) -> NDArray[np.int64]:
    """A new int64 array; raises :class:`SpoStateError` for what is not integers, or beyond int64."""
    array = as_array(name, given)
    if array.size == 0:
        return np.zeros(array.shape, dtype=np.int64)  # an empty list has no integer type of its own
    if array.dtype.kind not in "iu":
        raise SpoStateError(f"{name} has type {array.dtype}; pass integers.")
    if array.dtype.kind == "u" and array.max() > LARGEST:
        raise SpoStateError(f"{name} holds {array.max()}, which is beyond {LARGEST}.")
    return array.astype(np.int64)
