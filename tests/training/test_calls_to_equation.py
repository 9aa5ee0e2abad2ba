"""How many calls lead from a training step to the equation that changes evidence: few, so that it can be followed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

import spo_verl
from spo_verl import core
from spo_verl.config import ForgettingConfig, ForgettingMode, SpoConfig
from spo_verl.tracker import Tracker, TrackerSettings, service
from tests.training import simulated_run
from tests.training.simulated_run import Setting, keys, run, somehow

PACKAGE = str(Path(spo_verl.__file__).parent)
EQUATION = {"version": "fold_events"}
"""Mode -> the function of its equation, where that is not equation (5) itself."""


@pytest.fixture
def calls(monkeypatch):
    """Every chain of the package's calls that has led to an equation, from the outermost one on."""
    chains = []

    def watched(name):
        equation = getattr(core, name)

        def noted(*args, **kwargs):
            frame, chain = sys._getframe(1), [name]
            while frame is not None:
                if frame.f_code.co_filename.startswith(PACKAGE):
                    chain.append(frame.f_code.co_name)
                frame = frame.f_back
            chains.append(chain[::-1])
            return equation(*args, **kwargs)

        monkeypatch.setattr(core, name, noted)

    watched("update_evidence")
    watched("fold_events")
    return chains


class Served(simulated_run.Client):
    """The tracker with the real client and host of its service, in this process."""

    def __init__(self, tracker, world):
        super().__init__(tracker, world)
        host = service.TrackerHost()
        host._tracker = tracker
        self.tracker = service.TrackerClient(SimpleNamespace(call=SimpleNamespace(remote=host.call)), "here")


def test_from_a_step_to_equation_5_there_are_at_most_six_calls(monkeypatch, calls):
    monkeypatch.setattr(simulated_run, "Client", Served)
    monkeypatch.setattr(service.ray, "get", lambda answer, timeout: answer)
    spo = SpoConfig(forgetting=ForgettingConfig(mode="constant"))
    run(Setting("sync", prompts=8, batch=4, spo=spo, steps=3), somehow())
    assert len(calls) == 3
    for chain in calls:
        after = chain[chain.index("_step_once") + 1 :]
        assert after == ["_ask", "call", "finish_step", "_effects", "fold", "update_evidence"]


@pytest.mark.parametrize("mode", get_args(ForgettingMode))
def test_the_way_is_the_same_under_every_forgetting_mode(calls, mode):
    tracker = Tracker.create(keys(2), TrackerSettings(forgetting_mode=mode))
    tracker.dispatch(["a"], [0], 1)
    tracker.finish_step(["a"], [0], np.array([1.0]), settle_uids=["a"])
    assert calls == [["finish_step", "_effects", "fold", EQUATION.get(mode, "update_evidence")]]
