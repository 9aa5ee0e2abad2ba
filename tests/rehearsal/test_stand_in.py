"""The stand-in: Qwen3's marks are single tokens, any text survives, and a tool recipe's model calls the tool."""

import pytest

from spo_verl.rehearsal import stand_in
from tests.recipes.helpers import sums

PROMPTS = [row["prompt"] for row in sums(12)]
TOOL = {
    "type": "function",
    "function": {"name": "code_interpreter", "description": "Runs Python.", "parameters": {"type": "object"}},
}


@pytest.fixture(scope="module")
def tokenizer():
    return stand_in.build_tokenizer(message["content"] for prompt in PROMPTS for message in prompt)


def render(tokenizer, messages, **more):
    return tokenizer.apply_chat_template(messages, tokenize=False, **more)


def test_marks_are_one_token_and_any_text_survives(tokenizer):
    for mark in (*stand_in.SPECIAL, *stand_in.MARKS):
        assert len(tokenizer.encode(mark, add_special_tokens=False)) == 1
    text = 'Über 3 × 4\n<tool_call>\n{"name": "f"}\n</tool_call><think>…</think>'
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("size", [270, 271])
def test_two_ranks_can_divide_the_vocabulary(size):
    texts = [message["content"] for prompt in PROMPTS for message in prompt]
    assert len(stand_in.build_tokenizer(texts, size)) % 2 == 0


def test_the_template_lays_out_thinking_tools_and_what_they_returned(tokenizer):
    asked = [{"role": "user", "content": "Q"}]
    assert (
        render(tokenizer, asked, add_generation_prompt=True) == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    )
    off = render(tokenizer, asked, add_generation_prompt=True, enable_thinking=False)
    assert off.endswith("assistant\n<think>\n\n</think>\n\n")
    call = {"function": {"name": "code_interpreter", "arguments": {"code": "1"}}}
    turns = [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "42"}]
    text = render(tokenizer, turns, tools=[TOOL], add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n")
    assert '"code_interpreter"' in text.split("user")[0]
    assert '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "1"}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n" in text


def test_a_tool_recipes_model_writes_a_call_that_the_loop_parses(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from spo_verl.agent.calls import Call, parse_call

    built = stand_in.build(tmp_path, PROMPTS, response_tokens=96, tools=[TOOL])
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer)
    ids = tokenizer.apply_chat_template(
        PROMPTS[10], tools=[TOOL], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    assert ids.shape[1] <= built.longest_prompt
    with torch.no_grad():
        answered = model.generate(ids, do_sample=False, max_new_tokens=60)[0, ids.shape[1] :]
    text = tokenizer.decode(answered, skip_special_tokens=False).removesuffix(stand_in.END)
    assert parse_call(text, "tool", "code_interpreter") == Call("print(6 * 7)")


def test_the_same_prompts_give_the_same_files(tmp_path):
    one, other = (stand_in.build(tmp_path / name, PROMPTS, response_tokens=8) for name in "ab")
    assert (one.longest_prompt, one.parameters) == (other.longest_prompt, other.parameters)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
