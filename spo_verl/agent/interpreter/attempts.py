"""Attempts to get past each limit, made by a program of our own before the first one of a model.

The program tells which attempts got through. What it aims at is here, in the owner's process, which then looks for
itself: a file that the user may write, sockets of this machine, a process of the user.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from spo_verl.agent.config import Limit

PRECIOUS = "precious"

PROGRAM = """
import array, ctypes, json, os, resource, signal, socket, struct, sys, threading

libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *(
        value if isinstance(value, bytes) else ctypes.c_long(value) for value in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")

def through(*attempts):
    '''Numbers of the attempts that were not refused.'''
    found = []
    for number, attempt in enumerate(attempts):
        try:
            attempt()
        except (OSError, RuntimeError, MemoryError, ValueError):
            continue
        found.append(number)
    return found

def start_process():
    if os.fork() == 0:
        os._exit(0)

def clone(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result == 0:
        os._exit(0)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")

def reach(family, kind, address):
    with socket.socket(family, kind) as probe:
        probe.settimeout(0.2)
        if kind == socket.SOCK_DGRAM:
            probe.sendto(b"x", address)
        else:
            probe.connect(address)

def send_from_pair(kind, address, descriptor=False):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]).tobytes())] if descriptor else []
        one.sendmsg([b"x"], rights, 0, address) if descriptor else one.sendto(b"x", address)

def filter_sockets():
    one, other = socket.socketpair()
    with one, other:
        code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 65535))
        one.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))

def open_family(family):
    socket.socket(family, socket.SOCK_RAW if family in (16, 17) else socket.SOCK_STREAM).close()

def read(path):
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)

def reopen():
    os.open(f"/proc/self/fd/{os.open(FILE, os.O_PATH)}", os.O_RDONLY)

THREE, NEXT = 3, os.path.join(os.path.dirname(FILE), "new")
name, new = FILE.encode() + b"\\0", NEXT.encode() + b"\\0"
cpu = resource.getrlimit(resource.RLIMIT_CPU)[1]
space = resource.getrlimit(resource.RLIMIT_AS)[1]
got = {
    "cpu_time": [0] if cpu != CPU_SECONDS else through(
        lambda: resource.setrlimit(resource.RLIMIT_CPU, (cpu + 1, cpu + 1))),
    "memory": [0] if space <= 0 else through(
        lambda: bytearray(space), lambda: resource.setrlimit(resource.RLIMIT_AS, (2 * space, 2 * space))),
    "processes": through(
        start_process, lambda: threading.Thread(target=int).start(), lambda: clone(56, 17, 0, 0, 0, 0),
        lambda: clone(435, struct.pack("8Q", 0, 0, 0, 0, 17, 0, 0, 0), 64),
        lambda: os.posix_spawn("/proc/self/exe", ["python", "-c", ""], {})),
    "no_network": through(
        *(lambda family=family: open_family(family) for family in (1, 16, 17, 38, 40)),
        lambda: reach(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", TCP)),
        lambda: reach(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", UDP)),
        lambda: reach(socket.AF_UNIX, socket.SOCK_STREAM, STREAM),
        *(lambda address=address: reach(socket.AF_UNIX, socket.SOCK_DGRAM, address) for address in (PATH, ABSTRACT)),
        *(lambda address=address, passing=passing: send_from_pair(socket.SOCK_DGRAM, address, passing)
          for address in (PATH, ABSTRACT) for passing in (False, True)),
        lambda: send_from_pair(socket.SOCK_SEQPACKET, PATH), lambda: send_from_pair(3, PATH), filter_sockets),
    "private_files": through(
        *(lambda path=path: read(path) for path in
          (FILE, "/proc/self/environ", "/proc/self/mem", "/proc/1/environ", "/etc/passwd", "/", "/proc", "/tmp")),
        *(lambda flags=flags: os.open(FILE, flags) for flags in (
            THREE, THREE | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND,
            os.O_WRONLY | os.O_TRUNC, os.O_RDONLY, THREE | os.O_NONBLOCK, THREE | os.O_CREAT)),
        lambda: call(2, name, THREE | os.O_TRUNC, 0), lambda: call(85, name, 0o600), lambda: call(76, name, 0),
        lambda: call(437, -100, name, struct.pack("QQQ", THREE | os.O_TRUNC, 0, 0), 24),
        lambda: os.open(NEXT, os.O_WRONLY | os.O_CREAT), lambda: os.truncate(FILE, 0), reopen,
        lambda: os.chmod(FILE, 0o777), lambda: os.utime(FILE, (1, 1)), lambda: os.setxattr(FILE, "user.x", b"1"),
        lambda: os.chown(FILE, os.getuid(), os.getgid()), lambda: os.remove(FILE), lambda: os.rename(FILE, NEXT),
        lambda: os.link(FILE, NEXT), lambda: os.symlink(FILE, NEXT), lambda: os.mkdir(NEXT),
        lambda: os.rmdir(os.path.dirname(FILE)),
        lambda: call(303, -100, name, struct.pack("Ii128x", 128, 0), bytes(8), 0)),
    "no_signals": through(
        lambda: os.kill(os.getppid(), 0), lambda: os.kill(-1, 0), lambda: os.kill(PID, signal.SIGKILL),
        lambda: signal.pidfd_send_signal(os.pidfd_open(PID), signal.SIGKILL),
        lambda: __import__("fcntl").fcntl(0, 8, PID), lambda: call(200, PID, 9), lambda: call(129, PID, 9, bytes(128)),
        lambda: resource.prlimit(PID, resource.RLIMIT_NOFILE, (0, 0))),
}
try:
    open("probe", "w").close()
    folder = True
except OSError:
    folder = False
print(json.dumps({"through": got, "folder": folder}))
"""


class Bait:
    """What the attempts aim at, while the ``with`` block lasts."""

    def __enter__(self) -> Bait:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spo-verl-")))
            self.file = folder / "file"
            self.file.write_text(PRECIOUS)
            self.before = self._state()
            kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
            self.tcp, self.udp = (stack.enter_context(socket.socket(socket.AF_INET, kind)) for kind in kinds)
            self.stream, self.path = (stack.enter_context(socket.socket(socket.AF_UNIX, kind)) for kind in kinds)
            self.abstract = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self.tcp.bind(("127.0.0.1", 0))
            self.udp.bind(("127.0.0.1", 0))
            self.stream.bind(str(folder / "stream"))
            self.path.bind(str(folder / "path"))
            self.abstract.bind(f"\0spo-verl-{secrets.token_hex(8)}")
            for listening in (self.tcp, self.stream):
                listening.listen()
            for bait in (self.tcp, self.udp, self.stream, self.path, self.abstract):
                bait.setblocking(False)
            command = [sys.executable, "-I", "-S", "-c", "input()"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
            stack.callback(self._end_process)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def program(self, cpu_seconds: int) -> str:
        """The program that makes the attempts; it prints what :meth:`held` reads."""
        aims: dict[str, Any] = {
            "FILE": str(self.file),
            "TCP": self.tcp.getsockname()[1],
            "UDP": self.udp.getsockname()[1],
            "STREAM": self.stream.getsockname(),
            "PATH": self.path.getsockname(),
            "ABSTRACT": self.abstract.getsockname(),
            "PID": self.process.pid,
            "CPU_SECONDS": cpu_seconds,
        }
        return "".join(f"{name} = {value!r}\n" for name, value in aims.items()) + PROGRAM

    def held(self, printed: str) -> tuple[dict[str, bool], bool]:
        """What held, by the word of the program and by what is to be seen here.

        Returns:
            limit -> whether no attempt got past it, and whether the program has a folder.

        Raises:
            ValueError: ``printed`` is not what the program prints.
        """
        answer = json.loads(printed)
        held = {name: not numbers for name, numbers in answer["through"].items()}
        for limit in self._touched():
            held[limit] = False
        return held, bool(answer["folder"])

    def _touched(self) -> set[Limit]:
        found: set[Limit] = set()
        if self._state() != self.before:
            found.add("private_files")
        if self.process.poll() is not None:
            found.add("no_signals")
        if any(_was_reached(bait) for bait in (self.tcp, self.udp, self.stream, self.path, self.abstract)):
            found.add("no_network")
        return found

    def _state(self) -> tuple[object, ...]:
        """Of the file and its neighbours; a file that is gone or cannot be read is a change like any other."""
        try:
            status = self.file.stat()
            neighbours = set(os.listdir(self.file.parent)) - {"stream", "path"}
            text = self.file.read_text()
        except OSError as error:
            return (error.errno,)
        marks = os.listxattr(self.file) if hasattr(os, "listxattr") else []
        return status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns, neighbours, text, marks

    def _end_process(self) -> None:
        self.process.kill()
        self.process.communicate()


def _was_reached(bait: socket.socket) -> bool:
    """Whether somebody connected or sent something."""
    try:
        if bait.type == socket.SOCK_STREAM:
            bait.accept()[0].close()
        else:
            bait.recv(1)
    except BlockingIOError:
        return False
    return True
