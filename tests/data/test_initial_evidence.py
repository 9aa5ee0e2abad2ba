"""From offline values to the evidence that a tracker starts with."""

import json

import numpy as np
import pytest

from spo_verl.data import PrioritizedDataLoader
from spo_verl.data.identity import DatasetKeys
from spo_verl.data.values import (
    OfflineValues,
    from_tracker,
    initial_evidence_for,
    initial_evidence_from_tracker,
    provenance,
)
from spo_verl.errors import SpoCheckpointError, SpoValuesError
from spo_verl.tracker import Tracker, TrackerSettings
from tests.data.rows import counts, keys
from tests.tracker.helpers import observe_one, rewrite_manifest


def values(numbers, successes, trials):
    source = (provenance("estimate", policy="model-a"),)
    return OfflineValues(keys(numbers), np.array(successes, float), np.array(trials, np.int64), source)


def test_evidence_of_half_covered_prompts():
    # N_0 = 1 / (1 - 0.875) = 8. Prompt 2: 6 of 8, alpha = 8 * 6.5 / 9, beta = 8 * 2.5 / 9. Prompt 0: 0.5 of 2 (a
    # fraction), alpha = 8 * 1 / 3, beta = 8 * 2 / 3. Prompts 1 (no entry) and 3 (no trial): 0.5 and 0.5.
    table = values([2, 0, 9, 3], [6, 0.5, 1, 0], [8, 2, 2, 0])
    alpha_P, beta_P, coverage = initial_evidence_for(table, keys(4))
    assert alpha_P == pytest.approx([8 / 3, 0.5, 52 / 9, 0.5])
    assert beta_P == pytest.approx([16 / 3, 0.5, 20 / 9, 0.5])
    assert (coverage.prompts, coverage.covered, coverage.entries, coverage.unused) == (4, 2, 4, 1)
    assert (coverage.untried, coverage.trials, coverage.share) == (1, 10, 0.5)
    # v = 6.5 / 9 and 1 / 3; mean 0.5278
    assert coverage.value_mean == pytest.approx((6.5 / 9 + 1 / 3) / 2)
    assert json.loads(json.dumps(coverage.as_json()))["share"] == 0.5


def test_rho_min_and_prior_are_passed_on():
    alpha_P, beta_P, _ = initial_evidence_for(values([0, 1], [2, 1], [2, 4]), keys(2), rho_min=0.5, prior="none")
    # N_0 = 2: (2 * 2/2, 0) and (2 * 1/4, 2 * 3/4)
    assert alpha_P.tolist() == [2.0, 0.5]
    assert beta_P.tolist() == [0.0, 1.5]


def test_the_report_says_what_is_left_over():
    text = str(initial_evidence_for(values([0, 9], [1, 1], [2, 2]), keys(4))[2])
    assert "cover 1 of 4 prompts (25.0%) with 2 trials" in text
    assert "the other 3 start at alpha = beta = 0.5" in text
    assert "1 of 2 entries belong to no prompt" in text
    complete = str(initial_evidence_for(values([0], [1], [2]), keys(1))[2])
    assert ";" not in complete


@pytest.mark.parametrize("table", [values([7], [1], [2]), values([0], [0], [0]), values([], [], np.empty(0, np.int64))])
def test_values_of_another_dataset_are_refused(table):
    with pytest.raises(SpoValuesError, match="none of the dataset's 3 prompts has a value"):
        initial_evidence_for(table, keys(3))


def test_a_tracker_with_partial_coverage_draws_by_what_is_known():
    # Prompt 0 was always solved, prompt 1 never (of 800 trials, without prior: v = 1 and 0, weight 0 each); prompts 2
    # and 3 are not covered, v = 0.5, so that all draws are theirs.
    table = values([0, 1], [800, 0], [800, 800])
    alpha_P, beta_P, _ = initial_evidence_for(table, keys(4), prior="none")
    tracker = Tracker.create(keys(4), TrackerSettings(epsilon=0.0, seed=1), alpha_P=alpha_P, beta_P=beta_P)
    loader = PrioritizedDataLoader(["a", "b", "c", "d"], tracker, batch_size=2)
    for _ in range(20):
        assert set(next(loader)["spo_slot"].tolist()) == {2, 3}


@pytest.fixture
def checkpoint(tmp_path):
    """Five prompts: 0 observed twice, 1 with an initial value only, 2 untouched, 3 observed once, 4 aside."""
    settings = TrackerSettings(forgetting_mode="constant", rho=0.5)
    alpha_P, beta_P = np.array([0.5, 6.0, 0.5, 0.5, 3.0]), np.array([0.5, 2.0, 0.5, 0.5, 1.0])
    tracker = Tracker.create(keys(5), settings, alpha_P=alpha_P, beta_P=beta_P)
    # Constant rho = 0.5: prompt 0 (0.5, 0.5) -> (1.25, 0.25) -> (1.625, 0.125); prompt 3 (0.5, 0.5) -> (0.25, 1.25)
    observe_one(tracker, "a", 0, 0, 1.0)
    observe_one(tracker, "b", 0, 1, 1.0)
    observe_one(tracker, "c", 3, 0, 0.0)
    tracker.snapshot().write(tmp_path / "five", step=6)
    shrunk, _ = Tracker.load(tmp_path / "five", keys(4), settings)
    shrunk.snapshot().write(tmp_path / "spo", step=7)
    return tmp_path / "spo"


def test_values_of_a_tracker_are_those_of_its_observed_or_initialised_prompts(checkpoint):
    table, report = from_tracker(checkpoint, policy="model-b")
    assert set(counts(table)) == {key.tobytes() for key in keys([0, 1, 3, 4])}
    rates = {key: successes / trials for key, (successes, trials) in counts(table).items()}
    key_0, key_1, key_3, key_4 = (key.tobytes() for key in keys([0, 1, 3, 4]))
    # N_eff: 1.75 -> 2 trials, 8, 1.5 -> 2 (even), 4
    assert {key: trials for key, (_, trials) in counts(table).items()} == {key_0: 2, key_1: 8, key_3: 2, key_4: 4}
    assert rates == pytest.approx({key_0: 1.625 / 1.75, key_1: 0.75, key_3: 0.25 / 1.5, key_4: 0.75})
    assert (table.source[0]["kind"], table.source[0]["policy"], table.source[0]["step"]) == ("tracker", "model-b", 7)
    assert (report.prompts, report.matched, report.complete) == (5, 4, False)
    assert "1 prompts of the checkpoint were never observed" in str(report)


def test_with_the_keys_of_a_dataset_the_report_is_about_that_dataset(checkpoint):
    dataset = DatasetKeys(keys([3, 2, 8]).copy(), np.array([0, 0, 1, 2]), np.array([0, 2, 3]))
    _, report = from_tracker(checkpoint, keys=dataset)
    assert (report.prompts, report.matched, report.entries) == (3, 1, 4)
    assert report.unmatched_row_U.tolist() == [2, 3]
    assert set(report.unmatched_entries) == {key.tobytes().hex() for key in keys([0, 1, 4])}


def test_evidence_from_a_tracker_keeps_its_value_and_takes_a_fresh_mass(checkpoint):
    alpha_P, beta_P, coverage = initial_evidence_from_tracker(checkpoint, keys([3, 2, 0, 1]), rho_min=0.9)
    # N_0 = 10: alpha = 10 v; v = 1/6, -, 13/14, 3/4; prompt 2 has no evidence
    assert alpha_P == pytest.approx([10 / 6, 0.5, 130 / 14, 7.5])
    assert beta_P == pytest.approx([50 / 6, 0.5, 10 / 14, 2.5])
    assert (coverage.covered, coverage.prompts, coverage.unused) == (3, 4, 1)


def test_trackers_that_cannot_be_used_are_refused(checkpoint, tmp_path):
    with pytest.raises(SpoValuesError, match="none of the dataset's 1 prompts"):
        initial_evidence_from_tracker(checkpoint, keys([77]))
    with pytest.raises(SpoCheckpointError, match="no tracker checkpoint at"):
        from_tracker(tmp_path / "nowhere")
    rewrite_manifest(checkpoint, extra={"identity_version": 2})
    with pytest.raises(SpoValuesError, match="by version 2 of the identity"):
        from_tracker(checkpoint)
