"""A checkpoint folder on disk: its manifest, its checksums, and how it appears at once or not at all.

Layout: some data files and ``manifest.json``. The folder is written under another name next to its place,
every file is synced, the manifest last, and a rename puts it in place: whoever finds the folder finds all of
it. What a killed writer leaves has a name that begins with a dot; the next write to the same place removes
it, reading ignores it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from spo_verl.errors import SpoCheckpointDamagedError, SpoCheckpointError, SpoCheckpointVersionError
from spo_verl.files import sync_folder
from spo_verl.tracker.arguments import LARGEST, is_whole, plain, shown

logger = logging.getLogger(__name__)

FORMAT = "spo_verl.tracker"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
READ_BYTES = 1 << 22

ADDED_LATER = frozenset({"clock", "readout"})
"""Fields of the manifest that are absent where they are empty."""

REMEDY = (
    "Nothing on disk was changed. Restore the folder from a copy, or resume from an earlier step with "
    "trainer.resume_mode=resume_path trainer.resume_from_path=<...>/global_step_<N>."
)


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds besides its own ``checksum`` (SHA-256 of the rest as canonical JSON).

    Attributes:
        format, format_version: ``spo_verl.tracker`` and an integer that rises when readers must change.
        spo_verl_version: version of the package that wrote it.
        step: training step.
        dataset: ``prompts`` and ``fingerprint`` (SHA-256 of the dataset's keys in slot order).
        settings: the tracker's settings.
        counts: ``rows``, ``aside``, ``stored_responses``, ``stored_tokens``, ``open``, ``recent``.
        counters: running totals since the first step.
        random: purpose -> state of its generator, integers as JSON integers.
        files: name -> ``bytes`` and ``sha256``.
        digest: of the state, see ``Snapshot.digest``.
        extra: what the caller saved along.
        clock: newest policy version or summed movement, where the forgetting mode counts one; otherwise the field is
            absent, as it is from older checkpoints.
        readout: ``sources``, ``coefficients``, ``version`` and, where there are any, ``features`` (name, mean,
            standard deviation) of the calibrated read-out; absent without one.
    """

    format: str
    format_version: int
    spo_verl_version: str
    step: int
    dataset: dict[str, Any]
    settings: dict[str, Any]
    counts: dict[str, int]
    counters: dict[str, int]
    random: dict[str, Any]
    files: dict[str, dict[str, Any]]
    digest: str
    extra: dict[str, Any]
    clock: dict[str, float] = field(default_factory=dict)
    readout: dict[str, Any] = field(default_factory=dict)

    def dumps(self) -> str:
        """The text of ``manifest.json``."""
        content = {name: value for name, value in asdict(self).items() if value or name not in ADDED_LATER}
        return json.dumps(content | {"checksum": checksum(content)}, indent=1, allow_nan=False) + "\n"


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its ``checksum``, keys sorted and no white space."""
    text = json.dumps(dict(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def damaged(folder: Path, name: str, what: str) -> SpoCheckpointDamagedError:
    """The error for a file that cannot be used."""
    return SpoCheckpointDamagedError(f"tracker checkpoint {folder}: {name} {what}. {REMEDY}")


def is_folder(path: Path) -> bool:
    """Whether there is a folder, links followed; raises OSError where one may not look."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise


def require_file(folder: Path, name: str, hence: str = "") -> None:
    """Raise :class:`SpoCheckpointDamagedError` unless this is a file: opening a pipe or device might never end."""
    comma = f", {hence}" if hence else ""
    try:
        mode = (folder / name).stat().st_mode
    except FileNotFoundError:
        raise damaged(folder, name, f"is missing{comma}") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise damaged(folder, name, f"is a symbolic link that leads to itself{comma}") from error
    if not stat.S_ISREG(mode):
        raise damaged(folder, name, f"is {'a folder' if stat.S_ISDIR(mode) else 'no file'}{comma}")


def identity(folder: Path) -> tuple[int, ...] | None:
    """What distinguishes a folder from another one that takes its place; None without a folder."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def replaced_beside(folder: Path) -> list[Path]:
    """Former checkpoints of this place that a writer has moved away: it is at work now, or it was killed."""
    try:
        return [path for path in _leftovers(folder) if path.name.startswith(_prefix(folder, "replaced"))]
    except OSError:
        return []


def _interrupted(folder: Path) -> str:
    former = replaced_beside(folder)
    return f" (a save was interrupted; the former one is {former[0]}, rename it back)" if former else ""


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest alone.

    Raises:
        SpoCheckpointError: there is no such folder.
        SpoCheckpointDamagedError: no manifest, not JSON, altered, or a field is missing.
        SpoCheckpointVersionError: a newer format, or fields that this version does not know.
    """
    if not is_folder(folder):
        raise SpoCheckpointError(f"there is no tracker checkpoint at {folder}{_interrupted(folder)}. {REMEDY}")
    content = _parse(folder)
    stated = content.pop("checksum", None)
    try:
        found = checksum(content)
    except RecursionError as error:
        raise damaged(folder, MANIFEST, "is nested too deep to be a manifest") from error
    if stated != found:
        raise damaged(folder, MANIFEST, "does not match its own checksum, so it was altered after it was written")
    known = {entry.name for entry in fields(Manifest)}
    unknown, missing = sorted(content.keys() - known), sorted(known - content.keys() - ADDED_LATER)
    if unknown:
        raise SpoCheckpointVersionError(
            f"tracker checkpoint {folder}: {MANIFEST} has fields that this version of spo_verl does not know "
            f"({', '.join(map(plain, unknown))}); it was written by spo_verl {shown(content.get('spo_verl_version'))}, "
            f"install that. {REMEDY}"
        )
    if missing:
        raise damaged(folder, MANIFEST, f"lacks the fields {', '.join(missing)}")
    for what in _wrong_types(content):
        raise damaged(folder, MANIFEST, what)
    return Manifest(**content)


def _is_count(given: object) -> bool:
    return is_whole(given) and 0 <= given <= LARGEST


def _wrong_types(content: Mapping[str, Any]) -> Iterator[str]:
    """What is not as :class:`Manifest` says, apart from the insides of settings, counters, random, clock, readout."""
    for name in ("spo_verl_version", "digest"):
        if not isinstance(content[name], str):
            yield f"has the {name} {shown(content[name])}, which is not text"
    if not _is_count(content["step"]):
        yield f"has the step {shown(content['step'])}, which is not a whole number >= 0"
    sections = ("dataset", "settings", "counts", "counters", "random", "files", "extra", *sorted(ADDED_LATER))
    for name in sections:
        if not isinstance(content.get(name, {}), dict):
            yield f"has a {name} that is not an object but {shown(content[name])}"
    required = {
        "dataset": ("prompts",),
        "counts": ("rows", "aside", "stored_responses", "stored_tokens", "open", "recent"),
        **{f"files/{name}": ("bytes",) for name in content["files"]},
    }
    for section, names in required.items():
        entries = content["files"][section[len("files/") :]] if section.startswith("files/") else content[section]
        for name in names:
            if not isinstance(entries, dict) or not _is_count(entries.get(name)):
                yield f"has no whole number >= 0 as {name} of {shown(section)}"
    for name, total in content["counters"].items():
        if not _is_count(total):
            yield f"has the counter {shown(name)} at {shown(total)}, which is not a whole number >= 0"
    if content["dataset"]["prompts"] + content["counts"]["aside"] != content["counts"]["rows"]:
        yield "has counts that contradict each other: rows is not prompts and aside together"


def _only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is beyond all floats")
    return number


def _parse(folder: Path) -> dict[str, Any]:
    require_file(folder, MANIFEST, "so the folder was never finished or was altered")
    try:
        text = (folder / MANIFEST).read_bytes().decode()
        content = json.loads(text, object_pairs_hook=_only_once, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors alike
        raise damaged(folder, MANIFEST, f"is not readable JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise damaged(folder, MANIFEST, f"is not the manifest of a tracker checkpoint (no format {FORMAT!r})")
    version = content.get("format_version")
    if not is_whole(version) or version < 1:
        raise damaged(folder, MANIFEST, f"has the format version {shown(version)}, which is not a positive integer")
    if version > FORMAT_VERSION:
        wrote = content.get("spo_verl_version")
        raise SpoCheckpointVersionError(
            f"tracker checkpoint {folder}: {MANIFEST} has format {shown(version)}, this version of spo_verl reads "
            f"up to {FORMAT_VERSION}; install spo_verl {wrote if isinstance(wrote, str) else shown(wrote)} or newer. "
            f"{REMEDY}"
        )
    return content


def verify_files(folder: Path, manifest: Manifest, expected: set[str], contents: set[str] | None = None) -> None:
    """Compare every data file with the manifest, all sizes first.

    Args:
        folder, manifest: the checkpoint.
        expected: names of the data files.
        contents: those whose content is compared too; None for all.

    Raises:
        SpoCheckpointDamagedError: names the first file that is missing or differs.
    """
    if set(manifest.files) != expected:
        raise damaged(folder, MANIFEST, f"lists {sorted(manifest.files)} instead of {sorted(expected)}")
    for name, entry in manifest.files.items():
        path = folder / name
        require_file(folder, name)
        if path.stat().st_size != entry["bytes"]:
            raise damaged(folder, name, f"has {path.stat().st_size} bytes instead of {entry['bytes']}")
    for name, entry in manifest.files.items():
        if contents is not None and name not in contents:
            continue
        found = _file_sha256(folder / name)
        if found != entry.get("sha256"):
            stated = shown(entry.get("sha256"))
            raise damaged(folder, name, f"has the checksum {found} instead of {stated}: its content changed")


def _file_sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            sha.update(block)
    return sha.hexdigest()


class HashingFile:
    """A file opened for writing that knows its size and SHA-256, and is synced when closed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._sha = hashlib.sha256()
        self.nbytes = 0

    def write(self, block: bytes) -> int:
        """Append; any object with the buffer protocol."""
        self._sha.update(block)
        self._file.write(block)
        size = memoryview(block).nbytes
        self.nbytes += size
        return size

    def flush(self) -> None:
        """Hand buffered bytes to the operating system."""
        self._file.flush()

    @property
    def closed(self) -> bool:
        """Whether the file has been closed."""
        return self._file.closed

    def close(self) -> None:
        """Sync and close."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    @property
    def entry(self) -> dict[str, Any]:
        """The file's entry in the manifest."""
        return {"bytes": self.nbytes, "sha256": self._sha.hexdigest()}

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def _prefix(target: Path, kind: str) -> str:
    return f".{target.name}.{kind}-"


def _leftovers(target: Path) -> Iterator[Path]:
    prefixes = tuple(_prefix(target, kind) for kind in ("writing", "replaced"))
    yield from (path for path in target.parent.iterdir() if path.name.startswith(prefixes))


def remove(path: Path) -> bool:
    """Delete a file, a link (not what it leads to) or a folder, write-protected or not; whether it is gone.

    What cannot be deleted is logged and stays: it is in nobody's way, as every writer takes a new name.
    """
    try:
        if path.is_symlink() or not is_folder(path):
            path.unlink(missing_ok=True)
            return True
        for parent, folders, _ in os.walk(path):
            for one in (parent, *(os.path.join(parent, name) for name in folders)):
                mode = os.lstat(one).st_mode
                if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
                    os.chmod(one, stat.S_IRWXU)
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("spo: %s cannot be deleted (%s) and stays; delete it by hand.", path, error)
        return False
    return True


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to ``target`` that takes its place when the block ends well.

    What is at ``target`` already (a step that is saved again because its first save was never acknowledged; or a
    file or link that somebody left there) is moved out of the way first and deleted last. A process that is killed at
    any moment leaves the old folder, the new folder or none at ``target``, and never a part of one. One writer per
    target at a time.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in list(_leftovers(target)):
        remove(path)
    token = uuid.uuid4().hex[:12]
    staging = target.with_name(_prefix(target, "writing") + token)
    replaced = target.with_name(_prefix(target, "replaced") + token)
    staging.mkdir()
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # the error that stopped the writing is the one to report
        raise
    sync_folder(staging)
    _publish(staging, target, replaced)


def _publish(staging: Path, target: Path, replaced: Path) -> None:
    """Rename ``staging`` to ``target``; what is there goes to ``replaced``, and back if that fails."""
    if os.path.lexists(target):
        os.rename(target, replaced)
    try:
        os.rename(staging, target)
    except OSError:
        if os.path.lexists(replaced):
            os.rename(replaced, target)
        raise
    sync_folder(target.parent)
    sync_folder(target.parent.parent)
    if os.path.lexists(replaced):
        remove(replaced)
