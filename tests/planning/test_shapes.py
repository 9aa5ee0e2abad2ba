"""Shapes of models: parameter counts against transformers and against the model cards."""

import json

import pytest

from spo_verl.errors import SpoConfigError
from spo_verl.planning.shapes import PUBLIC, model_shape, not_dense, shape_of
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
    with pytest.raises(SpoConfigError, match="mixture of experts.*dense"):
        model_shape(str(tmp_path))


MIXTURE = {"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (MIXTURE, "mixture of experts"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "mixture of experts"),
        ({"model_type": "qwen2_5_vl", "vision_config": {}, "hidden_size": 8}, "multimodal model"),
        ({"model_type": "of_tomorrow", "text_config": {"model_type": "x", "num_experts": 4}}, "mixture of experts"),
        ({"model_type": "of_tomorrow", "text_config": {}, "audio_config": {}}, "multimodal model"),
        ({"model_type": "gemma3_text", "hidden_size": 8}, "family 'gemma3_text'"),
        ({"model_type": "of_tomorrow", "hidden_size": 8}, "family 'of_tomorrow'"),
        ({}, "config.json: it is no model's configuration, as it has no text model_type"),
        ({"hidden_size": "x"}, "has no text model_type"),
        (
            {"model_type": "qwen3", "hidden_size": 0, "head_dim": 8},
            "config.json of .*: hidden_size is 0, and has to be",
        ),
        ({"model_type": "qwen3", "vocab_size": -3}, "vocab_size is -3, and has to be"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_reason(tmp_path, content, reason):
    (tmp_path / "config.json").write_text(json.dumps(content))
    for path, file in ((str(tmp_path), None), ("Qwen/Qwen3-8B", tmp_path), ("x", tmp_path / "config.json")):
        with pytest.raises(SpoConfigError, match=reason):
            model_shape(path, file)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Qwen/Qwen3-30B-A3B", "mixture"), ("Qwen/Qwen3-235B-A22B-Instruct-2507", "mixture"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixture"), ("allenai/OLMoE-1B-7B", "mixture"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "multimodal"), ("Qwen/Qwen2.5-Omni-7B", "multimodal"),
        ("llava-hf/llava-1.5-7b-hf", "multimodal"), ("meta-llama/Llama-3.2-11B-Vision", "multimodal"),
        ("Qwen/Qwen3-VL-30B-A3B", "mixture"),
        ("Qwen/Qwen3-8B-Base", None), ("meta-llama/Llama-3.1-8B", None),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None),
        ("mistralai/Mistral-7B-v0.3", None), ("local/qwen3-8b-a100-run", None),
    ],
)  # fmt: skip
def test_without_a_configuration_the_name_tells(name, reason, monkeypatch):
    monkeypatch.setattr("spo_verl.planning.shapes._config_file", lambda where: None)
    found = not_dense(name)
    assert (found is None) == (reason is None)
    assert reason is None or reason in found


def test_dense_configurations_pass(tmp_path):
    build(SMALL, device="meta").config.save_pretrained(tmp_path)
    assert not_dense(str(tmp_path)) is None
    assert not_dense("Qwen/Qwen3-30B-A3B", tmp_path / "config.json") is None


def test_a_configuration_that_transformers_cannot_read_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "num_hidden_layers": "many"}))
    with pytest.raises(SpoConfigError, match="config.json"):
        model_shape(str(tmp_path))
