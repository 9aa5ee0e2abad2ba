"""The tracker service under many clients: calls per second, their latency, and whether anything was lost or doubled.

    python benchmarks/tracker_service.py                       # 64 clients for two minutes
    python benchmarks/tracker_service.py --pause 4             # each waits so long between two steps
    python benchmarks/tracker_service.py --clients 8 --seconds 10 --prompts 10000

Each client is a thread of one of ``--processes`` processes and makes the four calls of a training step again and again:
draw, dispatch, recall, finish_step, for ``--batch`` prompts that belong to it alone. Without ``--pause`` all of them
call as fast as they are answered: calls per second are the most that the service can do, and latency is the length of
the queue. A training has one such client, which calls four times per step. Afterwards the calls of each client are
repeated, one client after the other, on a tracker of this process: values at dispatch and the evidence of all prompts
have to be the same, bit by bit.
"""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any

import numpy as np
import ray

from spo_verl.tracker import Tracker, TrackerSettings
from spo_verl.tracker.service import connect, start_service

VERBS = ("draw", "dispatch", "recall", "finish_step")
NAME = "measured"


class Client:
    """One client's prompts and calls; the same calls are made of a service and of a tracker."""

    def __init__(self, number: int, slot_B: np.ndarray, batch: int) -> None:
        self.number, self._slot_B, self._batch = number, slot_B, batch
        self._rng = np.random.default_rng(number)
        self.value_N: list[np.ndarray] = []
        self.seconds: list[tuple[float, ...]] = []

    def step(self, tracker: Any) -> None:
        """The four calls of one step."""
        slot_B = self._rng.choice(self._slot_B, self._batch, replace=False)
        reward_B = (self._rng.random(self._batch) < 0.5).astype(np.float64)
        divergence_B = self._rng.random(self._batch) * 0.1
        version = len(self.seconds)
        uids = [f"{self.number}-{version}-{row}" for row in range(self._batch)]
        times = [time.perf_counter()]
        tracker.draw(self._batch)
        times.append(time.perf_counter())
        frozen = tracker.dispatch(uids, slot_B, version)
        times.append(time.perf_counter())
        tracker.recall(uids)
        times.append(time.perf_counter())
        tracker.finish_step(uids, np.zeros(self._batch, np.int64), reward_B, divergence_B, settle_uids=uids)
        times.append(time.perf_counter())
        self.value_N.append(frozen.value_B)
        self.seconds.append(tuple(np.diff(times)))


@ray.remote(num_cpus=0)
class Process:
    """Some of the clients, a thread each."""

    def run(self, clients: list[Client], seconds: float, pause: float) -> list[Client]:
        service = connect(NAME)
        errors: list[BaseException] = []

        def work(client: Client) -> None:
            try:
                time.sleep(pause * np.random.default_rng(client.number).random())
                while time.monotonic() < end:
                    client.step(service)
                    time.sleep(pause)
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread that answers
                errors.append(error)

        end = time.monotonic() + seconds
        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return clients


def made_clients(count: int, prompts: int, batch: int) -> list[Client]:
    """Clients with equal parts of the prompts."""
    return [Client(number, np.arange(number, prompts, count), batch) for number in range(count)]


def differences(clients: list[Client], tracker: Tracker, found: tuple[np.ndarray, np.ndarray]) -> list[str]:
    """What a serial replay of the clients' calls on ``tracker`` has otherwise; ``found`` is the service's evidence."""
    problems = []
    for client in clients:
        again = Client(client.number, client._slot_B, client._batch)
        for _ in client.seconds:
            again.step(tracker)
        if not all(np.array_equal(one, other) for one, other in zip(client.value_N, again.value_N, strict=True)):
            problems.append(f"client {client.number} was told other values")
    for name, one, other in zip(("alpha", "beta"), found, tracker.evidence(), strict=True):
        if different := int((one != other).sum()):
            problems.append(f"{name} differs for {different} prompts")
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two steps of a client")
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args(arguments)
    if min(given.clients, given.processes, given.batch) < 1 or given.seconds <= 0 or given.pause < 0:
        parser.error("--clients, --processes and --batch are at least 1, --seconds above 0, --pause at least 0")
    if given.prompts // given.clients < given.batch:
        parser.error(f"a client has {given.prompts // given.clients} prompts, less than --batch: raise --prompts")
    given.processes = min(given.processes, given.clients)
    rng = np.random.default_rng(0)
    key_P = np.frombuffer(rng.bytes(16 * given.prompts), dtype="V16")
    settings = TrackerSettings()
    clients = made_clients(given.clients, given.prompts, given.batch)
    ray.init(address="local", num_cpus=given.processes, include_dashboard=False, log_to_driver=False)
    try:
        service = start_service(NAME)
        service.create(key_P, settings)
        processes = [Process.remote() for _ in range(given.processes)]
        ray.get([process.__ray_ready__.remote() for process in processes])
        parts = [clients[number :: given.processes] for number in range(given.processes)]
        began = time.perf_counter()
        answers = ray.get(
            [one.run.remote(part, given.seconds, given.pause) for one, part in zip(processes, parts, strict=True)]
        )
        taken = time.perf_counter() - began
        evidence = service.evidence()
    finally:
        ray.shutdown()
    done = [client for answer in answers for client in answer]
    if not any(client.seconds for client in done):
        parser.error("no client finished a step: raise --seconds")
    second_NV = np.array([times for client in done for times in client.seconds])
    print(f"{given.clients} clients in {given.processes} processes, {given.prompts:,} prompts, batch {given.batch}")
    print(f"{second_NV.size / taken:,.0f} calls per second for {taken:.0f} s")
    print("milliseconds    p50     p99     largest")
    for name, second_N in [*zip(VERBS, second_NV.T, strict=True), ("all", second_NV.ravel())]:
        p50, p99, most = np.quantile(second_N, [0.5, 0.99, 1.0]) * 1000
        print(f"{name:12} {p50:7.1f} {p99:7.1f} {most:9.1f}")
    problems = differences(done, Tracker.create(key_P, settings), evidence)
    print("\n".join(problems) if problems else "values and evidence are those of a serial replay")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
