"""Metric names survive verl's aggregator with the meaning they have here; every metric is explained."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from verl.trainer.ppo.v1.utils import MetricsAggregator
from verl.utils.tracking import RLInsightLogger

from spo_verl.agent.seams import SEAMS as AGENT_SEAMS
from spo_verl.training import pages
from spo_verl.training.metrics import (
    METRICS,
    Stopwatch,
    batch_metrics,
    divergence_metrics,
    pattern_of,
    prefixed,
    prometheus_name,
    source_labels,
)
from spo_verl.training.seams import SEAMS as TRAINING_SEAMS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", pages.PAGES)
def test_the_page_is_what_its_command_prints(name):
    file = pages.FILES[name]
    written = (DOCS / file).read_text()
    assert written == pages.PAGES[name](), f"python -m spo_verl.training.pages {name} > docs/{file}"


def test_every_metric_is_in_a_section_and_every_seam_in_its_row():
    assert set(pages.SECTIONS) <= set(METRICS)
    assert next(iter(METRICS)) in pages.SECTIONS
    assert pages.metrics_page().count("\n- `spo/") == len(METRICS)
    entries = pages.seams_page().splitlines()
    word = {"override": "overridden `", "wrap": "wrapped `", "read": "`"}
    for seam in (*TRAINING_SEAMS, *AGENT_SEAMS):
        start = f"- `{seam.module}`: "
        uses = [use for entry in entries if entry.startswith(start) for use in entry.removeprefix(start).split("; ")]
        assert any(use.startswith(word[seam.use]) and f"`{seam.name}`" in use for use in uses)


@pytest.mark.parametrize("key", METRICS)
def test_the_aggregator_combines_each_metric_as_its_name_says(key):
    aggregator = MetricsAggregator()
    aggregator.add_step_metrics({f"spo/{key}": 1.0}, sample_count=1)
    aggregator.add_step_metrics({f"spo/{key}": 4.0}, sample_count=3)
    combined = aggregator.get_aggregated_metrics()[f"spo/{key}"]
    if "_total" in key:
        assert combined == 5.0
    elif key.endswith("/max"):
        assert combined == 4.0
    elif key.endswith("/min"):
        assert combined == 1.0
    else:
        assert combined == pytest.approx((1.0 * 1 + 4.0 * 3) / 4)  # weighted by samples


def test_each_bin_of_the_histogram_is_explained_by_one_entry():
    assert {pattern_of(f"value/bin_{k}") for k in range(10)} == {"value/bin_<k>"}
    assert pattern_of("value/bin_10") not in METRICS


def test_an_unexplained_metric_is_refused():
    with pytest.raises(KeyError, match="no_such_metric"):
        prefixed({"no_such_metric": 1.0})


def every_key(sources):
    """Every key that can be logged, with these data sources."""
    for pattern in METRICS:
        if "<name>" in pattern:
            yield from (pattern.replace("<name>", label) for label in source_labels(sources).values())
        else:
            yield from {pattern.replace("<k>", str(k)) for k in range(10)}


def test_the_dashboard_shows_every_metric_and_no_other():
    """Its queries against the names that RL-Insight gives to what verl's logger hands over."""
    made = json.loads((DOCS / "grafana.json").read_text())
    panels = [panel for panel in made["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    exported = {"rl_insight_monitor_" + prometheus_name(f"spo/{key}") for key in every_key(["org/a.b", "math"])}
    shown = set()
    for query in queries:
        name, labels = re.fullmatch(r"(\w*)\{(.*)\}", query).groups()
        pattern = name or re.match('__name__=~"([^"]*)",', labels)[1]
        found = {one for one in exported if re.fullmatch(pattern, one)}
        assert found, query
        assert not shown & found, query
        assert labels.endswith('project=~"$project",experiment_name=~"$experiment_name"')
        shown |= found
    assert shown == exported
    assert {"datasource", "project", "experiment_name"} == {one["name"] for one in made["templating"]["list"]}
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in made["panels"]]
    assert len(set(corners)) == len(corners), "no panel lies on another"


@given(st.lists(st.text(min_size=1) | st.text("aB_/.-", min_size=1, max_size=4), unique=True, max_size=6))
@example(["a/b", "a_b", "a.b", "a-b", "A/b"])
@example(["openai/gsm8k", "数学", "物理", "1e-4", "\ud800", " ", "with blank"])
def test_prometheus_takes_every_key_and_keeps_them_apart(sources):
    keys = list(prefixed(dict.fromkeys(every_key(sources), 1.0)))
    names = [prometheus_name(key) for key in keys]
    assert all(re.fullmatch("[a-zA-Z_:][a-zA-Z0-9_:]*", name) for name in names), names
    assert len(set(names)) == len(keys) == len(METRICS) + 9 + 2 * (len(sources) - 1)


def test_sources_keep_their_names_where_they_can():
    assert source_labels(["openai/gsm8k", "code_v2"]) == {"openai/gsm8k": "openai/gsm8k", "code_v2": "code_v2"}
    assert source_labels(["code.v2"]) == {"code.v2": "code_v2"}
    two = source_labels(["code.v2", "code_v2", "math"])
    assert re.fullmatch("code_v2_[0-9a-f]{8}", two["code.v2"])
    assert two["math"] == "math"


def test_the_names_are_those_of_the_rl_insight_logger(monkeypatch):
    """verl's logger with a stand-in for the package rl_insight, whose gauge only notes what it is given."""
    seen = {}
    monkeypatch.setenv(RLInsightLogger.ENABLE_ENV, "1")
    monkeypatch.setattr(RLInsightLogger, "_init_done", True)
    monkeypatch.setattr(RLInsightLogger, "_rl_insight_module", SimpleNamespace(metric_gauge=seen.__setitem__))
    logged = prefixed(dict.fromkeys(every_key(["org/a.b"]), 0.5))
    RLInsightLogger.log(logged, step=1)
    assert seen == {prometheus_name(key): 0.5 for key in logged}


def test_batch_metrics_by_hand():
    metrics = batch_metrics(
        reward_S=np.array([1.0, 0.0, 1.0, 0.0]),
        value_S=np.array([0.75, 0.25, 0.5, 0.015]),
        lag_B=np.array([0, 2]),
    )
    # raw = .25, -.25, .5, -.015: mean .12125; reward variance 4 * .25 / 3 = 1/3
    assert metrics["advantage/raw_mean"] == pytest.approx(0.12125)
    deviations = [0.25 - 0.12125, -0.25 - 0.12125, 0.5 - 0.12125, -0.015 - 0.12125]
    variance = sum(d * d for d in deviations) / 3
    assert metrics["advantage/raw_variance"] == pytest.approx(variance)
    assert metrics["advantage/variance_removed"] == pytest.approx(1 - variance * 3)
    assert metrics["advantage/near_zero_0_02_share"] == 0.25
    assert metrics["advantage/near_zero_0_0001_share"] == 0.0
    # p^8 + (1-p)^8: .75 and .25 give .1001282 + .0000153 each, .5 gives 2/256, .015 gives .985^8
    expected = (2 * (0.75**8 + 0.25**8) + 2 * 0.5**8 + 0.985**8 + 0.015**8) / 4
    assert metrics["advantage/grpo_degenerate_share"] == pytest.approx(expected)
    assert (metrics["reward/mean"], metrics["reward/min"], metrics["reward/max"]) == (0.5, 0.0, 1.0)
    assert metrics["staleness/mean"] == 1.0
    assert metrics["staleness/max"] == 2.0


def test_equal_rewards_and_single_rollouts_give_numbers():
    for reward in ([1.0, 1.0], [1.0]):
        metrics = batch_metrics(np.array(reward), np.full(len(reward), 0.5), np.zeros(1))
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["advantage/variance_removed"] == 0.0


def test_divergence_of_first_visits_is_left_out():
    drift = np.array([np.nan, 0.1, 0.3])
    assert divergence_metrics("acting", drift, used=True) == pytest.approx(
        {"divergence_acting/mean": 0.2, "divergence/mean": 0.2, "divergence/max": 0.3}
    )
    assert divergence_metrics("updated", drift, used=False) == pytest.approx({"divergence_updated/mean": 0.2})
    assert divergence_metrics("acting", np.array([np.nan]), used=True) == {}


def test_the_stopwatch_adds_up_and_starts_anew():
    watch = Stopwatch()
    for _ in range(2):
        with watch("draw"):
            pass
    spent = watch.drain()
    assert set(spent) == {"seconds_total/draw"}
    assert spent["seconds_total/draw"] > 0
    assert watch.drain() == {}
