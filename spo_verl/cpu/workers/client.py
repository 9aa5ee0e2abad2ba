"""What a raylet runs to start a worker: asks the fork server for one and represents it until it ends.

Run by its path, before every worker: it imports nothing but the standard library. Whatever is not as the server needs
it starts the worker in Ray's own way.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

STOCK, SOCKET = "SPO_RAY_SETUP_WORKER", "SPO_FORK_SOCKET"
"""Environment variables: Ray's own script, and where the server listens."""
SERVER = "spo_verl.cpu.workers.server"
START_SECONDS = 120.0
"""The server has to listen within this time; it does before it imports anything large."""


def request(arguments: list[str], environ: Mapping[str, str]) -> dict[str, object] | None:
    """What the worker needs, from the arguments of Ray's script; None where only Ray's own way will do.

    Returns:
        ``argv``, the worker's script and its arguments, and ``env``, its environment with the runtime environment's
        variables.
    """
    context: dict[str, object] = {}
    argv = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--serialized-runtime-env-context":
            context = json.loads(value or "{}")
        elif name != "--language":
            argv.append(argument)
        elif value != "PYTHON":
            return None
    variables = context.pop("env_vars", None) or {}
    # Ray replaces ${X} in values; py_executable is the interpreter of an environment of the worker's own.
    if not isinstance(variables, dict) or any("$" in value for value in variables.values()):
        return None
    if context.pop("py_executable", None) not in (None, sys.executable) or any(context.values()):
        return None
    try:
        here = os.getcwd()
    except FileNotFoundError:  # removed; Ray's own way does without
        return None
    return {"argv": argv, "env": {**environ, **variables}, "cwd": here}


def send(connection: socket.socket, wanted: Mapping[str, object]) -> None:
    """The request as one line of JSON, with this process's three standard streams."""
    line = json.dumps(wanted).encode() + b"\n"
    sent = socket.send_fds(connection, [line], [0, 1, 2])
    connection.sendall(line[sent:])


def connect(path: str, env: Mapping[str, str]) -> socket.socket:
    """A connection to the server, which is started if there is none; one client at a time does so."""
    end = time.monotonic() + START_SECONDS
    if (raylet := os.getppid()) <= 1:
        raise OSError("the raylet has ended")
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = None
        while True:
            if os.path.exists(f"{path}.failed"):
                raise OSError("it failed, see fork_server.log of Ray's logs")
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
                return connection
            except OSError:
                connection.close()
                if started is not None and (started.poll() is not None or time.monotonic() > end):
                    raise
            if started is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                command = [sys.executable, "-m", SERVER, path, str(raylet)]
                with open(os.path.join(os.path.dirname(path), "..", "logs", "fork_server.log"), "a") as log:
                    started = subprocess.Popen(
                        command, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
                    )
            time.sleep(0.05)


def answer(connection: socket.socket) -> int | None:
    """The number that the server sends next; None at the end of the connection."""
    line = b""
    while not line.endswith(b"\n"):
        if not (more := connection.recv(1)):
            return None
        line += more
    return int(line)


def stock() -> NoReturn:
    """Ray's own way."""
    os.execv(sys.executable, [sys.executable, os.environ[STOCK], *sys.argv[1:]])


def main() -> None:
    wanted = request(sys.argv[1:], os.environ)
    if wanted is None:
        stock()
    try:
        connection = connect(os.environ[SOCKET], wanted["env"])  # type: ignore[arg-type]
        # The server imports for seconds before it answers, longer on a busy machine.
        connection.settimeout(START_SECONDS)
        send(connection, wanted)
        pid = answer(connection) or 0
        connection.settimeout(None)
    except OSError as error:
        print(f"no fork server ({error}): the worker is started by itself", file=sys.stderr)
        stock()
    if pid == 0:
        stock()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _: os.kill(pid, got))
    try:
        code = answer(connection)
    except ConnectionResetError:
        code = None
    sys.exit(1 if code is None else code)  # without a code the server was killed, and with it the worker


if __name__ == "__main__":
    main()
