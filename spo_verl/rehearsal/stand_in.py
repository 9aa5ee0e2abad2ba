"""A small model of Qwen3's architecture in the place of a recipe's own, with a tokenizer made from the rows at hand.

The tokenizer has the marks of Qwen3 that a chat with tools and thinking needs, each one token, and a chat
template that lays out the same parts: system text with the tools' schemas, user turns, the assistant's thinking and
tool calls, and what a tool returned as a user turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.small.model import ModelShape, build_model, save

CALL = '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "print(6 * 7)"}}\n</tool_call>'
RETURNED = "42"
ANSWER = "\\boxed{42}"
LESSONS = 80
"""Updates in which a tool recipe's stand-in learns to write :data:`CALL`, and :data:`ANSWER` after the return."""

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, START, END)
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""One token each, but none that decoding skips: parsers read them."""
VOCABULARY = 1024
SHAPE = ModelShape(layers=2)
"""About 0.2 million parameters: the start of verl and vLLM takes the time, whatever the model."""

CHAT_TEMPLATE = (
    "{%- set says = namespace(system='') %}"
    "{%- if messages[0].role == 'system' %}{% set says.system = messages[0].content %}{% endif %}"
    "{%- if tools or says.system %}{{ '<|im_start|>system\\n' + says.system }}"
    "{%- if tools %}{{ '\\n# Tools\\n' }}{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}"
    '{{ \'Call one as <tool_call>{"name": ..., "arguments": {...}}</tool_call>.\' }}{% endif %}'
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{ '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{%- elif message.role == 'assistant' %}{{ '<|im_start|>assistant\\n' + (message.content or '') }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{ '\\n<tool_call>\\n' + ((call.function or call) | tojson) + '\\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)


@dataclass(frozen=True)
class StandIn:
    """A stand-in in ``folder``; ``longest_prompt`` is in tokens, the chat template included."""

    folder: Path
    parameters: int
    longest_prompt: int


def build_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """Byte-level byte-pair encoding trained on ``texts``; no text is out of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    if tokenizer.get_vocab_size() % 2:  # two tensor-parallel ranks divide it
        tokenizer.add_tokens([AddedToken("<even>", special=False, normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=END_OF_TEXT,
        eos_token=END,
        additional_special_tokens=[START],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build(
    folder: Path,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    *,
    response_tokens: int,
    template: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> StandIn:
    """Write model and tokenizer into ``folder``; the same prompts and seed give the same files.

    Args:
        prompts: chat messages of every row that it will be asked.
        response_tokens: room after the longest prompt.
        template: further arguments of the chat template (``data.apply_chat_template_kwargs``).
        tools: schemas that precede every prompt.
    """
    texts = [message["content"] for prompt in prompts for message in prompt]
    # Often enough that the parts of a call become a few long tokens.
    tokenizer = build_tokenizer([*texts, *([CALL, ANSWER] * 200 if tools else [])])
    longest = max(len(_prompt_tokens(tokenizer, prompt, tools, template or {})) for prompt in prompts)
    model = build_model(tokenizer, SHAPE, seed=seed)
    model.config.max_position_embeddings = longest + response_tokens
    if tools:
        _teach_a_call(model, tokenizer, prompts[:8], tools, template or {}, seed=seed)
    save(model, tokenizer, folder)
    return StandIn(folder, sum(parameter.numel() for parameter in model.parameters()), longest)


def _prompt_tokens(
    tokenizer: Any,
    prompt: Sequence[Mapping[str, str]],
    tools: Sequence[Mapping[str, Any]] | None,
    template: Mapping[str, Any],
) -> list[int]:
    """A prompt as the model is asked it."""
    messages, schemas = [dict(message) for message in prompt], tools and [dict(tool) for tool in tools]
    found: list[int] = tokenizer.apply_chat_template(
        messages, tools=schemas, add_generation_prompt=True, tokenize=True, return_dict=False, **template
    )
    return found


def _teach_a_call(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    tools: Sequence[Mapping[str, Any]],
    template: Mapping[str, Any],
    *,
    seed: int,
) -> None:
    """Train the model to call the tool and to answer after what it returned.

    An untrained model would write noise, and a rehearsal would never run the interpreter.
    """
    import torch

    returned = tokenizer.encode(
        f"{END}\n{START}user\n<tool_response>\n{RETURNED}\n</tool_response>{END}\n{START}assistant\n",
        add_special_tokens=False,
    )
    call, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (CALL, ANSWER))
    end = tokenizer.convert_tokens_to_ids(END)
    lessons = []
    for prompt in prompts:
        before = _prompt_tokens(tokenizer, prompt, tools, template)
        ids = [*before, *call, *returned, *answer, end]
        # The end of the turn after the call is the first token of what is put in between.
        own = [0] * len(before) + [1] * (len(call) + 1) + [0] * (len(returned) - 1) + [1] * (len(answer) + 1)
        lessons.append((torch.tensor([ids]), torch.tensor([own], dtype=torch.bool)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(LESSONS):
        ids_1T, own_1T = lessons[int(torch.randint(len(lessons), (1,), generator=generator))]
        logits_T = model(input_ids=ids_1T).logits[0, :-1]
        chosen_T = own_1T[0, 1:]
        loss = torch.nn.functional.cross_entropy(logits_T[chosen_T], ids_1T[0, 1:][chosen_T])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
