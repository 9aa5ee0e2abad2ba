"""A made run, written and read back: every number of every row."""

import json
import math

import numpy as np
import pytest

from spo_verl.core import fold_events, update_evidence
from spo_verl.record import Record
from spo_verl.record.schema import ENDINGS, ROLLOUTS
from tests.support.records import made_run


def same(found, expected):
    """Whether two rows are alike; seconds are float32."""
    return all(
        found[name] == expected[name]
        or (isinstance(expected[name], float) and math.isnan(expected[name]) and found[name] is None)
        or (name == "seconds" and np.float32(expected[name]) == found[name])
        for name in ROLLOUTS.names
    )


@pytest.mark.parametrize(("mode", "sessions"), [("sync", 1), ("separate_async", 2)])
def test_what_was_written_is_read(tmp_path, mode, sessions):
    made = made_run(tmp_path / "run", mode=mode, sessions=sessions)
    record = Record.open(made.folder)
    found = record.rollouts().to_pylist()
    assert len(found) == len(made.rows)
    assert [row["uid"] for row in found] == [row["uid"] for row in made.rows]
    assert all(map(same, found, made.rows))
    numbers = {}
    for row in record.steps().to_pylist():
        assert numbers.setdefault(row["step"], {}).setdefault(row["name"], row["value"]) == row["value"]
    assert numbers == made.numbers
    endings = {row["ending"] for row in found}
    assert endings == ({"trained", "failed"} if mode == "sync" else set(ENDINGS))
    assert record.run["prompts"] == 300
    assert record.run["ended"]
    assert len(record.prompts()) == 300


@pytest.mark.parametrize("forgetting", ["kl", "constant"])
def test_evidence_follows_from_the_rows(tmp_path, forgetting):
    made = made_run(tmp_path / "run", mode="separate_async", sessions=2, forgetting=forgetting, prompts=90)
    record = Record.open(made.folder)
    evidence = {
        row["key"]: (row["value"] * row["n_eff"], (1 - row["value"]) * row["n_eff"], -1)
        for row in record.prompts().to_pylist()
    }
    slot = {row["key"]: row["slot"] for row in record.prompts().to_pylist()}
    for row in record.rollouts().to_pylist():
        if row["reward"] is not None:
            alpha, beta, version = evidence[row["key"]]
            rho = row["rho"] if row["version_dispatch"] > version else 1.0
            alpha, beta = update_evidence(alpha, beta, row["reward"], rho)
            evidence[row["key"]] = alpha, beta, max(version, row["version_dispatch"])
    alpha_P, beta_P = made.tracker.evidence()
    assert np.allclose([evidence[key][0] for key in slot], alpha_P[list(slot.values())], rtol=1e-12)
    assert np.allclose([evidence[key][1] for key in slot], beta_P[list(slot.values())], rtol=1e-12)


def test_evidence_in_event_time_follows_from_the_rows(tmp_path):
    made = made_run(tmp_path / "run", mode="separate_async", forgetting="version", prompts=90)
    record = Record.open(made.folder)
    prompts, rows = record.prompts().to_pydict(), record.rollouts().to_pydict()
    seen = [number for number, reward in enumerate(rows["reward"]) if reward is not None]
    n_eff_P, value_P = np.array(prompts["n_eff"]), np.array(prompts["value"])
    alpha_P, beta_P, _ = fold_events(
        value_P * n_eff_P,
        (1 - value_P) * n_eff_P,
        np.zeros(90, dtype=np.int64),
        np.array(rows["slot"])[seen],
        np.array(rows["version_dispatch"])[seen],
        np.array(rows["reward"], dtype=float)[seen],
        rho=made.tracker.settings.rho,
    )
    assert np.allclose(made.tracker.evidence(), (alpha_P, beta_P), rtol=1e-9)


def test_dumps_are_of_the_trained_rows(tmp_path):
    made = made_run(tmp_path / "run", mode="separate_async", steps=3)
    for step in (1, 2, 3):
        lines = [json.loads(line) for line in (made.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
        trained = {
            f"{row['uid']}_{row['session']}_0": row["reward"]
            for row in made.rows
            if row["step"] == step and row["ending"] == "trained"
        }
        assert {line["uid"]: line["score"] for line in lines} == trained
