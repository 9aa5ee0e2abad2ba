"""Curves of a record are those that a plain loop over its rows finds."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from spo_verl.record.reading import Record
from spo_verl.record.schema import ENDINGS
from spo_verl.reporting import aggregates as module
from spo_verl.reporting.aggregates import Windows, aggregates, means, plain, quantiles, wilson
from tests.support.records import made_run

MODES = {"sync": {}, "async": {"mode": "separate_async", "sessions": 2, "seed": 3}}


@pytest.fixture(scope="module", params=MODES)
def run(request, tmp_path_factory):
    """What was made, and what is drawn of it."""
    made = made_run(tmp_path_factory.mktemp(request.param), prompts=80, steps=9, batch=24, **MODES[request.param])
    record = Record.open(made.folder)
    return made, aggregates(record.rollouts(module.COLUMNS), record.steps(), record.prompts())


def by_step(made, get, where=lambda row: True):
    """Step -> what is there of the rows of that step."""
    found = defaultdict(list)
    for row in made.rows:
        value = get(row) if where(row) else None
        if value is not None and not math.isnan(value):
            found[row["step"]].append(value)
    return found


def mean_of(made, get, where=lambda row: True):
    found = by_step(made, get, where)
    return [float(np.mean(found[step])) if found[step] else math.nan for step in sorted(made.numbers)]


def near(found, wanted):
    np.testing.assert_allclose(np.asarray(found, dtype=float), np.asarray(wanted, dtype=float), rtol=1e-9, atol=1e-12)


def trained(row):
    return row["ending"] == "trained"


def test_means_of_every_step(run):
    made, found = run
    assert found["step"].tolist() == sorted(made.numbers)
    near(found["reward"]["mean"], mean_of(made, lambda row: row["reward"]))
    spread = by_step(made, lambda row: row["reward"])
    near(found["reward"]["error"], [np.std(spread[s], ddof=1) / len(spread[s]) ** 0.5 for s in sorted(made.numbers)])
    near(found["value"]["drawn"], mean_of(made, lambda row: row["value"]))
    near(found["value"]["n_eff"], mean_of(made, lambda row: row["n_eff"]))
    near(found["advantage"]["mean"], mean_of(made, lambda row: row["raw_advantage"]))
    near(found["throughput"]["seconds"], [made.numbers[step]["timing_s/step"] for step in sorted(made.numbers)])
    count = Counter(row["step"] for row in made.rows if trained(row))
    near(found["throughput"]["rollouts"], [count[s] / made.numbers[s]["timing_s/step"] for s in sorted(made.numbers)])


def test_the_variance_that_the_value_removes(run):
    made, found = run
    raw, reward = (by_step(made, lambda row, name=name: row[name], trained) for name in ("raw_advantage", "reward"))
    near(found["advantage"]["removed"], [1 - np.var(raw[step]) / np.var(reward[step]) for step in sorted(made.numbers)])


def test_signal_is_that_of_trained_rollouts(run):
    made, found = run
    for name, bound in (("1e-4", 1e-4), ("0.02", 0.02)):
        share = mean_of(made, lambda row, bound=bound: float(abs(row["raw_advantage"]) <= bound), trained)
        near(found["near_zero"][name], share)
    near(found["near_zero"]["group"], mean_of(made, lambda row: row["value"] ** 8 + (1 - row["value"]) ** 8))


def test_shares_of_difficulty_sources_and_endings(run):
    made, found = run
    for band in range(5):
        share = mean_of(made, lambda row, band=band: float(min(int(row["value"] * 5), 4) == band))
        near(found["difficulty"]["share"][band], share)
    for name, share, reward in zip(*(found["sources"][what] for what in ("names", "share", "reward")), strict=True):
        near(share, mean_of(made, lambda row, name=name: float(row["data_source"] == name)))
        near(reward, mean_of(made, lambda row: row["reward"], lambda row, name=name: row["data_source"] == name))
    for name, share in zip(ENDINGS, found["endings"]["share"], strict=True):
        near(share, mean_of(made, lambda row, name=name: float(row["ending"] == name)))


def test_retention_and_divergence_count_a_prompt_once_in_a_step(run):
    made, found = run
    for name in ("rho", "divergence"):
        once = {}
        for row in made.rows:
            if row["rho"] is not None:
                once.setdefault((row["step"], row["key"]), row[name])
        for label, share in (("low", 0.1), ("middle", 0.5), ("high", 0.9)):
            at_step = {step: [math.nan if one is None else one for (at, _), one in once.items() if at == step]
                       for step in made.numbers}  # fmt: skip
            near(found[name][label], [np.nanquantile(at_step[step], share) for step in sorted(made.numbers)])


def test_values_are_compared_with_rewards_in_tenths(run):
    made, found = run
    last = made.rows[-1]["step"] - 2  # the last quarter of 9 steps are 3
    for name, first in (("all steps", 0), ("last quarter", last)):
        rows = [row for row in made.rows if row["reward"] is not None and row["step"] >= first]
        gap, curve = 0.0, found["calibration"][name]
        for tenth in range(10):
            part = [row for row in rows if min(int(row["value"] * 10), 9) == tenth]
            assert curve["size"][tenth] == len(part)
            if part:
                value, reward = (np.mean([row[what] for row in part]) for what in ("value", "reward"))
                near([curve["value"][tenth], curve["reward"][tenth]], [value, reward])
                gap += len(part) * abs(value - reward) / len(rows)
        near(curve["gap"], gap)


def test_coverage_and_draws(run):
    made, found = run
    seen, covered = set(), []
    for step in sorted(made.numbers):
        seen |= {row["key"] for row in made.rows if row["step"] == step}
        covered.append(len(seen) / 80)
    near(found["coverage"], covered)
    count = Counter(Counter(row["key"] for row in made.rows).values())
    count[0] = 80 - len(seen)
    for name, prompts in zip(found["draws"]["names"], found["draws"]["prompts"], strict=True):
        low, _, high = name.partition(" to ")
        assert prompts == sum(count[number] for number in range(int(low), int(high or low) + 1)), name
    assert sum(found["draws"]["prompts"]) == 80


def test_late_rollouts_are_apart_from_fresh_ones(run):
    made, found = run
    groups = {
        module.LATE[0]: lambda row: trained(row) and row["version_dispatch"] == row["step"] - 1,
        module.LATE[1]: lambda row: trained(row) and row["version_dispatch"] < row["step"] - 1,
        module.LATE[2]: lambda row: not trained(row) and row["tokens"] is not None,
    }
    present = {name: where for name, where in groups.items() if any(map(where, made.rows))}
    assert set(found["late"]["groups"]) == set(present)
    for name, where in present.items():
        group = found["late"]["groups"][name]
        near(group["tokens"], mean_of(made, lambda row: row["tokens"], where))
        near(group["reward"], mean_of(made, lambda row: row["reward"], where))
        tokens = [row["tokens"] for row in made.rows if where(row)]
        near(group["mean"], np.mean(tokens))
        near(np.sum(group["share"]), 1)
        in_first = np.mean([one < found["late"]["edges"][1] for one in tokens])
        near(group["share"][0], in_first)


def test_parts_of_a_step_and_its_rest(run):
    made, found = run
    parts = dict(zip(found["parts"]["names"], found["parts"]["seconds"], strict=True))
    assert list(parts) == ["update_actor", "gen", "old_log_prob", "adv", "others"]  # the longest first
    steps = sorted(made.numbers)
    near(parts["gen"], [6.0] * len(steps))
    near(parts["others"], [made.numbers[s]["timing_s/step"] - 6.0 - 1.0 - 0.1 - (2.5 + s) for s in steps])


def test_values_of_all_prompts_come_from_the_metrics_where_there_are_any(run):
    made, found = run
    assert found["values"]["of"] == "rollouts"
    near(found["values"]["share"][9], mean_of(made, lambda row: float(row["value"] >= 0.9)))
    record = Record.open(made.folder)
    steps = record.steps()
    bins = [{"step": 1, "name": f"spo/value/bin_{number}", "value": number / 45} for number in range(10)]
    bins += [{"step": 4, "name": name, "value": 0.5} for name in ("val-aux/a", "val-core/b", "val-core/a")]
    more = pa.concat_tables([steps, pa.Table.from_pylist(bins, schema=steps.schema)])
    again = aggregates(record.rollouts(module.COLUMNS), more, record.prompts())
    assert again["values"]["of"] == "all prompts"
    near(again["values"]["share"][:, 0], [number / 45 for number in range(10)])
    assert list(again["validation"]) == ["val-core/a", "val-core/b", "val-aux/a"]
    near(again["validation"]["val-aux/a"][2:4], [math.nan, 0.5])


groups = st.lists(
    st.tuples(st.integers(0, 4), st.one_of(st.just(math.nan), st.floats(-1e3, 1e3))), min_size=0, max_size=40
)


@settings(max_examples=50)
@given(groups)
def test_statistics_of_groups_are_those_of_numpy(pairs):
    window_N = np.array([group for group, _ in pairs], dtype=np.int64)
    number_N = np.array([number for _, number in pairs], dtype=float)
    mean_W, error_W, size_W = means(window_N, number_N, 5)
    low_W, high_W = quantiles(window_N, number_N, 5, (0.1, 0.75))
    for group in range(5):
        inside = number_N[(window_N == group) & np.isfinite(number_N)]
        assert size_W[group] == len(inside)
        if not len(inside):
            assert np.isnan([mean_W[group], error_W[group], low_W[group], high_W[group]]).all()
            continue
        assert mean_W[group] == pytest.approx(inside.mean(), abs=1e-9)
        assert low_W[group] == pytest.approx(np.quantile(inside, 0.1), abs=1e-9)
        assert high_W[group] == pytest.approx(np.quantile(inside, 0.75), abs=1e-9)
        if len(inside) > 1:
            assert error_W[group] == pytest.approx(inside.std(ddof=1) / len(inside) ** 0.5, abs=1e-9)


@given(st.sets(st.integers(1, 5000), min_size=1, max_size=300), st.integers(1, 60))
def test_windows_are_consecutive_steps_and_as_many_as_allowed(steps, most):
    windows = Windows.of(steps, most)
    assert len(windows) <= most
    number_N = windows.number(np.array(sorted(steps)))
    assert (np.diff(number_N) >= 0).all()
    sizes = np.bincount(number_N)
    assert (sizes[:-1] == windows.width).all()
    assert 1 <= sizes[-1] <= windows.width
    assert windows.step_W[-1] == max(steps)


@given(st.integers(1, 200), st.data())
def test_the_interval_is_wilsons(size, data):
    hits = data.draw(st.integers(0, size))
    low, high = wilson(np.array([hits / size]), np.array([float(size)]))
    wanted = binomtest(hits, size).proportion_ci(0.95, method="wilson")
    assert (low[0], high[0]) == (pytest.approx(wanted.low, abs=1e-9), pytest.approx(wanted.high, abs=1e-9))


def test_advantages_at_a_bound_are_near_zero():
    raw = [0.02, -0.02, 0.0201, 1e-4, -1e-4, 1.1e-4, 0.0, np.nan, 0.5, -1.0]
    columns = {"raw_advantage": np.array(raw), "value": np.full(len(raw), 0.5)}
    found = module._near_zero(np.zeros(len(raw), np.int64), columns, 1)
    near([found["1e-4"][0], found["0.02"][0], found["group"][0]], [3 / 9, 6 / 9, 2 * 0.5**8])


def test_many_sources_become_the_largest_and_the_others():
    names = [f"source {number}" for number in range(9) for _ in range(10 - number)] + [None]
    columns = {"reward": np.arange(len(names)) % 2.0}
    found = module._sources(pa.array(names).dictionary_encode(), np.zeros(len(names), np.int64), columns, 1)
    assert found["names"] == [f"source {number}" for number in range(6)] + ["others"]
    near(found["share"][:, 0], [size / len(names) for size in (10, 9, 8, 7, 6, 5, 4 + 3 + 2 + 1)])


@settings(max_examples=50)
@given(st.lists(st.one_of(st.floats(), st.integers(), st.text(max_size=3))))
def test_plain_data_are_json(data):
    read = json.loads(json.dumps(plain({"data": [data, np.array([0.5, np.nan])]}), allow_nan=False))["data"]
    assert read[1] == [0.5, None]
    for found, given_ in zip(read[0], data, strict=True):
        if isinstance(given_, float):
            assert found is None if not math.isfinite(given_) else found in (None, pytest.approx(given_, rel=1e-4))
        else:
            assert found == given_
