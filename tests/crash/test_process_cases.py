"""A fixed part of the crash campaign, and that what judges it finds a fault when there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from spo_verl.tracker import Tracker, TrackerSettings, checkpoint
from spo_verl.tracker.reports import Late
from tests.crash import journal, ledger, plan
from tests.crash.journal import Journal, Recount, groups_of

ROOT = Path(__file__).parents[2]
KEYS = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16).view("V16").ravel()


@pytest.mark.long
def test_forty_cases(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.crash", "--cases", "40", "--seed", "4"]
    found = subprocess.run(
        [*command, "--ledger", str(tmp_path / "ledger.csv")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    cases = ledger.read_processes(tmp_path / "ledger.csv")
    assert len(cases) == 40
    assert [case.problems for case in cases] == [""] * 40
    assert {"killed", "SpoCheckpointError"} <= {case.end for case in cases}
    assert max(case.step for case in cases) > 5


def test_every_kind_is_planned():
    kinds = [incident.kind for number in range(4) for incident in plan.run(4, number)[1]]
    assert len(set(kinds)) > 8
    assert plan.run(4, 2) == plan.run(4, 2) != plan.run(5, 2)
    assert {incident.kind for number in range(200) for incident in plan.run(0, number)[1]} == set(plan.WEIGHTS)


# ---------------------------------------------------------------------- what judges


def step(tracker: Tracker, lines: Journal, number: int, rng: np.random.Generator) -> None:
    """Dispatch some, end some: trained, failed, stale."""
    slots = tracker.draw(3).slot_B
    uids = [f"{number}-{slot}" for slot in slots.tolist()]
    lines.write("dispatch", uids, slots.tolist(), number - 1)
    tracker.dispatch(uids, slots, number - 1)
    over = sorted(tracker.open_uids())[:4]
    late = [Late("stale", over[:1], [0], [1.0], ended=over[:1])]
    rewards = rng.integers(0, 2, 2 * len(over[1:3])).astype(float).tolist()
    trained = Late("trained", [*over[1:3]] * 2, [0] * len(over[1:3]) + [1] * len(over[1:3]), rewards, ended=over[1:])
    lines.write("finish", number, list(groups_of([*late, trained])))
    tracker.finish_step(trained.uids, trained.session_B, trained.reward_B, settle_uids=over[1:], late=late)


@pytest.fixture(params=[("constant", (1, 1)), ("constant", (1, 2)), ("version", (1, 2))], ids=str)
def trained(request, tmp_path):
    """A tracker of some steps on the disk, and its journal."""
    mode, rho = request.param
    tracker = Tracker.create(KEYS, TrackerSettings(forgetting_mode=mode, rho=rho[0] / rho[1]))
    lines = Journal(tmp_path / "journal")
    rng = np.random.default_rng(0)
    for number in range(1, 12):
        step(tracker, lines, number, rng)
    tracker.snapshot().write(tmp_path / "spo", step=11)
    return checkpoint.read(tmp_path / "spo"), journal.read(tmp_path / "journal"), (mode, Fraction(*rho))


def differences(trained, lines) -> list[str]:
    from tests.crash.judging import of_tracker

    saved, _, (mode, rho) = trained
    return list(of_tracker(saved, Recount(mode, rho).replay(lines), 11))


def test_the_journal_says_what_the_tracker_knows(trained):
    assert differences(trained, trained[1]) == []


@pytest.mark.parametrize(
    "fault", ["an outcome less", "an outcome twice", "another reward", "a dispatch less", "a step less"]
)
def test_a_fault_is_found(trained, fault):
    lines = [list(line) for line in trained[1]]
    place = max(number for number, line in enumerate(lines) if line[0] == "finish" and len(line[2][1][1]) > 1)
    late, (kind, uids, sessions, rewards, over) = lines[place][2]
    if fault == "an outcome less":
        lines[place][2] = [late, [kind, uids[1:], sessions[1:], rewards[1:], over]]
    elif fault == "an outcome twice":
        lines[place][2] = [late, [kind, [*uids, uids[0]], [*sessions, 7], [*rewards, 1.0], over]]
    elif fault == "another reward":
        lines[place][2] = [late, [kind, uids, sessions, [1 - rewards[0], *rewards[1:]], over]]
    elif fault == "a dispatch less":
        name, uids, slots, version = lines[-2]
        lines[-2] = [name, uids[:-1], slots[:-1], version]
    else:
        del lines[place]
    assert differences(trained, lines)


def test_a_restart_undoes_what_came_after_its_checkpoint():
    lines = [["start", 0], ["finish", 1, []], ["save", 1], ["ack", 1], ["finish", 2, []], ["save", 2]]
    assert journal.acknowledged(lines) == 1
    again = [*lines, ["start", 1], ["finish", 2, ["other"]]]
    assert journal.surviving(again) == [*lines[1:3], ["finish", 2, ["other"]]]
    assert journal.newest(journal.surviving(lines)) == 2
    with pytest.raises(ValueError, match="max"):
        journal.surviving([*lines, ["start", 9]])
