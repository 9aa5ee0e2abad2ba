"""Prompts with pictures: identity, and log-probs of stored responses, with a small Qwen2.5-VL and its processor.

Everything that stock verl does with a picture is here but the generation: vLLM's modules of Qwen's vision models import
torchvision, whose wheels do not fit the CPU build of torch.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue.storage.managers.simple_storage_manager import AsyncSimpleStorageManager
from transformers import AutoModelForImageTextToText
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer import hf_processor, hf_tokenizer
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from spo_verl.data import dataset_keys
from spo_verl.training import log_probs
from spo_verl.training.log_probs import LogProbScorer, read_outputs
from spo_verl.training.stored_divergence import comparable, new_responses, stored_sequences
from tests.support.pictures import picture_rows, save_vision

PROMPTS = 4
ENGINE = SimpleNamespace(pad_to_length=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("vision")
    save_vision(made)
    pd.DataFrame(picture_rows(PROMPTS)).to_parquet(made / "rows.parquet")
    return made


@pytest.fixture(scope="module")
def processor(folder):
    return hf_processor(str(folder))


@pytest.fixture(scope="module")
def dataset(folder, processor):
    config = OmegaConf.create({"image_key": "images", "max_prompt_length": 32, "filter_overlong_prompts": False})
    return RLHFDataset([str(folder / "rows.parquet")], hf_tokenizer(str(folder)), config, processor)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


class Batch:
    """A batch in TransferQueue, and a worker group that prepares it for the model as verl's engine does."""

    def __init__(self, rows: dict[str, dict[str, Any]], model: Any) -> None:
        self.rows, self.model = rows, model
        self._dispatch_info = {"actor": [0]}

    def kv_batch_put(self, keys, partition_id, fields, tags):
        for row, key in enumerate(keys):
            self.rows[key] = {name: fields[name][row] for name in fields.keys()}  # noqa: SIM118 - a TensorDict

    def kv_batch_get(self, keys, partition_id, select_fields):
        pack = AsyncSimpleStorageManager._pack_field_values
        columns = {name: pack([self.rows[key][name] for key in keys]) for name in select_fields}
        return TensorDict(columns, batch_size=len(keys))

    def kv_clear(self, keys, partition_id):
        for key in keys:
            del self.rows[key]

    def compute_log_prob(self, meta):
        fields = ["input_ids", "position_ids", "multi_modal_inputs"]
        data = self.kv_batch_get(meta.keys, meta.partition_id, fields)
        tu.assign_non_tensor(data, temperature=meta.extra_info["temperature"], use_remove_padding=False)
        inputs, _ = FSDPEngineWithLMHead.prepare_model_inputs(ENGINE, data)
        with torch.no_grad():
            logits = self.model(**inputs, use_cache=False).logits
        for key, row in zip(meta.keys, logits.log_softmax(-1), strict=True):
            tokens = self.rows[key]["input_ids"]
            predicted = row[: len(tokens) - 1].gather(1, tokens[1:, None])[:, 0]
            self.rows[key]["log_probs"] = torch.cat([predicted, torch.zeros(1)])


def rollouts(dataset, processor, responses: list[list[int]]) -> dict[str, dict[str, Any]]:
    """What verl's agent loop stores of these responses."""
    tokenizer = dataset.tokenizer
    worker = object.__new__(AgentLoopWorker)
    worker.processor, worker.tokenizer, worker.mm_processor_kwargs = processor, tokenizer, {}
    builder = create_continuous_token_builder(tokenizer, hf_model_type="qwen2_5_vl", processor=processor)
    rows = {}
    for number, response in enumerate(responses):
        messages = dataset[number]["raw_prompt"]
        pictures, _, _ = dataset._process_multi_modal_info(messages, 14, dataset.config)
        prompt = torch.tensor(builder.build_initial_tokens(messages, images=pictures))
        tokens = torch.cat([prompt, torch.tensor(response)])
        output = SimpleNamespace(multi_modal_data={"images": pictures}, mm_processor_kwargs={})
        media = worker._compute_multi_modal_inputs(output, tokens)
        positions = worker._compute_position_ids(tokens[None], torch.ones_like(tokens)[None], media)[0]
        rows[f"uid{number}_0_0"] = {
            "prompts": prompt,
            "responses": torch.tensor(response),
            "response_mask": torch.ones(len(response), dtype=torch.int64),
            "position_ids": positions,
            "multi_modal_inputs": media,
            "old_log_probs": torch.zeros(len(response)),
        }
    return rows


def by_transformers(model, row: dict[str, Any], response: list[int]) -> np.ndarray:
    """Log-probs of a response to this prompt alone; the model itself finds where everything is."""
    tokens = torch.cat([row["prompts"], torch.tensor(response)])
    shown = {name: row["multi_modal_inputs"][name] for name in ("pixel_values", "image_grid_thw")}
    kinds = (tokens == model.config.image_token_id).long()[None]
    with torch.no_grad():
        logits = model(input_ids=tokens[None], mm_token_type_ids=kinds, **shown).logits[0].log_softmax(-1)
    first = len(row["prompts"]) - 1
    return logits[first:-1].gather(1, tokens[first + 1 :, None])[:, 0].numpy()


def test_rows_that_differ_in_their_picture_alone_are_different_prompts(dataset):
    first, second = dataset[0], dataset[1]
    assert [item["text"] for item in first["raw_prompt"][0]["content"][1:]] == [
        item["text"] for item in second["raw_prompt"][0]["content"][1:]
    ]
    assert first["reward_model"] == second["reward_model"]
    assert dataset_keys(dataset).prompts == PROMPTS


@pytest.mark.parametrize("lengths", [(3, 3, 3, 3), (1, 4, 2, 5)], ids=["equal", "ragged"])
def test_stored_responses_are_scored_under_the_picture_of_their_prompt(dataset, processor, model, monkeypatch, lengths):
    rng = np.random.default_rng(0)
    draw = lambda count: rng.integers(5, 19, count).tolist()  # noqa: E731
    stored, present = [draw(length) for length in lengths], [draw(length + 1) for length in reversed(lengths)]
    batch = Batch(rollouts(dataset, processor, present), model)
    for verb in ("kv_batch_put", "kv_batch_get", "kv_clear"):
        monkeypatch.setattr(log_probs.tq, verb, getattr(batch, verb))
    keys = list(batch.rows)
    outputs = read_outputs(keys, "train")
    earlier = Batch(rollouts(dataset, processor, stored), model)
    monkeypatch.setattr(log_probs.tq, "kv_batch_get", earlier.kv_batch_get)
    memory = new_responses(read_outputs(keys, "train"), {"acting": [np.zeros(length) for length in lengths]}, None)
    monkeypatch.setattr(log_probs.tq, "kv_batch_get", batch.kv_batch_get)
    entries = comparable(memory, outputs)
    assert entries.tolist() == list(range(PROMPTS))
    score = LogProbScorer(batch, partition="train", temperature=1.0, micro_batch_size=PROMPTS)
    found = score(stored_sequences(memory, entries, outputs))
    for key, response, scored in zip(keys, stored, found, strict=True):
        assert scored == pytest.approx(by_transformers(model, batch.rows[key], response), abs=1e-5)
    other = by_transformers(model, batch.rows[keys[1]], stored[0])  # the same text, the other picture
    assert np.abs(found[0] - other).max() > 1e-3
