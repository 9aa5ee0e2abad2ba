"""The process that programs are forked from: bare, single-threaded, with the packages imported once.

Run as a script (``python -I -S -B zygote.py SOCKET SETTINGS``), never imported by the trainer. Over a socket it gets
descriptors, not programs: the code is read by the forked child, so that no program finds another one's code or output
in the memory that it inherits. It forks, kills what is late, and reports what ended. When its owner is gone, so is the
socket, and it and all programs end.

Messages are JSON, one per packet. In: ``{"run": id}`` with the descriptors of code, stdout and stderr; ``{"kill": id}``.
Out: ``{"hello": ...}`` once; per program ``{"id", "status", "late", "contained", "cpu", "seconds"}`` or
``{"id", "error"}``.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import json
import linecache
import os
import selectors
import signal
import socket
import sys
import time
import traceback
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROGRAM = "<program>"


@dataclass
class Running:
    """A program under way."""

    id: int
    pid: int
    pidfd: int
    ready: int
    """Reading end of the pipe on which the child says that it is contained."""
    begin: float
    deadline: float
    late: bool = False


def _load_containment() -> Any:
    """The sibling module, by path: the package around it is not imported here."""
    path = Path(__file__).with_name("containment.py")
    spec = importlib.util.spec_from_file_location("containment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["containment"] = module
    spec.loader.exec_module(module)
    return module


def serve(control: socket.socket, settings: dict[str, Any], containment: Any, namespaces: bool) -> None:
    """Import the packages, say hello, and run programs until the owner is gone."""
    sys.path[:] = [*sys.path, *settings["packages_from"]]
    for name in settings["packages"]:
        importlib.import_module(name)
    fences = containment.available(namespaces)
    limits = containment.Limits(
        cpu_seconds=settings["cpu_seconds"],
        memory_mb=settings["memory_mb"],
        disk_mb=settings["disk_mb"],
        readable=tuple(settings["readable"]),
    )
    gc.collect()
    gc.freeze()  # objects of the packages: collecting them in a child would copy their pages
    _send(control, {"hello": asdict(fences)})
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ, None)
    running: dict[int, Running] = {}
    while True:
        now = time.monotonic()
        for program in running.values():
            if now >= program.deadline and not program.late:
                program.late = True
                signal.pidfd_send_signal(program.pidfd, signal.SIGKILL)
        due = [program.deadline for program in running.values() if not program.late]
        for key, _ in selector.select(max(0.0, min(due) - time.monotonic()) if due else None):
            if key.data is not None:
                selector.unregister(key.fileobj)
                _send(control, _reap(running.pop(key.data)))
                continue
            message, fds, _, _ = socket.recv_fds(control, 4096, 3)
            if not message:
                return
            order = json.loads(message)
            if "kill" in order:
                if order["kill"] in running:
                    signal.pidfd_send_signal(running[order["kill"]].pidfd, signal.SIGKILL)
                continue
            try:
                program = _start(order["run"], fds, settings["wall_seconds"], limits, fences, containment)
            except OSError as error:
                _send(control, {"id": order["run"], "error": f"fork: {error}"})
                continue
            finally:
                for fd in fds:
                    os.close(fd)
            running[program.id] = program
            selector.register(program.pidfd, selectors.EVENT_READ, program.id)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.send(json.dumps(message).encode())


def _start(id_: int, fds: list[int], wall: float, limits: Any, fences: Any, containment: Any) -> Running:
    ready, done = os.pipe()
    begin = time.monotonic()
    try:
        pid = os.fork()
    except OSError:
        os.close(ready)
        os.close(done)
        raise
    if pid == 0:
        _child(fds, done, limits, fences, containment)
    os.close(done)
    return Running(id_, pid, os.pidfd_open(pid), ready, begin, begin + wall)


def _reap(program: Running) -> dict[str, Any]:
    _, status, usage = os.wait4(program.pid, 0)
    contained = os.read(program.ready, 1) == b"R"
    os.close(program.ready)
    os.close(program.pidfd)
    return {
        "id": program.id,
        "status": os.waitstatus_to_exitcode(status),
        "late": program.late,
        "contained": contained,
        "cpu": usage.ru_utime + usage.ru_stime,
        "seconds": time.monotonic() - program.begin,
    }


def _child(fds: list[int], done: int, limits: Any, fences: Any, containment: Any) -> None:
    """Become the program; never returns."""
    code = 1
    try:
        os.setsid()
        containment.die_with_parent()
        source = _arrange_descriptors(fds, done)
        _first_to_go()
        _reseed()
        containment.contain(limits, fences)
        os.write(3, b"R")
        os.close(3)
        code = run_program(source)
    except BaseException:  # noqa: BLE001 - whatever happened, the owner reads it, and nothing of the server may run
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1  # nobody reads on, or the program closed it
        os._exit(code)


def _arrange_descriptors(fds: list[int], done: int) -> bytes:
    """stdin empty, stdout and stderr to the owner, 3 to the server, nothing else open. Returns the source code."""
    code, out, err = fds
    source = b""
    while chunk := os.read(code, 1 << 16):
        source += chunk
    high = [os.dup(fd) for fd in (out, err, done)]  # none of them is below 4, so dup2 overwrites none of them
    while min(high) < 4:
        high = [os.dup(fd) for fd in high]
    empty = os.open(os.devnull, os.O_RDONLY)
    for target, fd in enumerate((empty, *high)):
        os.dup2(fd, target)
    os.closerange(4, 1 << 20)
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)
    # Line by line, so that what was printed before a program is stopped is not lost.
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    return source


def _first_to_go() -> None:
    """If the machine runs out of memory, the kernel takes a program and not the trainer."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _reseed() -> None:
    """A fork inherits random states; ``random`` renews its own, these two do not."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "sympy.core.random" in sys.modules:
        sys.modules["sympy.core.random"].seed()


def run_program(source: bytes) -> int:
    """Run a program as ``__main__`` and return its exit code; an uncaught exception is printed as Python prints it."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [PROGRAM]
    try:
        text = source.decode()
        linecache.cache[PROGRAM] = (len(text), None, text.splitlines(keepends=True), PROGRAM)
        exec(compile(text, PROGRAM, "exec", dont_inherit=True), module.__dict__)
        return 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - an uncaught exception of the program
        own = error.__traceback__.tb_next if error.__traceback__ is not None else None  # without this function
        traceback.print_exception(type(error), error, own)
        return 1
    finally:
        atexit._run_exitfuncs()


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(sys.argv[2])
    containment = _load_containment()
    try:
        namespaces = containment.enter_namespaces()
        if namespaces:
            # Only children are in the new process namespace; the first is its init, and all end with it.
            pid = os.fork()
            if pid != 0:
                control.close()
                sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
            containment.die_with_parent()
        serve(control, settings, containment, namespaces)
    except BrokenPipeError:
        pass  # the owner went while being told something
    except Exception as error:  # noqa: BLE001 - told to the owner, who raises it
        _send(control, {"fatal": f"{type(error).__name__}: {error}"})
    os._exit(0)  # programs that still run die with this process


if __name__ == "__main__":
    main()
