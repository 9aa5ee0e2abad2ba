"""Each early warning fires on a history that shows what it names, is said once, and none fires in a healthy run."""

import logging

import numpy as np
import pytest

from spo_verl.config import SpoConfig, read
from spo_verl.tracker import Tracker
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.training.early_warnings import FEW, WARNINGS, EarlyWarnings, RunFacts, early_warnings
from spo_verl.training.health import HEALTH
from spo_verl.training.metrics import (
    METRICS,
    VALUE_BINS,
    batch_metrics,
    length_metrics,
    observation_metrics,
    pattern_of,
    prefixed,
    table_metrics,
)
from tests.tracker.helpers import keys

BATCH = 64
RUN = RunFacts(BATCH, bounds=(0.875, 0.96))
HEALTHY = {
    "coverage": 1.0,
    "value/bin_0": 0.2,
    "value/bin_9": 0.2,
    "first_visit_share": 0.0,
    "rho/min": 0.875,
    "rho/at_floor_share": 0.3,
    "advantage/raw_mean": 0.01,
    "advantage/raw_variance": 0.15,
    "reward/min": 0.0,
    "reward/max": 1.0,
    "n_eff/revisit_mean": 9.0,
    "late/carried_share": 0.25,
    "late/carried_tokens_mean": 300.0,
    "late/fresh_tokens_mean": 100.0,
    "late/evicted_tokens_mean": 180.0,
    "evidence/observed_total": 64.0,
    "evidence/stale_total": 8.0,
    "rollouts/aborted_total": 32.0,
}


def names(steps, run=RUN):
    return [warning.name for warning, _ in early_warnings(steps, run)]


def history(steps=40, **changed):
    """The same step again and again; underscores stand for slashes where a key has one."""
    return [HEALTHY | {key.replace("__", "/"): value for key, value in changed.items()}] * steps


def sound(**changed):
    return names(history(**changed))


def test_a_healthy_step_that_repeats_causes_none():
    assert set(map(pattern_of, HEALTHY)) <= set(METRICS)
    assert names(history()) == []


@pytest.mark.parametrize(
    ("name", "bad", "nearly"),
    [
        ("prompts never drawn", {"coverage": 0.9}, {"coverage": 0.99}),
        ("values near 0 or 1", {"value__bin_0": 0.71}, {"value__bin_0": 0.69}),
        ("retention pinned", {"rho__at_floor_share": 0.96}, {"rho__at_floor_share": 0.94}),
        ("retention pinned", {"rho__min": 0.96, "rho__at_floor_share": 0.0}, {"rho__min": 0.95}),
        ("retention pinned", {"rho__at_floor_share": 0.57, "first_visit_share": 0.4}, {"first_visit_share": 0.4}),
        ("calibration off", {"advantage__raw_mean": -0.11}, {"advantage__raw_mean": -0.09}),
        ("calibration off", {"advantage__raw_mean": 0.11}, {"advantage__raw_mean": 0.3, "first_visit_share": 0.2}),
        ("reward range", {"reward__min": 0.5}, {"reward__min": 0.49}),
        ("rewards constant", {"reward__max": 0.0}, {"reward__max": 0.51}),
        ("evidence fades", {"n_eff__revisit_mean": 0.9}, {"n_eff__revisit_mean": 1.0}),
        # trained: a quarter of 300 and three quarters of 100 tokens, 150 on average; 1.5 times that are 225
        ("length bias", {"late__evicted_tokens_mean": 226.0}, {"late__evicted_tokens_mean": 224.0}),
        ("length bias", {"rollouts__aborted_total": 65.0}, {"rollouts__aborted_total": 64.0}),
        (
            "length bias",
            {"late__evicted_tokens_mean": 500.0, "evidence__stale_total": 4.0},
            {"late__evicted_tokens_mean": 500.0, "evidence__stale_total": 3.0},
        ),
    ],
)
def test_it_fires_beyond_its_threshold_and_only_there(name, bad, nearly):
    assert sound(**bad) == [name]
    assert sound(**nearly) == []
    assert names(history(FEW - 1, **bad)) == [], "too few steps to say anything"


def test_every_warning_is_tested_and_says_what_to_do():
    assert [warning.name for warning in WARNINGS] == list(dict.fromkeys(warning.name for warning in WARNINGS))
    tested = test_it_fires_beyond_its_threshold_and_only_there.pytestmark[0].args[1]
    assert {name for name, *_ in tested} == {warning.name for warning in WARNINGS}
    assert list(HEALTH) == list(METRICS), "docs/metrics.md says of each metric what is healthy"


@pytest.mark.parametrize(
    "key", [key for key in HEALTHY if key.partition("/")[0] not in ("late", "evidence", "rollouts")]
)
def test_one_odd_batch_is_no_reason(key):
    odd = {"coverage": 1.0, "reward/max": 0.0, "n_eff/revisit_mean": 0.1, "advantage/raw_mean": 0.9}.get(key, 0.99)
    good = history(60)
    assert names([*good, good[0] | {key: odd}]) == []


@pytest.mark.parametrize(
    ("bad", "run"),
    [
        ({"rho__at_floor_share": 1.0}, RunFacts(BATCH, bounds=None)),  # no bounds to be pinned at
        (
            {"advantage__raw_mean": 0.3},
            RunFacts(BATCH, values_learn=False),
        ),  # the policy leaves the initial value on purpose
    ],
)
def test_what_is_meant_is_no_warning(bad, run):
    assert names(history(**bad), run) == []


def test_known_values_are_judged_from_the_first_visits_on():
    bad = {"advantage__raw_mean": 0.2, "first_visit_share": 1.0}
    assert names(history(**bad), RunFacts(BATCH, known_values=True)) == ["calibration off"]


def test_small_batches_need_more_before_they_say_anything():
    """A bias of 0.2 in 10 steps of 2 is within 4 standard errors, and 20 equal rewards say little."""
    none = {"rollouts__aborted_total": 0.0}
    assert names(history(99, advantage__raw_mean=0.2, **none), RunFacts(2)) == []
    assert names(history(99, reward__max=0.0, **none), RunFacts(2)) == []
    assert names(history(100, reward__max=0.0, **none), RunFacts(2)) == ["rewards constant"]


def test_coverage_counts_since_it_last_grew():
    grew = [*history(30, coverage=0.4), *history(FEW, coverage=0.5)]
    assert names(grew) == []
    assert names([*grew, *history(1, coverage=0.5)]) == ["prompts never drawn"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, RunFacts(8, (0.875, 0.96))),
        ({"forgetting": {"mode": "drift"}}, RunFacts(8, (0.875, 0.96))),
        ({"forgetting": {"mode": "constant"}}, RunFacts(8)),
        ({"forgetting": {"rho_min": 0.9, "rho_max": 0.9}}, RunFacts(8)),
        ({"initial": {"values": "v.parquet"}}, RunFacts(8, (0.875, 0.96), known_values=True)),
        (
            {"initial": {"tracker": "t"}, "advantage": {"baseline": "initial"}},
            RunFacts(8, (0.875, 0.96), known_values=True, values_learn=False),
        ),
    ],
)
def test_what_is_read_of_the_settings(settings, expected):
    config, problems, _ = read(settings)
    assert problems == []
    assert RunFacts.of(config, 8) == expected


def test_each_is_logged_once_and_others_later(caplog, monkeypatch):
    watcher = EarlyWarnings(RUN)
    monkeypatch.setattr(logging.getLogger("spo_verl"), "propagate", True)
    for step in [*history(30, coverage=0.5), *history(30, n_eff__revisit_mean=0.5)]:
        watcher.read({**prefixed(step), "critic/score/mean": 1.0})
    watcher.read({"timing_s/step": 1.0})  # a step without an update
    records = {id(record): record for record in caplog.records}.values()  # pytest may listen at two loggers of a line
    texts = [record.getMessage() for record in records if record.levelname == "WARNING"]
    assert len(texts) == len(set(texts)) == 2
    assert texts[0].startswith("spo: early warning, prompts never drawn. In 10 steps no prompt was drawn for the first")
    assert "50% of the prompts never were. Raise spo.sampling.epsilon" in texts[0]
    assert "evidence fades. Prompts that are drawn again have 0.5 outcomes' worth" in texts[1]


def simulated(spo, steps=80, prompts=400, seed=0, divergence=0.007):
    """Metrics of a run of the real tracker: success rates that rise slowly from a uniform distribution."""
    rng = np.random.default_rng(seed)
    tracker = Tracker.create(keys(prompts), TrackerSettings.of(spo))
    rate_P = rng.uniform(0.02, 0.98, prompts)
    for step in range(steps):
        slot_B = tracker.draw(BATCH).slot_B
        uids = [f"{step}-{number}" for number in range(BATCH)]
        frozen = tracker.dispatch(uids, slot_B, step)
        reward_B = (rng.random(BATCH) < rate_P[slot_B]).astype(float)
        measured = {"divergence_B": rng.lognormal(np.log(divergence), 0.7, BATCH)} if spo.references else {}
        moved = {"movement": 0.002} if spo.forgetting.mode == "drift" else {}
        report = tracker.finish_step(uids, [0] * BATCH, reward_B, settle_uids=uids, **measured, **moved)
        yield {
            **batch_metrics(reward_B, frozen.value_B, np.zeros(BATCH)),
            **observation_metrics(report.observe, spo.forgetting),
            **table_metrics(report.metrics, tracker.value_histogram(VALUE_BINS)),
            **length_metrics(rng.integers(50, 500, BATCH), np.zeros(BATCH, dtype=bool)),
        }
        rate_P = np.clip(rate_P + 0.002, 0.0, 1.0)


@pytest.mark.parametrize("mode", ["kl", "constant", "drift", "version"])
@pytest.mark.parametrize("seed", range(3))
def test_none_in_a_healthy_run(mode, seed):
    """Evidence in event time lasts with a retention per version that suits 6 versions between two visits."""
    spo = read({"forgetting": {"mode": mode, "rho": 0.95}})[0]
    seen, steps = [], []
    for metrics in simulated(spo, seed=seed):
        steps.append(metrics)
        seen += names(steps[-100:], RunFacts.of(spo, BATCH))
    assert seen == []


@pytest.mark.parametrize(
    ("divergence", "place"), [(0.0001, "spo.forgetting.rho_max=0.96"), (0.1, "spo.forgetting.rho_min=0.875")]
)
def test_a_divergence_that_the_half_life_does_not_tell_apart_is_found(divergence, place):
    steps = list(simulated(SpoConfig(), divergence=divergence))
    found = list(early_warnings(steps, RunFacts.of(SpoConfig(), BATCH)))
    assert [warning.name for warning, _ in found] == ["retention pinned"]
    assert place in found[0][1]


def test_evidence_that_fades_between_visits_is_found():
    spo = read({"forgetting": {"mode": "version", "rho": 0.5}})[0]
    assert names(list(simulated(spo)), RunFacts.of(spo, BATCH)) == ["evidence fades"]
