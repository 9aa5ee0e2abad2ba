"""Disk, shared memory and memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from spo_verl.cli.health.findings import Finding, Status

GROUP = "machine"
GB = 1e9

SHM = Path("/dev/shm")
_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def resources() -> Iterator[Finding]:
    """What a run needs of the machine apart from its accelerators."""
    here = Path.cwd()
    yield disk_finding(
        "disk, here", here, "checkpoints go to trainer.default_local_dir (./checkpoints): put it elsewhere"
    )
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    yield disk_finding("disk, Ray", temporary, "Ray writes logs and spilled objects here: set RAY_TMPDIR or make room")
    yield shared_memory_finding(SHM)
    yield memory_finding(available_memory())


def disk_finding(name: str, folder: Path, fix: str) -> Finding:
    """Free space of the file system of a folder."""
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GB:.0f} GB free of {usage.total / GB:.0f} GB ({folder})"
    status: Status = "fail" if usage.free < 1 * GB else "warn" if usage.free < 10 * GB else "ok"
    return Finding(GROUP, name, status, found, "" if status == "ok" else fix)


def shared_memory_finding(folder: Path) -> Finding:
    """Ray's object store and verl's weight transfer between processes live in shared memory."""
    if not folder.is_dir():
        return Finding(GROUP, "shared memory", "warn", f"no {folder}", "mount a tmpfs there; Ray is slow without it")
    usage = shutil.disk_usage(folder)
    left = [path for path in folder.glob("psm_*") if path.is_file()]
    found = f"{usage.free / GB:.1f} GB free of {usage.total / GB:.1f} GB ({folder})"
    if left:
        # Of a sparse file, only the blocks that were written take memory.
        size = sum(path.stat().st_blocks * 512 for path in left)
        found += f"; {len(left)} segments psm_* of present or ended runs hold {size / 1e6:.0f} MB"
    if usage.free >= 1 * GB:
        return Finding(GROUP, "shared memory", "ok", found)
    fix = f"give a container more (docker run --shm-size=8g); when no run is active, delete {folder}/psm_*"
    return Finding(GROUP, "shared memory", "warn", found, fix)


def memory_finding(nbytes: int | None) -> Finding:
    """Memory that new processes could get."""
    if nbytes is None:
        return Finding(GROUP, "memory", "warn", "unknown: no /proc/meminfo", "run on Linux")
    found = f"{nbytes / GB:.1f} GB available"
    if nbytes < 8 * GB:
        fix = "a run with a very small model on a CPU takes about 7 GB; end other processes or raise the limit"
        return Finding(GROUP, "memory", "warn", found, fix)
    return Finding(GROUP, "memory", "ok", found)


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that the kernel could give to new processes, within the limit of this container if it has one."""
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return None
    return min(int(lines["MemAvailable"].split()[0]) * 1024, *_container_memory(), key=int)


def _container_memory() -> Iterator[int]:
    for limit, used, statistics in _CGROUP_LIMITS:
        if all(Path(path).exists() for path in (limit, used, statistics)):
            most = Path(limit).read_text().strip()
            if most.isdigit():
                # File pages that nobody uses count as used, and are given up when memory is needed.
                lines = dict(line.split(None, 1) for line in Path(statistics).read_text().splitlines())
                yield int(most) - int(Path(used).read_text()) + int(lines.get("inactive_file", 0))
    yield 1 << 62
