"""Keys of rows: stable for ever, blind to what does not matter, and sensitive to what does."""

import copy
import hashlib
import io
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spo_verl.data import (
    IDENTITY_VERSION,
    DatasetKeys,
    RowFields,
    content_key,
    dataset_keys,
    identity,
    prompt_key,
)
from spo_verl.data.identity import slots_of_keys
from spo_verl.errors import SpoConfigError

PLAIN_ROW = {
    "data_source": "arithmetic",
    "prompt": [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": "2 + 3 = ?"},
    ],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "5"},
    "extra_info": {"index": 17, "split": "train", "answer": "five"},
}
RICH_ROW = {
    "data_source": "tools/é",
    "agent_name": "tool_agent",
    "prompt": [{"role": "user", "content": "<image>How many?"}],
    "images": [{"bytes": b"\x89PNG not really", "path": "cats.png"}],
    "videos": ["clip.mp4"],
    "reward_model": {"style": "rule", "ground_truth": 3, "tolerance": 0.25},
    "extra_info": {
        "index": 4,
        "tools_kwargs": {"count": {"create_kwargs": {"limit": 10}}},
        "tool_selection": ["count"],
        "interaction_kwargs": {"name": "teacher"},
    },
}


def changed(row, *path_and_value):
    *path, last, value = path_and_value
    row = copy.deepcopy(row)
    inner = row
    for step in path:
        inner = inner[step]
    inner[last] = value
    return row


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


def test_the_version_is_one():
    assert IDENTITY_VERSION == 1, "a new version needs new golden digests and a line in docs/decisions.md"


@pytest.mark.parametrize(
    ("row", "digest"),
    [
        (PLAIN_ROW, "18835f56d17bead80c62f76275b0c9d9"),
        (RICH_ROW, "25b3629898a28fd1174222e2a48bf626"),
        ({"prompt": "bare"}, "7e8e2876ff8b74ccdb16c6d423dacc75"),
    ],
)
def test_golden_digests(row, digest):
    # Checkpoints identify prompts by these bytes: if this fails, every existing checkpoint loses its evidence.
    assert prompt_key(row).hex() == digest


def test_the_key_is_the_blake2b_of_the_documented_text():
    text = b'{"data_source":"d","prompt":[{"content":"q","role":"user"}],"reward_model":{"ground_truth":"5"}}'
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "data_source": "d",
        "reward_model": {"ground_truth": "5", "style": None},
        "ability": "math",
    }
    assert prompt_key(row) == hashlib.blake2b(text, digest_size=16, person=b"spo_verl key 1").digest()


def test_another_process_with_another_hash_seed_gives_the_same_key():
    script = (
        "from spo_verl.data import prompt_key; from tests.data.test_identity import RICH_ROW;"
        "print(prompt_key(RICH_ROW).hex())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=root, check=True, capture_output=True, text=True
    ).stdout
    assert printed.split() == [prompt_key(RICH_ROW).hex()]


@pytest.mark.parametrize(
    "other",
    [
        changed(PLAIN_ROW, "extra_info", "index", 99),
        changed(PLAIN_ROW, "extra_info", "split", "test"),
        changed(PLAIN_ROW, "extra_info", "tools_kwargs", None),
        changed(PLAIN_ROW, "extra_info", "tools_kwargs", {"a": None}),
        changed(PLAIN_ROW, "extra_info", None),
        changed(PLAIN_ROW, "ability", "other"),
        changed(PLAIN_ROW, "uid", "4711"),
        changed(PLAIN_ROW, "images", []),
        changed(PLAIN_ROW, "images", None),
        changed(PLAIN_ROW, "agent_name", float("nan")),
        changed(PLAIN_ROW, "agent_name", pd.NA),
        changed(PLAIN_ROW, "prompt", 0, "name", None),
        changed(PLAIN_ROW, "prompt", 0, {"content": "Answer with a number.", "role": "system"}),
        changed(PLAIN_ROW, "prompt", tuple(PLAIN_ROW["prompt"])),
        changed(PLAIN_ROW, "prompt", np.array(PLAIN_ROW["prompt"], dtype=object)),
        changed(PLAIN_ROW, "prompt", pa.array(PLAIN_ROW["prompt"])),
        changed(PLAIN_ROW, "reward_model", pa.scalar(PLAIN_ROW["reward_model"])),
        changed(without(PLAIN_ROW, "prompt"), "raw_prompt", PLAIN_ROW["prompt"]),
        without(PLAIN_ROW, "extra_info"),
        dict(reversed(PLAIN_ROW.items())),
    ],
)
def test_what_does_not_matter_leaves_the_key_alone(other):
    assert prompt_key(other) == prompt_key(PLAIN_ROW)


CHANGES = [
    changed(RICH_ROW, "data_source", "tools/e"),
    changed(RICH_ROW, "agent_name", "single_turn_agent"),
    changed(RICH_ROW, "prompt", 0, "content", "<image>How many? "),
    changed(RICH_ROW, "prompt", 0, "role", "system"),
    changed(RICH_ROW, "prompt", [{"role": "system", "content": ""}, *RICH_ROW["prompt"]]),
    changed(RICH_ROW, "prompt", [*RICH_ROW["prompt"], *RICH_ROW["prompt"]]),
    changed(RICH_ROW, "images", 0, "bytes", b"\x89PNG another"),
    changed(RICH_ROW, "images", RICH_ROW["images"] * 2),
    changed(RICH_ROW, "images", ["cats.png"]),
    changed(RICH_ROW, "images", ["dogs.png"]),
    changed(RICH_ROW, "videos", ["other.mp4"]),
    changed(RICH_ROW, "videos", None),
    changed(RICH_ROW, "audios", ["clip.mp4"]),
    changed(RICH_ROW, "reward_model", "ground_truth", 4),
    changed(RICH_ROW, "reward_model", "ground_truth", "3"),
    changed(RICH_ROW, "reward_model", "style", "model"),
    changed(RICH_ROW, "reward_model", "tolerance", 0.5),
    changed(RICH_ROW, "tools", [{"type": "function", "function": {"name": "count"}}]),
    changed(RICH_ROW, "extra_info", "tools_kwargs", "count", "create_kwargs", "limit", 11),
    changed(RICH_ROW, "extra_info", "tool_selection", ["search"]),
    changed(RICH_ROW, "extra_info", "interaction_kwargs", "name", "pupil"),
]


def test_what_matters_changes_the_key_each_in_its_own_way():
    keys = [prompt_key(RICH_ROW), *map(prompt_key, CHANGES)]
    collisions = [(i, j) for i in range(len(keys)) for j in range(i) if keys[i] == keys[j]]
    assert collisions == []


def test_media_of_every_kind_count_by_content_or_reference():
    picture = Image.new("RGB", (4, 4), (1, 2, 3))
    references = [
        picture,
        {"url": "a"},
        {"path": "a"},
        "a",
        b"a",
        {"bytes": b"a"},
        {"bytes": b"b", "path": "a"},
    ]
    keys = {prompt_key(changed(PLAIN_ROW, "images", [media])) for media in references}
    assert len(keys) == len(references)
    moved = [{"bytes": b"b", "path": "elsewhere"}]
    assert prompt_key(changed(PLAIN_ROW, "images", moved)) in keys


def test_columns_of_other_names_give_the_same_key():
    renamed = without(RICH_ROW, "prompt") | {"messages": RICH_ROW["prompt"]}
    renamed = without(renamed, "images") | {"pictures": RICH_ROW["images"]}
    assert prompt_key(renamed, fields=RowFields(prompt="messages", images="pictures")) == prompt_key(RICH_ROW)


def test_tools_as_columns_equal_tools_in_extra_info():
    row = changed(RICH_ROW, "extra_info", {"index": 1}) | {
        name: RICH_ROW["extra_info"][name] for name in ("tools_kwargs", "tool_selection", "interaction_kwargs")
    }
    assert prompt_key(row) == prompt_key(RICH_ROW)
    # In a table of mixed rows Arrow fills the members that extra_info lacks here with None: the columns hold.
    filled = changed(row, "extra_info", {"index": 1, "tools_kwargs": None, "tool_selection": None})
    assert prompt_key(filled) == prompt_key(RICH_ROW)


def test_the_names_of_columns_are_those_that_the_dataset_was_given():
    given = SimpleNamespace(prompt_key="p", image_key="i", video_key="v", audio_key="a")
    assert RowFields.of(given) == RowFields(prompt="p", images="i", videos="v", audios="a")
    assert RowFields.of(object()) == RowFields() == RowFields("prompt", "images", "videos", "audios")


messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user"]), "content": st.text(max_size=8)},
        optional={"name": st.text(max_size=3)},
    ),
    min_size=1,
    max_size=3,
)
tools_kwargs = st.dictionaries(
    st.sampled_from(["search", "run"]),
    st.fixed_dictionaries({}, optional={"k": st.integers(0, 9), "s": st.text(max_size=3)}),
    max_size=2,
)
rows = st.fixed_dictionaries(
    {
        "prompt": messages,
        "reward_model": st.fixed_dictionaries(
            {"ground_truth": st.text(max_size=3)}, optional={"style": st.just("rule")}
        ),
    },
    optional={
        "data_source": st.text(max_size=3),
        "images": st.lists(st.binary(max_size=4), max_size=2),
        "extra_info": st.fixed_dictionaries({"index": st.integers(0, 99)}, optional={"tools_kwargs": tools_kwargs}),
    },
)


@settings(max_examples=150, deadline=None)
@given(st.lists(rows, min_size=1, max_size=5))
def test_rows_of_mixed_shape_keep_their_keys_through_parquet(table_rows):
    expected = [prompt_key(row) for row in table_rows]
    # from_pylist takes its columns from the first row, and Parquet refuses structs without members.
    full = {
        "prompt": [{"role": "user", "content": "", "name": "n"}],
        "data_source": "d",
        "images": [b"i"],
        "reward_model": {"ground_truth": "", "style": "rule"},
        "extra_info": {"index": 0, "tools_kwargs": {"search": {"k": 1, "s": ""}, "run": {"k": 1, "s": ""}}},
    }
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([full, *table_rows]), file)
    table = pq.read_table(file)
    assert [prompt_key(row) for row in table.to_pylist()[1:]] == expected
    frame = table.to_pandas().iloc[1:]  # arrays of dicts, NaN and None for missing
    assert [prompt_key(row) for row in frame.to_dict("records")] == expected
    assert [prompt_key(row) for _, row in frame.iterrows()] == expected


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (changed(PLAIN_ROW, "reward_model", "ground_truth", {1, 2}), "reward_model"),
        (changed(PLAIN_ROW, "extra_info", "tools_kwargs", {3: "x"}), "tools_kwargs"),
        (changed(PLAIN_ROW, "prompt", 0, "content", 10**5000), "prompt"),
        (changed(PLAIN_ROW, "prompt", None), "prompt"),
        (changed(PLAIN_ROW, "prompt", []), "prompt"),
        (without(PLAIN_ROW, "prompt"), "prompt"),
    ],
)
def test_an_error_names_row_and_field(row, field):
    with pytest.raises(SpoConfigError, match=f"field '{field}'"):
        prompt_key(row)
    with pytest.raises(SpoConfigError, match=f"row 1 of the dataset, field '{field}'"):
        dataset_keys([PLAIN_ROW, row])


def test_a_row_that_contains_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(SpoConfigError, match="field 'images'"):
        prompt_key(changed(PLAIN_ROW, "images", endless))


def test_a_plain_list_of_rows():
    keys = dataset_keys([PLAIN_ROW, RICH_ROW, changed(PLAIN_ROW, "extra_info", "index", 3)])
    assert (keys.rows, keys.prompts, keys.duplicates) == (3, 2, 1)
    assert keys.key_P.dtype == "V16"
    assert [key.tobytes() for key in keys.key_P] == [prompt_key(PLAIN_ROW), prompt_key(RICH_ROW)]
    assert keys.slot_of_row_N.tolist() == [0, 1, 0]
    assert keys.row_of_slot_P.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        keys.row_of_slot_P[0] = 5


def test_a_key_function_decides_alone():
    items = [("2+2", "4"), ("2+2", "5"), ("2+2", "4")]
    keys = dataset_keys(items, key_fn=content_key)
    assert keys.slot_of_row_N.tolist() == [0, 1, 0]
    assert dataset_keys(items, key_fn=lambda item: content_key(item[0])).prompts == 1


@pytest.mark.parametrize("wrong", ["text", b"short", b"x" * 17, None])
def test_a_key_function_must_return_a_key(wrong):
    with pytest.raises(SpoConfigError, match=r"row 0 of the dataset: key_fn must return 16 bytes"):
        dataset_keys([PLAIN_ROW], key_fn=lambda item: wrong)


def test_items_that_are_no_mappings_need_a_key_function():
    with pytest.raises(SpoConfigError, match="row 0 of the dataset is a tuple"):
        dataset_keys([("q", "a")])


def test_empty_and_iterable_datasets_are_refused():
    with pytest.raises(SpoConfigError, match="the dataset is empty"):
        dataset_keys([])
    with pytest.raises(SpoConfigError, match="cannot be indexed"):
        dataset_keys(iter([PLAIN_ROW]))


def test_progress_is_told_while_it_goes_on(monkeypatch, caplog):
    clock = iter(range(0, 1000, 6))  # each look at the clock is 6 s later than the last
    monkeypatch.setattr(identity, "_ROWS_BETWEEN_CLOCKS", 1)
    monkeypatch.setattr(identity, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level(logging.INFO, logger="spo_verl.data.identity"):
        dataset_keys([PLAIN_ROW] * 5)
    # Looks at the clock: 0 s at the start, then 6 s per row (and one more look when something is told), so that
    # row 2 is the first after 10 s, and row 4 is the first after 10 more.
    told = [record.getMessage().split(" (")[0] for record in caplog.records]
    assert told[0].startswith("identified 2 of 5 rows")
    assert told[-1] == "5 rows hold 1 distinct prompts"
    assert len(told) == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40))
def test_slots_agree_with_a_naive_loop(numbers):
    # Keys that differ in either half only, so that both halves must be compared.
    keys = [(n % 3).to_bytes(8, "big") + (n // 3).to_bytes(8, "big") for n in numbers]
    slots, first_rows, slot_of_key = [], [], {}
    for row, key in enumerate(keys):
        if key not in slot_of_key:
            slot_of_key[key] = len(slot_of_key)
            first_rows.append(row)
        slots.append(slot_of_key[key])
    slot_of_row_N, row_of_slot_P = slots_of_keys(np.frombuffer(b"".join(keys), dtype="V16"))
    assert slot_of_row_N.tolist() == slots
    assert row_of_slot_P.tolist() == first_rows


def test_keys_with_zero_bytes_at_the_end_stay_whole():
    keys = dataset_keys([b"\0" * 16, b"\1" + b"\0" * 15], key_fn=lambda key: key)
    assert isinstance(keys, DatasetKeys)
    assert [key.tobytes() for key in keys.key_P] == [b"\0" * 16, b"\1" + b"\0" * 15]
