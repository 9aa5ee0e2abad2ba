"""Reads a running tracker service for a watcher: ``python -m spo_verl.tracker.observer ADDRESS [NAME NAMESPACE]``.

A process of its own, because Ray ends a process whose cluster goes away, and prints as it likes. It joins the cluster
as one more driver, without tasks or actors, and prints one JSON object per line on stdout: ``{"services": [...]}``
without a name, otherwise what :meth:`TrackerHost.overview` returns every ``SECONDS``. What went wrong is
``{"error": ...}``, and the last line. It ends when nobody reads any more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

SECONDS = 2.0
CONNECT_SECONDS = 3.0
_STDOUT = 1


def main(address: str, name: str = "", namespace: str = "") -> None:
    """Print what the service says until it is gone."""
    # Ray and its libraries print too: only this file's lines reach the reader.
    stdout = os.fdopen(os.dup(_STDOUT), "w", encoding="utf-8")
    os.dup2(2, _STDOUT)
    try:
        _reachable(address)
        import ray

        ray.init(address=address, log_to_driver=False, logging_level="CRITICAL", configure_logging=False)
        if not name:
            from ray.util import list_named_actors

            services = [one for one in list_named_actors(all_namespaces=True) if one["namespace"].startswith("spo-")]
            _say(stdout, {"services": services})
            return
        from spo_verl.tracker.service import connect

        reader = connect(name, namespace)
        while True:
            _say(stdout, reader.overview())
            time.sleep(SECONDS)
    except BrokenPipeError:
        return
    except Exception as error:  # noqa: BLE001 - Ray raises of every kind; the reader is told which
        _say(stdout, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def _reachable(address: str) -> None:
    """Fail at once where nobody listens: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _say(stdout: Any, content: dict[str, Any]) -> None:
    print(json.dumps(content), file=stdout, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
