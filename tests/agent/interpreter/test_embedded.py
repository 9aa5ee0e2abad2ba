"""The embedded backend with programs that mean harm.

What must be refused is also run uncontained, where it must succeed: a test that could not fail would show there.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from spo_verl.agent.agent_errors import SpoInterpreterError
from spo_verl.agent.config import EmbeddedConfig
from spo_verl.agent.interpreter import embedded
from spo_verl.agent.interpreter.attempts import Bait
from spo_verl.agent.interpreter.embedded import EmbeddedInterpreter
from spo_verl.agent.interpreter.gate import Gate

REPOSITORY = Path(__file__).parents[3]
SMALL = EmbeddedConfig(
    packages=("numpy",), cpu_seconds=2, wall_seconds=4.0, memory_mb=256, disk_mb=8, output_bytes=100_000, max_running=3
)

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="the backend is of Linux"), pytest.mark.long]


class Sandbox:
    """An interpreter with an event loop in a thread, so that tests read like programs."""

    def __init__(self, config=SMALL):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.interpreter = self.call(self._make(config))

    async def _make(self, config):
        return EmbeddedInterpreter(config)

    def call(self, coroutine, timeout=60):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def run(self, code):
        return self.call(self.interpreter.run(textwrap.dedent(code)))

    def close(self):
        self.call(self.interpreter.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    try:
        box.call(box.interpreter.start())
    except SpoInterpreterError as error:
        box.close()
        pytest.skip(f"this machine cannot contain programs: {error}")
    yield box
    box.close()


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    """No process, no file in /dev/shm, no descriptor more than before."""
    if "sandbox" in request.fixturenames:
        request.getfixturevalue("sandbox").run("pass")
    processes = {child.pid for child in psutil.Process().children(recursive=True)}
    files, descriptors = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 5
    while (
        left := {c.pid for c in psutil.Process().children(recursive=True)} - processes
    ) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left - _servers(request) == set()
    assert set(os.listdir("/dev/shm")) - files == set()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def _servers(request):
    """The server may have been started anew by the test."""
    if "sandbox" not in request.fixturenames:
        return set()
    server = psutil.Process(request.getfixturevalue("sandbox").interpreter._server._process.pid)
    return {server.pid, *(child.pid for child in server.children())}


def uncontained(code):
    """The same program without a sandbox."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout


def test_a_program_prints(sandbox):
    result = sandbox.run("print('hé' * 2)")
    assert (result.stdout, result.stderr, result.outcome, result.note) == ("héhé\n", "", "finished", "")
    assert 0 < result.seconds < 4


def test_an_exception_is_shown_with_its_line_and_nothing_of_the_sandbox(sandbox):
    result = sandbox.run("def f(x):\n    return 1 / x\nprint(f(0))")
    assert result.outcome == "failed"
    assert "return 1 / x" in result.stderr
    assert result.stderr.strip().endswith("ZeroDivisionError: division by zero")
    assert "zygote" not in result.stderr
    assert result.note == ""


@pytest.mark.parametrize(
    ("code", "outcome", "said"),
    [
        ("x = (", "failed", "SyntaxError"),
        ("x = '\\0' + chr(0xd800); print(x)", "failed", "surrogates not allowed"),
        ("import sys; sys.exit(3)", "failed", "exit code 3"),
        ("import sys; sys.exit('no luck')", "failed", "no luck"),
        ("input()", "failed", "EOFError"),
        ("import sys; print(repr(sys.stdin.read()))", "finished", "''"),
        ("import os; os.abort()", "killed", "SIGABRT"),
        ("import atexit; atexit.register(print, 'bye')", "finished", "bye"),
        ("print(__name__)", "finished", "__main__"),
        ("import sys; print(sys.argv)", "finished", "<program>"),
        ("", "finished", ""),
        ("import numpy; print(numpy.arange(3).sum())", "finished", "3"),
        ("import json, decimal, asyncio; asyncio.run(asyncio.sleep(0)); print('ok')", "finished", "ok"),
        ("import tempfile; f = tempfile.TemporaryFile(); f.write(b'x'); print('ok')", "finished", "ok"),
        ("import signal; signal.alarm(1); import time; time.sleep(3)", "killed", "SIGALRM"),
    ],
)
def test_ordinary_programs(sandbox, code, outcome, said):
    result = sandbox.run(code)
    assert result.outcome == outcome, result
    assert said in result.stdout + result.stderr + result.note


def test_programs_share_nothing(sandbox):
    sandbox.run("open('kept', 'w').write('x'); import builtins; builtins.kept = 1; import math; math.pi = 3")
    result = sandbox.run(
        "import os, builtins, math; print(os.listdir('.'), hasattr(builtins, 'kept'), math.pi, sorted(os.environ))"
    )
    assert result.stdout.startswith("[] False 3.14")
    assert str(sorted(embedded._environment())) in result.stdout


def test_random_numbers_differ_between_programs(sandbox):
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    first, second = (sandbox.run(code).stdout.split() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_no_program_finds_another_ones_code_in_memory(sandbox):
    sandbox.run("secret = 'the' + 'quick' + 'brown'\nprint('marker-of-the-first-program')")
    result = sandbox.run(
        "import gc\n"
        "mark = 'marker-of-the-' + 'first-program'\n"
        "print(any(mark in o for o in gc.get_objects() if isinstance(o, (str, bytes)) for mark in [mark]))\n"
        "print(any(mark in v for o in gc.get_objects() if isinstance(o, dict) for v in list(o.values())"
        " if isinstance(v, str) and v is not mark))"
    )
    assert "True" not in result.stdout
    assert result.outcome == "finished", result


# --- what must be refused; each program says so when it gets through ---

ESCAPES = {
    "fork": "import os\nif os.fork() == 0: os._exit(0)\nos.wait(); print('GOT THROUGH')",
    "thread": "import threading\nt = threading.Thread(target=print, args=('GOT THROUGH',)); t.start(); t.join()",
    "exec": "import os; os.execv('/bin/echo', ['echo', 'GOT THROUGH'])",
    "subprocess": "import subprocess; print(subprocess.run(['/bin/echo', 'GOT THROUGH'], capture_output=True).stdout)",
    "system": "import os; print('GOT THROUGH' if os.system('true') == 0 else 'refused')",
    "posix_spawn": "import os; os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0); print('GOT THROUGH')",
    "multiprocessing": "import multiprocessing as m\np = m.get_context('fork').Process(target=int)\n"
    "p.start(); p.join(); print('GOT THROUGH')",
    "read a system file": "open('/etc/passwd').read(); print('GOT THROUGH')",
    "read the repository": f"open({str(REPOSITORY / 'README.md')!r}).read(); print('GOT THROUGH')",
    "list the root": "import os; os.listdir('/'); print('GOT THROUGH')",
    "list processes": "import os; os.listdir('/proc'); print('GOT THROUGH')",
    "own environment of the server": "open('/proc/self/environ').read(); print('GOT THROUGH')",
    "write outside": "import os; p = '/tmp/spo-verl-escape'; open(p, 'w').close(); os.remove(p); print('GOT THROUGH')",
    "read through a symlink": "import os, tempfile; d = tempfile.mkdtemp(); os.symlink('/etc/passwd', d + '/l'); "
    "open(d + '/l').read(); print('GOT THROUGH')",
    "hard link into the folder": "import os, tempfile; d = tempfile.mkdtemp(dir=os.path.dirname(TARGET)); "
    "os.link(TARGET, d + '/l'); os.remove(d + '/l'); os.rmdir(d); print('GOT THROUGH')",
    "rename outside": "import os; os.rename(TARGET, TARGET + '2'); os.rename(TARGET + '2', TARGET); "
    "print('GOT THROUGH')",
    "truncate a path": "import os; os.truncate(TARGET, 4); print('GOT THROUGH')",
    "truncate by opening": "import os; os.open(TARGET, os.O_RDONLY | os.O_TRUNC); print('GOT THROUGH')",
    "chmod outside": "import os; os.chmod(TARGET, 0o600); print('GOT THROUGH')",
    "utime outside": "import os; os.utime(TARGET, (1, 1)); print('GOT THROUGH')",
    "xattr outside": "import os; os.setxattr(TARGET, 'user.x', b'1'); print('GOT THROUGH')",
    "tcp": "import socket; s = socket.create_connection(('127.0.0.1', PORT), 2); print('GOT THROUGH')",
    "udp": "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', PORT)); "
    "print('GOT THROUGH')",
    "tcp6": "import socket; socket.socket(socket.AF_INET6); print('GOT THROUGH')",
    "unix": "import socket; s = socket.socket(socket.AF_UNIX); s.connect(SOCKET); print('GOT THROUGH')",
    "abstract unix": "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0spo-verl-test'); "
    "print('GOT THROUGH')",
    "raw system call": "import ctypes; c = ctypes.CDLL(None, use_errno=True)\n"
    "print('GOT THROUGH' if c.syscall(41, 2, 1, 0) >= 0 else 'refused')",
    "32-bit system call": "import ctypes; c = ctypes.CDLL(None)\n"
    "print('GOT THROUGH' if c.syscall(39) == c.syscall(39 + 0) > 0 and c.syscall(41, 1, 1, 0) >= 0 else 'refused')",
    "signal the parent": "import os; os.kill(os.getppid(), 0); print('GOT THROUGH')",
    "signal the owner": "import os; os.kill(OWNER, 0); print('GOT THROUGH')",
    "signal through a descriptor": "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()); "
    "print('GOT THROUGH')",
    "priority": "import os; os.nice(1); print('GOT THROUGH')",
    "system v memory": "import ctypes; c = ctypes.CDLL(None)\ni = c.shmget(0, 4096, 0o1600)\n"
    "c.shmctl(i, 0, 0); print('GOT THROUGH' if i >= 0 else 'refused')",
    "memory without a file": "import os; os.memfd_create('x'); print('GOT THROUGH')",
    "access mode 3": "import os; os.open(TARGET, 3); print('GOT THROUGH')",
    "access mode 3 of a device": "import os; os.open('/dev/zero', 3); print('GOT THROUGH')",
    "truncate by access mode 3": "import os; os.open(TARGET, 3 | os.O_TRUNC | os.O_CLOEXEC); print('GOT THROUGH')",
    "a path only": "import os; os.open(TARGET, os.O_PATH); print('GOT THROUGH')",
    "creat": "import ctypes; c = ctypes.CDLL(None)\n"
    "print('GOT THROUGH' if c.syscall(85, TARGET.encode() + b'2', 0o600) >= 0 else 'refused')",
    "openat2": "import ctypes, struct; c = ctypes.CDLL(None)\n"
    "fd = c.syscall(437, -100, TARGET.encode(), struct.pack('QQQ', 0, 0, 0), 24)\n"
    "print('GOT THROUGH' if fd >= 0 else 'refused')",
    "datagram pair": "import socket; a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    "try: a.sendto(b'x', SOCKET)\nexcept ConnectionRefusedError: pass\nexcept OSError as e: "
    "print('GOT THROUGH' if e.errno == 91 else 'refused')",
    "sequential pair": "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); print('GOT THROUGH')",
    "socket filter": "import ctypes, socket, struct; a, b = socket.socketpair()\n"
    "f = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 65535))\n"
    "a.setsockopt(socket.SOL_SOCKET, 26, struct.pack('HxxxxxxQ', 1, ctypes.addressof(f))); print('GOT THROUGH')",
    "pass a descriptor": "import socket; a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [0]); "
    "print('GOT THROUGH')",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); print('GOT THROUGH')",
    "change a mode by descriptor": "import os; f = open(os.__file__); os.fchmod(f.fileno(), "
    "os.fstat(f.fileno()).st_mode & 0o7777); print('GOT THROUGH')",
    "touch the library": "import os; s = os.stat(os.__file__); "
    "os.utime(os.__file__, ns=(s.st_atime_ns, s.st_mtime_ns)); print('GOT THROUGH')",
    "limits of another process": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE); "
    "print('GOT THROUGH')",
    "clock of another process": "import time, os; time.clock_gettime((~os.getppid() << 3) | 2); print('GOT THROUGH')",
    "watch files": "import ctypes; c = ctypes.CDLL(None)\nprint('GOT THROUGH' if c.inotify_init() >= 0 else 'refused')",
    "new session": "import ctypes; c = ctypes.CDLL(None)\nprint('GOT THROUGH' if c.prctl(1, 0) == 0 else 'refused')",
}


@pytest.fixture
def targets(tmp_path):
    """What programs aim at: a file, a TCP server, a unix socket, this process."""
    target = tmp_path / "target"
    target.write_text("precious")
    path = tmp_path / "socket"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(str(path))
        unix.listen()
        yield {"TARGET": str(target), "PORT": tcp.getsockname()[1], "SOCKET": str(path), "OWNER": os.getpid()}


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes_are_refused(sandbox, targets, name):
    code = "".join(f"{key} = {value!r}\n" for key, value in targets.items()) + ESCAPES[name]
    result = sandbox.run(code)
    assert "GOT THROUGH" not in result.stdout, result
    assert result.outcome in ("finished", "failed"), result
    if result.outcome == "failed":
        assert any(word in result.stderr for word in ("PermissionError", "Errno", "can't start new thread")), result
    assert Path(targets["TARGET"]).read_text() == "precious"
    assert "GOT THROUGH" in uncontained(code), "this program shows nothing: it fails without a sandbox too"


# --- what must be stopped ---


def test_an_infinite_loop_is_stopped_by_cpu_time(sandbox):
    result = sandbox.run("print('begun')\nwhile True: pass")
    assert result.outcome == "timeout"
    assert "CPU time" in result.note
    assert result.stdout == "begun\n"


def test_sleeping_is_stopped_by_wall_time_whatever_signals_it_ignores(sandbox):
    result = sandbox.run(
        """
        import signal, time
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        print('begun')
        while True:
            time.sleep(1)
        """
    )
    assert result.outcome == "timeout"
    assert "ran longer than 4 s" in result.note
    assert result.stdout == "begun\n"
    assert 4.0 <= result.seconds < 6.0


def test_a_memory_bomb_gets_a_memory_error(sandbox):
    result = sandbox.run("x = []\nwhile True: x.append(bytearray(10_000_000))")
    assert result.outcome == "failed"
    assert "MemoryError" in result.stderr
    assert sandbox.run("len(bytearray(100_000_000))").outcome == "finished"
    assert sandbox.run("len(bytearray(300_000_000))").outcome == "failed"
    mapped = sandbox.run("import mmap; mmap.mmap(-1, 300_000_000)")
    assert mapped.outcome == "failed"


def test_endless_output_is_stopped_and_does_not_fill_the_owner(sandbox):
    before = psutil.Process().memory_info().rss
    result = sandbox.run("while True: print('x' * 1000)")
    assert result.outcome == "output_limit"
    assert len(result.stdout) == 100_000
    both = sandbox.run("import sys\nwhile True: sys.stdout.write('o' * 500); sys.stderr.write('e' * 500)")
    assert both.outcome == "output_limit"
    assert len(both.stdout) + len(both.stderr) == 100_000
    assert psutil.Process().memory_info().rss - before < 20_000_000


def test_the_disk_is_limited(sandbox):
    one = sandbox.run("f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))")
    assert one.outcome in ("failed", "killed")
    assert "File too large" in one.stderr or "No space left" in one.stderr or "SIGXFSZ" in one.note
    many = sandbox.run(
        "import os\nn = 0\ntry:\n  while True:\n    open(str(n), 'wb').write(bytes(1 << 20)); n += 1\n"
        "except OSError as e: print(n, e)"
    )
    assert many.outcome == "finished"
    assert int(many.stdout.split()[0]) <= 8
    empty = sandbox.run("n = 0\ntry:\n  while True: open(f'f{n}', 'w').close(); n += 1\nexcept OSError as e: print(n)")
    assert int(empty.stdout) <= 4096


def test_deep_recursion_is_an_error_of_the_program(sandbox):
    assert "RecursionError" in sandbox.run("def f(): f()\nf()").stderr
    crash = sandbox.run("import sys; sys.setrecursionlimit(10**9)\ndef f(x): return sorted([x], key=f)\nf(1)")
    assert crash.outcome in ("killed", "failed")


def test_closing_descriptors_does_no_harm(sandbox):
    result = sandbox.run("import os\nprint('first')\nfor fd in range(64):\n  try: os.close(fd)\n  except OSError: pass")
    assert result.stdout == "first\n"
    result = sandbox.run("import os, time\nos.closerange(0, 64)\ntime.sleep(30)")
    assert result.outcome == "timeout"


def test_descriptors_are_limited_and_none_is_inherited(sandbox):
    assert (
        sandbox.run("import os\nfor fd in range(3, 64):\n  try: os.fstat(fd); print(fd)\n  except OSError: pass").stdout
        == ""
    )
    result = sandbox.run("x = []\nwhile True: x.append(open('/dev/null'))")
    assert "Too many open files" in result.stderr


def test_a_limit_cannot_be_raised(sandbox):
    result = sandbox.run(
        "import resource\nfor k in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):\n"
        "  try: resource.setrlimit(k, (resource.RLIM_INFINITY,) * 2); print('GOT THROUGH')\n"
        "  except (ValueError, OSError): pass"
    )
    assert result.stdout == ""


def test_a_daemon_cannot_be_left_behind(sandbox):
    result = sandbox.run("import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    time.sleep(60)")
    assert result.outcome == "failed"
    assert "PermissionError" in result.stderr


def test_a_fork_bomb_is_one_process(sandbox):
    began = time.monotonic()
    result = sandbox.run(
        "import os\nn = 0\nwhile n < 10000:\n  n += 1\n  try: os.fork(); print('GOT THROUGH')\n  except OSError: pass"
    )
    assert result.stdout == ""
    assert result.outcome == "finished"
    assert time.monotonic() - began < 4


def test_what_the_process_limit_forbids_threads_do_not_reopen(sandbox):
    result = sandbox.run(
        "import _thread\ntry: _thread.start_new_thread(print, ('GOT THROUGH',))\nexcept RuntimeError: print('no')"
    )
    assert result.stdout == "no\n"


# --- the backend itself ---


def test_programs_run_side_by_side_up_to_the_limit(sandbox):
    async def together():
        code = "import time; print(time.monotonic()); time.sleep(0.5); print(time.monotonic())"
        return await asyncio.gather(*(sandbox.interpreter.run(code) for _ in range(9)))

    spans = [tuple(map(float, result.stdout.split())) for result in sandbox.call(together())]
    most = max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)
    assert 2 <= most <= 3


def test_a_cancelled_program_is_ended(sandbox):
    async def cancelled():
        task = asyncio.ensure_future(sandbox.interpreter.run("import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    sandbox.call(cancelled())
    # nothing_is_left waits for the process to be gone
    assert sandbox.run("print(1)").stdout == "1\n"


def test_a_server_that_is_killed_is_replaced(sandbox):
    server = sandbox.interpreter._server._process.pid

    async def killed_under_way():
        task = asyncio.ensure_future(sandbox.interpreter.run("import time; time.sleep(0.5); print('done')"))
        await asyncio.sleep(0.2)
        for child in psutil.Process(server).children():
            child.kill()
        os.kill(server, signal.SIGKILL)
        return await task

    assert sandbox.call(killed_under_way()).stdout == "done\n"
    assert sandbox.interpreter._server._process.pid != server


def test_a_backend_that_cannot_run_is_an_error_after_all_attempts(monkeypatch):
    monkeypatch.setattr(embedded, "ZYGOTE", Path("/nonexistent.py"))
    box = Sandbox()
    try:
        with pytest.raises(SpoInterpreterError, match=r"failed 3 times.*sandbox_fusion"):
            box.run("print(1)")
    finally:
        box.close()


def test_a_package_that_is_missing_is_named():
    box = Sandbox(EmbeddedConfig(packages=("no_such_package_here",)))
    try:
        with pytest.raises(SpoInterpreterError, match="no_such_package_here"):
            box.call(box.interpreter.start())
    finally:
        box.close()


ABSENT = {
    "seccomp": (
        {"seccomp=_seccomp_works()": "seccomp=False"},
        {"processes", "no_network", "private_files", "no_signals"},
    ),
    "landlock": ({"landlock=max(0, int(abi))": "landlock=0"}, {"private_files"}),
    # as it was: any access mode, on a kernel whose Landlock does not know truncation
    "the access modes of open": (
        {
            "landlock=max(0, int(abi))": "landlock=min(2, int(abi))",
            "ways = (os.O_RDONLY,": "ways = (3, 3 | os.O_TRUNC, os.O_RDONLY,",
        },
        {"private_files"},
    ),
    "the kinds of socket pairs": (
        {"Argument(1, (socket.SOCK_STREAM,)": "Argument(1, (1, 2)", "44: (_null(4)": "44: (()"},
        {"no_network"},
    ),
}


def server_with(replacements, monkeypatch, folder):
    """A copy of the server that differs in these places of its source."""
    left = set(replacements)
    for name in ("zygote.py", "containment.py"):
        text = embedded.ZYGOTE.with_name(name).read_text()
        for old, new in replacements.items():
            left -= {old} if old in text else set()
            text = text.replace(old, new)
        (folder / name).write_text(text)
    assert not left, "no such place"
    monkeypatch.setattr(embedded, "ZYGOTE", folder / "zygote.py")


@pytest.mark.parametrize("fence", ABSENT)
def test_a_limit_that_does_not_hold_refuses_the_backend(fence, monkeypatch, tmp_path):
    """The same program finds out on a machine without the fence: a copy of the server that does not have it."""
    replacements, limits = ABSENT[fence]
    server_with(replacements, monkeypatch, tmp_path)
    box = Sandbox()
    try:
        with pytest.raises(SpoInterpreterError, match="does not hold programs to") as refusal:
            box.call(box.interpreter.start())
        named = str(refusal.value).partition("does not hold programs to: ")[2].partition(" (")[0]
        assert set(named.split(", ")) == limits
        with pytest.raises(SpoInterpreterError, match="does not hold programs to"):
            box.run("print(1)")  # and again, at once
    finally:
        box.close()
    allowed = Sandbox(EmbeddedConfig(packages=(), allow_unenforced=tuple(sorted(limits))))
    try:
        assert allowed.run("print(1)").stdout == "1\n"
    finally:
        allowed.close()


NO_NAMESPACES = {"namespaces = containment.enter_namespaces()": "namespaces = False"}


def test_without_namespaces_the_rest_still_holds_and_nothing_can_be_written(monkeypatch, tmp_path, targets):
    """As in a container that forbids namespaces."""
    server_with(NO_NAMESPACES, monkeypatch, tmp_path)
    box = Sandbox()
    try:
        enforcement = box.call(box.interpreter.start())
        assert all(enforcement.limits.values())
        assert (enforcement.namespaces, enforcement.folder) == (False, False)
        assert "PermissionError" in box.run("open('file', 'w')").stderr
        for name in ("fork", "tcp", "read the repository", "write outside", "signal the owner", "truncate a path"):
            code = "".join(f"{key} = {value!r}\n" for key, value in targets.items()) + ESCAPES[name]
            assert "GOT THROUGH" not in box.run(code).stdout
        assert box.run("import os; os.kill(-1, 9)").outcome == "failed"
        assert box.run("import time; time.sleep(60)").outcome == "timeout"
    finally:
        box.close()


@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize("version", [1, 2, 3, 5])
def test_an_older_kernel_holds_all_limits(version, namespaces, monkeypatch, tmp_path, targets):
    """Landlock limited to what its earlier versions know; 1 and 2 (Linux 5.13 to 6.1) know no truncating."""
    older = {"landlock=max(0, int(abi))": f"landlock=min({version}, int(abi))"}
    server_with({**older, **({} if namespaces else NO_NAMESPACES)}, monkeypatch, tmp_path)
    box = Sandbox(EmbeddedConfig(packages=(), wall_seconds=20.0))
    try:
        enforcement = box.call(box.interpreter.start())
        assert all(enforcement.limits.values()), enforcement
        assert enforcement.landlock == min(version, 5)
        head = "".join(f"{key} = {value!r}\n" for key, value in targets.items())
        for name, code in ESCAPES.items():
            # One program: each attempt says so when it gets through.
            body = textwrap.indent(code, "    ")
            head += f"try:\n{body}\nexcept (OSError, RuntimeError, AttributeError): pass\nprint({name!r})\n"
        result = box.run(head)
        assert result.outcome == "finished", result
        assert "GOT THROUGH" not in result.stdout, result
        assert Path(targets["TARGET"]).read_text() == "precious"
    finally:
        box.close()


def test_what_the_check_attempts_succeeds_without_a_sandbox(tmp_path):
    """Each attempt outside a sandbox: one that is refused there, too, would show nothing."""
    with Bait() as bait:
        command = [sys.executable, "-c", bait.program(10)]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        answer = json.loads(asked.stdout.splitlines()[-1])
        held, _ = bait.held(asked.stdout.splitlines()[-1])
    assert not any(held.values())
    got = {name: len(numbers) for name, numbers in answer["through"].items()}
    assert got["processes"] == 5
    assert got["no_network"] >= 10  # which families there are depends on the kernel
    assert got["private_files"] >= 20  # some take away what others aim at
    assert got["no_signals"] >= 5


@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="needs root and setpriv to drop it")
def test_root_without_capabilities_is_contained_as_well():
    """As root of a container: it may make namespaces, but not map itself into them."""
    command = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    asked = subprocess.run(
        [*command, "-m", "spo_verl.agent.interpreter"], capture_output=True, text=True, timeout=60, env=environment
    )
    assert asked.returncode == 0, asked.stderr
    assert all(json.loads(asked.stdout)["limits"].values())


def test_nothing_is_left_when_the_owner_is_killed(tmp_path):
    script = textwrap.dedent(
        """
        import asyncio
        from spo_verl.agent.config import EmbeddedConfig
        from spo_verl.agent.interpreter.embedded import EmbeddedInterpreter

        async def main():
            interpreter = EmbeddedInterpreter(EmbeddedConfig(packages=(), wall_seconds=60))
            await interpreter.start()
            print(interpreter._server._process.pid, flush=True)
            await interpreter.run("import time; time.sleep(60)")

        asyncio.run(main())
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    server = psutil.Process(int(owner.stdout.readline()))
    time.sleep(0.5)
    family = [server, *server.children(recursive=True)]
    assert len(family) >= 2  # the server and its program
    owner.kill()
    owner.wait()
    owner.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_a_wait_that_is_too_long_fails():
    async def crowded():
        gate = Gate(1, 0.05)
        async with gate.place(), gate.place():
            pass

    with pytest.raises(SpoInterpreterError, match="no place for a program"):
        asyncio.run(crowded())


def test_the_machine_can_be_asked_what_it_holds(sandbox):
    command = [sys.executable, "-m", "spo_verl.agent.interpreter"]
    asked = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    found = json.loads(asked.stdout)
    assert found["limits"] == sandbox.interpreter.enforcement.limits
    assert (asked.returncode == 0) == all(found["limits"].values())
