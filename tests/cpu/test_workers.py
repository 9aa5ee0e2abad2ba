"""Ray's workers as forks: requests read, children with all that a process of their own would have, and their ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spo_verl.cpu.workers import CLIENT, fork_workers
from spo_verl.cpu.workers.client import SOCKET, STOCK, connect, request
from spo_verl.launching.supervise import session_members

WAIT_S = 60.0


def context(**parts: Any) -> str:
    return f"--serialized-runtime-env-context={json.dumps(parts)}"


def test_a_request_has_the_variables_of_the_runtime_environment() -> None:
    given = [context(env_vars={"B": "2"}, py_executable=sys.executable), "--language=PYTHON", "worker.py", "--x=1"]
    wanted = request(given, {"A": "1", "B": "1"})
    assert wanted == {"argv": ["worker.py", "--x=1"], "env": {"A": "1", "B": "2"}, "cwd": os.getcwd()}


@pytest.mark.parametrize(
    "given",
    [
        [context(), "--language=JAVA"],
        [context(env_vars={"PATH": "/x:${PATH}"}), "--language=PYTHON"],
        [context(command_prefix=["source", "env"]), "--language=PYTHON"],
        [context(py_executable="/other/python"), "--language=PYTHON"],
        [context(override_worker_entrypoint="/in/a/container.py"), "--language=PYTHON"],
        [context(java_jars=["a.jar"]), "--language=PYTHON"],
    ],
)
def test_what_needs_more_than_a_fork_is_left_to_ray(given: list[str]) -> None:
    assert request([*given, "worker.py"], {}) is None


SERVER = """
import sys
from spo_verl.cpu.workers import server
server.main(sys.argv[1:], {stages!r})
"""


class Node:
    """A stand-in of a raylet: a session of processes with a server, and clients that are children of its first one."""

    def __init__(self, folder: Path, stages: Sequence[Sequence[str]] = (("colorsys",), ("this",))) -> None:
        self.folder = folder
        (folder / "logs").mkdir()
        (folder / "sockets").mkdir()
        self.socket = folder / "sockets" / "fork_server"
        self.stock = folder / "stock.py"
        self.stock.write_text("import sys; print('stock', *sys.argv[1:]); sys.exit(5)")
        self.worker = folder / "worker.py"
        self.env = {**os.environ, STOCK: str(self.stock), SOCKET: str(self.socket)}
        self.raylet = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self.log = folder / "logs" / "fork_server.log"
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-c", SERVER.format(stages=stages), str(self.socket), str(self.raylet.pid)],
                env=self.env, stdout=log, stderr=log,
            )  # fmt: skip

    def ready(self) -> Node:
        wait_for(lambda: self.socket.exists() or self.server.poll() is not None)
        return self

    def client(self, text: str, *arguments: str, variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
        if not self.worker.exists():
            self.worker.write_text(textwrap.dedent(text))
        given = [context(env_vars=variables or {}), "--language=PYTHON", str(self.worker), *arguments]
        return subprocess.Popen(
            [sys.executable, str(CLIENT), *given],
            env=self.env, cwd=self.folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, text: str, *arguments: str, variables: dict[str, str] | None = None) -> tuple[int, str, str]:
        client = self.client(text, *arguments, variables=variables)
        out, err = client.communicate(timeout=WAIT_S)
        return client.returncode, out, err

    def end(self) -> None:
        for one in (self.server, self.raylet):
            one.kill()
            one.wait()


def wait_for(condition: Any) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made.ready()
    made.end()


REPORT = """
import json, os, random, signal, sys
import numpy
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "cwd": os.getcwd(), "pid": os.getpid(), "parent": os.getppid(),
    "group": os.getpgid(0), "preloaded": sorted({"colorsys", "this"} & set(sys.modules)), "rank": os.environ.get("RANK"),
    "main": sys.modules["__main__"].__file__, "random": random.random(), "numpy": numpy.random.rand(),
    "open": sorted(os.listdir("/proc/self/fd"))[:8], "default": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
}))
print("to stderr", file=sys.stderr)
sys.exit(7)
"""  # noqa: E501


def test_a_worker_is_as_one_that_was_started(node: Node) -> None:
    code, out, err = node.run(REPORT, "--a=b", variables={"RANK": "3"})
    found = json.loads(out)
    assert (code, err) == (7, "to stderr\n")
    assert found["argv"] == [str(node.worker), "--a=b"]
    assert (found["path"], found["cwd"], found["main"]) == (str(node.folder), str(node.folder), str(node.worker))
    assert (found["name"], found["rank"]) == ("__main__", "3")
    assert (found["parent"], found["group"]) == (node.server.pid, found["pid"])
    assert "colorsys" in found["preloaded"]
    wait_for(lambda: json.loads(node.run(REPORT)[1])["preloaded"] == ["colorsys", "this"])  # when nobody waits
    assert found["default"]
    # Standard streams and the folder that is listed: nothing of the server, nothing of another worker.
    assert found["open"] == ["0", "1", "2", "3"]


def test_workers_draw_different_numbers(node: Node) -> None:
    first, second = (json.loads(node.run(REPORT)[1]) for _ in range(2))
    assert first["random"] != second["random"]
    assert first["numpy"] != second["numpy"]


def test_several_at_once_keep_their_streams_apart(node: Node) -> None:
    text = "import sys, time; time.sleep(float(sys.argv[2])); print(sys.argv[1]); sys.exit(int(sys.argv[1]))"
    clients = [node.client(text, str(number), str(0.3 / number)) for number in (1, 2, 3)]
    for number, client in enumerate(clients, 1):
        assert client.communicate(timeout=WAIT_S)[0] == f"{number}\n"
        assert client.returncode == number


def test_a_worker_that_a_signal_ends(node: Node) -> None:
    assert node.run("import os; os.kill(os.getpid(), 9)")[0] == 128 + signal.SIGKILL


WAITS = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", ["client", "server", "terminated"])
def test_neither_client_nor_worker_outlives_the_other(node: Node, end: str) -> None:
    client = node.client(WAITS)
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    assert alive(pid)
    if end == "client":
        client.kill()
    elif end == "server":
        node.server.kill()
    else:
        client.terminate()
    wait_for(lambda: not alive(pid))
    assert client.wait(WAIT_S) == {"client": -signal.SIGKILL, "server": 1, "terminated": 128 + signal.SIGTERM}[end]
    client.communicate()


def test_the_server_ends_with_its_raylet_once_the_workers_have(node: Node) -> None:
    client = node.client("import os, time; print(os.getppid(), flush=True); time.sleep(1); print('done')")
    assert client.stdout is not None
    assert int(client.stdout.readline()) == node.server.pid
    node.raylet.kill()
    node.raylet.wait()
    assert client.communicate(timeout=WAIT_S)[0] == "done\n"
    assert node.server.wait(WAIT_S) == 0


def test_both_ends_seen_at_once(node: Node) -> None:
    """The server looks after both have died, as it does after seconds of imports; another worker is not touched."""
    other, client = node.client(WAITS), node.client(WAITS)
    assert other.stdout is not None
    assert client.stdout is not None
    other_pid, pid = int(other.stdout.readline()), int(client.stdout.readline())
    for worker_first in (True, False):
        node.server.send_signal(signal.SIGSTOP)
        for one in (pid, client.pid) if worker_first else (client.pid, pid):
            os.kill(one, signal.SIGKILL)
            wait_for(lambda one=one: not alive(one))
        node.server.send_signal(signal.SIGCONT)
        client.communicate(timeout=WAIT_S)
        client = node.client(WAITS)
        assert client.stdout is not None
        pid = int(client.stdout.readline())
    assert alive(other_pid)
    assert node.server.poll() is None
    for one in (client, other):
        one.kill()
        one.communicate()


FAILS_LATER = {
    "an import": "raise ImportError('not today')",
    "threads": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
}


@pytest.mark.parametrize("what", sorted(FAILS_LATER))
def test_workers_outlive_a_later_stage_that_fails(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker is asked for while the first stage is imported, so that the second one fails beside it."""
    (tmp_path / "slow.py").write_text("import time; time.sleep(1.5)")
    (tmp_path / "later.py").write_text(FAILS_LATER[what])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    node = Node(tmp_path, (("slow",), ("later",))).ready()
    try:
        client = node.client("import os, sys; print(os.getppid(), flush=True); sys.stdin.read(); print('done')")
        assert client.stdout is not None
        assert int(client.stdout.readline()) == node.server.pid
        wait_for(Path(f"{node.socket}.failed").exists)
        assert node.run(REPORT)[1].split()[0] == "stock"
        out, _ = client.communicate("", timeout=WAIT_S)
        assert (client.returncode, out) == (0, "done\n")
        assert node.server.wait(WAIT_S) == 0  # nothing is left to do
    finally:
        node.end()


@pytest.mark.parametrize("limit", ["disk", "descriptors"])
def test_workers_outlive_what_their_server_runs_out_of(limit: str, node: Node) -> None:
    client = node.client("import sys; print('begun', flush=True); sys.stdin.read(); print('done')")
    assert client.stdout is not None
    assert client.stdout.readline() == "begun\n"
    asked = {}
    if limit == "disk":
        # What is said of the next worker cannot be written.
        resource.prlimit(node.server.pid, resource.RLIMIT_FSIZE, (0, 0))
        asked = {"OTHER": "1"}
    else:
        resource.prlimit(node.server.pid, resource.RLIMIT_NOFILE, (3, 3))
    code, out, _ = node.run(REPORT, variables=asked)
    assert (code, out.split()[0]) == (5, "stock")
    out, _ = client.communicate("", timeout=WAIT_S)
    assert (client.returncode, out) == (0, "done\n")


def test_without_a_raylet_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(OSError, match="the raylet has ended"):
        connect(str(tmp_path / "socket"), {})
    assert not list(tmp_path.iterdir())


def test_a_worker_without_a_folder_is_left_to_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert request([context(), "--language=PYTHON", "worker.py"], {}) is None


def test_another_environment_is_left_to_ray(node: Node) -> None:
    code, out, _ = node.run(REPORT, variables={"OMP_NUM_THREADS": "7"})
    assert (code, out.split()[0]) == (5, "stock")
    assert "OMP_NUM_THREADS" in node.log.read_text()


def test_a_client_starts_the_server_that_it_lacks(tmp_path: Path) -> None:
    """And only one of those that come at once does; the worker's own script is in their parent's place here."""
    node = Node(tmp_path, ())  # without a stage it fails
    try:
        node.server.wait(WAIT_S)
        Path(f"{node.socket}.failed").unlink()
        node.env["PYTHONPATH"] = str(tmp_path)
        (tmp_path / "spo_verl" / "cpu" / "workers").mkdir(parents=True)
        real = Path(sys.modules["spo_verl.cpu.workers.client"].__file__ or "").with_name("server.py")
        (tmp_path / "spo_verl" / "cpu" / "workers" / "server.py").write_text(
            real.read_text().replace('"verl.', '"colorsys" or "').replace('"spo_verl.', '"colorsys" or "')
        )
        clients = [node.client("import os; print(os.getppid())") for _ in range(3)]
        parents = {client.communicate(timeout=WAIT_S)[0] for client in clients}
        (parent,) = parents
        assert parent.strip().isdecimal()
    finally:
        node.end()
        for pid in session_members(os.getsid(0)):
            if str(node.socket) in Path(f"/proc/{pid}/cmdline").read_bytes().decode():
                os.kill(pid, signal.SIGKILL)


def test_imports_that_start_threads_are_not_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "starts_a_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    node = Node(tmp_path, (("starts_a_thread",),)).ready()
    try:
        code, out, _ = node.run(REPORT)
        assert (code, out.split()[0]) == (5, "stock")
        assert "no fork server" in node.run(REPORT)[2]
        assert "importing starts_a_thread started threads" in node.log.read_text()
    finally:
        node.end()


def test_imports_that_use_rays_generator_are_not_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "draws.py").write_text("import ray\nray.ObjectRef.from_random()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    node = Node(tmp_path, (("draws",),)).ready()
    try:
        assert node.run(REPORT)[1].split()[0] == "stock"
        assert "used Ray's generator" in node.log.read_text()
    finally:
        node.end()


def test_classes_of_actors_leave_rays_generator_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "declares.py").write_text("import ray\n@ray.remote\nclass A: ...\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    node = Node(tmp_path, (("declares",),)).ready()
    try:
        draw = "import ray; print(ray.ObjectRef.from_random().hex())"
        first, second = (node.run(draw) for _ in range(2))
        assert (first[0], second[0]) == (0, 0)
        assert first[1] != second[1]
    finally:
        node.end()


RAY = """
import json, os, ray
import spo_verl.cpu
spo_verl.cpu.activate()
given = {"env_vars": {"GIVEN": "1"}}
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=given)

@ray.remote(num_cpus=0)
class Actor:
    def look(self):
        import sys
        modules = set(sys.modules)
        parent = open(f"/proc/{os.getppid()}/cmdline").read()
        import torch
        there = "torch" in modules
        return os.getpid(), parent, there, os.environ["GIVEN"], os.environ.get("RANK"), torch.get_num_threads()

    def fail(self):
        os._exit(3)

plain, ranked = Actor.remote(), Actor.options(runtime_env={"env_vars": {"RANK": "1"}}).remote()
other = Actor.options(runtime_env={"env_vars": {"OMP_NUM_THREADS": "2"}}).remote()
two = Actor.options(num_cpus=2).remote()
actors = {"plain": plain, "ranked": ranked, "other": other, "two": two}
found = {name: ray.get(one.look.remote()) for name, one in actors.items()}
try:
    ray.get(plain.fail.remote())
except ray.exceptions.RayActorError as error:
    found["error"] = type(error).__name__
ray.kill(ranked)
print(json.dumps(found))
"""


@pytest.mark.long
def test_rays_workers_are_forks() -> None:
    env = {**os.environ, "VERL_PLATFORM": "cpu"}
    env.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", RAY], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert found.pop("error") == "ActorDiedError"
    assert [one[3:] for one in found.values()] == [["1", None, 1], ["1", "1", 1], ["1", None, 2], ["1", None, 2]]
    of_the_server = {name: "spo_verl.cpu.workers.server" in one[1] for name, one in found.items()}
    assert of_the_server == {"plain": True, "ranked": True, "other": False, "two": True}
    assert {name: one[2] for name, one in found.items()} == of_the_server
    for pid, *_ in found.values():
        wait_for(lambda pid=pid: not alive(pid))


def started(monkeypatch: pytest.MonkeyPatch, session: str = "/tmp/ray/session", **environ: str) -> dict[str, Any]:
    """What the raylet is started with."""
    monkeypatch.delenv("SPO_FORK_WORKERS", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def start_raylet(setup_worker_path: str, session_dir: str, env_updates: Any = None) -> dict[str, Any]:
        return {"setup": setup_worker_path, "env": env_updates}

    services = ModuleType("services")
    services.start_raylet = start_raylet  # type: ignore[attr-defined]
    fork_workers(services)
    return services.start_raylet("/ray/setup_worker.py", session, env_updates={"A": "1"})  # type: ignore[no-any-return]


def test_the_raylet_is_given_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    socket = "/tmp/ray/session/sockets/fork_server"
    assert started(monkeypatch) == {
        "setup": str(CLIENT), "env": {"A": "1", STOCK: "/ray/setup_worker.py", SOCKET: socket},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "session"),
    [
        ({"SPO_FORK_WORKERS": "0"}, "/tmp/ray/session"),
        ({}, "/tmp/" + 100 * "r"),  # no socket has such a path
    ],
)
def test_the_raylet_is_left_alone(environ: dict[str, str], session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(monkeypatch, session, **environ) == {"setup": "/ray/setup_worker.py", "env": {"A": "1"}}
