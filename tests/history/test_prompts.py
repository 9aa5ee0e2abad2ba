"""One prompt: found by key, row or words, and its whole history against the rows that were written."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_verl.data.identity import prompt_key
from spo_verl.errors import SpoValuesError
from spo_verl.history.places import HistoryError, find
from spo_verl.history.prompts import COLUMNS, find_prompts, prompt_history
from spo_verl.history.responses import dumped_responses
from spo_verl.history.states import states_of
from spo_verl.history.texts import Texts
from spo_verl.record import Record
from spo_verl.record.schema import PROMPTS, SCHEMA_VERSION, VERSION_KEY
from spo_verl.tracker import Tracker, TrackerSettings
from tests.cli.helpers import row as data_row
from tests.cli.helpers import write_rows
from tests.support.records import hex_keys, prompt_keys


def looked_up(folder, query):
    place = find(folder)
    return find_prompts(query, states_of(place), Texts(place.record))


@pytest.fixture
def keys():
    return hex_keys(prompt_keys(80))


def test_a_prompt_is_found_by_key_row_and_words(sync_run, keys):
    for query in (keys[13], keys[13][:8], keys[13].upper(), "26", "what  is 13 +\n91?"):
        assert looked_up(sync_run.folder, query) == [keys[13]], query
    assert looked_up(sync_run.folder, "What is 7") == [keys[7], *keys[70:80]]


def test_digits_are_a_row_before_they_are_the_beginning_of_a_key(sync_run, keys):
    made_up = next(key[:6] for key in keys if key[:6].isdigit())
    assert looked_up(sync_run.folder, made_up) == [key for key in keys if key.startswith(made_up)]
    with pytest.raises(HistoryError, match="no prompt is in row 27 in the record"):
        looked_up(sync_run.folder, "27")  # every row of a made run is even


@pytest.mark.parametrize("query", ["f" * 32, "no such words", "c++ (a|b)*", "  "])
def test_what_is_not_there_is_said(sync_run, query):
    with pytest.raises(HistoryError, match="none of the 80 prompts|no prompt says|an empty text"):
        looked_up(sync_run.folder, query)


def test_signs_in_words_are_meant_literally(sync_run, keys):
    assert looked_up(sync_run.folder, "3 + 21?") == [keys[3]]
    with pytest.raises(HistoryError):
        looked_up(sync_run.folder, "What is . +")


@pytest.mark.parametrize("name", ["sync_run", "async_run"])
def test_the_history_is_every_row_with_its_response(name, request):
    made = request.getfixturevalue(name)
    place = find(made.folder)
    states, texts = states_of(place), Texts(place.record)
    visited = max(range(len(states)), key=lambda slot: states.draws_P[slot])
    for slot in (visited, int((states.draws_P == 0).argmax())):
        key = hex_keys(prompt_keys(len(states)))[slot]
        history = prompt_history(place, key, states, texts)
        rows = [row for row in made.rows if row["slot"] == slot]
        assert [[one[column] for column in ("step", "uid", "session", "ending")] for one in history["rollouts"]] == [
            [row[column] for column in ("step", "uid", "session", "ending")] for row in rows
        ]
        for one, row in zip(history["rollouts"], rows, strict=True):
            for column in set(COLUMNS) - {"seconds", "divergence"}:
                assert one[column] == row[column]
            truth = slot + slot * 7 % 100 + (0 if row["reward"] else 1)
            assert one["response"] == ([f"It is {truth}."] if row["ending"] == "trained" else None)
        assert history["text"] == f"What is {slot} + {slot * 7 % 100}?"
        assert (history["row"], history["initial_value"]) == (2 * slot, 0.5)
        assert history["value"] == states.value_P[slot]
        assert history["dropped_through_step"] is None


def test_the_history_of_a_named_checkpoint_ends_at_its_step(sync_run):
    slot = next(row["slot"] for row in sync_run.rows if row["step"] > 3)
    key = hex_keys(prompt_keys(80))[slot]
    place = find(sync_run.folder / "global_step_3")
    history = prompt_history(place, key, states_of(place), Texts(place.record))
    steps = [one["step"] for one in history["rollouts"]]
    assert steps == [row["step"] for row in sync_run.rows if row["slot"] == slot and row["step"] <= 3]


def test_a_session_of_several_outputs_gives_all_of_them_in_order(tmp_path):
    uid = "0b1c-2"
    lines = [
        {"output": "second", "uid": f"{uid}_0_1"},
        {"output": "other session", "uid": f"{uid}_1_0"},
        {"output": "first", "uid": f"{uid}_0_0"},
        {"output": "another prompt", "uid": f"x{uid}_0_0"},
        {"output": "no trajectory", "uid": uid},
    ]
    (tmp_path / "5.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"uid": "cut off')
    wanted = [(5, uid, 0), (5, uid, 1), (6, uid, 0)]
    assert dumped_responses(tmp_path, wanted) == {(uid, 0): ["first", "second"], (uid, 1): ["other session"]}
    (tmp_path / "6.jsonl").write_text(f"{uid} is no JSON\n")
    with pytest.raises(SpoValuesError, match=r"6\.jsonl, line 1"):
        dumped_responses(tmp_path, wanted)


def test_a_checkpoint_alone_has_texts_from_the_training_files(tmp_path):
    rows = [data_row(f"How much is {number}?", str(number)) for number in (4, 5, 5, 6)]
    data = write_rows(tmp_path / "train.parquet", rows)
    keys = [prompt_key(row) for row in (rows[0], rows[1], rows[3])]
    tracker = Tracker.create(np.frombuffer(b"".join(keys), dtype="V16"), TrackerSettings())
    tracker.snapshot().write(tmp_path / "spo", step=2)
    place = find(tmp_path / "spo")
    states = states_of(place)
    with pytest.raises(HistoryError, match="name the training files with --data"):
        find_prompts("How much", states, Texts(None))
    texts = Texts(None, [data])
    assert find_prompts("HOW much is 6", states, texts) == [keys[2].hex()]
    assert find_prompts("2", states, texts) == [keys[1].hex()]  # a repeated row leads to its prompt
    history = prompt_history(place, keys[1].hex(), states, texts)
    assert (history["text"], history["row"], history["data_source"]) == ("How much is 5?", 1, "arithmetic")
    assert history["rollouts"] is None


def test_texts_that_the_record_left_out_come_from_the_files_that_it_names(tmp_path, sync_run):
    root = tmp_path / "run"
    shutil.copytree(sync_run.folder, root)
    rows = [data_row("a question", "1"), data_row("left out", "2")]
    data = write_rows(tmp_path / "train.parquet", rows)
    keys = [prompt_key(row).hex() for row in rows]
    path = root / "record" / "prompts.parquet"
    table = pq.read_table(path, schema=PROMPTS).slice(0, 2).to_pydict() | {"key": keys, "text": ["in the record", None]}
    run = json.loads((root / "record" / "run.json").read_text())
    run["config"]["data.train_files"] = str(data)
    (root / "record" / "run.json").write_text(json.dumps(run))
    metadata = {VERSION_KEY: str(SCHEMA_VERSION)}
    pq.write_table(pa.table(table, schema=PROMPTS).replace_schema_metadata(metadata), path)
    texts = Texts(Record.open(root))
    assert {key: one.text for key, one in texts.of(keys).items()} == {keys[0]: "in the record", keys[1]: "left out"}
    assert texts.search("left") == [keys[1]]
    assert texts.search("a question") == []
