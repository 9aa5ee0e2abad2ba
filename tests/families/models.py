"""One small model of each family, with random weights: two layers, 64 wide, the vocabulary of the small tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spo_verl.small.model import ModelShape, build_model, build_tokenizer, save

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PATCH = 14
PIXELS = 4 * PATCH
"""Width and height of a picture: sixteen patches, which are merged to four tokens."""

VISION_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


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


def save_vision(folder: Path) -> None:
    """Text and pictures of Qwen2.5-VL; needs :mod:`tests.support.still_images`."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokenizer.all_special_tokens, *VISION_TOKENS]})
    tokenizer.chat_template = VISION_CHAT_TEMPLATE
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    rotary = {"rope_type": "default", "rope_theta": ModelShape.rope_theta, "mrope_section": [4, 6, 6]}
    config = Qwen2_5_VLConfig(
        text_config={**common(tokenizer), "rope_parameters": rotary},
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": PATCH,
            "window_size": 8 * PATCH,
            "fullatt_block_indexes": [1],
            "initializer_range": ModelShape.initializer_range,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    pictures = Qwen2VLImageProcessorPil(patch_size=PATCH, min_pixels=PIXELS**2, max_pixels=PIXELS**2)
    processor = Qwen2_5_VLProcessor(pictures, tokenizer, chat_template=VISION_CHAT_TEMPLATE)
    save(seeded(Qwen2_5_VLForConditionalGeneration, config), tokenizer, folder)
    processor.save_pretrained(folder)


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
