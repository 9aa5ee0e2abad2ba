"""Runs that wait for a dead actor, with real Ray actors: whatever the main thread waits in, it ends with an error."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from omegaconf import OmegaConf

from spo_verl.errors import SpoRolloutError
from spo_verl.training import lost_actors
from spo_verl.training.estimate import ValueEstimator
from spo_verl.training.lost_actors import SIGNAL, LostActors, ended_by_a_lost_actor, needed_actors
from spo_verl.training.trainer import SpoTrainer
from tests.support.idle_actor import Idle
from tests.support.local_ray import start_ray

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]


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
    gone = pytest.raises(SpoRolloutError, match=r"the reward worker 3 is gone \(.+continues from what was saved")
    with gone, ended_by_a_lost_actor({"reward worker 2": living, "reward worker 3": victim}):
        wait()
    assert time.monotonic() - begin < 30
    assert signal.getsignal(SIGNAL) == before
    assert "spo-lost-actors" not in {thread.name for thread in threading.enumerate()}


def test_what_notices_by_itself_says_it(victim, monkeypatch):
    monkeypatch.setattr(lost_actors, "PERIOD", 20.0)
    os.kill(victim.number, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError), ended_by_a_lost_actor({"worker": victim}):
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
    call = living.sleep.remote(4.0)
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


def trainer_of(**more) -> SimpleNamespace:
    held = {
        "reward_loop_manager": SimpleNamespace(reward_loop_workers=[]),
        "actor_rollout_wg": SimpleNamespace(workers=[]),
        "llm_server_manager": SimpleNamespace(server_handles=[]),
    }
    return SimpleNamespace(**{**held, **more})


def test_all_that_rollouts_and_training_need_is_watched(monkeypatch):
    monkeypatch.setattr(lost_actors.interface, "_TQ_STORAGE", {"SimpleStorage": {"a": "s0", "b": "s1"}})
    monkeypatch.setattr(lost_actors.interface, "_TQ_CONTROLLER", "c")
    trainer = trainer_of(
        reward_loop_manager=SimpleNamespace(reward_loop_workers=["r0"]),
        actor_rollout_wg=SimpleNamespace(workers=["w0"]),
        llm_server_manager=SimpleNamespace(server_handles=["v0"]),
        standalone_server_manager=SimpleNamespace(server_handles=["v1"]),
    )
    assert needed_actors(trainer, SimpleNamespace(agent_loop_workers=["a0", "a1"])) == {
        "agent-loop worker 0": "a0",
        "agent-loop worker 1": "a1",
        "reward worker 0": "r0",
        "training rank 0": "w0",
        "rollout server 0": "v0",
        "rollout server 1": "v1",
        "storage unit of TransferQueue 0": "s0",
        "storage unit of TransferQueue 1": "s1",
        "controller of TransferQueue": "c",
    }


@pytest.fixture
def no_queue(monkeypatch):
    monkeypatch.setattr(lost_actors.interface, "_TQ_STORAGE", None)
    monkeypatch.setattr(lost_actors.interface, "_TQ_CONTROLLER", None)


def test_what_a_manager_of_a_users_own_does_not_have_is_said(no_queue, caplog):
    assert needed_actors(trainer_of(actor_rollout_wg=SimpleNamespace(workers=len)), object()) == {}
    assert "object has no list agent_loop_workers" in caplog.text
    assert "SimpleNamespace has no list workers" in caplog.text
    assert "reward_loop_workers" not in caplog.text


class Waits:
    """A trainer of verl whose training, and an estimation whose samples, wait for ever."""

    def fit(self, agent_loop_manager) -> None:
        polls()

    def _estimate(self, parts, slot_B):
        polls()


class Training(SpoTrainer, Waits):
    def __init__(self) -> None:
        vars(self).update(vars(trainer_of()))
        self.global_steps, self._saving = 0, False
        self._recorder = SimpleNamespace(begin=lambda *_: None, close=lambda: None)
        self.tracker = SimpleNamespace(stop=lambda: None)


class Sampling(Waits, ValueEstimator):
    def __init__(self) -> None:
        vars(self).update(vars(trainer_of()))
        self.config = OmegaConf.create({"trainer": {}})
        self._keys = SimpleNamespace(key_P=np.zeros((4, 16)))
        self._parts = SimpleNamespace(finished_prompts=0, missing=lambda: [(0, range(4))])

    def fit(self, agent_loop_manager) -> None:
        ValueEstimator.fit(self, agent_loop_manager)


@pytest.mark.parametrize("made", [Training, Sampling])
def test_training_and_estimation_are_ended(made, victim, no_queue, monkeypatch):
    monkeypatch.setattr("spo_verl.training.estimate.SkipManager", SimpleNamespace(init=lambda config: None))
    threading.Timer(0.5, os.kill, (victim.number, signal.SIGKILL)).start()
    with pytest.raises(SpoRolloutError, match="agent-loop worker 0 is gone"):
        made().fit(SimpleNamespace(agent_loop_workers=[victim]))


@pytest.mark.parametrize(("name", "finished"), [("reward worker", True), ("controller of TransferQueue", False)])
def test_a_save_is_finished_unless_the_queue_is_dead(victim, name, finished):
    saving, done = [True], []
    os.kill(victim.number, signal.SIGKILL)

    def save_and_poll() -> None:
        time.sleep(6.0)
        done.append(True)
        saving[0] = False
        polls()

    gone = pytest.raises(SpoRolloutError, match=f"{name} is gone")
    with gone, ended_by_a_lost_actor({name: victim}, saving=lambda: saving[0]):
        save_and_poll()
    assert done == [True] * finished


def test_a_signal_of_somebody_else_is_ignored(living):
    with ended_by_a_lost_actor({"worker": living}):
        signal.pthread_kill(threading.main_thread().ident, SIGNAL)
        time.sleep(0.1)


def test_that_nothing_is_looked_for_any_more_is_said(caplog):
    with ended_by_a_lost_actor({"worker": object()}):
        time.sleep(0.6)
    assert "not looked for any more" in caplog.text
