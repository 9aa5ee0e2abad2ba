"""Pictures without torchvision: a small Qwen2.5-VL, rows for it, and what reads and prepares their pictures.

The published wheels of torchvision do not fit the CPU build of torch. transformers prepares pictures without it, but
its processors also ask for a part that prepares films, and verl's reader of pictures, ``qwen_vl_utils``, imports it.
In a process that imports this module the processor is without that part, and the reader is the one below.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import wrapt
from PIL import Image

from spo_verl.small.model import ModelShape, build_tokenizer, save
from tests.families.models import common, seeded
from tests.system.harness import question, row

PROCESSOR = "transformers.models.qwen2_5_vl.processing_qwen2_5_vl"


TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PATCH = 14
PIXELS = 4 * PATCH
"""Width and height of a picture: sixteen patches, which are merged to four tokens."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def without_films(module: ModuleType) -> None:
    """transformers reads the parts of a processor off the parameters of its ``__init__``."""
    processor = module.Qwen2_5_VLProcessor

    def init(self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        for kind in ("image", "video"):
            token = f"<|{kind}_pad|>"
            setattr(self, f"{kind}_token", token)
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
        super(processor, self).__init__(image_processor, tokenizer, chat_template=chat_template)

    processor.__init__ = init


def process_vision_info(messages: list[dict], **_: Any) -> tuple[list[Image.Image] | None, None]:
    """The pictures of a conversation, in order; None without one."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    items = [item for content in contents for item in content if item.get("type") == "image"]
    return [item["image"].convert("RGB") for item in items] or None, None


def save_vision(folder: Path) -> None:
    """The model with its tokenizer and processor; random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokenizer.all_special_tokens, *TOKENS]})
    tokenizer.chat_template = CHAT_TEMPLATE
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(TOKENS))
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
    processor = Qwen2_5_VLProcessor(pictures, tokenizer, chat_template=CHAT_TEMPLATE)
    save(seeded(Qwen2_5_VLForConditionalGeneration, config), tokenizer, folder)
    processor.save_pretrained(folder)


def picture_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Pairs of rows that differ in their picture alone: the index of a row is no part of its identity."""
    return [
        {
            **row(first + number // 2),
            "prompt": [{"role": "user", "content": f"<image>{question(number // 2)}"}],
            "images": [{"bytes": picture(first + number)}],
            "extra_info": {"index": first + number},
        }
        for number in range(count)
    ]


def picture(number: int) -> bytes:
    """A PNG of noise."""
    noise = np.random.default_rng(number).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, format="PNG")
    return file.getvalue()


wrapt.register_post_import_hook(without_films, PROCESSOR)
reader = ModuleType("qwen_vl_utils")
reader.process_vision_info = process_vision_info  # type: ignore[attr-defined]
sys.modules.setdefault("qwen_vl_utils", reader)
