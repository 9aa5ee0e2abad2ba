"""What the measurement of the tracker service says when something was lost, doubled or mixed up."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import tracker_service
from spo_verl.tracker import Tracker, TrackerSettings

KEYS = np.frombuffer(np.random.default_rng(0).bytes(16 * 60), dtype="V16")


@pytest.fixture
def clients():
    """Three clients that took turns on one tracker, and its evidence."""
    made = tracker_service.made_clients(3, len(KEYS), batch=4)
    tracker = Tracker.create(KEYS, TrackerSettings())
    for turn in range(30):
        made[turn % 3].step(tracker)
    return made, tracker.evidence()


def replayed(made, evidence):
    return tracker_service.differences(made, Tracker.create(KEYS, TrackerSettings()), evidence)


def test_turns_are_the_same_as_one_client_after_the_other(clients):
    assert replayed(*clients) == []


def test_a_lost_outcome_is_found(clients):
    made, (alpha_P, beta_P) = clients
    alpha_P = alpha_P.copy()
    alpha_P[7] -= 1e-12
    assert replayed(made, (alpha_P, beta_P)) == ["alpha differs for 1 prompts"]


def test_a_call_that_came_twice_is_found(clients):
    made, evidence = clients
    made[1].seconds.pop()
    made[1].value_N.pop()
    assert replayed(made, evidence)


def test_another_value_is_found(clients):
    made, evidence = clients
    made[2].value_N[3] = made[2].value_N[3] + 1e-9
    assert replayed(made, evidence) == ["client 2 was told other values"]
