"""Bytes: training state, a micro-batch, KV cache, tracker, checkpoint."""

from __future__ import annotations

import numpy as np

from spo_verl.planning.formulas import Figure, figure
from spo_verl.planning.inputs import Assumptions, PlannedRun
from spo_verl.planning.shapes import DecoderShape
from spo_verl.tracker.table import COLUMNS, KEY_BYTES, MOVED


def trained_parameters(run: PlannedRun, shape: DecoderShape) -> int:
    """P_t: all parameters, or those of LoRA adapters on every projection."""
    if run.lora_rank <= 0:
        return shape.parameters
    return int(
        figure(
            "lora_parameters", "parameters of the adapters", L=shape.layers, lora=run.lora_rank, h=shape.hidden,
            q=shape.query, k=shape.key, f=shape.intermediate,
        ).value
    )  # fmt: skip


def stage_parameters(run: PlannedRun, shape: DecoderShape) -> int:
    """P_s: parameters of the largest pipeline stage."""
    embeddings = shape.embeddings if run.pipeline_parallel == 1 else 1
    return int(
        figure(
            "stage_parameters", "parameters of the largest pipeline stage", L=shape.layers, p=run.pipeline_parallel,
            P_l=shape.layer_parameters, e=embeddings, V=shape.vocabulary, h=shape.hidden,
        ).value
    )  # fmt: skip


def training_state(run: PlannedRun, shape: DecoderShape) -> dict[str, Figure]:
    """Per training GPU: ``weights``, ``gradients``, ``optimizer``; FSDP: ``gathered``; KL loss: ``reference``."""
    trained = trained_parameters(run, shape)
    state: dict[str, Figure] = {}
    if run.megatron:
        stage, t = stage_parameters(run, shape), run.tensor_parallel
        ranks = max(1, run.gpus // (t * run.pipeline_parallel)) if run.distributed_optimizer else 1
        share = trained / shape.parameters * stage
        state["weights"] = figure("megatron_weights", "weights per GPU", b_c=run.compute_bytes, P_s=stage, t=t)
        state["gradients"] = figure("megatron_gradients", "gradients per GPU (32 bits)", P_s=share, t=t)
        state["optimizer"] = figure("megatron_optimizer", "optimizer per GPU (32 bits)", P_s=share, t=t, D=ranks)
        return state
    common = {"b_w": run.weight_bytes, "S": run.shards}
    state["weights"] = figure("fsdp_weights", "weights per GPU", P=shape.parameters, **common)
    state["gradients"] = figure("fsdp_gradients", "gradients per GPU", P_t=trained, **common)
    state["optimizer"] = figure("fsdp_optimizer", "optimizer per GPU (two moments)", P_t=trained, **common)
    label = "gathered weights and gradients while computing"
    widths = {"b_c": run.compute_bytes, "P_l": shape.layer_parameters, "V": shape.vocabulary, "h": shape.hidden}
    state["gathered"] = (
        figure("fsdp_gathered", label, e=shape.embeddings, **widths)
        if run.reshard
        else figure("fsdp_gathered_all", label, P=shape.parameters, **widths)
    )
    if run.reference and not run.reference_offload:
        state["reference"] = figure("reference_weights", "reference policy per GPU", P=shape.parameters, **common)
    return state


def layer_activations(run: PlannedRun, shape: DecoderShape) -> Figure:
    """a_l: bytes that one layer saves for its backward, per token."""
    sizes = {"h": shape.hidden, "q": shape.query, "k": shape.key, "f": shape.intermediate, "b_c": run.compute_bytes}
    label = "saved activations of a layer per token"
    if run.megatron:
        return figure("megatron_layer_activations", label, t=run.tensor_parallel, **sizes)
    return figure(
        "layer_activations", label, g=int(shape.query_key_norm), n_q=shape.heads, n_k=shape.key_value_heads, **sizes
    )


def micro_batch(run: PlannedRun, shape: DecoderShape) -> dict[str, Figure]:
    """One micro-batch on one GPU: what the update and a forward alone need on top of the training state."""
    a_l = layer_activations(run, shape)
    tokens, forward_tokens = run.update_tokens, run.forward_tokens
    found = {"layer_activations": a_l}
    label = "saved activations of a micro-batch"
    prefix = "megatron_" if run.megatron else ""
    base = {"T": tokens, "L": shape.layers}
    if not run.gradient_checkpointing:
        found["activations"] = figure(f"{prefix}activations", label, a_l=a_l.value, **base)
    elif not (run.activation_offload and not run.megatron):
        degree = {"t": run.tensor_parallel} if run.megatron else {}
        found["activations"] = figure(
            f"{prefix}checkpointed_activations", label, b_c=run.compute_bytes, h=shape.hidden, **base, **degree
        )
    if run.gradient_checkpointing:
        found["recomputed_layer"] = figure("recomputed_layer", "one layer recomputed", T=tokens, a_l=a_l.value)
    logits = {
        "V": shape.vocabulary,
        "b_c": run.compute_bytes,
        "t": run.tensor_parallel,
        "c": 1 + int(run.scaled_logits),
    }
    if not run.fused_kernels:
        entropy = int(run.megatron or (run.entropy_in_update and not run.chunked_entropy))
        found["logits"] = figure("logits", "logits of a micro-batch", T=tokens, c_32=entropy, **logits)
        # verl computes the entropy together with the old log-probs, whatever the loss uses.
        entropy = int(run.megatron or not run.chunked_entropy)
        found["logits_forward"] = figure(
            "logits_forward", "logits of a forward for log-probs", T_f=forward_tokens, c_32=entropy, **logits
        )
    found["forward_layer"] = figure("forward_layer", "one layer in that forward", T_f=forward_tokens, a_l=a_l.value)
    return found


def bytes_while_updating(state: dict[str, Figure], batch: dict[str, Figure]) -> float:
    """State and saved activations, and the larger of logits and one recomputed layer, never both at a time."""
    turns = max((batch[name].value for name in ("logits", "recomputed_layer") if name in batch), default=0.0)
    saved = batch["activations"].value if "activations" in batch else 0.0
    return sum(entry.value for entry in state.values()) + saved + turns


def bytes_while_scoring(state: dict[str, Figure], batch: dict[str, Figure]) -> float:
    """A forward without gradients: state but gradients, and the larger of logits and one layer."""
    turns = max(batch[name].value for name in ("logits_forward", "forward_layer") if name in batch)
    return sum(entry.value for name, entry in state.items() if name != "gradients") + turns


def bytes_while_generating(run: PlannedRun, state: dict[str, Figure]) -> float:
    """Training state that stays on a GPU that the rollout engine shares: what is not offloaded, without gradients."""
    if run.separate:
        return 0.0
    kept = {"weights": not run.param_offload, "optimizer": not run.optimizer_offload, "reference": True}
    return sum(entry.value for name, entry in state.items() if kept.get(name, False))


def host_offload(run: PlannedRun, state: dict[str, Figure]) -> Figure | None:
    """Host memory of a node that offloaded training state takes; None without offloading."""
    if not (run.param_offload or run.optimizer_offload):
        return None
    return figure(
        "host_offload", "offloaded training state per node (host)", n_gpu=run.gpus_per_node,
        W_o=int(run.param_offload), Y_w=state["weights"].value, O_o=int(run.optimizer_offload),
        Y_o=state["optimizer"].value,
    )  # fmt: skip


def rollout_memory(run: PlannedRun, shape: DecoderShape, assumed: Assumptions) -> dict[str, Figure]:
    """Weights and KV cache of the rollout engine, and how many responses of full length it holds."""
    tau, pi = run.rollout_tensor_parallel, run.rollout_pipeline_parallel
    budget = {
        "u": run.rollout_share, "M": assumed.gpu_memory, "P": shape.parameters, "b_r": run.rollout_bytes, "tau": tau,
        "pi": pi, "X": assumed.reserve,
    }  # fmt: skip
    cache = {"L": shape.layers, "n_k": shape.key_value_heads, "d": shape.head_size, "b_kv": run.cache_bytes}
    return {
        "rollout_weights": figure(
            "rollout_weights", "rollout weights per GPU", P=shape.parameters, b_r=run.rollout_bytes, tau=tau, pi=pi
        ),
        "kv_per_token": figure("kv_per_token", "KV cache of a token", **cache),
        "kv_per_token_gpu": figure("kv_per_token_gpu", "KV cache of a token on one GPU", tau=tau, pi=pi, **cache),
        "kv_cache": figure("kv_cache", "KV cache per GPU", **budget),
        "concurrent_responses": figure(
            "concurrent_responses",
            "full-length responses at a time",
            E=run.engines,
            s=run.longest,
            **budget,
            **cache,
        ),
    }


def prompt_bytes(run: PlannedRun) -> int:
    """k_P: bytes of a prompt's columns in the tracker's table."""
    moved = run.spo is not None and run.spo.forgetting.mode == "drift"
    columns: list[np.dtype] = [*COLUMNS.values(), *(MOVED.values() if moved else ())]
    return KEY_BYTES + sum(dtype.itemsize for dtype in columns)


def stored_tokens(run: PlannedRun, response: float) -> float:
    """s_m: stored tokens of a response of this length."""
    limit = None if run.spo is None else run.spo.drift.max_tokens
    return response if limit is None else min(response, limit)


def plugin_memory(run: PlannedRun, assumed: Assumptions, mean_response: float) -> dict[str, Figure]:
    """Host memory of the tracker's actor: table and stored responses."""
    if run.spo is None:
        return {}
    references = len(run.spo.references)
    found = {}
    if assumed.prompts is not None:
        found["tracker"] = figure("tracker", "tracker's table (host)", Q=assumed.prompts, k_P=prompt_bytes(run))
    if not references:
        return found
    longest = figure(
        "stored_response", "a stored response of full length", s_m=stored_tokens(run, run.max_response), w=references
    )
    mean = figure(
        "stored_response", "a stored response of mean length", s_m=stored_tokens(run, mean_response), w=references
    )
    found |= {"stored_response": longest, "stored_response_mean": mean}
    if assumed.prompts is not None:
        found["response_memory_mean"] = figure(
            "response_memory", "stored responses, all of mean length (host)", Q=assumed.prompts, m_r=mean.value
        )
        found["response_memory"] = figure(
            "response_memory", "stored responses, all of full length (host)", Q=assumed.prompts, m_r=longest.value
        )
        found["response_memory_peak"] = figure(
            "response_memory_peak", "the same before garbage is moved out", Q=assumed.prompts, m_r=longest.value,
            B=run.batch,
        )  # fmt: skip
    return found


def checkpoint_bytes(
    run: PlannedRun, shape: DecoderShape, plugin: dict[str, Figure], assumed: Assumptions
) -> dict[str, Figure]:
    """One checkpoint on disk: the actor's, and the tracker's folder next to it."""
    common = {"P": shape.parameters, "P_t": trained_parameters(run, shape), "H": int(run.hf_model)}
    actor = (
        figure("megatron_checkpoint", "checkpoint of the actor", **common)
        if run.megatron
        else figure("fsdp_checkpoint", "checkpoint of the actor", b_w=run.weight_bytes, **common)
    )
    found = {"actor_checkpoint": actor}
    if run.spo is not None and assumed.prompts is not None:
        stored = plugin["stored_response"].value if "stored_response" in plugin else 0
        found["tracker_checkpoint"] = figure(
            "tracker_checkpoint",
            "checkpoint of the tracker, at most",
            Q=assumed.prompts,
            k_P=prompt_bytes(run),
            m_r=stored,
        )
    return found
