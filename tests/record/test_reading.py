"""The reader: what it refuses, and a run that is written while it is read."""

import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.errors import SpoRecordError, SpoRecordVersionError
from spo_verl.record import Record
from spo_verl.record.schema import ROLLOUTS, SCHEMA_VERSION, VERSION_KEY, Part, uncovered
from tests.record.helpers import rows, write


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "record", range(1, 5), cut_every=2).close()
    return tmp_path


def test_the_folder_of_the_run_or_that_of_the_record(folder):
    assert Record.open(folder).path == Record.open(str(folder / "record")).path == folder / "record"


def test_where_there_is_no_record(tmp_path):
    with pytest.raises(SpoRecordError, match=r"nothing is not there: name the folder of a run .*spo\.record=off"):
        Record.open(tmp_path / "nothing")
    with pytest.raises(SpoRecordError, match=r"holds no record/run\.json"):
        Record.open(tmp_path)


def test_a_newer_schema_is_refused(folder):
    path = folder / "record" / "rollouts-00000003-00000004.parquet"
    table = pq.read_table(path).replace_schema_metadata({VERSION_KEY: str(SCHEMA_VERSION + 1)})
    pq.write_table(table, path)
    with pytest.raises(SpoRecordVersionError, match="version 2 .* reads up to 1: update spo_verl"):
        Record.open(folder).rollouts()
    run = folder / "record" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(SpoRecordVersionError, match=r"run\.json has version 2"):
        Record.open(folder)


def test_columns_that_an_older_writer_did_not_have_are_null_and_newer_ones_are_ignored(folder):
    path = folder / "record" / "rollouts-00000003-00000004.parquet"
    table = pq.read_table(path).drop_columns(["seconds"])
    pq.write_table(table.append_column("later", pa.array([1] * len(table))), path)
    found = Record.open(folder).rollouts()
    assert found.schema.names == ROLLOUTS.names
    assert found["seconds"].to_pylist() == [0.5] * 6 + [None] * 6


def test_some_columns(folder):
    assert Record.open(folder).rollouts(["uid", "ending"]).column_names == ["uid", "ending"]
    with pytest.raises(SpoRecordError, match=r"no column 'rewards'; it has uid, .*reward"):
        Record.open(folder).rollouts(["rewards"])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 1000])
def test_a_damaged_part_is_left_out_and_said(folder, caplog, content):
    (folder / "record" / "rollouts-00000003-00000004.parquet").write_bytes(content)
    record = Record.open(folder)
    assert set(record.rollouts()["step"].to_pylist()) == {1, 2}
    assert sum("left out of the record" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema_version": "x"}', "{}"])
def test_a_damaged_description(folder, content):
    (folder / "record" / "run.json").write_text(content)
    with pytest.raises(SpoRecordError, match=r"run\.json"):
        Record.open(folder)


def test_a_run_that_is_written_meanwhile(tmp_path):
    """Whatever the moment, a reader sees the first so many steps, each row once."""
    writer = write(tmp_path, [1])
    assert writer.flush()
    record, seen, failed = Record.open(tmp_path), [], []
    ended = threading.Event()

    def read():
        try:
            while not ended.is_set():
                seen.append(record.rollouts(["uid"])["uid"].to_pylist())
        except SpoRecordError as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(2, 60):
        writer.append(step, rows(step))
        if step % 5 == 0:
            writer.cut(step)
    assert writer.flush()
    ended.set()
    reader.join()
    writer.close()
    assert not failed
    everything = [f"{step}-{number}" for step in range(1, 60) for number in range(3)]
    assert all(found == everything[: len(found)] for found in seen)
    assert len(seen) > 5


def test_parts_that_another_one_covers():
    parts = [
        Part(1, 64, "steps"),
        Part(5, 5, "steps"),
        Part(65, 65, "steps"),
        Part(64, 64, "steps"),
        Part(1, 1, "steps"),
    ]
    assert uncovered(parts) == [Part(1, 64, "steps"), Part(65, 65, "steps")]
