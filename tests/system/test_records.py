"""The record of real runs: of one that was killed, of those that continued it, and of the asynchronous modes."""

import numpy as np
import pytest

from spo_verl.record import Record
from tests.support.record_check import differences
from tests.system.harness import Run, question

pytestmark = [pytest.mark.system, pytest.mark.timeout(5400)]


def rows(run: Run) -> list[dict]:
    return Record.open(run.checkpoints).rollouts().to_pylist()


def of_steps(run: Run) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row in Record.open(run.checkpoints).steps().to_pylist():
        found.setdefault(row["step"], {})[row["name"]] = row["value"]
    return found


def test_a_synchronous_run_that_was_killed_and_the_one_that_continued(killed, resumed):
    """Several outputs, failures, other numbers of rollouts, padding: each prompt as the tracker has it."""
    assert differences(killed.checkpoints, killed.rollouts) == []
    assert differences(resumed.checkpoints, resumed.rollouts) == []
    assert {row["step"] for row in rows(resumed)} == set(range(1, 12))
    assert [start["step"] for start in Record.open(resumed.checkpoints).run["starts"]] == [0, 5]
    # The future that was lost lies aside.
    assert list((resumed.checkpoints / "record" / "aside").glob("*-rollouts-*"))


def test_the_steps_that_were_made_twice_are_alike(killed, resumed):
    def outcomes(run: Run) -> list[tuple]:
        return sorted(
            (row["step"], row["key"], row["session"], row["reward"])
            for row in rows(run)
            if row["step"] in range(6, 11) and row["reward"] is not None
        )

    assert outcomes(killed) == outcomes(resumed)


def test_an_asynchronous_run_before_and_after_the_kill(async_killed, async_resumed):
    assert differences(async_resumed.checkpoints, async_resumed.rollouts) == []
    found = [row for row in rows(async_resumed) if row["ending"] == "trained"]
    assert {row["step"] for row in found} == set(range(1, 9))
    assert any(row["version_dispatch"] < row["step"] - 1 for row in found)  # stragglers
    assert all(row["version_dispatch"] <= row["version_first"] <= row["version_last"] < row["step"] for row in found)


def test_two_updates_per_transfer(separate):
    assert differences(separate.checkpoints, separate.rollouts) == []
    found = [row for row in rows(separate) if row["ending"] == "trained"]
    assert len(found) == 64
    assert all(row["seconds"] > 0 for row in found)


def test_by_drift_with_stopped_rollouts(orphaned):
    assert differences(orphaned.checkpoints, orphaned.rollouts) == []
    stopped = [row for row in rows(orphaned) if row["ending"] == "aborted"]
    assert any(row["reward"] is not None for row in stopped)
    assert any(row["reward"] is None for row in stopped)
    for step, logged in orphaned.metrics().items():
        mine = [row for row in stopped if row["step"] == step]
        assert len({row["uid"] for row in mine}) == logged["spo/rollouts/aborted_total"]
        assert sum(row["reward"] is not None for row in mine) == logged["spo/evidence/aborted_total"]


def test_by_divergence_from_offline_values(spo):
    assert differences(spo.checkpoints, spo.rollouts) == []
    found = [row for row in rows(spo) if row["divergence"] is not None]
    assert found
    assert all(0.875 <= row["rho"] <= 0.96 for row in found)


def test_the_numbers_are_those_of_the_log(spo):
    numbers = of_steps(spo)
    for step, logged in spo.metrics().items():
        for name in ("spo/reward/mean", "spo/rho/mean", "critic/score/mean", "timing_s/step", "training/global_step"):
            assert numbers[step][name] == pytest.approx(logged[name], abs=2e-3), name
        mine = [row for row in rows(spo) if row["step"] == step and row["ending"] == "trained"]
        assert np.mean([row["reward"] for row in mine]) == pytest.approx(numbers[step]["spo/reward/mean"])
        raw = [row["raw_advantage"] for row in mine]
        assert np.var(raw, ddof=1) == pytest.approx(numbers[step]["spo/advantage/raw_variance"])
    assert any(name.startswith("val-") for name in numbers[4])


def test_prompts_have_their_texts(killed):
    prompts = {row["row"]: row for row in Record.open(killed.checkpoints).prompts().to_pylist()}
    assert len(prompts) == 60
    assert prompts[7]["text"] == question(7)
    assert prompts[7]["data_source"] == "toy1"
