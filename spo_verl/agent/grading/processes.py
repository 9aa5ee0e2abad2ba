"""Comparison of expressions in a small pool of processes, bounded in time and memory.

Signals that limit time work in the main thread only, and verl calls rewards in threads. Here each comparison runs in a
process of its own interpreter: after ``seconds`` the process is killed and a new one takes its place. A process that
died by itself, or was killed from outside, is replaced, and the new one is asked again. Processes are started with
``exec``, never forked, so no lock of this process can be held in them; a fork of this process drops the pool and makes
its own.
"""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any, Literal

from spo_verl.agent.grading.worker import EASY
from spo_verl.errors import SpoError

logger = logging.getLogger(__name__)

START_S = 120.0
"""Seconds that the start of a process may take; it takes about one, and longer on a crowded machine."""

ACCEPT_S = 30.0
"""Seconds within which an idle process must accept a request; the time limit of a comparison begins after that."""

JOBS_PER_PROCESS = 5000
"""After so many comparisons a process is replaced: sympy's caches grow."""

SUSPICIOUS_IN_A_ROW = 10
"""After so many comparisons without a verdict, and none with one between, the grader is tried on an easy pair."""

Verdict = Literal["equal", "different", "unanswered"]


class GradingError(SpoError, RuntimeError):
    """The grader itself does not work: it cannot be started, or its processes end one after the other."""


@dataclass(frozen=True)
class ComparisonLimits:
    """Bounds of a symbolic comparison.

    Attributes:
        seconds: of one comparison, > 0.
        memory_mb: address space of a process in MiB.
        processes: how many comparisons run at a time, >= 1.
    """

    seconds: float = 5.0
    memory_mb: int = 2048
    processes: int = 2


_NEXT = ("asking a new one", "the comparison is given up")


class _Died(Exception):
    """The process is gone."""


class _Process:
    """One grading process; used by one thread at a time."""

    def __init__(self, limits: ComparisonLimits) -> None:
        self.limits, self.jobs = limits, 0
        self.usable, self._hung_up = True, False
        self.connection, theirs = multiprocessing.Pipe(duplex=True)
        arguments = (theirs.fileno(), os.getpid(), limits.memory_mb * 2**20)
        # As multiprocessing's spawn does: the same search path as here, wherever it came from.
        path = os.pathsep.join(os.path.abspath(place) for place in sys.path)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from spo_verl.agent.grading.worker import main; main{arguments}"],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
            )
        finally:
            theirs.close()
        message = self._receive(START_S)
        if message is None or not message.get("ready"):
            self.connection.close()
            self.process.kill()
            _, complaint = self.process.communicate()
            why = (message or {}).get("problem") or complaint.decode(errors="replace")[-2000:].strip()
            raise GradingError(
                f"a grading process could not start: {why or f'no sign of life in {START_S:.0f} s'}; "
                "check the installation with: python -c 'import math_verify' (pip install 'math-verify[antlr4-9-3]')"
            )
        # From here on nobody reads it, and a full pipe would block the process.
        assert self.process.stderr is not None
        self.process.stderr.close()

    def compare(self, truth: str, answer: str) -> Verdict:
        """Whether both are equal.

        Returns:
            "unanswered" where the process gave up or the time ran out, which ends the process.

        Raises:
            _Died: the process is gone, or does not accept requests any more.
        """
        self.jobs += 1
        request = {"truth": truth, "answer": answer, "seconds": self.limits.seconds}
        try:
            self.connection.send_bytes(json.dumps(request).encode())
        except OSError:
            raise _Died from None
        if self._receive(ACCEPT_S) is None:
            raise _Died
        message = self._receive(self.limits.seconds)
        if message is None:
            timed_out = not self._hung_up
            self.usable = False
            if timed_out:
                return "unanswered"
            raise _Died
        self.usable = bool(message["usable"])
        verdict: Verdict = message["verdict"]
        return verdict

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None when it does not come in time, or the process has hung up."""
        try:
            if not self.connection.poll(seconds):
                return None
            message: dict[str, Any] = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            self._hung_up = True
            return None
        return message


class Grader:
    """A pool of grading processes, started when they are first needed. Safe to use from several threads.

    A call waits for a free process as long as that takes: at most the time limit for each call before it.
    """

    def __init__(self, limits: ComparisonLimits | None = None) -> None:
        self.limits = limits or ComparisonLimits()
        self.unanswered = self.asked = 0
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._slots = threading.BoundedSemaphore(self.limits.processes)
        self._lock = threading.Lock()
        self._in_a_row = 0

    def compare(self, truth: str, answer: str) -> Verdict:
        """Whether two LaTeX expressions are equal.

        A process that has died is replaced, and the new one is asked again, once.

        Returns:
            "unanswered" where the work, time or memory ran out, or the process died twice; such a pair is logged and
            counted.

        Raises:
            GradingError: no process can be started, or an easy pair gets no verdict either.
        """
        verdict = self._compare(truth, answer)
        if self._count(verdict, truth, answer) >= SUSPICIOUS_IN_A_ROW:
            self._require_working()
        return verdict

    def _compare(self, truth: str, answer: str) -> Verdict:
        with self._slots:
            for attempt in range(2):
                process = self._take(fresh=attempt > 0)
                usable = False
                try:
                    verdict = process.compare(truth, answer)
                    usable = process.usable
                    return verdict
                except _Died:
                    logger.warning("a grading process (%d) has died; %s", process.process.pid, _NEXT[attempt])
                finally:
                    self._give_back(process, keep=usable)
        return "unanswered"

    def _require_working(self) -> None:
        """Tell a series of impossible answers from a grader that does not work."""
        if self._compare(*EASY) != "equal":
            raise GradingError(
                f"{SUSPICIOUS_IN_A_ROW} comparisons in a row and then an easy one got no verdict within "
                f"{self.limits.seconds:g} s and {self.limits.memory_mb} MiB: is the machine overloaded? "
                "Give more with reward_kwargs.seconds and reward_kwargs.memory_mb"
            )
        with self._lock:
            self._in_a_row = 0

    def close(self) -> None:
        """End all processes; a later call starts new ones."""
        with self._lock:
            ending, self._idle, self._all = self._all, [], set()
        for process in ending:
            process.close()

    def _take(self, *, fresh: bool) -> _Process:
        """An idle process, or a new one; with ``fresh`` certainly a new one, as the idle may have died together."""
        with self._lock:
            if self._idle and not fresh:
                return self._idle.pop()
        process = _Process(self.limits)
        with self._lock:
            self._all.add(process)
        return process

    def _give_back(self, process: _Process, *, keep: bool) -> None:
        with self._lock:
            keep = keep and process.jobs < JOBS_PER_PROCESS and process in self._all
            if keep:
                self._idle.append(process)
            else:
                self._all.discard(process)
        if not keep:
            process.close()

    def _count(self, verdict: Verdict, truth: str, answer: str) -> int:
        """Note a verdict; how many comparisons in a row have none."""
        with self._lock:
            self.asked += 1
            self.unanswered += verdict == "unanswered"
            self._in_a_row = self._in_a_row + 1 if verdict == "unanswered" else 0
            in_a_row, total, asked = self._in_a_row, self.unanswered, self.asked
        if verdict == "unanswered":
            logger.warning(
                "no verdict within the bounds (%g s, %d MiB); counted as wrong (%d of %d comparisons): "
                "answer %.200r, truth %.200r",
                self.limits.seconds,
                self.limits.memory_mb,
                total,
                asked,
                answer,
                truth,
            )
        return in_a_row


_graders: dict[ComparisonLimits, Grader] = {}
_lock = threading.Lock()


def grader(limits: ComparisonLimits) -> Grader:
    """This process's grader with these limits."""
    with _lock:
        if limits not in _graders:
            _graders[limits] = Grader(limits)
        return _graders[limits]


def close_all() -> None:
    """End the processes of all graders."""
    with _lock:
        ending = list(_graders.values())
        _graders.clear()
    for one in ending:
        one.close()


def _forget_after_fork() -> None:
    """In a forked child: the processes and the locks are the parent's."""
    global _lock
    _lock = threading.Lock()
    _graders.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(close_all)
