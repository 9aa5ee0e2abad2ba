"""Numbers over prompts and steps, against plain loops over the rows that were written."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spo_verl.history.places import find
from spo_verl.history.states import states_of
from spo_verl.history.steps import NEAR_ZERO, calibration, latest_metrics, metric, per_step
from spo_verl.history.summaries import by_source, doubling, ranked, summary, uncertainty, value_histogram
from spo_verl.record import Record
from spo_verl.record.schema import ENDINGS


def mean(numbers):
    known = [one for one in numbers if one is not None and not math.isnan(one)]
    return sum(known) / len(known) if known else math.nan


@pytest.mark.parametrize("name", ["sync_run", "async_run"])
@pytest.mark.parametrize("upto", [None, 3])
def test_numbers_per_step_are_those_of_the_rows(name, upto, request):
    made = request.getfixturevalue(name)
    table = per_step(Record.open(made.folder), upto)
    steps = sorted({row["step"] for row in made.rows if upto is None or row["step"] <= upto})
    assert table["step"].tolist() == steps
    for at, step in enumerate(steps):
        rows = [row for row in made.rows if row["step"] == step]
        found = {name: column[at] for name, column in table.items()}
        rewarded = [row for row in rows if row["reward"] is not None]
        assert found["rollouts"] == len(rows)
        assert found["outcomes"] == len(rewarded)
        assert found["prompts"] == len({row["slot"] for row in rows})
        endings = Counter(row["ending"] for row in rows)
        assert {kind: found[kind] for kind in ENDINGS} == {kind: endings[kind] for kind in ENDINGS}
        for column in ("value", "reward", "raw_advantage", "rho", "divergence", "tokens", "n_eff"):
            assert found[column] == pytest.approx(mean([row[column] for row in rows]), nan_ok=True), column
        assert found["error"] == pytest.approx(mean([row["reward"] - row["value"] for row in rewarded]))
        near = [abs(row["raw_advantage"]) <= NEAR_ZERO for row in rows if row["raw_advantage"] is not None]
        assert found["near_zero"] == pytest.approx(mean([float(one) for one in near]))


def test_metrics_of_a_step(sync_run):
    record = Record.open(sync_run.folder)
    expected = {step: numbers["critic/score/mean"] for step, numbers in sync_run.numbers.items()}
    assert metric(record, "critic/score/mean") == expected
    assert metric(record, "no such metric") == {}
    assert latest_metrics(record) == sync_run.numbers[6]


def test_calibration_compares_frozen_values_with_outcomes(async_run):
    for bins in (4, 10):
        found = calibration(Record.open(async_run.folder), bins)
        rewarded = [row for row in async_run.rows if row["reward"] is not None]
        assert sum(one["rollouts"] for one in found) == len(rewarded)
        for one in found:
            inside = [
                row
                for row in rewarded
                if one["from"] <= row["value"] < one["to"] or (one["to"] == 1 and row["value"] == 1)
            ]
            assert one["rollouts"] == len(inside)
            rewards = [row["reward"] for row in inside]
            assert one["value"] == pytest.approx(mean([row["value"] for row in inside]))
            assert one["reward"] == pytest.approx(mean(rewards))
            assert one["error"] == pytest.approx(np.std(rewards) / math.sqrt(len(rewards)))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60))
def test_classes_that_double_hold_every_number_once(numbers):
    classes = doubling(np.array(numbers))
    assert classes[0]["from"] == 0
    assert all(later["from"] == earlier["to"] + 1 for earlier, later in pairwise(classes))
    for one in classes:
        assert one["prompts"] == sum(one["from"] <= number <= one["to"] for number in numbers)
    assert sum(one["prompts"] for one in classes) == len(numbers)
    assert classes[-1]["prompts"] > 0


def test_values_at_the_edges_are_in_a_bin():
    assert value_histogram(np.array([0.0, 0.1, 0.999, 1.0]), 10) == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_uncertainty_is_the_deviation_of_the_beta_distribution():
    alpha, beta = 3.0, 5.0
    variance = alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))
    assert uncertainty(np.array([alpha / (alpha + beta)]), np.array([alpha + beta]))[0] == pytest.approx(
        math.sqrt(variance)
    )


@pytest.mark.parametrize("name", ["sync_run", "async_run"])
def test_lists_of_prompts_are_sorted_by_what_they_say(name, request):
    states = states_of(find(request.getfixturevalue(name).folder))
    known = np.flatnonzero(states.known_P).tolist()
    value, n_eff = states.value_P, states.n_eff_P
    hardest = sorted(known, key=lambda slot: (value[slot], -n_eff[slot], slot))
    assert ranked(states, "hardest", 7).tolist() == hardest[:7]
    sd = uncertainty(value, n_eff)
    uncertain = sorted(known, key=lambda slot: (-sd[slot], slot))
    assert ranked(states, "most_uncertain", 7).tolist() == uncertain[:7]
    drifted = sorted(np.flatnonzero(np.isfinite(states.drift_P)).tolist(), key=lambda slot: -states.drift_P[slot])
    assert ranked(states, "most_drifted", 7).tolist() == drifted[:7]
    never = [slot for slot, draws in enumerate(states.draws_P.tolist()) if not draws]
    assert ranked(states, "never_drawn", 1000).tolist() == never
    assert ranked(states, "hardest", 0).tolist() == []


def test_a_summary_counts_the_prompts(async_run):
    states = states_of(find(async_run.folder))
    found = summary(states)
    assert found["prompts"] == 90
    assert found["drawn_once"] == round(found["coverage"] * 90) == int((states.draws_P > 0).sum())
    assert sum(found["value_histogram"]) == sum(one["prompts"] for one in found["draws_histogram"]) == 90
    assert found["value_mean"] == pytest.approx(states.value_P.mean())
    assert found["value_mean_known"] == pytest.approx(states.value_P[states.known_P].mean())
    assert found["value_near_0"] == (states.value_P < 0.05).mean()
    assert found["n_eff_median"] == sorted(states.n_eff_P)[44:46][0] / 2 + sorted(states.n_eff_P)[45] / 2
    assert found["value_change_mean"] == pytest.approx((states.value_P - 0.5).mean())
    assert found["draws"] == found["counters"]["drawn"]
    odd = by_source(states)["math_dapo"]
    assert odd["prompts"] == 45
    assert odd["value_mean"] == pytest.approx(states.value_P[1::2].mean())
    assert odd["coverage"] == (states.draws_P[1::2] > 0).mean()
    bare = summary(replace(states, source_P=None, initial_P=None, known_P=np.zeros(90, dtype=bool)))
    assert "sources" not in bare
    assert bare["value_mean_known"] is None
