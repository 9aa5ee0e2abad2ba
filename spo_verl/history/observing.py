"""What a running tracker service says, heard through a process of its own (:mod:`spo_verl.tracker.observer`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

LIST_SECONDS = 30.0
"""How long a cluster is asked for its services: joining it takes some seconds."""


class Observer:
    """Follows one tracker service; a context manager that ends its process.

    Args:
        address: of the Ray cluster.
        name, namespace: of the service.
        environ: variables for joining the cluster, such as its token, on top of those of this process.

    Attributes:
        latest: what the service last said (``TrackerHost.overview``); None before the first answer.
        error: why there is no more to come; None while it answers.
    """

    def __init__(self, address: str, name: str, namespace: str, environ: Mapping[str, str] | None = None) -> None:
        self.latest: dict[str, Any] | None = None
        self.error: str | None = None
        self._process = _started(address, name, namespace, environ=environ)
        self._heard = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="spo-observer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, seconds: float) -> None:
        """Until the first answer or error, or so many seconds have passed."""
        self._heard.wait(seconds)

    def close(self) -> None:
        """End the process."""
        _end(self._process)
        self._thread.join(timeout=5.0)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = _parsed(line)
            if "error" in said:
                self.error = str(said["error"])
            elif said:
                self.latest = said
            self._heard.set()
        self.error = self.error or "the tracker service or its cluster has gone"
        self._heard.set()


def services_at(address: str) -> list[dict[str, str]]:
    """Name and namespace of the tracker services in a Ray cluster; none where it cannot be joined in time."""
    process = _started(address)
    try:
        output, _ = process.communicate(timeout=LIST_SECONDS)
    except subprocess.TimeoutExpired:
        return []
    finally:
        _end(process)
    found: list[dict[str, Any]] = next(
        (said["services"] for said in map(_parsed, output.splitlines()) if "services" in said), []
    )
    return [{"name": str(one["name"]), "namespace": str(one["namespace"])} for one in found]


def _started(*arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spo_verl.tracker.observer", *arguments],
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for the watcher, which ends this process itself
    )


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _parsed(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:  # cut off in the middle as the process ended
        return {}
    return said if isinstance(said, dict) else {}
