"""One small model of each family, with random weights: two layers, 64 wide, the vocabulary of the small tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spo_verl.small.model import ModelShape, build_model, build_tokenizer, save


def common(tokenizer: Any) -> dict[str, Any]:
    """What the configurations of all families share; see :class:`ModelShape` for the spread and the rotary base."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": ModelShape.initializer_range,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }


def save_dense(folder: Path) -> None:
    tokenizer = build_tokenizer()
    save(build_model(tokenizer, ModelShape(layers=2), seed=0), tokenizer, folder)


def save_experts(folder: Path) -> None:
    """Four experts, two of them for each token."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = build_tokenizer()
    config = Qwen3MoeConfig(
        **common(tokenizer),
        head_dim=32,
        moe_intermediate_size=48,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        rope_theta=ModelShape.rope_theta,
    )
    save(seeded(Qwen3MoeForCausalLM, config), tokenizer, folder)


def save_classifier(folder: Path) -> None:
    """A reward model: one number for a conversation."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    tokenizer = build_tokenizer()
    config = Qwen3Config(**common(tokenizer), head_dim=32, rope_theta=ModelShape.rope_theta, num_labels=1)
    save(seeded(Qwen3ForSequenceClassification, config), tokenizer, folder)


def seeded(model_class: Any, config: Any) -> Any:
    """A freshly initialised fp32 model; the same weights every time."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config).to(torch.float32)
    if model.can_generate():
        model.generation_config.eos_token_id = config.get_text_config().eos_token_id
        model.generation_config.pad_token_id = config.get_text_config().pad_token_id
    return model
