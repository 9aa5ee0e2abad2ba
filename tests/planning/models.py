"""Small models of the Qwen3 architecture, and the plan of a recipe."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from spo_verl.launching.composition import compose
from spo_verl.planning.inputs import Assumptions, PlannedRun, run_of
from spo_verl.planning.plan import Plan, make_plan
from spo_verl.planning.shapes import PUBLIC, DecoderShape

SMALL = DecoderShape(
    "small", "test", layers=2, hidden=128, intermediate=384, heads=8, key_value_heads=4, head_size=32, vocabulary=1000,
    tied=False,
)  # fmt: skip


def build(shape: DecoderShape, *, device: str = "cpu", attention: str = "sdpa"):
    """``Qwen3ForCausalLM`` of this shape; on the meta device without memory."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size, tie_word_embeddings=shape.tied, attn_implementation=attention,
    )  # fmt: skip
    with torch.device(device):
        return Qwen3ForCausalLM(config)


@cache
def run_with(*overrides: str) -> PlannedRun:
    """A run with the batch of docs/howto-your-recipe.md."""
    composed = compose(
        [
            "+spo=paper", "data.train_batch_size=2048", "data.max_prompt_length=2048", "data.max_response_length=8192",
            "actor_rollout_ref.model.path=Qwen/Qwen3-8B", "actor_rollout_ref.actor.use_dynamic_bsz=True",
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=10240", "actor_rollout_ref.rollout.name=vllm",
            *overrides,
        ],
        config_name="ppo_trainer",
    )  # fmt: skip
    assert not composed.problems
    return run_of(composed.config)


def plan_with(
    *overrides: str, assumed: Assumptions | None = None, shape: DecoderShape | None = None, **changes
) -> Plan:
    run: PlannedRun = replace(run_with(*overrides), **changes)
    return make_plan(run, shape or PUBLIC["Qwen3-8B"], assumed or Assumptions(prompts=14_000))


def verdict(plan: Plan, what: str):
    """The verdict of this name."""
    return next(one for one in plan.verdicts if one.what == what)
