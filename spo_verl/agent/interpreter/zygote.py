"""The process that programs are forked from: bare, single-threaded, with the packages imported once.

Run as a script (``python -I -S -B``, with ``SOCKET SETTINGS``), never imported by the trainer. Over a socket it gets
descriptors, not programs: the code is read by the forked child, so that no program finds another one's code or output
in the memory that it inherits. It forks, kills what is late, and reports what ended. When its owner is gone, so is the
socket, and it and all programs end.

A program is to find what ``python program.py`` would find: nothing of this file below its own frames, the standard
streams, ``__main__``, what happens at its end. So it runs as an exit function of the interpreter (:func:`_become`).

Messages are JSON, one per packet. In: ``{"run": id}`` with the descriptors of code, stdout and stderr, and
``{"kill": id}``. Out: ``{"hello": ...}`` once, and per program
``{"id", "status", "late", "contained", "cpu", "seconds"}`` or
``{"id", "error"}``.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import importlib
import importlib.util
import io
import json
import linecache
import os
import selectors
import signal
import site
import socket
import sys
import time
import traceback
import types
import warnings  # noqa: F401 - so that Python shows a program's warnings through it, with the line from `linecache`
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, TextIO

PROGRAM = "<program>"
"""What tracebacks call the program."""

UNWRITABLE = 120
"""Python's exit code when the standard streams cannot be flushed at the end."""


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


@dataclass
class Job:
    """What a child process was forked for."""

    fds: list[int]
    """Of the code, stdout and stderr."""
    done: int
    """Writing end of the pipe on which it says that it is contained."""
    limits: Any
    fences: Any
    containment: Any


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


def serve(control: socket.socket, settings: dict[str, Any], containment: Any, namespaces: bool) -> Job | None:
    """Import the packages, say hello, and run programs until the owner is gone.

    Returns:
        ``None`` in the server; in each child process, at once, the program that it is to become.
    """
    sys.path[:] = [*sys.path, *settings["packages_from"]]
    site.setquit()
    site.setcopyright()
    site.sethelper()
    for name in settings["packages"]:
        importlib.import_module(name)
    fences = containment.available(namespaces)
    limits = containment.ProgramLimits(
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
                return None
            order = json.loads(message)
            if "kill" in order:
                if order["kill"] in running:
                    signal.pidfd_send_signal(running[order["kill"]].pidfd, signal.SIGKILL)
                continue
            job = Job(fds, -1, limits, fences, containment)
            try:
                started = _start(order["run"], job, settings["wall_seconds"])
            except OSError as error:
                _send(control, {"id": order["run"], "error": f"fork: {error}"})
            else:
                if started is None:
                    selector.close()  # part of a cycle: collected later, it would close descriptors of the program
                    control.close()
                    return job
                running[started.id] = started
                selector.register(started.pidfd, selectors.EVENT_READ, started.id)
            for fd in fds:
                os.close(fd)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.send(json.dumps(message).encode())


def _start(id_: int, job: Job, wall: float) -> Running | None:
    """Fork; ``None`` in the child."""
    ready, job.done = os.pipe()
    begin = time.monotonic()
    try:
        pid = os.fork()
    except OSError:
        os.close(ready)
        os.close(job.done)
        raise
    if pid == 0:
        return None
    os.close(job.done)
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


def _become(job: Job) -> None:
    """Become the program: it begins when the caller's module ends.

    Python calls exit functions with no frame below them. A program that is one has the stack that it has as a file:
    the same depth of recursion, and nothing of this file for ``inspect`` or a warning to find. It is registered between
    what comes before it and what comes after it, which never returns.
    """
    try:
        os.setsid()
        job.containment.die_with_parent()
        source = _arrange_descriptors(job.fds, job.done)
        _first_to_go()
        _reseed()
        job.containment.contain(job.limits, job.fences)
        os.write(3, b"R")
        os.close(3)
        ending = _Ending()
        atexit.register(ending.finish)
        program = _load_program(source, ending)
        # Exit functions begin once Python has closed `threading`, and the program is to find it open.
        threading = sys.modules.pop("threading", None)
        if program is not None:
            atexit.register(program)
        if threading is not None:
            atexit.register(sys.modules.__setitem__, "threading", threading)
    except BaseException:  # noqa: BLE001 - whatever happened, the owner reads it, and nothing of the server may run
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


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
    errors = sys.stdout.errors  # as Python chose for this locale
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _standard_stream(fd, f"<{name}>", "backslashreplace" if fd == 2 else errors)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return source


def _standard_stream(fd: int, name: str, errors: str | None) -> TextIO:
    """As Python makes its own, but written out at the end of each line, so that what was printed before a program is
    stopped is not lost."""
    raw = io.FileIO(fd, "wb" if fd else "rb", closefd=False)
    raw.name = name
    buffer = io.BufferedWriter(raw) if fd else io.BufferedReader(raw)
    newline = "\n" if fd else None
    text: Any = io.TextIOWrapper(buffer, "utf-8", errors, newline, line_buffering=fd > 0, write_through=fd > 0)
    text.mode = "w" if fd else "r"
    return text  # type: ignore[no-any-return]


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


def _load_program(source: bytes, ending: _Ending) -> Callable[[], object] | None:
    """The program as a function without a caller's frame or locals of its own, ``None`` where it does not compile."""
    folder = os.getcwd()
    file = os.path.join(folder, PROGRAM)
    module: Any = types.ModuleType("__main__")
    module.__builtins__ = builtins
    module.__file__, module.__cached__, module.__annotations__ = file, None, {}
    module.__loader__ = SourceFileLoader("__main__", file)
    sys.modules["__main__"] = module
    sys.argv, sys.orig_argv = [PROGRAM], ["python", PROGRAM]
    sys.path.insert(0, folder)
    lines = source.decode(errors="replace").splitlines(keepends=True)
    linecache.cache[PROGRAM] = linecache.cache[file] = (len(source), None, lines, PROGRAM)
    sys.excepthook = sys.__excepthook__ = _print_uncaught
    sys.unraisablehook, sys.__unraisablehook__ = ending.on_unraisable, _print_unraisable  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = compile(source, PROGRAM, "exec", dont_inherit=True)
    except BaseException as error:  # noqa: BLE001 - an uncaught exception of the program
        ending.on_uncaught(error.with_traceback(None))
        return None
    program = types.FunctionType(code, module.__dict__)
    ending.program = weakref.ref(program)
    return program


class _Ending:
    """What Python does between an uncaught exception or the last line of a program and the end of its process."""

    def __init__(self) -> None:
        self.program: Callable[[], Any] = lambda: None
        self.status = 0
        self.interrupted = False

    def on_unraisable(self, unraisable: Any) -> None:
        """``sys.unraisablehook``: where Python hands what an exit function raises."""
        if unraisable.object is not None and unraisable.object is self.program():
            self.on_uncaught(unraisable.exc_value)
        else:
            _print_unraisable(unraisable)

    def on_uncaught(self, error: BaseException) -> None:
        """Print it as Python does, or exit as it asks."""
        if isinstance(error, SystemExit):
            self.status = _exit_status(error.code)
            return
        self.status, self.interrupted = 1, isinstance(error, KeyboardInterrupt)
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        hook = getattr(sys, "excepthook", None)
        if hook is None:
            _to_stderr("sys.excepthook is missing\n")
            hook = _print_uncaught
        try:
            hook(type(error), error, error.__traceback__)
        except SystemExit as stop:
            self.status = _exit_status(stop.code)
        except BaseException as another:  # noqa: BLE001 - the program's own hook
            _to_stderr("Error in sys.excepthook:\n")
            inner = another.__traceback__
            _print_uncaught(type(another), another, inner.tb_next if inner is not None else None)
            _to_stderr("\nOriginal exception was:\n")
            _print_uncaught(type(error), error, error.__traceback__)

    def finish(self) -> None:
        """Exit functions, flushing, destructors, in Python's order; never returns."""
        status = UNWRITABLE
        try:
            atexit.unregister(self.finish)
            atexit.unregister(self.program())
            atexit.unregister(sys.modules.__setitem__)
            atexit._run_exitfuncs()
            flushed = _flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            sys.modules.setdefault("tracemalloc", None)  # type: ignore[arg-type] # warnings find no import system then
            _unseen(gc.collect)
            for name in ("stdin", "stdout", "stderr"):
                setattr(sys, name, getattr(sys, f"__{name}__"))
            for name in ("last_type", "last_value", "last_traceback"):
                vars(sys).pop(name, None)
            main = weakref.ref(sys.modules["__main__"])
            _unseen(sys.modules.pop, "__main__")
            _unseen(gc.collect)
            if (left := main()) is not None:  # something outside the program knows it
                vars(left).update(dict.fromkeys(vars(left).keys() - {"__builtins__"}))
            with contextlib.suppress(Exception):  # Python drops the streams here, which flushes what it can
                sys.stdout.flush()
            if flushed:
                status = self.status
        finally:
            if self.interrupted and status != UNWRITABLE:
                os.kill(os.getpid(), signal.SIGINT)  # as the shell expects of what Ctrl-C has ended
            os._exit(status)


_STEP = compile("step(*arguments)", "sys", "exec")


def _unseen(step: Callable[..., object], *arguments: object) -> None:
    """Call what may end objects of the program. Python has no frame to blame then, and calls the place ``sys:1``."""
    exec(_STEP, {"step": step, "arguments": arguments})


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(2**63) <= code < 2**63 else 0xFF
    _to_stderr(code, "\n")
    return 1


def _to_stderr(*texts: object) -> None:
    """Python ignores that stderr cannot be written to, having nowhere to say so."""
    with contextlib.suppress(Exception):
        if sys.stderr is not None:
            for text in texts:
                sys.stderr.write(str(text))


def _flush() -> bool:
    """Flush stdout and stderr as Python does at its end. Returns whether stdout could be."""
    flushed = True
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        if stream is None or _is_closed(stream):
            continue
        try:
            stream.flush()
        except BaseException as error:  # noqa: BLE001 - whatever the program's own stream raises
            if name == "stdout":
                report = types.SimpleNamespace(exc_value=error.with_traceback(None), err_msg=None, object=stream)
                _print_unraisable(report)
                flushed = False
    return flushed


def _is_closed(stream: Any) -> bool:
    try:
        return bool(stream.closed)
    except Exception:  # noqa: BLE001 - a stream of the program's own, or a detached one
        return False


def _print_uncaught(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """``sys.excepthook``, which Python writes in C: that one would look for the lines of the program in a file."""
    if isinstance(error, SyntaxError) and trace is None:  # of the program as a whole
        if error.text is None and error.filename == PROGRAM:
            error.text = linecache.getline(PROGRAM, error.lineno or 0)
        _own_excepthook(kind, error, None)
        return
    described = traceback.TracebackException(kind, error, trace, compact=True)
    if not hasattr(traceback, "_compute_suggestion_error"):  # before Python 3.12 only the one in C has suggestions
        _suggest(described, error)
    _to_stderr(*described.format())


def _suggest(described: Any, error: BaseException | None) -> None:
    """Append ``Did you mean: ...?`` to name and attribute errors, as Python's own hook words it."""
    while described is not None and error is not None:
        if isinstance(error, (NameError, AttributeError)):
            alone: Exception = NameError("", name=error.name)
            if isinstance(error, AttributeError):
                alone = AttributeError("", name=error.name, obj=error.obj)
            alone.__traceback__ = error.__traceback__
            kept, sys.stderr = sys.stderr, io.StringIO()
            try:
                _own_excepthook(type(alone), alone, alone.__traceback__)
                said = sys.stderr.getvalue().rstrip("\n").rpartition("\n")[2]
            finally:
                sys.stderr = kept
            _, mark, suggestion = said.rpartition(". Did you mean: ")
            if mark:
                described._str += mark + suggestion
        if described.__cause__ is not None:
            described, error = described.__cause__, error.__cause__
        else:
            described, error = described.__context__, error.__context__


_own_excepthook = sys.excepthook
_OWN_FILE = __file__  # Python deletes the name at the end of the module


def _print_unraisable(unraisable: Any) -> None:
    """``sys.unraisablehook``, for the same reason."""
    error = unraisable.exc_value
    trace = error.__traceback__ if error is not None else None
    while trace is not None and trace.tb_frame.f_code.co_filename in (_OWN_FILE, _STEP.co_filename):
        trace = trace.tb_next
    _to_stderr(f"{unraisable.err_msg or 'Exception ignored in'}: {_safe_repr(unraisable.object)}\n")
    if trace is not None:
        _to_stderr("Traceback (most recent call last):\n", *traceback.format_tb(trace))
    _to_stderr(*traceback.format_exception_only(error))


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - the program's own
        return "<object repr() failed>"


def main() -> Job | None:
    """Serve; ``None`` at the end, a job in a child process."""
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
                os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
            containment.die_with_parent()
        return serve(control, settings, containment, namespaces)
    except BrokenPipeError:
        return None  # the owner went while something was sent to it
    except Exception as error:  # noqa: BLE001 - sent to the owner, who raises it
        _send(control, {"fatal": f"{type(error).__name__}: {error}"})
        return None


if __name__ == "__main__":
    _job = main()
    if _job is None:
        os._exit(0)  # programs that still run die with this process
    _become(_job)
