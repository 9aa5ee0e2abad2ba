"""A record as one file, read back by others' readers."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.data.values import OfflineValues
from spo_verl.history.exporting import check_target, chosen_table, write_table, write_values
from spo_verl.history.places import HistoryError, find

COLUMNS = ["step", "data_source", "uid", "reward"]


def expected(made, upto=99):
    return [{name: row[name] for name in COLUMNS} for row in made.rows if row["step"] <= upto]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_format_holds_every_row_in_order(async_run, tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write_table(chosen_table(find(async_run.folder), "rollouts", COLUMNS), path)
    if suffix == ".parquet":
        found = pq.read_table(path).to_pylist()
    elif suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        with path.open() as file:
            found = [
                row | {"step": int(row["step"]), "reward": float(row["reward"]) if row["reward"] else None}
                for row in csv.DictReader(file)
            ]
    assert [list(row) for row in found] == [COLUMNS] * len(found)
    assert found == expected(async_run)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_all_columns_are_kept_and_names_are_plain_texts(sync_run):
    table = chosen_table(find(sync_run.folder), "rollouts", [])
    assert table.num_columns == 20
    assert not any(pa.types.is_dictionary(field.type) for field in table.schema)


def test_a_named_checkpoint_exports_the_run_up_to_its_step(sync_run):
    place = find(sync_run.folder / "global_step_3")
    assert chosen_table(place, "rollouts", COLUMNS).to_pylist() == expected(sync_run, upto=3)
    assert set(chosen_table(place, "steps", ["step"])["step"].to_pylist()) == {1, 2, 3}
    assert len(chosen_table(place, "prompts", [])) == 80


def test_values_are_those_of_the_checkpoint_in_the_format_of_offline_values(sync_run, tmp_path):
    described = write_values(find(sync_run.folder), tmp_path / "values.parquet")
    values = OfflineValues.read(tmp_path / "values.parquet")
    assert described["prompts"] == len(values)
    observed = {row["key"] for row in sync_run.rows if row["reward"] is not None}
    assert {key.tobytes().hex() for key in values.key_N} == observed
    alpha_P, beta_P = sync_run.tracker.evidence()
    value_P = alpha_P / (alpha_P + beta_P)
    slot_of = {row["key"]: row["slot"] for row in sync_run.rows}
    for key, successes, trials in zip(values.key_N, values.successes_N, values.trials_N, strict=True):
        assert successes / trials == pytest.approx(value_P[slot_of[key.tobytes().hex()]])


def test_what_cannot_be_written_is_refused_before_anything_is_read(sync_run, tmp_path):
    with pytest.raises(HistoryError, match=r"choose among uid, session"):
        chosen_table(find(sync_run.folder), "rollouts", ["step", "rewrad"])
    place = find(sync_run.folder)
    with pytest.raises(HistoryError, match=r"let it be \.parquet, \.csv, \.jsonl"):
        check_target(tmp_path / "out.xlsx", place)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(HistoryError, match="is a folder"):
        check_target(tmp_path / "folder.csv", place)
    with pytest.raises(HistoryError, match=r"let it be \.parquet\."):
        write_values(place, tmp_path / "values.csv")
    with pytest.raises(HistoryError, match="which is read: name a file elsewhere"):
        check_target(tmp_path / ".." / sync_run.folder / "record" / "new.csv", place)
