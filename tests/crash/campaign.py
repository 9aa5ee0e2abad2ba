"""Runs that meet what is planned, one training process after the other, and what was found afterwards."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash import disks, journal, judging, plan, process
from tests.crash.ledger import ProcessCase, add_processes, read_processes
from tests.crash.marker import follow_advice, marked
from tests.crash.plan import Incident, Shape
from tests.crash.process import MAIN, RECORD, TRACKER, Phases

PATIENCE = 60.0
"""Seconds in which a process must have begun to train, or ended with an error."""
SPAN = 0.25
"""Seconds of training within which something happens."""
ROOM = 150_000
"""Bytes that a full disk leaves at most."""
MANY = 2000
"""Steps, more than any process lives to make."""
DISKS = ("full disk", "read-only", "read-only start")


@dataclass
class Process:
    """A training process that has ended, or is about to."""

    pid: int
    status: int | None = None
    began: float | None = None
    seconds: float = 0.0


@dataclass
class Campaign:
    """The runs of one seed.

    Attributes:
        seed: of everything.
        home: where runs and their journals are.
        mounts: whether a run gets a disk of its own.
        kept: where a run with a problem is copied.
    """

    seed: int
    home: Path
    mounts: bool
    kept: Path | None = None
    phases: Phases = field(default_factory=Phases)

    def run(self, number: int, cases: int = plan.PER_RUN) -> list[ProcessCase]:
        """One run from its first process to its end."""
        shape, incidents = plan.run(self.seed, number)
        disk = (disks.Mounted if self.mounts else disks.Plain)(self.home / f"run{number}")
        self._lines, self._log = self.home / f"run{number}.journal", self.home / f"run{number}.log"
        found = []
        try:
            for place, incident in enumerate(incidents[:cases]):
                shape, case = self._case(number, place, shape, incident, disk)
                found.append(case)
                if case.problems:
                    break
            else:
                found[-1].problems = "; ".join(self._finished(shape, disk))
            if self.kept is not None and found[-1].problems:
                shutil.copytree(disk.path, self.kept / disk.path.name, dirs_exist_ok=True)
                for path in (self._lines, self._log):
                    shutil.copy(path, self.kept)
        finally:
            disk.remove()
            self._lines.unlink(missing_ok=True)
            self._log.unlink(missing_ok=True)
        return found

    # ------------------------------------------------------------------ one case

    def _case(
        self, run: int, place: int, shape: Shape, incident: Incident, disk: disks.Mounted
    ) -> tuple[Shape, ProcessCase]:
        folder, begun_at = disk.path, marked(disk.path) or 0
        started = plan.changed(shape, incident.kind, incident.seed)
        if incident.kind == "read-only start":
            disk.lock()
        earlier = len(journal.read(self._lines))
        one = self._start(started, folder, incident, MANY)
        self._meet(one, incident, disk)
        hit = self._where()
        lines = journal.read(self._lines)
        error = lines[-1] if len(lines) > earlier and lines[-1][0] == "error" else None
        found = list(self._verdict(one, incident, error, begun_at, started != shape))
        disk.heal()
        step = marked(folder)
        if step is None:
            found += self._torn(shape, folder)
            step = marked(folder) or 0
        if not found:
            found += judging.problems(folder, lines, shape, step)
        if "recording ends" in self._log.read_text():
            found.append("recording ended")
        case = ProcessCase(
            run=run,
            case=place,
            kind=incident.kind,
            hit=hit,
            end="killed" if error is None else error[1],
            step=step,
            lost=max(0, journal.newest(journal.surviving(lines)) - step),
            seconds=round(one.seconds, 2),
            problems="; ".join(found),
        )
        # Without a checkpoint there is nothing that another number of ranks contradicts.
        keeps = incident.kind == "other ranks" and begun_at > 0
        return (shape if keeps else started), case

    def _start(self, shape: Shape, folder: Path, incident: Incident | None, last: int) -> Process:
        self.phases.clear()
        begin = time.monotonic()
        prepare = (lambda: None) if self.mounts else disks.become_nobody
        pid = os.fork()
        if pid == 0:
            process.main(shape, folder, self._lines, self._log, incident, self.phases, last, prepare)
        one = Process(pid)
        while self._alive(one) and self.phases.get(MAIN) in ("before", "start"):
            if time.monotonic() > begin + PATIENCE:
                os.kill(pid, signal.SIGKILL)
                self._wait(one, PATIENCE)
                return one
            time.sleep(0.001)
        if self.phases.get(MAIN) not in ("before", "start"):
            one.began = time.monotonic()
        one.seconds = time.monotonic() - begin
        return one

    def _meet(self, one: Process, incident: Incident, disk: disks.Mounted) -> None:
        """Until the process has ended."""
        kind, waits = incident.kind, SPAN
        if kind in process.KILLED_IN or kind == "kill at marker":
            waits = 3.0
            self._wait(one, waits)
        elif kind in ("full disk", "read-only"):
            self._wait(one, SPAN * incident.moment)
            if self._alive(one):
                if kind == "full disk":
                    disk.fill(one.pid, int(ROOM * (incident.delay * 250 or incident.moment)))
                else:
                    disk.lock()
            self._take(one, PATIENCE)
        elif kind == "read-only start" and incident.passed == 0:
            self._take(one, PATIENCE)
        else:
            if kind == "read-only start":
                self._wait(one, 0.02)
                disk.heal()
            if kind == "clock jump":
                self._wait(one, SPAN * incident.moment / 2)
                process.touch(disk.path, incident.jump, incident.seed)
            self._wait(one, SPAN * incident.moment)
        if self._alive(one):
            os.kill(one.pid, signal.SIGKILL)
            self._wait(one, PATIENCE)

    def _take(self, one: Process, seconds: float) -> None:
        """Wait for an end that is to come by itself, and note how long it took."""
        begin = time.monotonic()
        self._wait(one, seconds)
        one.seconds += time.monotonic() - begin

    def _verdict(
        self, one: Process, incident: Incident, error: journal.Line | None, step: int, changed: bool
    ) -> Iterator[str]:
        """Whether the process ended as it should have."""
        refuses = incident.kind == "other ranks" and step > 0
        if refuses and (error is None or "training processes" not in error[2]):
            yield f"another number of ranks was not refused: {error}"
        elif refuses:
            return
        elif one.status == -signal.SIGKILL:
            if one.began is None and incident.kind != "kill at start":
                yield f"it had not begun to train after {one.seconds:.0f} s"
            if incident.kind in ("full disk", "read-only") and one.seconds > PATIENCE:
                yield f"it did not end within {PATIENCE:.0f} s"
        elif error is None or incident.kind not in DISKS or not _clear(error):
            yield f"it ended with status {one.status}: {error}"

    def _torn(self, shape: Shape, folder: Path) -> Iterator[str]:
        """A marker that names no step is refused with an advice, and the advice helps."""
        one = self._start(shape, folder, None, 1)
        self._wait(one, PATIENCE)
        error = journal.read(self._lines)[-1]
        if one.status != process.STOPPED or "instead of a step" not in error[2]:
            yield f"a torn marker is not refused: {error}"
        follow_advice(folder)

    def _finished(self, shape: Shape, disk: disks.Mounted) -> Iterator[str]:
        """After all that, some steps to the end."""
        step = marked(disk.path) or 0
        one = self._start(shape, disk.path, None, 2 * shape.save_freq + 1)
        self._wait(one, PATIENCE)
        lines = journal.read(self._lines)
        if one.status != process.ENDED:
            yield f"it did not end well: {lines[-1]}"
            return
        last = step + 2 * shape.save_freq + 1
        if marked(disk.path) != last:
            yield f"the last marker is {marked(disk.path)} instead of {last}"
        else:
            yield from judging.problems(disk.path, lines, shape, last)

    # ------------------------------------------------------------------ processes

    def _alive(self, one: Process) -> bool:
        if one.status is None:
            pid, status = os.waitpid(one.pid, os.WNOHANG)
            if pid:
                one.status = os.waitstatus_to_exitcode(status)
        return one.status is None

    def _wait(self, one: Process, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._alive(one) and time.monotonic() < end:
            time.sleep(0.001)

    def _where(self) -> str:
        busy = [f"{name} {of.get(which)}" for name, which, of in self._threads() if of.get(which) != "idle"]
        return ", ".join([self.phases.get(MAIN), *busy])

    def _threads(self) -> list[tuple[str, tuple[str, ...], Phases]]:
        return [("tracker", TRACKER, self.phases), ("record", RECORD, self.phases)]


def _clear(error: journal.Line) -> bool:
    """Whether an error says what was wrong; what verl's part of a save raises says it in verl's words."""
    name, text = error[1:3]
    if name.startswith("Spo"):
        return len(text) > 40
    words = ("No space left", "Read-only file system", "Permission denied", "File too large", "PytorchStreamWriter")
    return any(word in text for word in words)


# ---------------------------------------------------------------------- all of it


def campaign(
    seed: int, cases: int, *, ledger: Path | None = None, only: int | None = None, mounts: bool = True,
    kept: Path | None = None,
) -> Iterator[list[ProcessCase]]:  # fmt: skip
    """The cases of a campaign, a run's at a time; those in the ledger are left out.

    Args:
        seed: of the campaign.
        cases: how many.
        ledger: file of lines; continued.
        only: the number of the only run.
        mounts: try to give runs a disk of their own.
        kept: where a run with a problem is copied.
    """
    done = {case.run for case in read_processes(ledger)} if ledger is not None else set()
    mounts = mounts and disks.own_mounts()
    home = Path(tempfile.mkdtemp(prefix="crash-"))
    home.chmod(0o777)
    gc.freeze()  # what is here already is not copied to each process
    try:
        for number in range(-(-cases // plan.PER_RUN)) if only is None else [only]:
            if number not in done:
                found = Campaign(seed, home, mounts, kept).run(number, min(plan.PER_RUN, cases - number * plan.PER_RUN))
                if ledger is not None:
                    add_processes(ledger, found)
                yield found
    finally:
        shutil.rmtree(home)
