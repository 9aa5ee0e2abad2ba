"""All figures of a run put together, with verdicts: what fits, what does not, and which key to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spo_verl.planning import compute, footprint
from spo_verl.planning.formulas import Figure
from spo_verl.planning.inputs import GIB, Assumptions, PlannedRun
from spo_verl.planning.shapes import DecoderShape

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
MODEL = "actor_rollout_ref.model"


@dataclass(frozen=True)
class Verdict:
    """Whether one thing fits. ``advice`` names the keys to change, and is empty where it fits."""

    what: str
    fits: bool
    reason: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "fits": self.fits, "reason": self.reason, "advice": self.advice}


@dataclass(frozen=True)
class Plan:
    """What a run needs: figures by section and name, verdicts, and everything that was assumed."""

    run: PlannedRun
    shape: DecoderShape
    sections: dict[str, dict[str, Figure]]
    verdicts: list[Verdict]
    assumptions: list[str]

    @property
    def fits(self) -> bool:
        return all(verdict.fits for verdict in self.verdicts)

    def __getitem__(self, name: str) -> Figure:
        """The figure of this name, whatever section it is in."""
        for section in self.sections.values():
            if name in section:
                return section[name]
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        return {
            "model": {"name": self.shape.name, "source": self.shape.source, "parameters": self.shape.parameters},
            "gpus": {"training": self.run.gpus, "rollout": self.run.rollout_gpus, "separate": self.run.separate},
            "sections": {
                title: {name: entry.as_json() for name, entry in section.items()}
                for title, section in self.sections.items()
            },
            "verdicts": [verdict.as_json() for verdict in self.verdicts],
            "assumptions": self.assumptions,
            "fits": self.fits,
        }


def make_plan(run: PlannedRun, shape: DecoderShape, assumed: Assumptions) -> Plan:
    """The plan of a run.

    Raises:
        SpoConfigError: the assumptions do not go together.
    """
    assumed.check()
    prompt = run.max_prompt / 2 if assumed.prompt_tokens is None else assumed.prompt_tokens
    response = run.max_response / 2 if assumed.response_tokens is None else assumed.response_tokens
    state = footprint.training_state(run, shape)
    batch = footprint.micro_batch(run, shape)
    rollout = footprint.rollout_memory(run, shape, assumed)
    plugin = footprint.plugin_memory(run, assumed, response)
    host = footprint.host_offload(run, state)
    operations = compute.step_compute(run, shape, prompt, response)
    sections = {
        "tokens of a step": {
            "step_tokens": compute.step_tokens(run, prompt, response, "tokens, expected"),
            "step_tokens_worst": compute.step_tokens(
                run, run.max_prompt, run.max_response, "tokens, all of full length"
            ),
            "updates": compute.updates(run),
        },
        "training state": state | ({} if host is None else {"host_offload": host}),
        "one micro-batch": batch,
        "rollout": rollout,
        "tracker": plugin,
        "checkpoint": footprint.checkpoint_bytes(run, shape, plugin, assumed),
        "operations of a step, expected lengths": operations,
        "time of a step": compute.step_times(run, operations, response, assumed),
    }
    verdicts = [
        *_layout(run, shape),
        *_lengths(run),
        *_update_memory(run, state, batch, assumed),
        *_rollout_fits(run, state, rollout, assumed),
        *_data(run, assumed),
    ]
    return Plan(
        run, shape, {title: section for title, section in sections.items() if section}, verdicts,
        list(_assumptions(run, assumed, prompt, response)),
    )  # fmt: skip


def _layout(run: PlannedRun, shape: DecoderShape) -> Iterator[Verdict]:
    """Sizes that must divide each other."""
    whole = run.tensor_parallel * run.pipeline_parallel * run.context_parallel * run.sequence_parallel
    key = "tensor, pipeline and context parallel sizes" if run.megatron else f"{ACTOR}.ulysses_sequence_parallel_size"
    if run.gpus % whole:
        reason = f"{run.gpus} training GPUs are no multiple of {whole}"
        yield Verdict("training GPUs", False, reason, f"change {key}, or the number of GPUs (--gpus, --nodes).")
    if shape.heads % run.sequence_parallel:
        reason = f"{shape.heads} query heads are no multiple of {run.sequence_parallel}"
        yield Verdict("sequence parallelism", False, reason, f"lower {ACTOR}.ulysses_sequence_parallel_size.")
    engine = run.rollout_tensor_parallel * run.rollout_pipeline_parallel
    if run.rollout_gpus % engine or not run.engines:
        reason = f"{run.rollout_gpus} rollout GPUs are no multiple of the {engine} of one engine"
        yield Verdict("rollout GPUs", False, reason, f"change {ROLLOUT}.tensor_model_parallel_size, or the GPUs.")
    for where, size in (
        (f"{ACTOR}.megatron.tensor_model_parallel_size", run.tensor_parallel),
        (f"{ROLLOUT}.tensor_model_parallel_size", run.rollout_tensor_parallel),
    ):
        if shape.heads % size:
            reason = f"{shape.heads} query heads are no multiple of {where}={size}"
            yield Verdict("tensor parallelism", False, reason, f"lower {where}.")


def _lengths(run: PlannedRun) -> Iterator[Verdict]:
    """What verl and vLLM refuse because of lengths."""
    for what, dynamic, limit, key in (
        ("longest sequence in the update", run.dynamic, run.token_limit, f"{ACTOR}.ppo_max_token_len_per_gpu"),
        (
            "longest sequence in the log-probs", run.forward_dynamic, run.forward_token_limit,
            f"{ROLLOUT}.log_prob_max_token_len_per_gpu",
        ),
    ):  # fmt: skip
        if not dynamic:
            continue
        room, size = limit * run.split, "" if run.split == 1 else f" times {run.split} GPUs"
        reason = f"{run.longest:,} tokens; {key}={limit:,}{size} takes {room:,}"
        advice = "" if room >= run.longest else f"raise {key} to at least {-(-run.longest // run.split):,}."
        yield Verdict(what, room >= run.longest, reason, advice)
    if run.max_model_len is not None:
        reason = f"{run.longest:,} tokens; {ROLLOUT}.max_model_len={run.max_model_len:,}"
        fits = run.max_model_len >= run.longest
        advice = "" if fits else f"set {ROLLOUT}.max_model_len={run.longest} or null."
        yield Verdict("longest sequence in the rollout engine", fits, reason, advice)


def _update_memory(
    run: PlannedRun, state: dict[str, Figure], batch: dict[str, Figure], assumed: Assumptions
) -> Iterator[Verdict]:
    """Whether the update and a forward for log-probs fit on a training GPU."""
    awake = 0.0 if run.frees_cache or run.separate else run.rollout_share * assumed.gpu_memory
    have = assumed.gpu_memory - assumed.reserve - awake
    others = "" if not awake else f" next to the rollout engine, which keeps {_gib(awake)} (free_cache_engine=False)"
    for what, need, forward in (
        ("actor update", footprint.bytes_while_updating(state, batch), False),
        ("forward for log-probs", footprint.bytes_while_scoring(state, batch), True),
    ):
        fits = need <= have
        advice = "" if fits else _update_advice(run, state, batch, forward=forward)
        yield Verdict(what, fits, f"needs {_gib(need)} of {_gib(have)} per GPU{others}", advice)


def _update_advice(run: PlannedRun, state: dict[str, Figure], batch: dict[str, Figure], *, forward: bool) -> str:
    resident = sum(entry.value for entry in state.values())
    saved = batch["activations"].value if "activations" in batch and not forward else 0.0
    logits_name = "logits_forward" if forward else "logits"
    logits = batch[logits_name].value if logits_name in batch else 0.0
    advice = []
    if not run.frees_cache and not run.separate:
        advice.append(f"set {ROLLOUT}.free_cache_engine=True")
    if resident >= max(saved, logits):
        wider = "raise tensor or pipeline parallel sizes" if run.megatron else "shard over more GPUs (--gpus, --nodes)"
        advice.append(f"the training state is the largest part ({_gib(resident)}): {wider}, or train {_lora_key(run)}")
    if saved >= max(resident, logits) and not run.gradient_checkpointing:
        key = (
            f"{ACTOR}.megatron.override_transformer_config.recompute_granularity=full"
            if run.megatron
            else f"{MODEL}.enable_gradient_checkpointing=True"
        )
        advice.append(f"saved activations are the largest part ({_gib(saved)}): set {key}")
    if max(saved, logits) > 0.1 * resident or max(saved, logits) > resident:
        advice.append(_fewer_tokens(run, forward=forward))
    if logits >= max(resident, saved) and not run.fused_kernels:
        advice.append(f"the logits are the largest part ({_gib(logits)}): set {MODEL}.use_fused_kernels=True")
    return "; ".join(advice) + "."


def _lora_key(run: PlannedRun) -> str:
    return f"an adapter ({MODEL}.{'lora.rank' if run.megatron else 'lora_rank'})"


def _fewer_tokens(run: PlannedRun, *, forward: bool) -> str:
    """The key that makes micro-batches smaller, or, where they cannot be smaller, the one that spreads a sequence."""
    dynamic = run.forward_dynamic if forward else run.dynamic
    limit = run.forward_token_limit if forward else run.token_limit
    micro = run.forward_micro_batch if forward else run.micro_batch
    part, name = (ROLLOUT, "log_prob_") if forward else (ACTOR, "ppo_")
    least = -(-run.longest // run.split)
    if dynamic and limit > least:
        return f"lower {part}.{name}max_token_len_per_gpu (not below {least:,})"
    if not dynamic and (micro or 1) > 1:
        return f"lower {part}.{name}micro_batch_size_per_gpu"
    if run.megatron:
        return f"raise {ACTOR}.megatron.context_parallel_size"
    return (
        f"raise {ACTOR}.ulysses_sequence_parallel_size, which lets {part}.{name}max_token_len_per_gpu be lowered, or "
        "shorten data.max_response_length"
    )


def _rollout_fits(
    run: PlannedRun, state: dict[str, Figure], rollout: dict[str, Figure], assumed: Assumptions
) -> Iterator[Verdict]:
    """Whether the rollout engine fits next to the training state, and a response of full length into its cache."""
    resident = footprint.bytes_while_generating(run, state)
    share = run.rollout_share * assumed.gpu_memory
    fits = resident + share <= assumed.gpu_memory
    reason = (
        f"{_gib(share)} for the engine and {_gib(resident)} of training state, of {_gib(assumed.gpu_memory)} per GPU"
    )
    advice = ""
    if not fits:
        engine = f"{ACTOR}.{'megatron' if run.megatron else 'fsdp_config'}"
        room = int(100 * (assumed.gpu_memory - resident) / assumed.gpu_memory) / 100
        keys = [f"{engine}.{name}=True" for name, kept in (
            ("param_offload", not run.param_offload), ("optimizer_offload", not run.optimizer_offload)
        ) if kept]  # fmt: skip
        lower = f"lower {ROLLOUT}.gpu_memory_utilization to {room}" if room > 0 else ""
        advice = " or ".join(part for part in (f"set {' and '.join(keys)}" if keys else "", lower) if part) + "."
    yield Verdict("rollout engine next to the training state", fits, reason, advice)
    at_once = int(rollout["concurrent_responses"].value)
    per_engine = at_once // max(1, run.engines)
    what = "KV cache for a response of full length"
    if per_engine < 1:
        need = rollout["kv_per_token_gpu"].value * run.longest
        reason = f"needs {_gib(need)} per GPU, {_gib(max(0.0, rollout['kv_cache'].value))} are there"
        advice = f"raise {ROLLOUT}.tensor_model_parallel_size or {ROLLOUT}.gpu_memory_utilization."
        yield Verdict(what, False, reason, advice)
        return
    limited = min(at_once, run.max_num_seqs * run.engines)
    reason = f"{at_once:,} at a time on {run.engines} engines, for {run.trajectories:,} trajectories a step"
    if limited < at_once:
        reason += f"; {ROLLOUT}.max_num_seqs={run.max_num_seqs} allows {limited:,}"
    yield Verdict(what, True, reason)


def _data(run: PlannedRun, assumed: Assumptions) -> Iterator[Verdict]:
    if run.spo is None or assumed.prompts is None:
        return
    fits = assumed.prompts >= run.batch
    reason = f"{assumed.prompts:,} for data.train_batch_size={run.batch:,}"
    yield Verdict("different prompts", fits, reason, "" if fits else "lower data.train_batch_size, or add data.")


def _assumptions(run: PlannedRun, assumed: Assumptions, prompt: float, response: float) -> Iterator[str]:
    given = {True: "given", False: "half of the limit; say it with"}
    known = assumed.prompt_tokens is not None
    yield f"a prompt has {prompt:,.0f} tokens on average ({given[known]}{'' if known else ' --prompt-tokens'})"
    known = assumed.response_tokens is not None
    yield f"a response has {response:,.0f} tokens on average ({given[known]}{'' if known else ' --response-tokens'})"
    yield f"a GPU has {_gib(assumed.gpu_memory)}; {_gib(assumed.reserve)} of it are kept for what no formula covers"
    if run.spo is not None:
        number = "unknown: say it with --prompts" if assumed.prompts is None else f"{assumed.prompts:,}"
        yield f"different prompts in the training data: {number}"
        if run.spo.references:
            yield "every prompt of a step has a stored response, as after the first pass over the data"
    if assumed.mfu is not None:
        yield f"training reaches {assumed.mfu:g} of {assumed.gpu_tflops:g} TFLOP/s per GPU"
    if assumed.tokens_per_second is not None:
        yield f"a rollout GPU generates {assumed.tokens_per_second:g} tokens per second over the whole generation"


def _gib(number: float) -> str:
    return f"{number / GIB:.1f} GiB"
