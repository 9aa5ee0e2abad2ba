"""Files that users name, read and written: whatever is wrong with one becomes one message with file, row and remedy.

Every function takes the class of the error that it raises, so that each room keeps its own. JSON is read strictly as
UTF-8 (a byte order mark is allowed), one object per line in ``.jsonl`` files; Parquet by pyarrow.
"""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from spo_verl.errors import SpoError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Raises = Callable[[str], SpoError]
"""The class of the error, e.g. ``SpoValuesError``."""

MOST_LEVELS = 100
"""Nesting that is accepted in JSON: far more than data have, far less than Python's stack allows."""

_UTF8_MARK = b"\xef\xbb\xbf"
_ROWS_PER_BATCH = 256

_STRANGE = {
    b"\x1f\x8b": "compressed with gzip: unpack it with gunzip first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it with unzstd first",
    b"BZh": "compressed with bzip2: unpack it with bunzip2 first",
    b"\xfd7zXZ": "compressed with xz: unpack it with unxz first",
    b"PK\x03\x04": "a ZIP archive: unpack it first",
    b"PAR1": "a Parquet file: let its name end with .parquet",
    b"ARROW1": "an Arrow file: convert it to Parquet",
    b"\xff\xfe\x00\x00": "text in UTF-32: convert it with `iconv -f UTF-32 -t UTF-8`",
    b"\x00\x00\xfe\xff": "text in UTF-32: convert it with `iconv -f UTF-32 -t UTF-8`",
    b"\xff\xfe": "text in UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "text in UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`",
}
"""First bytes -> what a file is that should be UTF-8 text."""


def require_file(path: Path, error: Raises) -> None:
    """Refuse what is no regular file: nothing there, a folder, a broken link, a device, a pipe.

    Raises:
        error: says which.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise error(f"{path} is a link to something that is not there: correct it, or name the file") from None
        raise error(f"there is no file {path.absolute()}: check the path") from None
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read ({_told(reason)}): check the path and who may read it") from reason
    if stat.S_ISDIR(mode):
        raise error(f"{path} is a folder: name a file in it")
    if not stat.S_ISREG(mode):
        raise error(f"{path} is no regular file but a device, a pipe or a socket: copy its content into a file first")


def require_rows(path: Path, error: Raises) -> None:
    """Read a JSON file of rows once, strictly, before a library does; of a Parquet file only that there is something.

    Libraries that read JSON guess at encodings, tell no row, and some end the process over rows that are no objects.

    Args:
        path: One object per line, or one list of objects.
        error: What is raised.

    Raises:
        error: names file and row.
    """
    with opened(path, error) as file:
        start = file.read(4096)
    if not start:
        raise error(f"{path} is empty: was its writer stopped?")
    if path.suffix == ".parquet":
        return
    rows: Iterable[tuple[int, Any]]
    if start.removeprefix(_UTF8_MARK).lstrip()[:1] == b"[":
        rows, noun = enumerate(read_json(path, error)), "row"
    else:
        rows, noun = read_json_lines(path, error), "line"
    some = False
    for number, row in rows:
        some = True
        if not isinstance(row, dict):
            raise error(f"{path}, {noun} {number}: {str(row)[:40]!r} instead of a JSON object: each row is one")
    if not some:
        raise error(f"{path} holds no row: was its writer stopped?")


@contextmanager
def opened(path: Path, error: Raises) -> Iterator[IO[bytes]]:
    """A regular file, open for reading bytes.

    Raises:
        error: it cannot be opened, or reading fails later.
    """
    require_file(path, error)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as reason:
        raise error(f"{path} cannot be read ({_told(reason)}): check who may read it, and its disk") from reason


@contextmanager
def content_faults(path: Path, error: Raises, remedy: str) -> Iterator[None]:
    """Turn what Python raises over content of another form (a missing name, another type) into one message.

    For files that this project writes and reads again.

    Raises:
        error: names the file, the reason and the remedy.
    """
    try:
        yield
    except SpoError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as reason:
        missing = f"it has no {reason}" if isinstance(reason, KeyError) else _told(reason)
        raise error(f"{path} is not as it was written ({missing}): {remedy}") from reason


def text_lines(path: Path, error: Raises, *, finished: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, from 1; lines of white space are left out.

    Args:
        path: The file.
        error: What is raised.
        finished: Leave out a last line without an end, which is still being written.

    Raises:
        error: the file cannot be read or a line is not UTF-8; names the line.
    """
    with opened(path, error) as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                _require_text(raw, path, error)
                raw = raw.removeprefix(_UTF8_MARK)
            if finished and not raw.endswith(b"\n"):
                return
            line = _decoded(raw, f"{path}, line {number}", error)
            if line.strip():
                yield number, line


def read_json_lines(path: Path, error: Raises, *, finished: bool = False) -> Iterator[tuple[int, Any]]:
    """What each line of a JSON-lines file holds, with the line's number; ``finished`` as for :func:`text_lines`.

    Raises:
        error: a line is not UTF-8 or no JSON; names the line.
    """
    for number, line in text_lines(path, error, finished=finished):
        yield number, parse_json(line, f"{path}, line {number}", error)


def read_json(path: Path, error: Raises) -> Any:
    """What a JSON file holds.

    Raises:
        error: it cannot be read, is empty, not UTF-8 or no JSON.
    """
    with opened(path, error) as file:
        raw = file.read()
    if not raw.strip():
        raise error(f"{path} is empty: was its writer stopped?")
    _require_text(raw, path, error)
    return parse_json(_decoded(raw.removeprefix(_UTF8_MARK), str(path), error), str(path), error)


def read_yaml(path: Path, error: Raises) -> Any:
    """What a YAML file holds, read as hydra does: no tags of Python, no name twice, interpolations not resolved.

    Raises:
        error: it cannot be read, is not UTF-8 or no YAML.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for _ in text_lines(path, error):  # strictly UTF-8, which YAML's reader is not
        pass
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except RecursionError as reason:
        raise error(f"{path}: not readable YAML (nested too deep): correct it") from reason
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, LookupError, AttributeError, OSError) as reason:
        raise error(f"{path}: not readable YAML ({_told(reason)}): correct it") from reason


def parse_json(text: str, where: str, error: Raises) -> Any:
    """Parse JSON. NaN and Infinity, which Python writes, are read; a name that is in an object twice is refused.

    Raises:
        error: begins with ``where``.
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as reason:
        why = f"nested more than {MOST_LEVELS} levels deep" if isinstance(reason, RecursionError) else str(reason)
        if "integer string conversion" in why:
            why = "a whole number of more than 4300 digits"
        raise error(f"{where}: not readable JSON ({why}); was its writer stopped, or is it another format?") from reason
    if text.count("[") + text.count("{") > MOST_LEVELS and _levels(found) > MOST_LEVELS:
        raise error(f"{where}: not readable JSON (nested more than {MOST_LEVELS} levels deep); correct this row")
    return found


def parquet_rows(path: Path, columns: Sequence[str] | None, error: Raises) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 0) and values of each row of a Parquet file, in batches.

    Args:
        path: The file.
        columns: The only columns to read, where they are there; None reads all.
        error: What is raised.

    Raises:
        error: the file is no Parquet file or damaged, or a column is there twice; names the row that was reached.
    """
    with parquet_file(path, error) as file:
        number = 0
        present = file.schema_arrow.names
        wanted = None if columns is None else [name for name in present if name in columns]
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=wanted):
            for row in batch.to_pylist():
                yield number, row
                number += 1


@contextmanager
def parquet_file(path: Path, error: Raises) -> Iterator[pq.ParquetFile]:
    """A Parquet file, opened; also turns what its reading raises later into one message.

    Raises:
        error: it is no Parquet file, or damaged, or a column is there twice.
    """
    import pyarrow.parquet as pq

    # Opened here: pyarrow would take a name with a colon for an address.
    with opened(path, error) as raw, parquet_faults(path, error):
        if not raw.read(1):
            raise error(f"{path} is empty: was its writer stopped?")
        file = pq.ParquetFile(raw)
        names = file.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise error(f"{path} has the column {', '.join(twice)} twice: keep one of each name")
        yield file


def parquet_reasons() -> tuple[type[Exception], ...]:
    """What pyarrow raises over files that are damaged or hold values that Python has not."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError, RuntimeError)


@contextmanager
def parquet_faults(path: Path, error: Raises) -> Iterator[None]:
    """Turn what pyarrow raises over a file into one message."""
    try:
        yield
    except SpoError:
        raise
    except parquet_reasons() as reason:
        raise error(
            f"{path} cannot be read as Parquet ({_told(reason)}): restore it from a copy, or make it again"
        ) from reason


def check_output(path: Path, error: Raises, *, inputs: Iterable[Path] = (), makes_folders: bool = True) -> None:
    """Refuse a file that could not be written, before anything is computed for it.

    Args:
        path: The file to write; it may be there already.
        error: What is raised.
        inputs: Files that are read, which the output must not replace.
        makes_folders: Whether folders on the way are made.

    Raises:
        error: a folder, a device, a place below a file, a folder that may not be written to, or one of the inputs.
    """
    for source in inputs:
        if _same(path, source):
            raise error(f"{path} is read too and would be replaced: name another file to write")
    if os.path.islink(path) and not os.path.exists(path):
        raise error(f"{path} is a link to something that is not there: correct the link, or name another file")
    if os.path.isdir(path):
        raise error(f"{path} is a folder: name a file, e.g. {path}/{_example(path)}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise error(f"{path} is a device, a pipe or a socket, which would be replaced: name a file")
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be written ({_told(reason)}): name another file") from reason
    above = path.absolute().parent
    while makes_folders and not os.path.lexists(above):
        above = above.parent
    if not os.path.isdir(above):
        raise error(f"{path} cannot be written ({above} is no folder): name a file in a folder that is there")
    if not os.access(above, os.W_OK | os.X_OK):
        raise error(f"{path} cannot be written ({above} does not allow it): name a file in a folder that you may use")


@contextmanager
def writing(path: Path, error: Raises) -> Iterator[None]:
    """Turn what the system says against writing into one message.

    Raises:
        error: names the file and the reason.
    """
    try:
        yield
    except (OSError, ValueError) as reason:
        if isinstance(reason, SpoError):
            raise
        raise error(
            f"{path} cannot be written ({_told(reason)}): name a file in a folder that is there, that you may write to "
            "and that has room"
        ) from reason


@contextmanager
def replacing(path: Path, error: Raises) -> Iterator[Callable[[], Path]]:
    """Yield a function that names a new temporary file next to the target; the last one named becomes the target.

    All of it, or nothing: on an error every temporary file is removed and the target is what it was. Folders on the
    way are made.

    Raises:
        error: it cannot be written.
    """
    staged: list[Path] = []

    def stage() -> Path:
        # Not the whole name: with what is added it could be longer than a name may be.
        staged.append(path.with_name(f".{path.name[:64]}.writing-{uuid.uuid4().hex[:12]}"))
        return staged[-1]

    check_output(path, error)
    try:
        with writing(path, error):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield stage
            with staged[-1].open("rb") as file:
                os.fsync(file.fileno())
            os.replace(staged[-1], path)
            sync_folder(path.parent)
    finally:
        for name in staged:
            name.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder: what was renamed there stays renamed after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there
        return False


def _example(path: Path) -> str:
    return path.name if path.suffix else "file.parquet"


def _require_text(start: bytes, path: Path, error: Raises) -> None:
    for mark, meaning in _STRANGE.items():
        if start.startswith(mark):
            raise error(f"{path} is {meaning}")


def _decoded(raw: bytes, where: str, error: Raises) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as reason:
        if reason.reason == "unexpected end of data" and reason.end == len(raw):
            raise error(
                f"{where}: the file ends inside a character: was its writer stopped? Remove the line, or write it again"
            ) from reason
        raise error(
            f"{where}: byte 0x{raw[reason.start]:02x} after {reason.start} others is no UTF-8: convert the file, e.g. "
            "with `iconv -f LATIN1 -t UTF-8`"
        ) from reason


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} is in one object twice")
    return found


def _levels(value: Any) -> int:
    """How deep lists and objects are nested, without recursion."""
    levels, layer = 0, [value]
    while layer:
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        levels += any(isinstance(one, (dict, list)) for one in layer)
        layer = [one for one in inner if isinstance(one, (dict, list))]
    return levels


def _told(reason: BaseException) -> str:
    """What an error says, on one line."""
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    text = " ".join(text.split())
    return (text if len(text) <= 300 else f"{text[:297]}...") or type(reason).__name__
