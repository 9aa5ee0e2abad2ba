"""The writer: parts, cuts, restarts, the limit, and a disk that refuses."""

import errno
import logging
import os
import threading

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.errors import SpoStateError
from spo_verl.record import Record, RecordWriter, writing
from spo_verl.record.schema import ENDINGS
from spo_verl.tracker.settings import Ending
from tests.record.helpers import names, rows, size, write


def uids(folder):
    return Record.open(folder).rollouts(["uid"])["uid"].to_pylist()


def expected(steps):
    return [f"{step}-{number}" for step in steps for number in range(3)]


def numbers(folder):
    return [(row["step"], row["name"], row["value"]) for row in Record.open(folder).steps().to_pylist()]


def test_a_cut_merges_what_came_since_the_last_one(tmp_path):
    writer = write(tmp_path, range(1, 12), cut_every=4)
    assert writer.flush()
    assert names(tmp_path, "rollouts") == [(1, 4), (5, 8), (9, 9), (10, 10), (11, 11)]
    # The numbers of a step come after its checkpoint.
    assert names(tmp_path, "steps") == [(1, 3), (4, 7), (8, 8), (9, 9), (10, 10), (11, 11)]
    assert uids(tmp_path) == expected(range(1, 12))
    assert numbers(tmp_path) == [(step, "a", float(step)) for step in range(1, 12)]
    writer.close()
    assert names(tmp_path, "rollouts") == [(1, 4), (5, 8), (9, 11)]
    assert uids(tmp_path) == expected(range(1, 12))


def test_types_and_nulls(tmp_path):
    write(tmp_path, [1, 2]).close()
    first, other = Record.open(tmp_path).rollouts().to_pylist()[0], Record.open(tmp_path).rollouts().to_pylist()[3]
    assert first["reward"] is None
    assert first["divergence"] is None
    assert (first["version_first"], other["version_first"]) == (0, None)
    assert first["version_last"] is None
    assert first["ending"] == "failed"


def test_rows_of_one_step_may_come_in_several_calls(tmp_path):
    writer = write(tmp_path, [1])
    later = rows(1) | {"uid": ["x", "y", "z"]}
    writer.append(1, later)
    assert writer.flush()
    assert uids(tmp_path) == [*expected([1]), "x", "y", "z"]
    assert names(tmp_path, "rollouts") == [(1, 1)]


def test_a_run_that_never_saves_has_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "MERGED_PARTS", 8)
    writer = write(tmp_path, range(1, 40))
    assert writer.flush()
    assert len(names(tmp_path, "rollouts")) < 16
    assert uids(tmp_path) == expected(range(1, 40))
    writer.close()
    assert names(tmp_path, "rollouts") == [(1, 39)]


@pytest.mark.parametrize("step", [2, 4])
def test_rows_of_a_step_that_is_over_are_refused(tmp_path, step):
    writer = write(tmp_path, range(1, 5), cut_every=4)
    with pytest.raises(SpoStateError, match=rf"rollouts of step {step} after step 4 was over"):
        writer.append(step, rows(step))
    writer.close()


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_after_restarts_every_row_is_there_once(data, tmp_path_factory):
    """Whatever was written before, a restart after step N keeps what came up to N and nothing else."""
    folder = tmp_path_factory.mktemp("record")
    done = 0
    for _ in range(3):
        done = data.draw(st.integers(0, done), label="restart after")
        last = done + data.draw(st.integers(0, 9), label="steps")
        cut_every = data.draw(st.sampled_from([0, 2, 3]), label="cut every")
        writer = write(folder, range(done + 1, last + 1), cut_every=cut_every, after=done)
        if data.draw(st.booleans(), label="closed"):
            writer.close()
        assert writer.flush() or not writer._thread.is_alive()
        assert uids(folder) == expected(range(1, last + 1))
        assert numbers(folder) == [(step, "a", float(step)) for step in range(1, last + 1)]
        writer._do(writer._end)
        done = last
    assert [start["step"] for start in Record.open(folder).run["starts"]][-1] <= done


def test_what_a_restart_went_back_before_is_kept_aside(tmp_path):
    write(tmp_path, range(1, 8), cut_every=5).close()
    write(tmp_path, range(4, 6), after=3).close()
    aside = [pq.read_table(path)["uid"].to_pylist() for path in sorted((tmp_path / "aside").glob("*rollouts*"))]
    assert aside == [expected(range(1, 6)), expected([6, 7])]
    assert uids(tmp_path) == expected(range(1, 6))


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path):
    write(tmp_path, [1, 2]).close()
    left = tmp_path / ".rollouts-00000003-00000003.parquet.writing-0123456789ab"
    left.write_bytes(b"PAR1")
    assert uids(tmp_path) == expected([1, 2])
    write(tmp_path, [3], after=2).close()
    assert not left.exists()
    assert uids(tmp_path) == expected([1, 2, 3])


def test_a_damaged_record_is_continued(tmp_path, caplog):
    write(tmp_path, range(1, 7), cut_every=3).close()
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "rollouts-00000004-00000006.parquet").write_bytes(b"PAR1 and no more")
    write(tmp_path, [6], after=5).close()
    assert uids(tmp_path) == expected([1, 2, 3, 6])
    assert [start["step"] for start in Record.open(tmp_path).run["starts"]] == [5]
    assert sum("damaged part" in message or "a new run.json" in message for message in caplog.messages) == 2


# ---------------------------------------------------------------------- the limit


@pytest.mark.parametrize("limit", [30_000, 60_000])
def test_the_oldest_rows_are_dropped_and_it_is_said_once(tmp_path, caplog, limit):
    writer = RecordWriter(tmp_path, limit)
    writer.resume(0)
    writer.describe({})
    for step in range(1, 31):
        writer.append(step, rows(step, wide=True))
        if step % 5 == 0:
            writer.cut(step)
        writer.append_step(step, {"a": step})
        assert writer.flush()
        assert size(tmp_path) <= limit
    record = Record.open(tmp_path)
    kept = record.rollouts(["step"])["step"].to_pylist()
    assert kept == sorted(kept)
    assert kept[-1] == 30
    assert set(kept) == set(range(kept[0], 31))
    assert record.run["dropped_through_step"] == kept[0] - 1
    assert sum("oldest rows are dropped" in message for message in caplog.messages) == 1
    writer.close()


def test_a_limit_below_a_single_part_is_kept(tmp_path, caplog):
    writer = write(tmp_path, range(1, 9), cut_every=4, limit=2_000)
    assert writer.flush()
    assert size(tmp_path) <= 2_000
    assert any("oldest rows are dropped" in message for message in caplog.messages)
    writer.close()


def test_what_lies_aside_is_dropped_first(tmp_path):
    write(tmp_path, range(1, 10), cut_every=3).close()
    write(tmp_path, range(4, 7), after=3, limit=size(tmp_path) + 14_000).close()
    assert uids(tmp_path) == expected(range(1, 7))
    assert len(list((tmp_path / "aside").iterdir())) < 4
    assert Record.open(tmp_path).run["dropped_through_step"] is None


# ---------------------------------------------------------------------- a disk that refuses


@pytest.fixture
def disk(monkeypatch):
    """Set ``disk.error`` to have every write fail with it."""

    class Disk:
        error = None

    def refusing(real):
        def rename(*names):
            if Disk.error is not None:
                raise Disk.error
            real(*names)

        return rename

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    return Disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_what_a_full_disk_refused_is_written_when_it_has_room(tmp_path, disk, caplog, number):
    caplog.set_level(logging.WARNING)
    writer = write(tmp_path, [1, 2], cut_every=2)
    assert writer.flush()
    disk.error = OSError(number, os.strerror(number))
    for step in (3, 4):
        writer.append(step, rows(step))
        writer.append_step(step, {"a": step})
    writer.cut(4)
    assert not writer.flush()
    assert uids(tmp_path) == expected([1, 2])
    assert sum(os.strerror(number) in message for message in caplog.messages) == 1
    disk.error = None
    writer.append(5, rows(5))
    writer.append_step(5, {"a": 5.0})
    assert writer.flush()
    assert uids(tmp_path) == expected([1, 2, 3, 4, 5])
    assert sum("written again" in message for message in caplog.messages) == 1
    writer.close()
    assert uids(tmp_path) == expected([1, 2, 3, 4, 5])


@pytest.mark.parametrize("continues", [True, False])
def test_a_restart_on_a_disk_that_refuses_goes_back_when_it_can(tmp_path, disk, caplog, continues):
    """Otherwise rows of steps that are made again would be taken for those of the new process later."""
    caplog.set_level(logging.WARNING)
    writer = write(tmp_path, range(1, 6), cut_every=2)
    assert writer.flush()  # and is killed
    disk.error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    again = write(tmp_path, [3], after=2)
    assert not again.flush()
    assert sum(os.strerror(errno.EROFS) in message for message in caplog.messages) == 1
    assert uids(tmp_path) == expected(range(1, 6))
    if continues:
        disk.error = None
        again.append(4, rows(4))
        again.append_step(4, {"a": 4.0})
        assert again.flush()
        assert uids(tmp_path) == expected(range(1, 5))
        assert [start["step"] for start in Record.open(tmp_path).run["starts"]] == [0, 2]
    again.close()
    again._thread.join(10)
    assert not again._thread.is_alive()


def test_a_restart_on_a_disk_that_refuses_for_long_ends_the_record(tmp_path, disk, caplog):
    assert write(tmp_path, range(1, 4)).flush()
    disk.error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    again = write(tmp_path, range(1, 12), waiting_rows=20)
    assert not again.flush()
    assert sum("recording ends" in message for message in caplog.messages) == 1


def test_recording_ends_loudly_when_too_much_waits(tmp_path, disk, caplog):
    writer = write(tmp_path, [1], waiting_rows=20)
    assert writer.flush()
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    for step in range(2, 12):
        writer.append(step, rows(step))
    assert not writer.flush()
    writer._thread.join(10)
    disk.error = None
    writer.append(12, rows(12))
    writer.cut(12)
    writer.close()
    assert uids(tmp_path) == expected([1])
    assert sum("recording ends" in message for message in caplog.messages) == 1


def test_a_disk_that_hangs_fills_no_memory(tmp_path, monkeypatch, caplog):
    hanging = threading.Event()
    writer = write(tmp_path, [1], waiting_rows=20)
    assert writer.flush()
    monkeypatch.setattr(os, "replace", lambda *_: hanging.wait(30))
    for step in range(2, 12):
        writer.append(step, rows(step))
    assert not writer.flush(0.1)
    assert any("recording ends" in message for message in caplog.messages)
    hanging.set()


def test_a_folder_that_cannot_be_made_is_said(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    writer = write(tmp_path / "file" / "record", [1, 2], cut_every=2)
    assert not writer.flush()
    assert sum("cannot be written" in message for message in caplog.messages) == 1
    writer.close()


def test_a_mistake_in_a_row_ends_the_record_and_not_the_run(tmp_path, caplog):
    writer = write(tmp_path, [1])
    writer.append(2, rows(2) | {"value": ["high", "low", "none"]})
    writer.append(3, rows(3))
    assert not writer.flush()
    assert any("recording ends" in message for message in caplog.messages)
    assert uids(tmp_path) == expected([1])


# ---------------------------------------------------------------------- prompts


def prompts(count, first=0, text="x", value=0.25):
    from spo_verl.record.schema import PROMPTS

    columns = {
        "key": [f"{number:032x}" for number in range(first, first + count)],
        "slot": range(count),
        "row": range(count),
        "data_source": [None] * count,
        "value": [value] * count,
        "n_eff": [1.0] * count,
        "text": [text] * count if isinstance(text, str) else text,
    }
    return writing.as_table(columns, PROMPTS)


def test_prompts_keep_their_first_values_and_those_that_are_gone_stay(tmp_path):
    writer = write(tmp_path, [])
    writer.prompts(lambda: prompts(4))
    writer.prompts(lambda: prompts(4, first=2, text="new", value=0.75))
    writer.close()
    found = Record.open(tmp_path).prompts().to_pylist()
    assert [int(row["key"], 16) for row in found] == [2, 3, 4, 5, 0, 1]
    assert [row["slot"] for row in found] == [0, 1, 2, 3, None, None]
    assert [row["value"] for row in found] == [0.25, 0.25, 0.75, 0.75, 0.25, 0.25]
    assert [row["text"] for row in found] == ["new"] * 4 + ["x"] * 2


def test_texts_take_half_of_the_limit_at_most(tmp_path, caplog):
    texts = [os.urandom(500).hex() for _ in range(100)]
    writer = write(tmp_path, [1], limit=60_000)
    writer.prompts(lambda: prompts(100, text=texts))
    assert writer.flush()
    assert (tmp_path / "prompts.parquet").stat().st_size <= 30_000
    found = Record.open(tmp_path).prompts()["text"].to_pylist()
    kept = [text for text in found if text is not None]
    assert found == texts[: len(kept)] + [None] * (100 - len(kept))
    assert len(kept) >= 20
    assert uids(tmp_path) == expected([1])
    writer.close()


def test_the_endings_are_those_of_the_tracker():
    assert set(ENDINGS) == set(Ending.__args__)
