"""Shapes of models: parameter counts against transformers and against the model cards."""

import json

import pytest

from spo_verl.errors import SpoConfigError
from spo_verl.planning.shapes import PUBLIC, model_shape, shape_of
from tests.planning.models import SMALL, build

CARDS = {  # billions on the model cards: all, without embeddings
    "Qwen3-0.6B": (0.6, 0.44), "Qwen3-1.7B": (1.7, 1.4), "Qwen3-4B": (4.0, 3.6), "Qwen3-8B": (8.2, 6.95),
    "Qwen3-14B": (14.8, 13.2), "Qwen3-32B": (32.8, 31.2),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_shapes_have_the_parameters_of_a_real_model_and_of_their_card(name):
    shape = PUBLIC[name]
    model = build(shape, device="meta")
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    without = shape.parameters - shape.embeddings * shape.vocabulary * shape.hidden
    everything, card_without = CARDS[name]
    assert shape.parameters / 1e9 == pytest.approx(everything, rel=0.02)
    assert without / 1e9 == pytest.approx(card_without, rel=0.02)


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral"])
@pytest.mark.parametrize("tied", [True, False])
def test_other_families_have_the_parameters_of_a_real_model(family, tied):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    more = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    config = AutoConfig.for_model(
        family, **sizes, num_key_value_heads=2, vocab_size=100, tie_word_embeddings=tied, **more
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config, name=family, source="test")
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_local_folder_and_a_file_win_over_the_table(tmp_path):
    build(SMALL, device="meta").config.save_pretrained(tmp_path)
    for shape in (model_shape(str(tmp_path)), model_shape("Qwen/Qwen3-8B", tmp_path / "config.json")):
        assert (shape.layers, shape.query, shape.key, shape.vocabulary) == (2, 256, 128, 1000)
        assert "config.json" in shape.source


def test_a_public_name_is_reported_as_such(monkeypatch, tmp_path):
    monkeypatch.setattr("spo_verl.planning.shapes._auto_config", lambda where: None)  # as without any cache
    assert model_shape("Qwen/Qwen3-8B-Base").source == "table of public shapes"
    with pytest.raises(SpoConfigError, match="--model-config"):
        model_shape("someone/Qwen3-8B")
    with pytest.raises(SpoConfigError, match="--model-config"):
        model_shape("Qwen/Qwen3-8B", tmp_path)


def test_other_architectures_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    with pytest.raises(SpoConfigError, match="qwen3_moe.*dense"):
        model_shape(str(tmp_path))
