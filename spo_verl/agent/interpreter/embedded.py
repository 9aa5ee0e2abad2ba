"""Programs on this machine: a server process that forks a contained process for each (:mod:`.zygote`).

The backend is refused where a limit does not hold. Whether it does is not concluded from versions: before the first
program, one of our own tries to get past each limit, in the same containment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spo_verl.agent.agent_errors import SpoInterpreterError
from spo_verl.agent.config import LIMITS, EmbeddedConfig
from spo_verl.agent.interpreter import Outcome, ProgramResult
from spo_verl.agent.interpreter.attempts import Bait
from spo_verl.agent.interpreter.gate import Gate

ZYGOTE = Path(__file__).with_name("zygote.py")

LAUNCH = "import sys; __file__ = sys.argv.pop(1); exec(compile(open(__file__).read(), __file__, 'exec'))"
"""Runs a file. ``python FILE`` would keep its syntax tree until the end, for each program to take apart."""

START_SECONDS = 60.0
"""Longest wait for the server to import its packages."""

GRACE_SECONDS = 10.0
"""How long after a program's time limit the server must have reported its end."""


class _ServerGoneError(Exception):
    """The server process ended, or does not answer."""


@dataclass(frozen=True)
class Enforcement:
    """What holds on this machine.

    Attributes:
        limits: limit -> whether a program that tried to get past it was refused.
        folder: whether programs have a private folder; without one they cannot write files.
        namespaces, landlock, seccomp: what the kernel gave (``landlock``: version of its interface, 0 for none).
    """

    limits: dict[str, bool]
    folder: bool
    namespaces: bool
    landlock: int
    seccomp: bool


@dataclass
class _Program:
    """One program's output while it runs."""

    limit: int
    done: asyncio.Future[dict[str, Any]]
    chunks: tuple[list[bytes], list[bytes]] = field(default_factory=lambda: ([], []))
    size: int = 0
    open: int = 2
    """Streams that have not ended."""
    report: dict[str, Any] | None = None

    def settle(self) -> None:
        if self.report is not None and self.open == 0 and not self.done.done():
            self.done.set_result(self.report)


class _Server:
    """One server process, in the hands of one event loop."""

    def __init__(self, config: EmbeddedConfig) -> None:
        self.config = config
        self._programs: dict[int, _Program] = {}
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self.gone = False

    async def start(self) -> dict[str, Any]:
        """Start the process and return what it says of the machine."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-B",
                    "-c",
                    LAUNCH,
                    str(ZYGOTE),
                    str(theirs.fileno()),
                    json.dumps(_settings(self.config)),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=_environment(),
                cwd="/",
                start_new_session=True,
            )
            theirs.close()
            self._loop.add_reader(self._socket, self._on_message)
            try:
                return await asyncio.wait_for(self._hello, START_SECONDS)
            except asyncio.CancelledError:
                self._fail("starting was cancelled")
                raise
            except (_ServerGoneError, asyncio.TimeoutError) as error:
                await self.stop()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                reason = str(error) or f"not ready within {START_SECONDS} s"
                raise _ServerGoneError(f"{reason}{': ' + said[-1] if said else ''}") from error

    async def run(self, code: str) -> ProgramResult:
        """Run one program.

        Raises:
            _ServerGoneError: the server failed; nothing is known about the program.
        """
        if self.gone:
            raise _ServerGoneError("the server is gone")
        number = self._number = self._number + 1
        program = self._programs[number] = _Program(self.config.output_bytes, self._loop.create_future())
        reading: list[int] = []
        try:
            self._send_program(number, code, reading, program)
            await asyncio.wait_for(asyncio.shield(program.done), self.config.wall_seconds + GRACE_SECONDS)
            return self._result(program)
        except asyncio.TimeoutError as error:
            self._fail("the server did not report the end of a program")
            raise _ServerGoneError("the server did not report the end of a program") from error
        finally:
            del self._programs[number]
            program.done.cancel()
            for fd in reading:
                self._loop.remove_reader(fd)
                os.close(fd)
            if program.report is None:
                self._kill(number)

    async def stop(self) -> None:
        """End the process and every program."""
        self._fail("the interpreter was closed")
        await self._loop.run_in_executor(None, self._wait)

    def _wait(self) -> None:
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send_program(self, number: int, code: str, reading: list[int], program: _Program) -> None:
        theirs: list[int] = []
        try:
            source = os.memfd_create("program", os.MFD_CLOEXEC)
            theirs.append(source)
            with open(source, "wb", closefd=False) as file:
                file.write(code.encode(errors="backslashreplace"))
            os.lseek(source, 0, os.SEEK_SET)
            for stream in (0, 1):
                ours, write = os.pipe()
                theirs.append(write)
                reading.append(ours)
                os.set_blocking(ours, False)
                self._loop.add_reader(ours, self._on_output, ours, stream, number, program)
            self._order({"run": number}, theirs)
        except OSError as error:
            raise _ServerGoneError(f"a program could not be handed over: {error}") from error
        finally:
            for fd in theirs:
                os.close(fd)

    def _order(self, order: dict[str, Any], fds: list[int] | None = None) -> None:
        socket.send_fds(self._socket, [json.dumps(order).encode()], fds or [])

    def _kill(self, number: int) -> None:
        try:
            if not self.gone:
                self._order({"kill": number})
        except OSError as error:
            self._fail(f"a program could not be stopped: {error}")  # it ends with the server

    def _on_message(self) -> None:
        while not self.gone:
            try:
                packet = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._fail("the server process ended")
                return
            message = json.loads(packet)
            if "hello" in message:
                self._hello.set_result(message["hello"])
            elif "fatal" in message:
                self._fail(message["fatal"])
            elif message["id"] in self._programs:  # otherwise nobody waits for it any more
                program = self._programs[message["id"]]
                program.report = message
                program.settle()

    def _on_output(self, fd: int, stream: int, number: int, program: _Program) -> None:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        over = program.size + len(chunk) > program.limit
        program.chunks[stream].append(chunk[: max(0, program.limit - program.size)])
        program.size += len(chunk)
        if over and program.report is None:
            self._kill(number)
        if not chunk or over:
            self._loop.remove_reader(fd)
            program.open -= 1
            program.settle()

    def _fail(self, reason: str) -> None:
        """The process is of no more use: end it and whoever waits for it."""
        if self.gone:
            return
        self.gone = True
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for waiting in (self._hello, *(program.done for program in self._programs.values())):
            if not waiting.done():
                waiting.set_exception(_ServerGoneError(reason))
                waiting.exception()  # somebody may have stopped waiting

    def _result(self, program: _Program) -> ProgramResult:
        report = program.done.result()
        stdout, stderr = (b"".join(chunks).decode(errors="replace") for chunks in program.chunks)
        if "error" in report or not report["contained"]:
            raise _ServerGoneError(str(report.get("error") or f"a program could not be contained: {stderr.strip()}"))
        outcome, note = _ending(report, program.size > program.limit, self.config)
        said = outcome == "failed" and stderr.strip()
        return ProgramResult(stdout, stderr, outcome, report["seconds"], "" if said else note, report["status"])


class EmbeddedInterpreter:
    """The backend: a server process, started again when it fails; as many programs at a time as the settings say."""

    def __init__(self, config: EmbeddedConfig) -> None:
        self.config = config
        self._gate = Gate(config.max_running, config.max_wait_seconds)
        self._starting = asyncio.Lock()
        self._server: _Server | None = None
        self._refusal: SpoInterpreterError | None = None
        self.enforcement: Enforcement | None = None

    async def run(self, code: str) -> ProgramResult:
        """See :class:`~spo_verl.agent.interpreter.Interpreter`.

        Raises:
            SpoInterpreterError: a limit does not hold on this machine, or the server failed at every attempt.
        """
        async with self._gate.place():
            problem = ""
            for attempt in range(self.config.attempts):
                await asyncio.sleep(0.5 * attempt)  # what the machine lacks for a moment it may have in the next
                try:
                    return await (await self._ready()).run(code)
                except _ServerGoneError as error:
                    problem = str(error)
        raise SpoInterpreterError(
            f"the embedded interpreter failed {self.config.attempts} times, at last: {problem}; see the machine's "
            "memory and process limits, or use interpreter.backend=sandbox_fusion"
        )

    async def start(self) -> Enforcement:
        """Start now instead of at the first program, and say what holds."""
        try:
            await self._ready()
        except _ServerGoneError as error:
            raise SpoInterpreterError(
                f"the embedded interpreter does not start: {error}; check interpreter.packages"
            ) from error
        assert self.enforcement is not None
        return self.enforcement

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    async def _ready(self) -> _Server:
        async with self._starting:
            if self._refusal is not None:
                raise self._refusal
            if self._server is not None and self._server.gone:
                await self.close()
            if self._server is None:
                server = _Server(self.config)
                hello = await server.start()
                try:
                    self.enforcement = await _try_to_escape(server, hello)
                    self._require(self.enforcement)
                except BaseException:
                    await server.stop()
                    raise
                self._server = server
            return self._server

    def _require(self, enforcement: Enforcement) -> None:
        missing = [name for name in LIMITS if not enforcement.limits[name] and name not in self.config.allow_unenforced]
        if missing:
            self._refusal = SpoInterpreterError(
                f"this machine does not hold programs to: {', '.join(missing)} (seccomp filter: "
                f"{'yes' if enforcement.seccomp else 'no'}, Landlock version: {enforcement.landlock or 'none'}, "
                f"namespaces: {'yes' if enforcement.namespaces else 'no'}). Use interpreter.backend=sandbox_fusion, a "
                "Linux kernel of 5.13 or later on x86_64 whose container allows seccomp and Landlock, or, where every "
                f"program may be trusted, interpreter.allow_unenforced=[{', '.join(missing)}]"
            )
            raise self._refusal


async def _try_to_escape(server: _Server, hello: dict[str, Any]) -> Enforcement:
    with Bait() as bait:
        result = await server.run(bait.program(server.config.cpu_seconds))
        try:
            limits, folder = bait.held(result.stdout)
        except ValueError as error:
            said = result.stderr.strip()[-500:] or result.note
            raise _ServerGoneError(f"the program that tries the limits failed: {said}") from error
    return Enforcement(limits=limits, folder=folder, **hello)


def _ending(report: dict[str, Any], over: bool, config: EmbeddedConfig) -> tuple[Outcome, str]:
    status = report["status"]
    if over:
        return "output_limit", f"The program wrote more than {config.output_bytes} bytes and was stopped."
    if report["late"]:
        return "timeout", f"The program ran longer than {config.wall_seconds:g} s and was stopped."
    if status == -signal.SIGKILL and report["cpu"] > config.cpu_seconds - 0.5:
        return "timeout", f"The program used more than {config.cpu_seconds} s of CPU time and was stopped."
    if status < 0:
        return "killed", f"The program was ended by {_signal_name(-status)}."
    return ("finished", "") if status == 0 else ("failed", f"The program ended with exit code {status}.")


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _settings(config: EmbeddedConfig) -> dict[str, Any]:
    packages_from = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    base = Path(sys.base_prefix)
    libraries = [base / "lib", base / "lib64", *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64"))]
    files = ["/etc/ld.so.cache", "/dev/urandom", "/dev/zero", "/usr/share/zoneinfo"]
    stdlib = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return {
        "packages": list(config.packages),
        "packages_from": packages_from,
        "readable": sorted({*packages_from, *stdlib, *map(str, libraries), *files}),
        "cpu_seconds": config.cpu_seconds,
        "wall_seconds": config.wall_seconds,
        "memory_mb": config.memory_mb,
        "disk_mb": config.disk_mb,
    }


def _environment() -> dict[str, str]:
    """Nothing of the trainer's environment, which may hold keys, but where the loader finds Python's own library."""
    own = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # Arrow, below pandas, has allocators that reserve a GiB each and that complain on stderr when they get no thread.
    arrow = {"ARROW_DEFAULT_MEMORY_POOL": "system", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    return {**own, **threads, **arrow, "LANG": "C.UTF-8", "HOME": "/dev/shm", "TMPDIR": "/dev/shm", "MPLBACKEND": "agg"}
