"""Predictions next to measurements on a small model: operations, saved activations, stored bytes, KV cache."""

from dataclasses import replace

import numpy as np
import pytest

from spo_verl.config import SpoConfig
from spo_verl.planning.compute import step_compute
from spo_verl.planning.footprint import layer_activations, plugin_memory, prompt_bytes, rollout_memory
from spo_verl.planning.inputs import Assumptions
from spo_verl.tracker import StoredResponses, Tracker
from spo_verl.tracker.settings import TrackerSettings
from tests.planning.models import SMALL, build, plan_with, run_with

TOKENS = 64


def small_run(*overrides):
    return run_with("data.train_batch_size=1", "actor_rollout_ref.actor.ppo_mini_batch_size=1", *overrides)


def counted(model, *, backward: bool) -> int:
    """Operations of matrix products as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(0, SMALL.vocabulary, (1, TOKENS))
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, use_cache=False).logits.sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_of_forward_and_update(checkpointing):
    model = build(SMALL, attention="eager").train()  # whose products torch counts
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    run = small_run(f"actor_rollout_ref.model.enable_gradient_checkpointing={checkpointing}")
    planned = step_compute(run, SMALL, 0, TOKENS)
    # The formula counts what causal attention needs, half of the full matrix that eager attention computes. The rest
    # of the difference is the product that makes rotary angles.
    attention = 2 * SMALL.layers * SMALL.query * TOKENS**2
    assert counted(model, backward=False) == pytest.approx(planned["forward"].value + attention, rel=1e-4)
    expected = planned["update"].value + (3 + checkpointing) * attention
    # torch stops recomputing a layer before its last projection, which nothing saved depends on; the formula does not.
    tolerance = 0.05 if checkpointing else 1e-4
    assert counted(model, backward=True) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_activations_of_a_layer(dtype):
    """Exact with PyTorch's attention and transformers' Qwen3, storages counted once, parameters left out."""
    import torch

    def saved(layers: int, checkpointing: bool) -> int:
        model = build(replace(SMALL, layers=layers)).to(getattr(torch, dtype)).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        kept = {parameter.untyped_storage().data_ptr(): None for parameter in model.parameters()}

        def pack(tensor):
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), use_cache=False)
        del output
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values() if tensor is not None)

    run = small_run(f"actor_rollout_ref.actor.fsdp_config.dtype={dtype}")
    planned = layer_activations(run, SMALL).value
    assert (saved(3, False) - saved(2, False)) / TOKENS == planned
    width = run.compute_bytes * SMALL.hidden
    assert (saved(3, True) - saved(2, True)) / TOKENS == width


@pytest.mark.parametrize(
    ("mode", "both", "max_tokens"),
    [("kl", False, None), ("kl", True, 20), ("drift", False, None), ("version", False, 9)],
)
def test_bytes_of_a_filled_tracker_are_those_of_the_plan(mode, both, max_tokens):
    """Responses of one length: the formula is exact, rounding to whole groups of eight tokens included."""
    spo = SpoConfig(forgetting={"mode": mode}, drift={"measure_both": both, "max_tokens": max_tokens})
    prompts, tokens = 40, 29
    keys = np.random.default_rng(0).integers(0, 256, (prompts, 16), dtype=np.uint8)
    tracker = Tracker.create(keys, TrackerSettings.of(spo))
    visit_all(tracker, prompts, tokens, spo.references)
    metrics = tracker.metrics()
    run = replace(run_with(), spo=spo, max_response=tokens)
    planned = plugin_memory(run, Assumptions(prompts=prompts), tokens)
    assert metrics["table_bytes"] == planned["tracker"].value == prompts * prompt_bytes(run)
    if spo.references:
        assert metrics["memory_bytes"] == planned["response_memory"].value
        assert metrics["memory_bytes"] <= planned["response_memory_peak"].value
    else:
        assert metrics["memory_bytes"] == 0
        assert "response_memory" not in planned


def visit_all(tracker, prompts, tokens, references):
    """One step in which every prompt is drawn and answered with ``tokens`` tokens."""
    uids = [f"u{number}" for number in range(prompts)]
    tracker.dispatch(uids, tracker.draw(prompts).slot_B, 0)
    tracker.observe(uids, np.zeros(prompts, dtype=np.int64), np.ones(prompts), np.zeros(prompts))
    count = prompts * tokens
    responses = StoredResponses(
        row_B=np.arange(prompts),
        offset_B=np.arange(prompts + 1) * tokens,
        token_N=np.zeros(count, dtype=np.int32),
        mask_N=np.ones(count, dtype=np.bool_),
        log_prob={name: np.zeros(count, dtype=np.float16) for name in references},
        prompt_hash_B=np.zeros(prompts, dtype=np.uint64),
    )
    tracker.remember(uids, responses)


@pytest.mark.parametrize(("layers", "kv_heads", "size"), [(36, 8, 128), (28, 8, 128), (4, 2, 64)])
def test_kv_cache_is_that_of_vllms_specification(layers, kv_heads, size):
    interface = pytest.importorskip("vllm.v1.kv_cache_interface")
    import torch

    block = 16
    spec = interface.FullAttentionSpec(block_size=block, num_kv_heads=kv_heads, head_size=size, dtype=torch.bfloat16)
    shape = replace(SMALL, layers=layers, key_value_heads=kv_heads, head_size=size)
    found = rollout_memory(run_with("actor_rollout_ref.rollout.tensor_model_parallel_size=1"), shape, Assumptions())
    assert found["kv_per_token"].value == layers * spec.page_size_bytes / block == found["kv_per_token_gpu"].value


def test_the_plan_of_a_small_model_has_every_figure_with_its_formula():
    plan = plan_with(shape=SMALL)
    for section in plan.as_json()["sections"].values():
        assert all(entry["formula"] and entry["inputs"] is not None for entry in section.values())
