"""Tool-integrated reasoning: a model that writes programs in its response and reads what they print.

One agent loop of verl, for any estimator. What the model generates is trained on; what a program printed is context
(``response_mask`` 0). Both are kept as tokens from the first to the last: nothing that was generated is tokenized
again, so log-probs stay those of the tokens that were sampled.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.tool_agent_loop import SPEC_DECODE_EXTRA_KEYS, ToolAgentLoop
from verl.utils.rollout_trace import rollout_trace_op

from spo_verl.agent.agent_errors import SpoAgentError
from spo_verl.agent.calls import CLOSING, OPENING, Call, Malformed, closing_index, parse_call
from spo_verl.agent.config import LoopConfig, parse
from spo_verl.agent.interpreter import Interpreter, shared
from spo_verl.agent.output import clip, defuse, describe
from spo_verl.errors import SpoConfigError

VERL_ARGUMENTS = frozenset(
    (
        "trainer_config",
        "server_manager",
        "tokenizer",
        "processor",
        "dataset_cls",
        "data_config",
        "hf_model_type",
        "tools",
    )
)
"""What verl's worker gives every agent loop; all else in the YAML entry is a setting of this one."""

LEAST_OUTPUT = 32
"""Tokens of an output below which a rollout ends at its call instead."""

INTERPRETER_TAGS = ("<interpreter>", "</interpreter>", "<tool_response>", "</tool_response>")

Ended = Literal["answer", "length", "turns", "budget", "aborted"]
"""Why a rollout ended: the model ended its turn; the response is full; it called after its last interpreter turn; an
output would not have fitted; the server aborted the generation."""


@dataclass
class _Rollout:
    """The tokens of one rollout and what is counted on the way. ``mask`` and ``logprobs`` are of the response only."""

    messages: list[dict[str, Any]]
    ids: list[int]
    limit: int
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    turn_text: str = ""
    generations: int = 0
    turns: int = 0
    errors: int = 0
    cut_outputs: int = 0
    program_seconds: float = 0.0
    generate_seconds: float = 0.0
    tool_seconds: float = 0.0
    num_preempted: int | None = None
    routed_experts: Any = None
    aborted: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """Tokens that the response may still take."""
        return self.limit - len(self.mask)


@dataclass(frozen=True)
class _TokenizerFacts:
    """What the loop must know of a tokenizer, found out once per process."""

    turn_end: int
    """The token that closes an assistant's message in the chat template."""
    markup: tuple[str, ...]
    """Text that must not be tokenized from a program's output."""
    sees_tools: bool
    """Whether the chat template renders tools."""


_facts: weakref.WeakKeyDictionary[Any, _TokenizerFacts] = weakref.WeakKeyDictionary()


class CodeInterpreterLoop(AgentLoopBase):
    """verl's agent loop with a Python interpreter; settings: :class:`~spo_verl.agent.config.LoopConfig`.

    Args:
        kwargs: verl's own arguments, and the other keys of the YAML entry, next to ``_target_``.

    Raises:
        SpoConfigError: settings are wrong (all problems at once), or verl has tools of its own configured.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)
        tools = kwargs.get("tools")
        if tools is not None and tools.tools:
            raise SpoConfigError(
                "actor_rollout_ref.rollout.multi_turn has tools of its own (tool_config_path or function_tool_path), "
                "which the code interpreter loop would not offer; unset them, or use verl's tool_agent loop"
            )
        settings = {key: _plain(kwargs.pop(key)) for key in list(kwargs) if key not in VERL_ARGUMENTS}
        self.settings: LoopConfig = parse(settings)
        super().__init__(*args, **kwargs)
        self.style = self.settings.style
        self.closing = CLOSING[self.style]
        self.tool_schemas = [tool_schema(self.settings.tool_name)] if self.style == "tool" else None
        self.facts = self._tokenizer_facts()

    @property
    def interpreter(self) -> Interpreter:
        """The backend that all rollouts of this worker share."""
        return shared(self.settings.interpreter)

    @rollout_trace_op
    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """Generate one trajectory.

        Args:
            sampling_params: of verl's worker.
            priority: names the request under ``full_determinism``.
            kwargs: fields of the dataset row; ``raw_prompt`` are the messages.

        Raises:
            SpoInterpreterError: the backend could not run a program; verl counts the rollout as failed.
            SpoAgentError: the prompt or the model does not fit the loop.
        """
        rollout = await self._begin(list(kwargs["raw_prompt"]), sampling_params)
        request_id = ToolAgentLoop._make_request_id(int(priority), self.rollout_config.full_determinism)
        ended: Ended | None = None
        while ended is None:
            await self._generate(rollout, sampling_params, request_id)
            ended = await self._answer(rollout)
        return self._output(rollout, ended)

    async def _begin(self, messages: list[dict[str, Any]], sampling_params: dict[str, Any]) -> _Rollout:
        if any(not isinstance(message.get("content"), str) for message in messages):
            raise SpoAgentError(
                "the code interpreter loop takes prompts of text only; a message's content is not a string"
            )
        if self.style == "tool" and not self.facts.sees_tools:
            raise SpoAgentError(
                "the model's chat template does not render tools, so the model would not know of the interpreter; use "
                "a model with a template for tool calls, or style: code"
            )
        prompt_ids = await self.ct_build_initial_tokens(messages, tools=self.tool_schemas)
        limit = int(self.rollout_config.response_length)
        longest = self.rollout_config.get("max_model_len")
        if longest is not None:
            limit = min(limit, int(longest) - len(prompt_ids))
        if limit < 1:
            raise SpoAgentError(
                f"the prompt has {len(prompt_ids)} tokens and leaves no room in "
                f"actor_rollout_ref.rollout.max_model_len={longest}; raise it, or lower data.max_prompt_length"
            )
        logprobs: list[float] | None = [] if sampling_params.get("logprobs") else None
        return _Rollout(messages=list(messages), ids=list(prompt_ids), limit=limit, logprobs=logprobs)

    async def _generate(self, rollout: _Rollout, sampling_params: dict[str, Any], request_id: str) -> None:
        """One generation, up to a closed call, the end of the turn, or the end of the room."""
        begin = time.perf_counter()
        output = await self.server_manager.generate(
            request_id=request_id,
            prompt_ids=list(rollout.ids),
            sampling_params={**self._with_stop(sampling_params), "max_tokens": rollout.room},
        )
        rollout.generate_seconds += time.perf_counter() - begin
        token_ids = list(output.token_ids)[: rollout.room]
        # A server that does not know the stop, or several tokens per step, may go beyond the call: a prefix of a
        # sample is a sample of the prefix, so cutting is what stopping would have given.
        closed = await self.loop.run_in_executor(None, closing_index, token_ids, self._decode, self.closing)
        token_ids = token_ids[:closed]
        if not token_ids and not rollout.mask:
            raise SpoAgentError(f"the server returned no token (stop reason {output.stop_reason!r})")
        merged, rollout.mask, rollout.logprobs = await self.ct_merge_assistant_token(
            rollout.ids,
            token_ids,
            rollout.mask,
            rollout.logprobs,
            assistant_logprobs=None if rollout.logprobs is None else list(output.log_probs or [])[: len(token_ids)],
        )
        rollout.ids = merged.token_ids
        rollout.turn_text = self._decode(token_ids)
        rollout.generations += 1
        rollout.aborted = output.stop_reason in ("aborted", "abort")
        if output.routed_experts is not None:
            rollout.routed_experts = output.routed_experts
        _count_preemptions(rollout, output.num_preempted)
        _merge_extra(rollout.extra, output.extra_fields)

    async def _answer(self, rollout: _Rollout) -> Ended | None:
        """Answer the call that the last generation closed, or say why the rollout is over."""
        if rollout.aborted:
            return "aborted"
        if rollout.room <= 0:
            return "length"
        call = parse_call(rollout.turn_text, self.style, self.settings.tool_name)
        if call is None:
            return "answer"
        if rollout.turns >= self.settings.max_turns:
            return "turns"
        rollout.messages.append({"role": "assistant", "content": rollout.turn_text})
        _, bare, _ = await self._with_output(rollout, "")
        allowed = rollout.limit - len(bare) - self.settings.reserve_tokens
        if allowed < LEAST_OUTPUT:
            return "budget"
        rollout.turns += 1
        text = await self._run(rollout, call)
        return None if await self._append(rollout, text, min(allowed, self.settings.max_output_tokens)) else "budget"

    async def _run(self, rollout: _Rollout, call: Call | Malformed) -> str:
        """The text that answers a call."""
        if isinstance(call, Malformed):
            rollout.errors += 1
            return f"Error: {call.problem}"
        begin = time.perf_counter()
        result = await self.interpreter.run(call.code)
        rollout.tool_seconds += time.perf_counter() - begin
        rollout.program_seconds += result.seconds
        rollout.errors += result.outcome != "finished"
        return describe(result)

    async def _append(self, rollout: _Rollout, text: str, allowed: int) -> bool:
        """Append an output in at most ``allowed`` tokens; False, and nothing changed, when it cannot be made to fit."""
        text = await self.loop.run_in_executor(None, defuse, text, self.facts.markup)
        while allowed >= 1:
            shorter, cut = await self.loop.run_in_executor(
                None, clip, text, allowed, self.settings.keep, self._encode, self._decode
            )
            ids, mask, logprobs = await self._with_output(rollout, shorter)
            # Tokens may merge or split where the output meets its frame.
            excess = len(mask) + self.settings.reserve_tokens - rollout.limit
            if excess <= 0:
                rollout.ids, rollout.mask, rollout.logprobs = ids, mask, logprobs
                rollout.cut_outputs += cut
                return True
            allowed -= excess
        return False

    async def _with_output(self, rollout: _Rollout, text: str) -> tuple[list[int], list[int], list[float] | None]:
        """Tokens, mask and log-probs of the rollout with an output appended, mask and log-probs 0 for it."""
        if self.style == "code":
            start = "" if rollout.turn_text.endswith("\n") else "\n"
            added = self._encode(f"{start}<interpreter>\n{text}\n</interpreter>\n\n")
            return _extended(rollout.ids, rollout.mask, rollout.logprobs, added)
        # Generation halted at the call, so the assistant's message is still open.
        closing = [] if rollout.ids[-1] == self.facts.turn_end else [self.facts.turn_end]
        ids, mask, logprobs = _extended(rollout.ids, rollout.mask, rollout.logprobs, closing)
        message = {"role": "tool", "name": self.settings.tool_name, "content": text}
        merged, mask, logprobs = await self.ct_merge_context_msg(
            rollout.messages, [*rollout.messages, message], ids, mask, logprobs, tools=self.tool_schemas
        )
        return merged.token_ids, mask, logprobs

    def _output(self, rollout: _Rollout, ended: Ended) -> AgentLoopOutput:
        size = len(rollout.mask)
        prompt_ids, response_ids = rollout.ids[: len(rollout.ids) - size], rollout.ids[len(rollout.ids) - size :]
        experts = rollout.routed_experts
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            response_mask=rollout.mask,
            response_logprobs=rollout.logprobs,
            routed_experts=None if experts is None else experts[: len(rollout.ids)],
            multi_modal_data={},
            num_turns=1 + rollout.generations + rollout.turns,
            metrics={
                "generate_sequences": rollout.generate_seconds,
                "tool_calls": rollout.tool_seconds,
                "num_preempted": -1 if rollout.num_preempted is None else rollout.num_preempted,
            },
            extra_fields={**rollout.extra, "turn_scores": [], "tool_rewards": [], **_report(rollout, ended)},
        )

    def _with_stop(self, sampling_params: dict[str, Any]) -> dict[str, Any]:
        """Sampling parameters that halt generation where a call closes.

        A tag that is one token of the vocabulary (Qwen's ``</tool_call>``) stops by its id, which every engine knows.
        Another needs vLLM, which compares text; it keeps all tokens of the tag, and those of SGLang, whose server
        verl starts without a tokenizer, are cut afterwards.
        """
        ids = self._encode(self.closing)
        if len(ids) == 1:
            return {**sampling_params, "stop_token_ids": [*(sampling_params.get("stop_token_ids") or []), *ids]}
        if self.rollout_config.name == "vllm":
            return {**sampling_params, "stop": [*(sampling_params.get("stop") or []), self.closing]}
        return dict(sampling_params)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _tokenizer_facts(self) -> _TokenizerFacts:
        facts = _facts.get(self.tokenizer)
        if facts is None:
            facts = _facts[self.tokenizer] = self._find_facts()
        return facts

    def _find_facts(self) -> _TokenizerFacts:
        probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "PROBE"}]
        plain = self._render(probe)
        end = self._encode(plain.rpartition("PROBE")[2])
        # An added token that is a run of one character (blanks, dashes) only makes text shorter.
        added = {str(token) for token in self.tokenizer.get_added_vocab() if len(set(str(token))) > 1}
        tags = {*OPENING.values(), *CLOSING.values(), *INTERPRETER_TAGS}
        return _TokenizerFacts(
            turn_end=end[0] if end else int(self.tokenizer.eos_token_id),
            markup=tuple(sorted({*added, *self.tokenizer.all_special_tokens, *tags} - {""})),
            sees_tools=self._render(probe, tools=[tool_schema("code_interpreter")]) != plain,
        )

    def _render(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=False, **self.apply_chat_template_kwargs, **kwargs
        )
        return text


def tool_schema(name: str) -> dict[str, Any]:
    """The interpreter as the chat template shows it to the model."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": (
                "Runs a complete Python program and returns what it prints. Every call starts fresh: imports, "
                "variables and files of earlier calls are gone."
            ),
            "parameters": {
                "type": "object",
                "properties": {"code": {"type": "string", "description": "The program. Print what you want to see."}},
                "required": ["code"],
            },
        },
    }


def _report(rollout: _Rollout, ended: Ended) -> dict[str, Any]:
    """The numbers of one rollout, under ``extra_fields`` of its output."""
    return {
        "interpreter_turns": rollout.turns,
        "interpreter_errors": rollout.errors,
        "interpreter_cut_outputs": rollout.cut_outputs,
        "interpreter_seconds": rollout.program_seconds,
        "interpreter_wait_seconds": max(0.0, rollout.tool_seconds - rollout.program_seconds),
        "interpreter_ended": ended,
    }


def _extended(
    ids: list[int], mask: list[int], logprobs: list[float] | None, added: list[int]
) -> tuple[list[int], list[int], list[float] | None]:
    zeros = [0.0] * len(added)
    return [*ids, *added], [*mask, *([0] * len(added))], None if logprobs is None else [*logprobs, *zeros]


def _merge_extra(extra: dict[str, Any], new: dict[str, Any]) -> None:
    """What the server says of a generation: the first of everything, the last policy version, sums of counts."""
    for key in SPEC_DECODE_EXTRA_KEYS:
        if key in extra and key in new:
            extra[key] = int(extra[key]) + int(new[key])
    if new.get("max_global_steps") is not None:
        extra["max_global_steps"] = new["max_global_steps"]
    for key, value in new.items():
        extra.setdefault(key, value)


def _count_preemptions(rollout: _Rollout, number: int | None) -> None:
    if number is not None:
        rollout.num_preempted = (rollout.num_preempted or 0) + number


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, (DictConfig, ListConfig)) else value
