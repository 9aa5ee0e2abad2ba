"""A made run, written and read back: every number of every row."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.record import Record
from spo_verl.record.schema import ENDINGS, ROLLOUTS, VERSION_KEY
from tests.support.record_check import differences
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


@pytest.mark.parametrize("forgetting", ["kl", "constant", "version"])
def test_it_agrees_with_its_checkpoint_and_its_dumps(tmp_path, forgetting):
    run = made_run(
        tmp_path / "run", mode="separate_async", sessions=2, forgetting=forgetting, prompts=90, steps=8
    ).folder
    assert differences(run, run / "rollouts") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[1:], "outcomes, the tracker observed"),
        (lambda rows: [*rows, rows[-1]], "is there 2 times"),
        (lambda rows: [{**rows[0], "reward": 1 - rows[0]["reward"]}, *rows[1:]], "the tracker has"),
        (lambda rows: [{**rows[0], "ending": "stale"}, *rows[1:]], "rollouts are trained, the tracker counted"),
        (lambda rows: [{**row, "rho": 0.5 if row["rho"] else None} for row in rows], "the tracker has"),
        (lambda rows: [{**row, "key": rows[0]["key"]} for row in rows], "the tracker drew it"),
    ],
)
def test_a_mistake_in_the_record_is_found(tmp_path, change, said):
    """A check that agrees with everything would be none."""
    run = made_run(tmp_path / "run", prompts=40, steps=2, batch=10, checkpoint_every=2).folder
    part = run / "record" / "rollouts-00000001-00000002.parquet"
    table = pq.read_table(part, schema=ROLLOUTS)
    rows = sorted(table.to_pylist(), key=lambda row: row["reward"] is None)
    changed = pa.Table.from_pylist(change(rows), schema=ROLLOUTS)
    pq.write_table(changed.replace_schema_metadata({VERSION_KEY: "1"}), part)
    assert any(said in one for one in differences(run, run / "rollouts"))


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
