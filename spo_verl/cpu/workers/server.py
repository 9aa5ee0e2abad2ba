"""The process that Ray's workers of one node are forked from: ``python -m spo_verl.cpu.workers.server SOCKET RAYLET``.

It imports once what workers import, then forks a child for each request of a client (``client.py``). A child becomes
Ray's worker; the server tells the client when it ends, and kills it when the client is gone. The server ends soon after
its raylet (RAYLET, a process id), and no child outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = (
    ("ray._private.workers", "verl.trainer.main_ppo", "verl.workers.engine_workers", "spo_verl.training.trainer"),
    ("verl.workers.rollout.vllm_rollout.vllm_async_server", "verl.experimental.agent_loop"),
)
"""Modules by stage: verl for the process that runs the trainer, which is the first; then what the others need."""
FORKED_THREADS = frozenset({"jemalloc_bg_thd"})
"""Threads of this process that fork() may leave behind: Arrow's allocator starts its own again."""
OF_THE_WORKER = frozenset(
    {"RANK", "WORLD_SIZE", "RAY_LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "WG_PREFIX", "WG_BACKEND"}
)
"""Environment variables in which a worker may differ from this process: no module that is preloaded reads them."""
THREADS = "OMP_NUM_THREADS"
LAST_SECONDS = 20.0
"""Workers that are still at work so long after their raylet's end are killed."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Request:
    argv: list[str]
    env: dict[str, str]
    cwd: str
    streams: list[int]


def receive(connection: socket.socket) -> Request | None:
    """The request of a client; None where it went away before it had sent all of it."""
    text, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while text and not text.endswith(b"\n"):
        more = connection.recv(1 << 16)
        text = text + more if more else b""
    if not text or len(streams) != 3:
        for one in streams:
            os.close(one)
        return None
    return Request(streams=list(streams), **json.loads(text))


def threads() -> list[str]:
    """Names of this process's threads but the main one."""
    tasks = Path("/proc/self/task")
    return sorted((one / "comm").read_text().strip() for one in tasks.iterdir() if int(one.name) != os.getpid())


@contextlib.contextmanager
def plain_class_identifiers() -> Iterator[None]:
    """Ray's classes of actors get their identifiers from the system, not from Ray's generator.

    Once that generator has been used, every child continues it with the same numbers, and two workers name their tasks
    alike, upon which Ray aborts a third.
    """
    import ray.actor

    stock = ray.actor.ActorClassID

    class Drawn:
        @staticmethod
        def from_random() -> Any:
            return stock(os.urandom(stock.size()))

    ray.actor.ActorClassID = Drawn
    try:
        yield
    finally:
        ray.actor.ActorClassID = stock


def children_draw_alike() -> bool:
    """Whether two children get the same identifier from Ray's generator."""
    import ray

    drawn = set()
    for _ in range(2):
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(writing, ray.ObjectRef.from_random().binary())
            os._exit(0)
        os.close(writing)
        drawn.add(os.read(reading, 1024))
        os.close(reading)
        os.waitpid(pid, 0)
    return len(drawn) == 1


def preload(names: Sequence[str]) -> None:
    """Import what workers need.

    Raises:
        RuntimeError: a thread was started by that, and what it holds would stay locked in every child; or Ray's
            generator of identifiers was used.
    """
    with plain_class_identifiers():
        for name in names:
            importlib.import_module(name)
    imported = f"importing {', '.join(names)}"
    if left := [name for name in threads() if name not in FORKED_THREADS]:
        raise RuntimeError(f"{imported} started threads, which a fork does not have: {left}")
    if children_draw_alike():
        raise RuntimeError(f"{imported} used Ray's generator of identifiers, which all forks would continue alike")
    gc.collect()
    gc.freeze()


def follow_rays_threads() -> None:
    """Give torch as many threads as Ray decides on for this worker, which is after torch was loaded here."""
    from ray._private import utils

    stock = utils.set_omp_num_threads_if_unset

    def set_omp_num_threads_if_unset() -> bool:
        decided = bool(stock())
        if decided and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(int(os.environ[THREADS]))
        return decided

    utils.set_omp_num_threads_if_unset = set_omp_num_threads_if_unset


@dataclass(eq=False)
class Child:
    """A worker: its process, the descriptor that tells of its end, and the connection to its client."""

    pid: int
    end: int
    connection: socket.socket
    deserted: bool = False


class Server:
    """Forks and watches. :meth:`serve` returns twice: in a child its request, in the server itself None at the end.

    After a failure it forks no more, and clients leave their workers to Ray; but it stays for the workers that it has,
    since they end with it.
    """

    def __init__(
        self, listener: socket.socket, raylet: int, env: dict[str, str], stages: Sequence[Sequence[str]]
    ) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = listener
        self._failed = Path(f"{listener.getsockname()}.failed")
        self._raylet = os.pidfd_open(raylet)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._raylet, selectors.EVENT_READ, self._no_raylet)
        self._raylet_ended = False
        self._children: set[Child] = set()
        self._env = env
        self._stages = list(stages)

    def serve(self) -> Request | None:
        self._preload()
        while not self._raylet_ended and (self._children or self._listener):
            # The rest is imported as soon as nobody waits.
            ready = self._selector.select(0 if self._stages else None)
            if not ready:
                self._preload()
            for key, _ in ready:
                if (request := key.data()) is not None:
                    return request  # type: ignore[no-any-return]
        end = time.monotonic() + LAST_SECONDS
        while self._children and (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                key.data()
        return None

    def _preload(self) -> None:
        try:
            preload(self._stages.pop(0))
        except Exception as error:  # noqa: BLE001 - an import may raise anything; it is logged
            self._stop_forking("".join(traceback.format_exception(error)))

    def _stop_forking(self, why: str) -> None:
        """Clients that wait learn it by the end of their connection, later ones by a file."""
        log(f"no more workers are forked: {why}")
        self._stages.clear()
        with contextlib.suppress(OSError):
            self._failed.touch()
        self._close_listener()

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _no_raylet(self) -> None:
        self._raylet_ended = True
        self._selector.unregister(self._raylet)
        self._close_listener()

    def _accept(self) -> Request | None:
        if self._listener is None:
            return None  # closed by an event before this one
        try:
            connection, _ = self._listener.accept()
            return self._answer(connection)
        except OSError as error:  # no descriptor or process is left to have
            self._stop_forking(str(error))
            return None

    def _answer(self, connection: socket.socket) -> Request | None:
        """Fork for the client's request, if a fork serves it; returns the request in the child."""
        request = receive(connection)
        pid = None
        try:
            pid = os.fork() if request is not None and self._fits(request) else None
        finally:
            if pid != 0:
                for stream in request.streams if request is not None else ():
                    os.close(stream)
            if pid is None:
                self._tell(connection, 0)
                connection.close()
        if pid == 0:
            assert self._listener is not None
            self._selector.close()
            for one in (self._listener, connection, *(child.connection for child in self._children)):
                one.close()
            for descriptor in (self._raylet, *(child.end for child in self._children)):
                os.close(descriptor)
            return request
        if pid is not None:
            try:
                child = Child(pid, os.pidfd_open(pid), connection)
            except OSError:
                os.kill(pid, signal.SIGKILL)  # nobody would know of it, and Ray starts the worker itself
                os.waitpid(pid, 0)
                self._tell(connection, 0)
                connection.close()
                raise
            self._children.add(child)
            self._selector.register(child.end, selectors.EVENT_READ, lambda: self._ended(child))
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._deserted(child))
            self._tell(connection, pid)
        return None

    def _fits(self, request: Request) -> bool:
        """Whether the modules that this process has imported are as the worker's own imports would be."""
        both = {*request.env, *self._env} - OF_THE_WORKER
        if different := sorted(name for name in both if request.env.get(name) != self._env.get(name)):
            log(f"a worker has an environment of its own, and is started by itself: {different}")
        return not different

    def _ended(self, child: Child) -> None:
        self._children.remove(child)
        _, status = os.waitpid(child.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._tell(child.connection, code if code >= 0 else 128 - code)
        self._selector.unregister(child.end)
        os.close(child.end)
        if not child.deserted:
            self._selector.unregister(child.connection)
        child.connection.close()

    def _deserted(self, child: Child) -> None:
        """A client has nothing more to say: it is gone, and its worker with it. The worker's end is seen next."""
        if child not in self._children:
            return  # its end was seen just before
        child.deserted = True
        self._selector.unregister(child.connection)
        os.kill(child.pid, signal.SIGKILL)

    @staticmethod
    def _tell(connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):  # a client that is gone is seen by the selector
            connection.sendall(f"{number}\n".encode())


def log(text: str) -> None:
    """Into the server's log, if its disk takes it: workers do not depend on that."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def become(request: Request) -> None:
    """Make this child the worker that was asked for, and run it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for wanted, stream in enumerate(request.streams):
        os.dup2(stream, wanted)
    for stream in request.streams:
        os.close(stream)
    os.setpgid(0, 0)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    # Python's own generator is seeded again by fork, NumPy's is not.
    import numpy as np

    if THREADS not in request.env:
        follow_rays_threads()
    np.random.seed()  # noqa: NPY002 - the global generator is what is meant
    sys.argv = request.argv
    sys.path[0] = str(Path(request.argv[0]).parent)
    runpy.run_path(request.argv[0], run_name="__main__")


def main(arguments: Sequence[str], stages: Sequence[Sequence[str]] = PRELOADED) -> None:
    path, raylet = arguments[0], int(arguments[1])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    # Libraries take their number of threads when they are loaded; Ray gives one to a worker without CPUs of its own.
    env = dict(os.environ)
    os.environ.setdefault(THREADS, "1")
    request = Server(listener, raylet, env, stages).serve()
    if request is not None:
        become(request)


if __name__ == "__main__":
    main(sys.argv[1:])
