"""A vision-language model without torchvision: pictures only, prepared by PIL.

The published wheels of torchvision do not fit the CPU build of torch. transformers prepares pictures without it, but
its processors also ask for a part that prepares films, and verl's reader of pictures, ``qwen_vl_utils``, imports it.
``VERL_USE_EXTERNAL_MODULES=tests.support.still_images`` takes that part away, and brings its own reader of pictures, in
every process that imports verl.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import wrapt
from PIL import Image

PROCESSOR = "transformers.models.qwen2_5_vl.processing_qwen2_5_vl"


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


wrapt.register_post_import_hook(without_films, PROCESSOR)
reader = ModuleType("qwen_vl_utils")
reader.process_vision_info = process_vision_info  # type: ignore[attr-defined]
sys.modules.setdefault("qwen_vl_utils", reader)
