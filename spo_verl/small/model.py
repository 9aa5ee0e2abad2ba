"""A model like Qwen3, small enough to train on two cores, with a character tokenizer and a chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.small.task import CHARACTERS

PAD, END, UNKNOWN, USER, ASSISTANT = "<pad>", "<end>", "<unk>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, END, UNKNOWN, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class ModelShape:
    """About 190,000 parameters.

    ``head_dim`` is the smallest that vLLM's CPU attention has a kernel for. The usual initial spread (0.02) and rotary
    base (10,000) are made for wide models and long texts; here they double or triple the steps to a given accuracy.
    """

    layers: int = 3
    width: int = 64
    mlp_width: int = 192
    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 32
    initializer_range: float = 0.08
    rope_theta: float = 100.0


def build_tokenizer() -> Any:
    """One token per character. Model and tokenizer have vocabularies of the same size: verl masks a longer model
    vocabulary in vLLM only, so that the two engines would disagree about probabilities."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: Any, shape: ModelShape, *, seed: int) -> Any:
    """A freshly initialised fp32 model; the same seed gives the same weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=128,
        rope_theta=shape.rope_theta,
        initializer_range=shape.initializer_range,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).to(torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write both in the format that verl, transformers and vLLM read."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
