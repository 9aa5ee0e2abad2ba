"""Accuracy before and after with its uncertainty, and values held against true rates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from spo_verl.data.identity import dataset_keys
from spo_verl.data.values import OfflineValues, provenance
from spo_verl.quickstart.evaluate import agreement, change, tracked
from spo_verl.quickstart.runs import RunFolder
from spo_verl.small.task import Problem, build_task, write_parquet
from spo_verl.tracker import Tracker, TrackerSettings


def test_change_is_paired_and_stratified() -> None:
    problems = [Problem(level, f"{level}{copy}", 1) for copy in range(2) for level in range(1, 9)]
    before = np.full(16, 0.2)
    after = np.full(16, 0.2)
    after[0], after[8] = 0.3, 0.7  # both of level 1
    found = change(before, after, problems)
    assert found["before_by_level"] == pytest.approx([0.2] * 8)
    assert found["after_by_level"] == pytest.approx([0.5] + [0.2] * 7)
    assert found["change"] == pytest.approx(0.3 / 8)
    # Differences of level 1 are 0.1 and 0.5: variance 0.08, of their mean 0.04: 0.2. The mean of 8 levels has 0.2 / 8.
    assert found["standard_error_by_level"] == pytest.approx([0.2] + [0.0] * 7)
    assert found["standard_error"] == pytest.approx(0.2 / 8)


def test_the_spread_between_prompts_is_no_noise_of_a_change() -> None:
    problems = [Problem(index % 8 + 1, str(index), 1) for index in range(32)]
    before = np.linspace(0, 0.9, 32)
    assert change(before, before + 0.05, problems)["standard_error"] == pytest.approx(0.0, abs=1e-12)


def test_agreement_by_hand() -> None:
    found = agreement(np.array([0.2, 0.4, 0.9]), np.array([0.1, 0.5, 0.9]))
    assert found["mean_absolute_error"] == pytest.approx(0.2 / 3)
    assert found["mean_difference"] == pytest.approx(0.0)
    # The median of the truth is 0.5: distances 0.4, 0, 0.4.
    assert found["constant_error"] == pytest.approx(0.8 / 3)
    assert found["correlation"] == pytest.approx(np.corrcoef([0.2, 0.4, 0.9], [0.1, 0.5, 0.9])[0, 1])
    assert math.isnan(agreement(np.full(3, 0.5), np.array([0.1, 0.5, 0.9]))["correlation"])


@pytest.mark.parametrize("reverse", [False, True])
def test_each_prompt_meets_its_own_value(tmp_path: Path, reverse: bool) -> None:
    """Tracker, values and task each have an order of their own; prompts are matched by identity."""
    from spo_verl.data.data_files import DataFiles

    task = build_task(train=16, held_out=16, seed=0, probe=8)
    run = RunFolder(tmp_path)
    train, _ = write_parquet(task, tmp_path / "data")
    key_P = dataset_keys(DataFiles([train])).key_P
    order = np.arange(16)[::-1] if reverse else np.arange(16)
    truth = np.arange(16) / 20
    # Mass 10 on each prompt, so that its value is its true rate after the training.
    tracker = Tracker.create(key_P[order], TrackerSettings(), alpha_P=truth[order] * 10, beta_P=(1 - truth[order]) * 10)
    tracker.snapshot().write(run.saved_tracker(4))
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("4")
    before = truth / 2
    OfflineValues(key_P[order], before[order] * 40, np.full(16, 40), (provenance("estimate", policy="m"),)).write(
        run.values
    )
    found = tracked(run, task, before, truth)
    assert [entry["question"] for entry in found["prompts"]] == [problem.question for problem in task.train]
    assert [entry["value"] for entry in found["prompts"]] == pytest.approx(truth)
    assert [entry["successes"] / entry["trials"] for entry in found["prompts"]] == pytest.approx(before)
    assert found["tracker"]["mean_absolute_error"] == pytest.approx(0.0, abs=1e-12)
    assert found["offline"]["mean_absolute_error"] == pytest.approx(0.0, abs=1e-12)
    run.values.unlink()
    assert "offline" not in tracked(run, task, before, truth)
