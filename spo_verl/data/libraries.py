"""`datasets` and pyarrow over files of users: which exceptions mean that a file is damaged, and what they say."""

from __future__ import annotations

import glob
from contextlib import suppress
from pathlib import Path

_BUILT_IN: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
    StopIteration,
)


def library_faults() -> tuple[type[Exception], ...]:
    """What `datasets` raises, directly or out of pyarrow, pandas and its hub client, over files that it cannot read.

    It documents none of this.
    """
    import datasets
    import pyarrow as pa

    faults = [*_BUILT_IN, datasets.exceptions.DatasetsError, pa.ArrowException]
    with suppress(ImportError):  # the hub's client uses it since version 1
        import httpx

        faults.append(httpx.HTTPError)
    return tuple(faults)


def told(error: BaseException) -> str:
    """What a library's error says, on one line and without what the library says about itself."""
    reason = error.__cause__ if isinstance(error.__cause__, Exception) else error
    text = " ".join(str(reason).split())
    return (text if len(text) <= 300 else f"{text[:297]}...") or type(reason).__name__


def literally(file: Path) -> str:
    """A path as `datasets` takes it: not as a pattern."""
    return glob.escape(str(file.absolute()))
