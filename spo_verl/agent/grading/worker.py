"""What a grading process runs: pairs of expressions come in, verdicts go out, one at a time.

The process is a fresh interpreter that imports mpmath, math-verify and nothing else of weight. It ends by itself when
its parent is gone, when one comparison takes too long (the kernel's alarm, which also ends code that never returns to
Python), and an allocation beyond its memory limit fails inside it.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
from multiprocessing.connection import Connection
from typing import Any

EASY = (r"2\sqrt{3}", r"\sqrt{12}")
SUM = ("55", r"\sum_{k=1}^{10} k")
"""Pairs that every process must find equal before it is ready."""

IDLE_S = 5.0
GRACE_S = 1.0
"""How much longer than its parent a process waits before it ends itself."""


def main(descriptor: int, parent: int, memory_bytes: int) -> None:
    """Answer requests on a socket until the parent hangs up."""
    connection = Connection(descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    try:
        _warm_up()
    except Exception as error:  # noqa: BLE001 - sent to the parent, which raises it
        _send(connection, {"ready": False, "problem": f"{type(error).__name__}: {error}"})
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(
            nowhere.fileno(), 2
        )  # nobody reads it from here on, and a closed pipe would be an error inside a parser
    _send(connection, {"ready": True})
    while True:
        while not connection.poll(IDLE_S):
            if os.getppid() != parent:
                return
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        _send(connection, {"accepted": True})
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + GRACE_S)
        try:
            answer = {"verdict": verdict(request["truth"], request["answer"]), "usable": True}
        except MemoryError:
            answer = {"verdict": "unanswered", "usable": False}
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        _send(connection, answer)


def _warm_up() -> None:
    """Import and use everything once, so that no request pays for it."""
    import math_verify  # noqa: F401 - what is missing is reported at the start

    for truth, answer in (EASY, SUM):
        if verdict(truth, answer) != "equal":
            raise RuntimeError(f"{answer} is not found to be {truth}")


def verdict(truth: str, answer: str) -> str:
    """``equal``, ``different``, or ``unanswered`` where the comparison would exceed its bounds."""
    from spo_verl.agent.grading.comparing import same, with_algebra
    from spo_verl.agent.grading.exact import TooHard
    from spo_verl.agent.grading.foreign import is_foreign, same_value
    from spo_verl.agent.grading.parsing import read

    try:
        mine, theirs = read(answer), read(truth)
        if "other" in (mine.kind, theirs.kind) and (is_foreign(answer) or is_foreign(truth)):
            return "equal" if same_value(answer, truth) else "different"
        return "equal" if same(mine, theirs, with_algebra) else "different"
    except (TooHard, RecursionError, ArithmeticError, ValueError):  # it is logged and counted by the parent
        return "unanswered"


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())
