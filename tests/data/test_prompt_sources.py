"""The data source of every prompt: from verl's dataset, a bare table and rows, that column alone."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from torch.utils.data import IterableDataset
from verl.utils.dataset.rl_dataset import RLHFDataset

from spo_verl.data import PrioritizedDataLoader, columns, dataset_keys, prompt_sources
from spo_verl.data.prompt_sources import stated_sources
from spo_verl.errors import SpoConfigError
from spo_verl.tracker import Tracker, TrackerSettings

from .rows import row, table

ROWS = [
    row("1 + 1", data_source="openai/gsm8k"),
    row("print", data_source="code.v2"),
    row("1 + 1", data_source="openai/gsm8k"),  # a duplicate
    row("1 + 1", data_source="code.v2"),  # the same question of another source is another prompt
    row("2 + 2", data_source="openai/gsm8k"),
]


class Tokenizer:
    def apply_chat_template(self, messages, **_):
        return [1]


@pytest.fixture
def of_verl(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    settings = {"cache_dir": str(tmp_path / "verl"), "filter_overlong_prompts": False}
    return RLHFDataset([str(file)], Tokenizer(), OmegaConf.create(settings))


@pytest.mark.parametrize("kind", ["verl", "table", "rows"])
@pytest.mark.parametrize("rows_per_batch", [2, 4096])
def test_the_source_of_each_prompt_is_that_of_its_row(of_verl, monkeypatch, kind, rows_per_batch):
    monkeypatch.setattr(columns, "_ROWS_PER_BATCH", rows_per_batch)
    dataset = {"verl": of_verl, "table": table(*ROWS), "rows": ROWS}[kind]
    keys = dataset_keys(dataset)
    assert keys.row_of_slot_P.tolist() == [0, 1, 3, 4]
    found = prompt_sources(dataset, keys.row_of_slot_P)
    assert found.names == ("code.v2", "openai/gsm8k")
    assert found.source_P.tolist() == [1, 0, 0, 1]
    assert prompt_sources(dataset).source_P.tolist() == [1, 0, 1, 0, 1]
    assert prompt_sources(dataset, np.array([4, 3, 0, 0])).source_P.tolist() == [1, 0, 1, 1]


def test_of_a_table_that_column_alone_is_read(of_verl, monkeypatch):
    monkeypatch.setattr(RLHFDataset, "__getitem__", lambda *_: pytest.fail("a row was formatted"))
    read = []
    select = datasets.Dataset.select_columns
    monkeypatch.setattr(
        datasets.Dataset, "select_columns", lambda self, names, **_: read.append(names) or select(self, names)
    )
    prompt_sources(of_verl)
    assert read == [["data_source"]]


@pytest.mark.parametrize("as_dataset", [lambda rows: table(*rows), list], ids=["table", "rows"])
def test_without_the_column(as_dataset):
    rows = [{k: v for k, v in one.items() if k != "data_source"} for one in ROWS]
    with pytest.raises(SpoConfigError, match=r"has no (column )?'data_source', only \['prompt', 'reward_model'\]"):
        prompt_sources(as_dataset(rows))


@pytest.mark.parametrize("as_dataset", [lambda rows: table(*rows), list], ids=["table", "rows"])
@pytest.mark.parametrize("label", [None, ""])
def test_a_row_without_a_source_is_named_if_it_holds_a_prompt(as_dataset, label):
    dataset = as_dataset([*ROWS[:3], {**ROWS[3], "data_source": label}, ROWS[4]])
    with pytest.raises(SpoConfigError, match=f"data_source of row 3 of the training data is {label!r}; .*quota=null"):
        prompt_sources(dataset)
    assert prompt_sources(dataset, np.array([0, 1, 2, 4])).source_P.tolist() == [1, 0, 1, 1]


def test_numbers_are_no_names_of_sources():
    with pytest.raises(SpoConfigError, match="row 0 of the training data is 3; every prompt needs a text"):
        prompt_sources(table(row("q", data_source=3)))


def test_rows_that_are_no_mappings_and_datasets_that_are_no_maps():
    with pytest.raises(SpoConfigError, match="row 0 .* has no 'data_source', but is a tuple"):
        prompt_sources([("1 + 1", "2")])

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(SpoConfigError, match="type Stream cannot be indexed"):
        prompt_sources(Stream())


def test_stated_sources_are_those_that_the_table_has(of_verl, monkeypatch):
    monkeypatch.setattr(RLHFDataset, "__getitem__", lambda *_: pytest.fail("a row was formatted"))
    found = stated_sources(of_verl, np.array([0, 1, 3]))
    assert (found.names, found.source_P.tolist()) == (("code.v2", "openai/gsm8k"), [1, 0, 0])
    some = stated_sources(table(*ROWS[:2], {**ROWS[4], "data_source": None}), np.arange(3))
    assert (some.names, some.source_P.tolist()) == (("", "code.v2", "openai/gsm8k"), [2, 1, 0])
    numbers = stated_sources(table(row("q", data_source=3), row("r", data_source=5)), np.arange(2))
    assert numbers.names == ("3", "5")
    without = [{name: value for name, value in one.items() if name != "data_source"} for one in ROWS]
    assert stated_sources(table(*without), np.arange(5)) is None
    assert stated_sources(ROWS, np.arange(5)) is None  # rows may come from code of the dataset's own


def test_with_tracker_and_loader_every_batch_keeps_the_quotas():
    rows = [row(f"{n} + 1", data_source="few" if n % 10 == 0 else "many") for n in range(50)]
    keys = dataset_keys(rows)
    settings = TrackerSettings(quota={"few": 1, "many": 1})
    tracker = Tracker.create(keys.key_P, settings, sources=prompt_sources(rows, keys.row_of_slot_P))
    loader = PrioritizedDataLoader(
        rows, tracker, batch_size=8, row_of_slot_P=keys.row_of_slot_P, collate_fn=lambda items: {"rows": items}
    )
    for _ in range(10):
        drawn = [item["data_source"] for item in next(loader)["rows"]]
        assert (drawn.count("few"), drawn.count("many")) == (4, 4)
