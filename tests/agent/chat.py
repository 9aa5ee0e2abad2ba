"""A small byte-level tokenizer with Qwen3's special tokens and a chat template of the same shape, and a server that
says what a test wants it to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

from spo_verl.agent.interpreter import ProgramResult
from spo_verl.agent.loop import CodeInterpreterLoop

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

TEMPLATE = """
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\nA call is JSON in <tool_call></tool_call> tags.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

CORPUS = [
    "Let me compute.\n<code>\n```python\nprint(1)\n```\n</code>\n\n",
    "<interpreter>\n42\n</interpreter>\n\n",
    "The answer is \\boxed{42}.",
    "</code>\n\n</code>\n\n</code>\n\n",
]


def build_tokenizer() -> Any:
    """Byte-level BPE with a few merges (one of them ``>\\n\\n``, as in Qwen's vocabulary)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Newlines go with the punctuation before them, which is what lets ">" and newlines be one token.
    words = pre_tokenizers.Split(Regex(r"[^\s\w]+[\r\n]*|\s+|\w+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[PAD, START, END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.add_special_tokens({"additional_special_tokens": [START]})
    fast.add_tokens(list(ADDED))
    fast.chat_template = TEMPLATE
    return fast


class ScriptedServer:
    """Stands where verl's ``LLMServerClient`` stands. Says the given texts in turn, halting as vLLM does.

    Every generated token gets a log-prob of its own, so that a shift by one is seen.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], *, knows_stop: bool = True) -> None:
        self.tokenizer = tokenizer
        self.texts = list(texts)
        self.knows_stop = knows_stop
        self.requests: list[dict[str, Any]] = []
        self.said: list[tuple[list[int], list[float]]] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        self.requests.append({"id": request_id, "prompt_ids": list(prompt_ids), "sampling_params": sampling_params})
        ids = self.tokenizer.encode(self.texts[len(self.said)], add_special_tokens=False)
        ids = ids[: self._halt(ids, sampling_params)][: sampling_params["max_tokens"]]
        number = sum(len(said) for said, _ in self.said)
        logprobs = [-0.001 * (number + index + 1) for index in range(len(ids))]
        self.said.append((ids, logprobs))
        step = len(self.said)
        return TokenOutput(
            token_ids=ids,
            log_probs=logprobs if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            num_preempted=1,
            extra_fields={"global_steps": step, "min_global_steps": step, "max_global_steps": step},
        )

    def _halt(self, ids: list[int], sampling_params: dict[str, Any]) -> int:
        for count in range(1, len(ids) + 1):
            if ids[count - 1] == self.tokenizer.eos_token_id:
                return count
            if not self.knows_stop:
                continue
            if ids[count - 1] in sampling_params.get("stop_token_ids", []):
                return count
            text = self.tokenizer.decode(ids[:count], skip_special_tokens=False)
            if any(stop in text for stop in sampling_params.get("stop", [])):
                return count
        return len(ids)


class ScriptedInterpreter:
    """Prints what a test wants, and remembers the programs."""

    def __init__(self, *results: ProgramResult | Exception | str) -> None:
        self.results = list(results)
        self.programs: list[str] = []

    async def run(self, code: str) -> ProgramResult:
        self.programs.append(code)
        result = self.results[min(len(self.programs), len(self.results)) - 1]
        if isinstance(result, Exception):
            raise result
        return ProgramResult(result, "", "finished", 0.25) if isinstance(result, str) else result

    async def close(self) -> None:
        pass


def make_loop(tokenizer: Any, server: Any, *, response_length: int = 2048, **settings: Any) -> CodeInterpreterLoop:
    """The loop as verl's worker makes it. Call it where an event loop runs. ``rollout_*``: keys of verl's rollout."""
    rollout = {
        "name": "vllm",
        "prompt_length": 1024,
        "response_length": response_length,
        "max_model_len": None,
        "full_determinism": False,
    }
    rollout |= {key.removeprefix("rollout_"): settings.pop(key) for key in list(settings) if key.startswith("rollout_")}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    return CodeInterpreterLoop(
        trainer_config=DictConfigWrap(config),
        server_manager=server,
        tokenizer=tokenizer,
        processor=None,
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(config.data),
        hf_model_type="qwen3",
        tools=None,
        name="code_interpreter",
        **settings,
    )
