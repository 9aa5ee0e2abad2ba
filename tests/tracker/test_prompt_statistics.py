"""Sums over all prompts: kept block by block, and equal to what all prompts say."""

import numpy as np
import pytest

from spo_verl.tracker import PromptSources, Tracker, TrackerSettings
from spo_verl.tracker.forgetting_rules import forgetting
from spo_verl.tracker.prompt_statistics import BLOCK_ROWS, KEPT_BINS, PromptSums
from spo_verl.tracker.table import PromptTable

from .helpers import keys, train_step

SETTINGS = {
    "kl": TrackerSettings(seed=3),
    "constant": TrackerSettings(forgetting_mode="constant", rho=0.8, references=()),
    "drift": TrackerSettings(forgetting_mode="drift", references=()),
    "version": TrackerSettings(forgetting_mode="version", rho=0.8, floor=0.5, gamma=0.5, references=()),
    "calibrated": TrackerSettings(readout="calibrated", seed=3),
    "quota": TrackerSettings(quota={"a": 1.0, "b": 2.0}),
    "uniform": TrackerSettings(sampling_mode="uniform"),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("prompts", [9, BLOCK_ROWS - 1, BLOCK_ROWS, 5 * BLOCK_ROWS + 1])
def test_means_and_effective_prompts_are_those_of_all_prompts_after_every_step(name, prompts):
    settings = SETTINGS[name]
    sources = PromptSources.of(["ab"[number % 2] for number in range(prompts)])
    tracker = Tracker.create(keys(prompts), settings, sources=sources)
    for step in range(12):
        train_step(tracker, 3 * step, 5, references=settings.references)
        if name == "drift":
            tracker.advance(0.1)
        version = tracker._version
        tables = (tracker._table.alpha_P, tracker._table.beta_P, tracker._table.version_P)
        value_P, n_eff_P = tracker._rule.read(version, *tables)
        metrics = tracker.metrics()
        assert metrics["value_mean"] == pytest.approx(tracker.values().mean(), rel=1e-12)
        if name != "calibrated":
            assert metrics["value_mean"] == pytest.approx(value_P.mean(), rel=1e-12)
        assert metrics["n_eff_mean"] == pytest.approx(n_eff_P.mean(), rel=1e-12)
        for bins in (1, 2, 10, 20, 7):
            by_hand = np.histogram(tracker.values(), bins=bins, range=(0.0, 1.0))[0]
            assert tracker.value_histogram(bins).tolist() == by_hand.tolist()
        if name in ("kl", "constant", "drift"):
            weight_P = np.sqrt(value_P * (1 - value_P)) + 0.05
            assert metrics["effective_prompts"] == pytest.approx(weight_P.sum() ** 2 / (weight_P**2).sum(), rel=1e-12)
        elif name == "uniform":
            assert metrics["effective_prompts"] == pytest.approx(prompts, rel=1e-12)


def test_prompts_that_are_kept_aside_do_not_count(tmp_path):
    tracker = Tracker.create(keys(2 * BLOCK_ROWS), SETTINGS["kl"])
    for step in range(20):
        train_step(tracker, step, 16)
    tracker.snapshot().write(tmp_path / "spo", step=20)
    left = keys(BLOCK_ROWS + 3)
    resumed, _ = Tracker.load(tmp_path / "spo", left, SETTINGS["kl"])
    assert resumed.metrics()["prompts_aside"] == BLOCK_ROWS - 3
    alpha_P, beta_P = resumed.evidence()
    assert len(alpha_P) == len(left)
    assert resumed.metrics()["n_eff_mean"] == pytest.approx((alpha_P + beta_P).mean(), rel=1e-12)


def test_an_outcome_of_a_prompt_that_is_kept_aside_changes_no_mean(tmp_path):
    tracker = Tracker.create(keys(200), SETTINGS["constant"])
    tracker.dispatch(["open"], [199], 0)
    tracker.snapshot().write(tmp_path / "spo", step=1)
    resumed, _ = Tracker.load(tmp_path / "spo", keys(BLOCK_ROWS), SETTINGS["constant"])
    before = resumed.metrics()
    resumed.observe(["open"], [0], [1.0])
    after = resumed.metrics()
    for name in ("value_mean", "n_eff_mean", "effective_prompts"):
        assert after[name] == before[name]


@pytest.mark.parametrize(("mode", "again"), [("kl", 2), ("version", 10)])
def test_only_blocks_with_new_evidence_are_read_again_but_all_in_event_time(mode, again):
    table = PromptTable.create(keys(10 * BLOCK_ROWS - 1))
    rule = forgetting(SETTINGS[mode])
    rows_read = []
    read = rule.read
    rule.read = lambda version, alpha_B, *others: (rows_read.append(len(alpha_B)), read(version, alpha_B, *others))[1]
    sums = PromptSums(table, rule, None)
    first = sums.totals(1)
    assert first[0] == pytest.approx(0.5 * len(table))
    assert sum(rows_read) == len(table)
    rows_read.clear()
    assert sums.totals(1) == first
    assert rows_read == []
    table.alpha_P[[3, 4, 200]] = 1.5  # in blocks 0 and 3
    sums.note(np.array([3, 4, 200]))
    value, n_eff = sums.totals(2)
    assert sum(rows_read) == {2: 2 * BLOCK_ROWS, 10: len(table)}[again]
    if mode == "kl":
        assert (value, n_eff) == pytest.approx((0.5 * len(table) + 3 * 0.25, len(table) + 3.0))


@pytest.mark.parametrize("bins", [divisor for divisor in range(1, KEPT_BINS + 1) if KEPT_BINS % divisor == 0])
def test_values_on_the_edges_of_bins_are_counted_as_numpy_does(bins):
    value_P = np.concatenate([np.linspace(0, 1, 21), np.arange(21) * 0.05, np.arange(101) / 100])
    value_P = np.concatenate([value_P, np.nextafter(value_P, 0.0), np.minimum(np.nextafter(value_P, 2.0), 1.0)])
    tracker = Tracker.create(keys(len(value_P)), SETTINGS["kl"], alpha_P=value_P, beta_P=1 - value_P)
    by_hand = np.histogram(tracker.values(), bins=bins, range=(0.0, 1.0))[0]
    assert tracker.value_histogram(bins).tolist() == by_hand.tolist()


@pytest.mark.parametrize("at_once", [BLOCK_ROWS, 2 * BLOCK_ROWS, 1 << 17])
def test_the_sums_of_changed_blocks_are_bit_for_bit_those_of_a_new_table(at_once, monkeypatch):
    monkeypatch.setattr("spo_verl.tracker.prompt_statistics.SCAN_ROWS", at_once)
    rng = np.random.default_rng(0)
    size = 7 * BLOCK_ROWS + 5
    table = PromptTable.create(keys(size), rng.random(size), rng.random(size))
    rule = forgetting(SETTINGS["kl"])
    kept = PromptSums(table, rule, None)
    for _ in range(10):
        kept.totals(0)
        slots = rng.permutation(size)[: rng.integers(1, 9)]
        table.alpha_P[slots] = rng.random(len(slots)) * 10.0 ** rng.integers(-9, 9, len(slots))
        kept.note(slots)
        assert kept.totals(0) == PromptSums(table, rule, None).totals(0)
    table.alpha_P[[0, size - 1]] = 7.0  # the first and the last block, which is not full
    kept.note(np.array([0, size - 1]))
    value_P, n_eff_P = rule.read(0, table.alpha_P, table.beta_P, table.version_P)
    assert kept.totals(0) == pytest.approx((value_P.sum(), n_eff_P.sum()), rel=1e-12)
