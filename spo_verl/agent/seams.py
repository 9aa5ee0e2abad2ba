"""Every name of verl that the agent loop and the reward override or read; a test checks it against the installed verl.

A list of its own: an agent loop runs in worker processes and without SPO's trainer, whose list is checked at its start.
"""

from __future__ import annotations

from spo_verl.seam import Seam

_LOOP = "verl.experimental.agent_loop.agent_loop"
_TOOL = "verl.experimental.agent_loop.tool_agent_loop"

SEAMS: tuple[Seam, ...] = (
    Seam(
        _LOOP,
        "AgentLoopBase.__init__",
        "override",
        "(self, trainer_config, server_manager, tokenizer, processor, dataset_cls, data_config, hf_model_type=None, "
        "**kwargs)",
    ),
    Seam(_LOOP, "AgentLoopBase.run", "override", "(self, sampling_params, **kwargs)"),
    Seam(
        _LOOP,
        "AgentLoopBase.ct_build_initial_tokens",
        "read",
        "(self, messages, tools=None, images=None, videos=None, audios=None, mm_inputs_out=None)",
    ),
    Seam(
        _LOOP,
        "AgentLoopBase.ct_merge_assistant_token",
        "read",
        "(self, runtime_token_ids, assistant_token_ids, response_mask, response_logprobs=None, "
        "assistant_logprobs=None)",
    ),
    Seam(
        _LOOP,
        "AgentLoopBase.ct_merge_context_msg",
        "read",
        "(self, previous_messages, updated_messages, runtime_token_ids, response_mask, response_logprobs=None, "
        "tools=None)",
    ),
    Seam(_LOOP, "AgentLoopOutput", "read"),
    Seam(_TOOL, "ToolAgentLoop._make_request_id", "read", "(priority, full_determinism)"),
    Seam(_TOOL, "SPEC_DECODE_EXTRA_KEYS", "read"),
    Seam("verl.utils.rollout_trace", "rollout_trace_op", "read", "(func)"),
    Seam(
        "verl.workers.rollout.llm_server",
        "LLMServerClient.generate",
        "read",
        "(self, request_id, *, prompt_ids, sampling_params, image_data=None, video_data=None, audio_data=None, "
        "mm_processor_kwargs=None, **kwargs)",
    ),
    Seam(
        "verl.utils.reward_score.math_dapo",
        "compute_score",
        "read",
        "(solution_str, ground_truth, strict_box_verify=False, pause_tokens_index=None)",
    ),
)
