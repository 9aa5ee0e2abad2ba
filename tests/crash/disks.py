"""A disk of a run's own, which can be filled, made read-only, and made whole again.

Where this process may mount, it is a small tmpfs in a mount namespace of this process, so that nothing is left behind
when the process is killed. Elsewhere it is a folder: a full disk is then a limit on the size of files, which the
training process sees as an error of ``write`` as well, and a read-only one is a matter of permissions.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import time
from pathlib import Path

_CLONE_NEWNS, _MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 0x00020000, 1, 32, 16384, 1 << 18
ROOMY = 1 << 28
NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> bool:
    """Give this process mounts of its own; whether that is allowed here."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        return False
    return _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0


def _mount(path: Path, flags: int, size: int) -> None:
    options = f"size={size},mode=777".encode()
    if _libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", flags, options) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


class Mounted:
    """A tmpfs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        _mount(path, 0, ROOMY)

    def fill(self, pid: int, room: int) -> None:
        """Leave so many bytes."""
        found = os.statvfs(self.path)
        _mount(self.path, _MS_REMOUNT, (found.f_blocks - found.f_bfree) * found.f_frsize + room)

    def lock(self) -> None:
        """Make it read-only; waits until no file is open for writing."""
        give_up = time.monotonic() + 30
        while True:
            try:
                return _mount(self.path, _MS_REMOUNT | _MS_RDONLY, ROOMY)
            except OSError:
                if time.monotonic() > give_up:
                    raise

    def heal(self) -> None:
        _mount(self.path, _MS_REMOUNT, ROOMY)

    def remove(self) -> None:
        if _libc.umount2(os.fsencode(self.path), 2) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(self.path))
        self.path.rmdir()


class Plain:
    """A folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        path.chmod(0o777)

    def fill(self, pid: int, room: int) -> None:
        """No file of the process may become larger than this any more."""
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (room // 16, room // 16))

    def lock(self) -> None:
        self._allow(0o555)

    def heal(self) -> None:
        self._allow(0o777)

    def _allow(self, mode: int) -> None:
        for folder, _, _ in os.walk(self.path):
            os.chmod(folder, mode)

    def remove(self) -> None:
        shutil.rmtree(self.path)


def become_nobody() -> None:
    """Give up the rights of root, for which no folder is read-only."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
