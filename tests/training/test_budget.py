"""spo.drift.max_prompts: which prompts are scored, and what becomes of the others, by hand."""

import numpy as np
import pytest

from spo_verl.config import DriftConfig, ForgettingConfig, SpoConfig
from spo_verl.core import retention
from spo_verl.tracker import Frozen, Recall, Tracker
from spo_verl.tracker.reports import ObserveReport
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.training.metrics import observation_metrics
from spo_verl.training.stored_divergence import DivergenceProbe, fill_unmeasured, within_budget
from tests.training.test_log_probs import output
from tests.training.test_stored_divergence import stored

NAN = float("nan")
FORGETTING = ForgettingConfig()  # half life .06, bounds .875 and .96


def test_within_the_budget_all_are_scored_in_their_order():
    entries = np.array([0, 2, 3])
    for budget in (None, 3, 4):
        assert within_budget(entries, np.array([5, 6, 7]), budget, seed=(0, 1)).tolist() == [0, 2, 3]


def test_beyond_it_every_prompt_is_equally_likely():
    entries, slots = np.array([1, 2, 4, 7]), np.array([10, 11, 12, 13])
    chosen = [within_budget(entries, slots, 2, seed=(0, version)).tolist() for version in range(3000)]
    assert all(len(set(one)) == 2 and one == sorted(one) for one in chosen)
    share = [np.mean([entry in one for one in chosen]) for entry in entries]
    # half of 3000 draws: standard deviation .0091
    assert share == pytest.approx([0.5] * 4, abs=0.04)
    assert within_budget(entries, slots, 2, seed=(0, 5)).tolist() == chosen[5]  # a resumed run chooses alike


def test_a_prompt_that_occurs_twice_counts_and_is_scored_once():
    entries, slots = np.array([0, 1, 2]), np.array([8, 8, 9])
    assert within_budget(entries, slots, 2, seed=(0, 0)).tolist() == [0, 2]


def test_the_others_get_the_divergence_of_the_mean_retention():
    # rho of .03 is 2^-.5 = .707 -> .875, of .006 is 2^-.1 = .93303, of 0 is 1 -> .96: mean .92268
    measured = np.array([0.03, NAN, 0.006, 0.0, NAN, NAN])
    filled = fill_unmeasured(measured, np.array([0, 1, 2, 3, 4]), np.arange(6), FORGETTING)
    rho = (0.875 + 2**-0.1 + 0.96) / 3
    assert filled[[0, 2, 3]].tolist() == [0.03, 0.006, 0.0]
    assert filled[[1, 4]].tolist() == pytest.approx([-0.06 * np.log2(rho)] * 2)
    assert retention(filled[[1, 4]]).tolist() == pytest.approx([rho] * 2)
    assert np.isnan(filled[5])  # nothing comparable is stored: rho_max, as ever
    assert np.isnan(measured[1])  # the measured ones are not touched


def test_a_prompt_measured_in_another_row_has_that_divergence():
    filled = fill_unmeasured(np.array([0.5, NAN, NAN]), np.array([0, 1, 2]), np.array([4, 4, 6]), FORGETTING)
    assert filled[:2].tolist() == [0.5, 0.5]
    assert retention(filled[2:]).tolist() == pytest.approx([0.875])


def test_where_nothing_was_measured_rho_max_holds():
    assert np.isnan(fill_unmeasured(np.full(2, NAN), np.array([0, 1]), np.arange(2), FORGETTING)).all()


def test_a_policy_that_did_not_move_and_one_that_jumped():
    for drift, rho in ((0.0, 0.96), (np.inf, 0.875)):
        filled = fill_unmeasured(np.array([drift, NAN]), np.array([0, 1]), np.arange(2), FORGETTING)
        assert retention(filled[1:]).tolist() == pytest.approx([rho])


def test_a_step_scores_the_budget_and_reports_what_it_left_out():
    """Four prompts with a stored response, budget of one: one forward of one sequence, one D for the other three."""
    outputs = [output([5, row], [1, 2]) for row in range(4)]
    memory = stored([(row, [8, 9], [1, 1], [-0.5, -0.5], outputs[row]) for row in range(4)])
    frozen = Frozen(np.arange(4), np.full(4, 0.5), np.ones(4), np.zeros(4, dtype=int))
    spo = SpoConfig(drift=DriftConfig(max_prompts=1))
    scored = []

    def score(sequences):
        scored.append(len(sequences))
        return [np.full(2, -0.5 - 0.006, dtype=np.float32) for _ in sequences]

    found = DivergenceProbe(spo, Recall(frozen, memory), outputs, score, version=3).after_update()
    measured = found.measured_B["acting"]
    assert scored == [1]
    assert (~np.isnan(measured)).sum() == 1
    exact = measured[~np.isnan(measured)][0]  # .006 rounded to float16
    assert exact == pytest.approx(0.006, rel=0.05)
    assert found.divergence_B.tolist() == pytest.approx([exact] * 4)
    metrics = found.metrics
    assert metrics["drift/unmeasured_total"] == 3.0
    assert metrics["drift/incomparable_total"] == 0.0
    assert metrics["divergence/mean"] == exact  # of what was measured


def test_the_tracker_discounts_the_others_with_the_mean_retention():
    spo = SpoConfig(drift=DriftConfig(max_prompts=2))
    keys = np.arange(48, dtype=np.uint8).reshape(3, 16)
    tracker = Tracker.create(keys, TrackerSettings.of(spo))
    for version in (0, 1):
        uids = [f"{version}{slot}" for slot in range(3)]
        tracker.dispatch(uids, [0, 1, 2], version)
        drift = np.array([0.03, 0.0, NAN])
        filled = fill_unmeasured(drift, np.arange(3), np.arange(3), spo.forgetting) if version else np.full(3, NAN)
        report = tracker.finish_step(uids, [0] * 3, [1.0] * 3, filled, settle_uids=uids)
    assert report.observe.rho_B.tolist() == pytest.approx([0.875, 0.96, (0.875 + 0.96) / 2])


@pytest.mark.parametrize(("mode", "told"), [("kl", True), ("drift", True), ("version", False), ("constant", False)])
def test_the_share_at_the_floor_is_told_where_there_is_a_floor(mode, told):
    one = np.ones(2)
    report = ObserveReport(
        slot_B=np.arange(2), version_B=np.ones(2, dtype=int), count_B=np.ones(2, dtype=int), new=2, duplicate=0,
        rho_B=np.array([0.875, 0.9]), divergence_B=one, n_eff_B=one, discounted_B=one > 0, first_visit_B=one > 2,
    )  # fmt: skip
    metrics = observation_metrics(report, ForgettingConfig(mode=mode))
    assert metrics.get("rho/at_floor_share") == (0.5 if told else None)
    assert metrics["rho/mean"] == pytest.approx(0.8875)
