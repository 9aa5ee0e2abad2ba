"""Run a command under limits of time, silence and memory, and end everything that it started.

The command gets a session of its own. Ray, its workers and vLLM's processes put themselves into process groups of
their own, but all of them stay in that session, so it names exactly what this command started and nothing else.
Linux only, as the CPU builds of vLLM are.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["finished", "failed", "time limit", "silent", "memory limit"]
_PR_SET_PDEATHSIG = 1
SHARED_MEMORY = "/dev/shm/"
CLOCK_TICK_S = 0.01
"""File times are those of the kernel's last tick, which may be a little before the clock."""


@dataclass(frozen=True)
class CommandEnd:
    """How a supervised command ended. ``returncode`` is None where it had to be ended.

    ``peak_bytes`` is the most memory that was seen in use by the session at once, shared pages counted once; 0 where
    the command ended before the first look.
    """

    status: Status
    returncode: int | None
    seconds: float
    peak_bytes: int = 0


def supervise(
    command: Sequence[str],
    *,
    log_path: Path,
    env: Mapping[str, str],
    cwd: Path,
    time_limit_s: float,
    silence_limit_s: float,
    memory_limit_bytes: float = math.inf,
    on_text: Callable[[str], None] = lambda text: None,
    poll_s: float = 0.5,
    memory_poll_s: float = 15.0,
    grace_s: float = 15.0,
) -> CommandEnd:
    """Run ``command`` with its output in ``log_path`` until it ends or a limit is met.

    Args:
        time_limit_s: seconds that the command may take in all.
        silence_limit_s: seconds without new output after which it counts as hung.
        memory_limit_bytes: memory that its processes may use together, looked at every ``memory_poll_s`` seconds.
        on_text: called from this thread with each piece of new output.
        grace_s: seconds between asking its processes to end and ending them.

    Whatever happens here, an exception or Ctrl-C included, no process of the command is left, and no segment of
    shared memory that one of them was seen to use. If this process itself is killed, the kernel kills the command, and
    Ray's processes follow their driver within a minute.
    """
    started = time.monotonic()
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    last_output, status = started, None
    peak, next_look = 0, started
    segments = Segments(child.pid)
    try:
        with log_path.open("rb") as output:
            while status is None:
                ended = child.poll() is not None
                text = output.read()
                now = time.monotonic()
                if text:
                    last_output = now
                    on_text(text.decode("utf-8", errors="replace"))
                if not ended and now >= next_look:
                    next_look = now + memory_poll_s
                    peak = max(peak, session_memory(child.pid))
                    segments.look()
                status = _status(child, ended, now - started, now - last_output, time_limit_s, silence_limit_s)
                if status is None and peak > memory_limit_bytes:
                    status = "memory limit"
                if status is None:
                    time.sleep(poll_s)
    finally:
        returncode = child.poll()
        segments.look()
        end_session(child, grace_s=grace_s, before_killing=segments.look)
        segments.remove()
    return CommandEnd(status, returncode, time.monotonic() - started, peak)


def _status(
    child: subprocess.Popen[bytes], ended: bool, seconds: float, silent: float, limit: float, silence: float
) -> Status | None:
    if ended:
        return "finished" if child.returncode == 0 else "failed"
    if seconds > limit:
        return "time limit"
    return "silent" if silent > silence else None


def end_session(
    child: subprocess.Popen[bytes], *, grace_s: float, before_killing: Callable[[], None] = lambda: None
) -> None:
    """End every process in the session that ``child`` leads; the leader is asked first, so that it can clean up."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while session_members(child.pid) and time.monotonic() < deadline:
        child.poll()
        time.sleep(0.1)
    before_killing()
    # Members may start others while they are being ended.
    deadline = time.monotonic() + grace_s
    while (members := session_members(child.pid)) and time.monotonic() < deadline:
        for pid in members:
            _kill(pid)
        child.poll()
        time.sleep(0.05)


def session_members(session: int) -> list[int]:
    """Process ids of the living (not zombie) members of a session."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        # pid (command) state ppid pgrp session ...; the command may contain spaces and parentheses.
        state, _parent, _group, owner = stat.rpartition(")")[2].split()[:4]
        if int(owner) == session and state not in "ZX":
            members.append(int(entry.name))
    return members


class Segments:
    """Segments of shared memory (``/dev/shm``) that members of a session use, so that all can be removed.

    A process that is killed does not remove the segments that it made. ``look`` notes which ones are in use; ``remove``
    takes those away that are still there when the session is over, unless another process has them mapped.
    """

    def __init__(self, session: int) -> None:
        self._session, self._since = session, time.time()
        self._seen: dict[str, int] = {}

    def look(self) -> None:
        """Note what the living members have mapped, of what was made since the session began."""
        for pid in session_members(self._session):
            for path, inode in mapped_segments(pid).items():
                if path not in self._seen and _made_since(path, inode, self._since):
                    self._seen[path] = inode

    def remove(self) -> None:
        """Remove what was noted and has no user any more."""
        left = {path: inode for path, inode in self._seen.items() if _made_since(path, inode, self._since)}
        if not left:
            return
        used: set[str] = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                used |= mapped_segments(int(entry.name)).keys()
        for path in left.keys() - used:
            Path(path).unlink(missing_ok=True)


def mapped_segments(pid: int) -> dict[str, int]:
    """Path and inode of the shared memory that a process has mapped, as far as it still has a name."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended, or is somebody else's
        return {}
    found = {}
    for line in maps.splitlines():
        # address permissions offset device inode path
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(SHARED_MEMORY) and not fields[5].endswith(" (deleted)"):
            found[fields[5]] = int(fields[4])
    return found


def _made_since(path: str, inode: int, moment: float) -> bool:
    """Whether this segment has that inode and was made after that moment, by its ctime (Linux has nothing better)."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return found.st_ino == inode and found.st_ctime >= moment - CLOCK_TICK_S


def session_memory(session: int) -> int:
    """Bytes of memory that the members of a session use together.

    Each process counts its proportional share of pages that it shares with others, so that the object store and
    libraries, which every worker maps, are not counted once per worker.
    """
    return sum(_proportional_bytes(pid) for pid in session_members(session))


def _proportional_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
        return 0
    return 0  # a process that is ending has no memory left to report


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def die_with_parent() -> None:
    """For ``preexec_fn``: the kernel kills the child when the thread that started it ends."""
    ctypes.CDLL("libc.so.6", use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
