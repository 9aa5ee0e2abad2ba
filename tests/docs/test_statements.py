"""What the how-to pages say of behaviour, where no other test says it."""

from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import pytest
from omegaconf import OmegaConf, open_dict
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from spo_verl.core import normalize_advantages
from spo_verl.data import PrioritizedDataLoader, dataset_keys, prompt_key
from spo_verl.tracker import Tracker, TrackerSettings
from tests.cli.helpers import row, write_rows
from tests.docs.pages import DOCS, blocks
from tests.support.verl_config import compose_verl

QUESTIONS = ["1 + 1", "2 + 2", "1 + 1", "3 + 3"]


@pytest.fixture
def train_file(tmp_path):
    return write_rows(tmp_path / "train.parquet", [row(text, str(eval(text))) for text in QUESTIONS])


PUZZLES = """
import torch
from torch.utils.data import Dataset


class Puzzles(Dataset):
    def __init__(self, data_files, tokenizer, config, processor=None, max_samples=-1):
        self.targets = range(100 if max_samples < 0 else max_samples)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, row):
        target = self.targets[row]
        return {
            "raw_prompt": [{"role": "user", "content": f"Two summands of {target}?"}],
            "data_source": "puzzles",
            "reward_model": {"style": "rule", "ground_truth": str(target)},
            "extra_info": {"index": row},
            "index": row,
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
        }
"""
"""A class without a table, whose rows have the fields that docs/howto-datasets.md names."""


def write_classes(folder):
    """The file of docs/howto-datasets.md, and a class without a table."""
    (folder / "puzzles.py").write_text(PUZZLES)
    for block in blocks((DOCS / "howto-datasets.md").read_text(), "python"):
        if block.file:
            (folder / block.file).write_text(block.text)


def load(folder, train_file, *, path=None, name=None, max_samples=-1):
    """As verl's trainer makes its dataset."""
    config = compose_verl([f"data.custom_cls.path={path or 'null'}", f"data.custom_cls.name={name or 'null'}"]).data
    with open_dict(config):
        config.cache_dir = str(folder / "cache")
        config.tool_config_path = config.function_tool_path = None
    return create_rl_dataset([str(train_file)], config, None, None, max_samples=max_samples)


def keys_of(dataset):
    return {bytes(key) for key in dataset_keys(dataset).key_P}


def test_a_template_in_the_table_makes_other_prompts_and_one_in_getitem_does_not(tmp_path, train_file):
    write_classes(tmp_path)

    class Late(RLHFDataset):
        def __getitem__(self, item):
            found = super().__getitem__(item)
            found["raw_prompt"] = [{"role": "system", "content": "Think."}, *found["raw_prompt"]]
            return found

    stock = load(tmp_path, train_file)
    late = Late([str(train_file)], None, stock.config)
    templated = load(tmp_path, train_file, path=tmp_path / "templated.py", name="Templated")
    assert type(templated).__name__ == "Templated"
    assert [message["role"] for message in templated[0]["raw_prompt"]] == ["system", "user"]
    assert keys_of(late) == keys_of(stock)
    assert not keys_of(templated) & keys_of(stock)
    assert dataset_keys(templated).duplicates == dataset_keys(stock).duplicates == 1


def test_a_class_without_a_table_is_drawn_from_as_verl_reads_it(tmp_path, train_file):
    write_classes(tmp_path)
    puzzles = load(tmp_path, train_file, path=tmp_path / "puzzles.py", name="Puzzles", max_samples=10)
    page = (DOCS / "howto-datasets.md").read_text()
    assert all(f"`{field}`" in page for field in puzzles[0])
    keys = dataset_keys(puzzles)
    assert (keys.rows, keys.prompts) == (10, 10)
    tracker = Tracker.create(keys.key_P, TrackerSettings(seed=1))
    loader = PrioritizedDataLoader(
        puzzles, tracker, batch_size=4, row_of_slot_P=keys.row_of_slot_P, collate_fn=collate_fn
    )
    fields = next(loader)
    fields.pop("spo_slot")
    assert len(tu.get_tensordict(fields)) == 4


def test_what_the_datasets_page_says_of_rows_that_should_differ_or_be_equal():
    one = row("1 + 1", "2")
    apart = row("1 + 1", "2", reward_model={"style": "rule", "ground_truth": "2", "variant": "b"})
    assert prompt_key(one) != prompt_key(apart)
    assert prompt_key(one) == prompt_key({**one, "extra_info": {"index": 7, "difficulty": 3}, "ability": "math"})


def test_a_samples_limit_without_a_seed_selects_other_rows_each_time(tmp_path):
    file = write_rows(tmp_path / "many.parquet", [row(str(number), "1") for number in range(200)])

    def chosen(seed):
        config = OmegaConf.create({"cache_dir": str(tmp_path), "shuffle": True, "seed": seed})
        with open_dict(config):
            config.filter_overlong_prompts = False
        return keys_of(RLHFDataset([str(file)], None, config, max_samples=20))

    assert chosen(None) != chosen(None)
    assert chosen(1) == chosen(1)


def test_a_preset_on_the_command_line_wins_over_a_file_and_loses_to_the_command_line(tmp_path):
    from spo_verl.launching.composition import compose

    (tmp_path / "mine.yaml").write_text(
        "defaults: [ppo_trainer, _self_]\nactor_rollout_ref: {actor: {clip_ratio_high: 0.3}}\n"
    )

    def clip(*more):
        composed = compose(["+spo=paper", *more], config_name="mine", config_dir=tmp_path)
        assert composed.problems == []
        return composed.config.actor_rollout_ref.actor.clip_ratio_high

    assert clip() == 0.28
    assert clip("actor_rollout_ref.actor.clip_ratio_high=0.25") == 0.25


def test_an_estimator_on_the_command_line_wins_over_the_preset_and_is_refused():
    from spo_verl.launching.composition import compose, examine

    composed = compose(["+spo=paper", "algorithm.adv_estimator=grpo"], config_name="ppo_trainer")
    assert composed.config.algorithm.adv_estimator == "grpo"
    [problem] = examine(composed).problems
    assert "delete algorithm.adv_estimator=grpo" in problem


def test_normalised_advantages_do_not_depend_on_the_declared_range():
    rewards, values = np.array([-1.0, 1.0, 1.0, -1.0, 1.0]), np.array([0.1, -0.4, 0.8, 0.0, 0.9])
    tokens = np.full(5, 3)
    raw = normalize_advantages(rewards - values, tokens, eps=0.0)
    mapped = normalize_advantages((rewards + 1) / 2 - (values + 1) / 2, tokens, eps=0.0)
    np.testing.assert_allclose(raw, mapped)


def test_a_copied_tracker_is_the_tracker_and_names_no_place(tmp_path):
    key_P = np.frombuffer(bytes(range(64)), dtype="V16")
    settings = TrackerSettings(seed=3)
    tracker = Tracker.create(key_P, settings)
    tracker.draw(2)
    saved = tracker.snapshot().write(tmp_path / "here" / "global_step_7" / "spo", step=7)
    manifest = (tmp_path / "here" / "global_step_7" / "spo" / "manifest.json").read_text()
    assert str(tmp_path) not in manifest
    assert not [text for text in _texts(json.loads(manifest)) if "/" in text]
    shutil.copytree(tmp_path / "here", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "here")
    copy, report = Tracker.load(tmp_path / "elsewhere" / "global_step_7" / "spo", key_P, settings)
    assert (report.step, report.digest) == (7, saved.digest)
    assert copy.draw(2).slot_B.tolist() == tracker.draw(2).slot_B.tolist()


def _texts(node):
    if isinstance(node, dict):
        return [text for key, value in node.items() for text in [key, *_texts(value)]]
    if isinstance(node, list):
        return [text for value in node for text in _texts(value)]
    return [node] if isinstance(node, str) else []


def test_the_files_of_the_rewards_page_return_what_it_says(tmp_path, monkeypatch):
    [file] = [block for block in blocks((DOCS / "howto-rewards.md").read_text(), "python") if block.file]
    (tmp_path / "page_reward.py").write_text(file.text)
    monkeypatch.syspath_prepend(str(tmp_path))
    score = importlib.import_module("page_reward").compute_score
    assert score("s", " 4 ", "4") == {"score": 1.0, "acc": True}
    assert score("s", "4" * 1500, "4")["score"] == pytest.approx(-0.5)
