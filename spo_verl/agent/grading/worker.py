"""What a grading process runs: pairs of expressions come in, verdicts go out, one at a time.

The process is a fresh interpreter that imports math-verify and nothing else of weight. It ends by itself when its
parent is gone, when one comparison takes too long (the kernel's alarm, which also ends code that never returns to
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
        import math_verify  # noqa: F401 - imported before the first request, so that no request pays for it
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
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
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + GRACE_S)
        answer = verdict(request["truth"], request["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        _send(connection, answer)


def verdict(truth: str, answer: str) -> dict[str, Any]:
    """Whether two LaTeX expressions are equal, as math-verify sees it; running out of memory is told as such."""
    from math_verify import LatexExtractionConfig, parse, verify

    try:
        parsed = [
            parse(f"${text}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
            for text in (truth, answer)
        ]
        return {"equal": bool(verify(*parsed, timeout_seconds=None))}
    except MemoryError:
        return {"equal": False, "problem": "memory"}


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())
