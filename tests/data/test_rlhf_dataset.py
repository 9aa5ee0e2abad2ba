"""Identity over verl's own dataset class, on files written with pyarrow, pandas and datasets."""

import io
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset

from spo_verl.data import columns, content_key, dataset_keys, prompt_key
from spo_verl.errors import SpoConfigError


class CountingTokenizer:
    """Just enough of a tokenizer for verl's length filter: one token per character."""

    def apply_chat_template(self, messages, **_):
        return [1] * sum(len(message["content"]) for message in messages)


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def load_files(*files, **config):
        base = {"cache_dir": str(tmp_path / "verl"), "filter_overlong_prompts": False}
        return RLHFDataset([str(file) for file in files], CountingTokenizer(), OmegaConf.create(base | config))

    return load_files


def row(question, answer="1", *, index=0, **more):
    return {
        "data_source": "arithmetic",
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": index, "split": "train"},
    } | more


ROWS = [row("1 + 1", "2", index=0), row("2 + 2", "4", index=1), row("1 + 1", "2", index=2), row("1 + 1", "3", index=3)]


@pytest.fixture
def arithmetic(tmp_path):
    file = tmp_path / "arithmetic.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file


def test_duplicate_rows_share_a_slot_and_other_answers_do_not(load, arithmetic):
    keys = dataset_keys(load(arithmetic))
    assert keys.slot_of_row_N.tolist() == [0, 1, 0, 2]
    assert keys.row_of_slot_P.tolist() == [0, 1, 3]
    assert [key.tobytes() for key in keys.key_P] == [prompt_key(ROWS[0]), prompt_key(ROWS[1]), prompt_key(ROWS[3])]


def test_columns_and_items_give_the_same_keys(load, arithmetic):
    dataset = load(arithmetic)
    assert list(map(prompt_key, (dataset[i] for i in range(4)))) == list(map(prompt_key, ROWS))
    by_item = dataset_keys(dataset, key_fn=prompt_key)
    assert by_item.key_P.tobytes() == dataset_keys(dataset).key_P.tobytes()


@pytest.mark.parametrize("rows_per_batch", [1, 3, 4096])
def test_the_length_filter_and_the_batch_size_change_nothing_but_the_rows(
    load, arithmetic, monkeypatch, rows_per_batch
):
    monkeypatch.setattr(columns, "_ROWS_PER_BATCH", rows_per_batch)
    long = row("a question of more than nine characters", "0")
    file = arithmetic.with_name("long.parquet")
    pq.write_table(pa.Table.from_pylist([long, *ROWS]), file)
    filtered = load(file, filter_overlong_prompts=True, max_prompt_length=9, filter_overlong_prompts_workers=1)
    assert len(filtered) == 4
    assert dataset_keys(filtered).key_P.tobytes() == dataset_keys(load(arithmetic)).key_P.tobytes()


def test_reordered_and_extended_files_keep_the_keys(load, arithmetic, tmp_path):
    extended = tmp_path / "extended.parquet"
    # The new row has fields that the others lack, so Arrow fills theirs with None.
    new = row("7 + 7", "14", agent_name="tool_agent", extra_info={"index": 9, "tools_kwargs": {"calc": {"digits": 3}}})
    pq.write_table(pa.Table.from_pylist([new, *reversed(ROWS)]), extended)
    before, after = dataset_keys(load(arithmetic)), dataset_keys(load(extended))
    assert after.prompts == 4
    assert set(before.key_P.tolist()) < set(after.key_P.tolist())
    assert after.key_P[0].tobytes() == prompt_key(new)


def test_pandas_and_jsonl_files_give_the_same_keys(load, arithmetic, tmp_path):
    frame, lines = tmp_path / "frame.parquet", tmp_path / "lines.jsonl"
    pd.DataFrame(ROWS).to_parquet(frame)
    lines.write_text("".join(json.dumps(line) + "\n" for line in ROWS))
    expected = dataset_keys(load(arithmetic)).key_P.tobytes()
    assert dataset_keys(load(frame)).key_P.tobytes() == expected
    assert dataset_keys(load(lines)).key_P.tobytes() == expected


def test_fields_of_mixed_types_are_read_as_what_they_say(load, tmp_path):
    # `datasets` stores such fields as JSON texts (Arrow's JSON type): content is a text here and a list there.
    parts = [{"type": "text", "text": "How many?"}, {"type": "image", "image": "cats.png"}]
    mixed = [row("1 + 1", "2", n=1), row("x", "5") | {"prompt": [{"role": "user", "content": parts}]}]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in mixed))
    dataset = load(file)
    assert "Json" in str(dataset.dataframe.features["prompt"]), "the file no longer exercises the JSON type"
    assert [key.tobytes() for key in dataset_keys(dataset).key_P] == list(map(prompt_key, mixed))


def test_tools_in_extra_info_count_and_the_rest_of_it_does_not(load, tmp_path):
    def with_digits(digits, index):
        return row("7 + 7", extra_info={"index": index, "tools_kwargs": {"calc": {"digits": digits}}})

    file = tmp_path / "tools.parquet"
    rows = [with_digits(3, 0), with_digits(4, 1), with_digits(3, 2), row("7 + 7"), row("7 + 7", extra_info=None)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    assert dataset_keys(load(file)).slot_of_row_N.tolist() == [0, 1, 0, 2, 2]


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (3, 3), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """Equal questions about a red, a blue and, under another file name, the same red picture; and one of none."""
    column = [[{"bytes": png("red"), "path": "a.png"}], [{"bytes": png("blue"), "path": "a.png"}]]
    column += [[{"bytes": png("red"), "path": "b.png"}], []]
    rows = [row("<image>Which colour?", "red", pictures=embedded) for embedded in column]
    table = datasets.Dataset.from_list(rows).cast_column("pictures", datasets.List(datasets.Image()))
    file = tmp_path / "pictures.parquet"
    table.to_parquet(file)
    return file


def test_embedded_pictures_count_by_their_bytes_and_are_not_decoded(load, pictures, monkeypatch):
    dataset = load(pictures, image_key="pictures")
    assert isinstance(dataset.dataframe[0]["pictures"][0], Image.Image)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was decoded"))
    assert dataset_keys(dataset).slot_of_row_N.tolist() == [0, 1, 0, 2]


def test_without_the_image_key_pictures_are_not_part_of_the_prompt(load, pictures):
    assert dataset_keys(load(pictures)).prompts == 1


def test_media_are_read_in_small_batches(load, pictures, monkeypatch):
    sizes = []
    read = columns.pa.ChunkedArray.combine_chunks
    monkeypatch.setattr(columns, "_ROWS_PER_MEDIA_BATCH", 3)
    monkeypatch.setattr(
        columns, "_values", lambda column, members, *where: sizes.append(len(column)) or read(column).to_pylist()
    )
    dataset_keys(load(pictures, image_key="pictures"))
    assert set(sizes) == {3, 1}


def test_a_wrong_prompt_key_is_named_with_the_columns_there_are(load, arithmetic):
    with pytest.raises(SpoConfigError, match=r"no column 'messages' of messages, only \['data_source', .*'prompt'"):
        dataset_keys(load(arithmetic, prompt_key="messages"))


@pytest.mark.parametrize("rows_per_batch", [1, 4096])
def test_a_row_without_messages_is_named(load, tmp_path, monkeypatch, rows_per_batch):
    monkeypatch.setattr(columns, "_ROWS_PER_BATCH", rows_per_batch)
    file = tmp_path / "gap.parquet"
    pq.write_table(pa.Table.from_pylist([row("q"), row("q") | {"prompt": None}, row("q")]), file)
    with pytest.raises(SpoConfigError, match="row 1 of the dataset, field 'prompt'"):
        dataset_keys(load(file))


def test_a_dataset_that_serves_other_rows_than_its_table_is_read_item_by_item(load, arithmetic):
    class Repeated(RLHFDataset):
        def __len__(self):
            return 2 * len(self.dataframe)

        def __getitem__(self, item):
            return super().__getitem__(item % len(self.dataframe))

    dataset = load(arithmetic)
    dataset.__class__ = Repeated
    assert dataset_keys(dataset).slot_of_row_N.tolist() == [0, 1, 0, 2, 0, 1, 0, 2]


def test_a_bare_table_serves_too(arithmetic):
    keys = dataset_keys(datasets.Dataset.from_list(ROWS))
    assert keys.slot_of_row_N.tolist() == [0, 1, 0, 2]
    by_question = dataset_keys(datasets.Dataset.from_list(ROWS), lambda item: content_key(item["prompt"]))
    assert by_question.slot_of_row_N.tolist() == [0, 1, 0, 0]
    assert np.array_equal(by_question.row_of_slot_P, [0, 1])
