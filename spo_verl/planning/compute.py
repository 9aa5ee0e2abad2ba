"""Floating-point operations of a step, the share of the divergence, and times from what the user assumes."""

from __future__ import annotations

from spo_verl.planning.footprint import stored_tokens
from spo_verl.planning.formulas import Figure, figure
from spo_verl.planning.inputs import Assumptions, PlannedRun
from spo_verl.planning.shapes import DecoderShape


def step_tokens(run: PlannedRun, prompt: float, response: float, label: str) -> Figure:
    """Tokens of all trajectories of a step."""
    return figure("step_tokens", label, R=run.trajectories, s_p=prompt, s_r=response)


def updates(run: PlannedRun) -> Figure:
    """Optimizer steps of one training step."""
    return figure(
        "updates_per_step", "optimizer steps", epochs=run.epochs, R=run.trajectories, m=run.mini_batch * run.rollouts
    )


def drift_forwards(run: PlannedRun) -> tuple[int, int]:
    """Forwards per step for the divergence: over stored responses, and over the step's own responses."""
    references = () if run.spo is None else run.spo.references
    return len(references), int("updated" in references)


def step_compute(run: PlannedRun, shape: DecoderShape, prompt: float, response: float) -> dict[str, Figure]:
    """Operations of a step whose trajectories all have these lengths."""
    length = prompt + response
    sizes = {"R": run.trajectories, "N": shape.matrix_parameters, "L": shape.layers, "q": shape.query, "s": length}
    head = {"V": shape.vocabulary, "h": shape.hidden}
    forward = figure("forward", "one forward over all trajectories", **sizes, **head)
    layers = figure("forward_layers", "the same without the output embedding", **sizes)
    old = figure(
        "log_probs", "old and reference log-probs", o=int(not run.bypass) + int(run.reference), C=forward.value
    )
    update = figure(
        "update", "update", epochs=run.epochs, C=forward.value, r=int(run.gradient_checkpointing), C_l=layers.value
    )
    found = {
        "forward": forward,
        "generation": figure("generation", "generation", **sizes, **head),
        "log_probs": old,
        "update": update,
    }
    if run.spo is None:
        return found
    stored, own = drift_forwards(run)
    budget = run.spo.drift.max_prompts
    scored = run.batch if budget is None else min(run.batch, budget)
    again = figure(
        "stored_forward", "one forward over stored responses", K=scored, N=shape.matrix_parameters, L=shape.layers,
        q=shape.query, s_p=prompt, s_m=stored_tokens(run, response), **head,
    )  # fmt: skip
    drift = figure(
        "drift", f"divergence (spo.forgetting.mode={run.spo.forgetting.mode})", f_a=stored, C_k=again.value, f_n=own,
        C=forward.value,
    )  # fmt: skip
    if stored:
        found["stored_forward"] = again
    training = old.value + update.value
    found["drift"] = drift
    found["drift_share"] = figure(
        "drift_share", "divergence, share of the training", C_drift=drift.value, C_step=training
    )
    return found


def step_times(run: PlannedRun, compute: dict[str, Figure], response: float, assumed: Assumptions) -> dict[str, Figure]:
    """Times, where the user gave what they follow from."""
    found: dict[str, Figure] = {}
    if assumed.mfu is not None and assumed.gpu_tflops is not None:
        speed = {"G": run.gpus, "phi": assumed.gpu_tflops * 1e12, "mfu": assumed.mfu}
        training = compute["log_probs"].value + compute["update"].value
        found["training_time"] = figure("training_time", "log-probs and update", C_step=training, **speed)
        if "drift" in compute:
            found["drift_time"] = figure("drift_time", "divergence", C_drift=compute["drift"].value, **speed)
    if assumed.tokens_per_second is not None:
        found["generation_time"] = figure(
            "generation_time", "generation", R=run.trajectories, s_r=response, G_r=run.rollout_gpus,
            v=assumed.tokens_per_second,
        )  # fmt: skip
    return found
