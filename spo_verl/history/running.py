"""Runs that are under way on this machine, found without a list of them.

Two traces of a run are looked for among the processes that live: the command line of verl's trainer, which leads to the
run's folder and its ``record/run.json``; where there is none, the Ray clusters, which are asked for tracker services.
Neither leaves a trace.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from spo_verl.errors import SpoError
from spo_verl.history.observing import services_at
from spo_verl.history.places import find
from spo_verl.record.reading import Record

PROC = Path("/proc")
State = Literal["running", "ended", "crashed", "unknown"]
_TRAINER = re.compile(r"verl\.trainer\.main_ppo|main_ppo\.py")
_OVERRIDE = re.compile(r"\+{0,2}trainer\.(default_local_dir|project_name|experiment_name)=(.*)", re.DOTALL)
_NEAR = ("record", "*/record", "*/*/record", "checkpoints/*/*/record")
"""Where below its working directory a run's record is looked for, if its command line does not say."""
_SLACK_S = 10.0


@dataclass(frozen=True)
class Running:
    """A run: its folder and record where known, and its tracker service where that is known.

    Attributes:
        root: the run's folder; None for a run without a record.
        record: the run's; None without.
        address: of the Ray cluster, ``host:port``.
        name, namespace: of the tracker service.
    """

    root: Path | None
    record: Record | None
    address: str | None
    name: str
    namespace: str

    @property
    def label(self) -> str:
        return str(self.root) if self.root is not None else f"{self.namespace} at {self.address}"


def ray_token(running: Running) -> dict[str, str]:
    """Ray's authentication of the run's cluster, from the environment of its driver; {} where it cannot be read.

    A run may have a token of its own, which Ray keeps nowhere else. The system lets only the run's own user read it.
    """
    pid = None if running.record is None else running.record.run.get("pid")
    try:
        entries = (PROC / str(int(pid or 0)) / "environ").read_bytes().decode("utf-8", "replace").split("\0")
    except (OSError, ValueError):
        return {}
    return dict(entry.split("=", 1) for entry in entries if entry.startswith("RAY_AUTH_") and "=" in entry)


def running_at(path: Path) -> Running:
    """The run in a folder, whether it is under way or not.

    Raises:
        HistoryError: there is no run, or it has no record.
    """
    place = find(path)
    return _of_record(place.require_record())


def running_here() -> list[Running]:
    """The runs of this machine that are under way.

    Ray clusters are asked only where no record leads to a run: joining one takes seconds.
    """
    if found := {one.root: one for one in map(_of_record, _living_records())}:
        return list(found.values())
    addresses = sorted(_cluster_addresses())
    with ThreadPoolExecutor(max_workers=max(1, len(addresses))) as pool:
        services = list(pool.map(services_at, addresses))
    return [
        Running(None, None, address, one["name"], one["namespace"])
        for address, listed in zip(addresses, services, strict=True)
        for one in listed
    ]


def starting_here() -> list[dict[str, Any]]:
    """Trainers of this machine that live, for when none has a record yet.

    Returns:
        ``pid``; ``folder``, its working directory; ``values``, the file of offline values that it samples, None where
        its command line names none; ``parts``, the parts of them that are finished. Whether it uses SPO is not known:
        a file of its configuration may say so.
    """
    found = []
    for pid, words, here in _trainers():
        if not os.path.basename(words[0]).startswith("python"):
            continue  # what started it, as `timeout`, or an editor with the command in a file's name
        named = [word.partition("=")[2].strip("'\"") for word in words if word.startswith("spo.estimate.output=")]
        values = here / named[-1] if named and "${" not in named[-1] else None
        parts = len(list(values.with_name(f"{values.name}.parts").glob("part-*.parquet"))) if values else 0
        found.append({"pid": pid, "folder": here, "values": values, "parts": parts})
    return found


def state_of(run: dict[str, Any]) -> State:
    """Whether the process of a run's latest start lives; ``unknown`` where that was on another machine."""
    if run.get("ended"):
        return "ended"
    if run.get("host") != socket.gethostname():
        return "unknown"
    return "running" if _lives(run.get("pid"), _started(run)) else "crashed"


def _of_record(record: Record) -> Running:
    run = record.run
    service, address = run.get("tracker"), run.get("ray_address")
    known = service if isinstance(service, dict) else {}
    name, namespace = str(known.get("name") or ""), str(known.get("namespace") or "")
    return Running(record.path.parent, record, str(address) if address else None, name, namespace)


def _living_records() -> Iterator[Record]:
    """Records whose run is under way in a process of this machine."""
    seen = set()
    for folder in _run_folders():
        path = Path(os.path.realpath(folder))
        if path in seen:
            continue
        seen.add(path)
        try:
            record = Record.open(path)
            if state_of(record.run) == "running":
                yield record
        except SpoError:  # no record, or none that can be read: a run that is looked for does not stop the others
            continue


def _trainers() -> Iterator[tuple[int, list[str], Path]]:
    """Process id, command line and working directory of each process of verl's trainer on this machine."""
    for pid in _pids():
        try:
            words = (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            here = Path(os.readlink(PROC / str(pid) / "cwd"))
        except OSError:  # it has ended, or belongs to another user
            continue
        if any(_TRAINER.search(word) for word in words):
            yield pid, words, here


def _run_folders() -> Iterator[Path]:
    """Folders that runs of verl's trainer on this machine write to, or may write to."""
    for _, words, here in _trainers():
        named = {found[1]: found[2].strip("'\"") for word in words if (found := _OVERRIDE.fullmatch(word))}
        if "${" not in (folder := named.get("default_local_dir", "${")):
            yield here / folder
        project, experiment = named.get("project_name", "*"), named.get("experiment_name", "*")
        for pattern in (*_NEAR, f"checkpoints/{project}/{experiment}/record"):
            yield from (path.parent for path in here.glob(pattern.lstrip("/")))


def _cluster_addresses() -> set[str]:
    """Addresses of the Ray clusters that have a node here, from the command lines of their raylets."""
    found = set()
    for pid in _pids():
        try:
            words = (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if os.path.basename(words[0]) == "raylet":
            found |= {word.partition("=")[2] for word in words if word.startswith("--gcs-address=")}
    return found


def _pids() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(PROC) if name.isdigit())
    except OSError:  # not Linux
        return []


def _started(run: dict[str, Any]) -> float | None:
    """Time of the latest start, seconds since the epoch."""
    starts = run.get("starts")
    latest = starts[-1] if isinstance(starts, list) and starts else {}
    try:
        return datetime.fromisoformat(str(latest.get("time") if isinstance(latest, dict) else "")).timestamp()
    except (ValueError, OverflowError):
        return None


def _lives(pid: Any, started: float | None) -> bool:
    """Whether a process of this number lives that began before the run said so: numbers are given again."""
    try:
        status = (
            (PROC / str(int(pid)) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        booted = next(
            int(line.split()[1]) for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime ")
        )
    except (OSError, ValueError, TypeError, StopIteration):
        return False
    began = booted + int(status[19]) / os.sysconf("SC_CLK_TCK")
    return status[0] not in "ZX" and (started is None or began <= started + _SLACK_S)
