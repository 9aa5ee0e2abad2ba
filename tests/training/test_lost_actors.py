"""Runs that wait for a dead actor, with real Ray actors: whatever the main thread waits in, it ends with an error."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import ray

from spo_verl.errors import SpoRolloutError
from spo_verl.training import lost_actors
from spo_verl.training.lost_actors import SIGNAL, LostActors, ended_by_a_lost_actor, needed_actors
from tests.support.local_ray import start_ray

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]


class Idle:
    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    start_ray(num_cpus=4)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(lost_actors, "PERIOD", 0.2)


def started():
    made = ray.remote(Idle).remote()
    made.number = ray.get(made.pid.remote())
    return made


@pytest.fixture
def victim(cluster):
    return started()


@pytest.fixture(scope="module")
def living(cluster):
    return started()


def polls() -> None:
    while True:
        time.sleep(0.1)


def asks_another() -> None:
    ray.get(started().sleep.remote(60))


def waits_for_a_thread() -> None:
    threading.Event().wait()


def swallows() -> None:
    give_up = time.monotonic() + 1
    while time.monotonic() < give_up:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            continue
    time.sleep(60)


@pytest.mark.parametrize("wait", [polls, asks_another, waits_for_a_thread, swallows])
def test_a_killed_actor_ends_what_waits(living, victim, wait):
    before = signal.getsignal(SIGNAL)
    begin = time.monotonic()
    killer = threading.Timer(1.0, os.kill, (victim.number, signal.SIGKILL))
    killer.start()
    gone = pytest.raises(SpoRolloutError, match=r"the reward worker 3 is gone \(.+continues from the last checkpoint")
    with gone, ended_by_a_lost_actor({"reward worker 2": living, "reward worker 3": victim}):
        wait()
    assert time.monotonic() - begin < 30
    assert signal.getsignal(SIGNAL) == before
    assert "spo-lost-actors" not in {thread.name for thread in threading.enumerate()}


def test_what_notices_by_itself_says_it(victim):
    os.kill(victim.number, signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorDiedError), ended_by_a_lost_actor({"worker": victim}):
        ray.get(victim.sleep.remote(0))


def test_an_error_of_the_body_is_the_bodys(living):
    with pytest.raises(KeyError, match="mine"), ended_by_a_lost_actor({"worker": living}):
        raise KeyError("mine")


def test_an_actor_that_lives_or_is_busy_ends_nothing(living):
    call = living.sleep.remote(1.5)
    with ended_by_a_lost_actor({"worker": living}):
        time.sleep(2.5)
    assert ray.get(call) is None


def test_where_there_is_none_none_is_lost():
    assert LostActors({}).look() is None


def test_a_busy_actor_is_asked_once(living):
    call = living.sleep.remote(1.5)
    looks = LostActors({"worker": living})
    asked = set()
    for _ in range(3):
        assert looks.look() is None
        asked |= set(looks._asked)
    assert len(asked) == 1
    ray.get(call)
    time.sleep(0.5)
    assert looks.look() is None
    assert not looks._asked


def test_outside_the_main_thread_nothing_is_watched_and_it_is_said(living, caplog):
    done = []

    def train() -> None:
        with ended_by_a_lost_actor({"worker": living}):
            done.append(True)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert done
    assert "main thread" in caplog.text


def test_all_that_rollouts_need_is_watched(monkeypatch):
    monkeypatch.setattr(lost_actors.interface, "_TQ_STORAGE", {"SimpleStorage": {"a": "s0", "b": "s1"}})
    monkeypatch.setattr(lost_actors.interface, "_TQ_CONTROLLER", "c")
    loops = SimpleNamespace(agent_loop_workers=["a0", "a1"])
    assert needed_actors(loops, SimpleNamespace(reward_loop_workers=["r0"])) == {
        "agent-loop worker 0": "a0",
        "agent-loop worker 1": "a1",
        "reward worker 0": "r0",
        "storage unit of TransferQueue 0": "s0",
        "storage unit of TransferQueue 1": "s1",
        "controller of TransferQueue": "c",
    }


def test_what_a_manager_of_a_users_own_does_not_have_is_said(monkeypatch, caplog):
    monkeypatch.setattr(lost_actors.interface, "_TQ_STORAGE", None)
    monkeypatch.setattr(lost_actors.interface, "_TQ_CONTROLLER", None)
    assert needed_actors(object(), SimpleNamespace(reward_loop_workers=[])) == {}
    assert "object has no agent_loop_workers" in caplog.text
    assert "reward_loop_workers" not in caplog.text
