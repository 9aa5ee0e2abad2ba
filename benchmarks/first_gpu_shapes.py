"""Part two of `first_gpu.sh`: SPO's own work next to a training step, at the paper's shapes, with random weights.

Needs torch, transformers, and what the tracker imports (numpy, pyarrow, pydantic); no verl, no checkpoint, no network.
Stored responses, probe, divergence, advantages and tracker are the project's own. What verl's engine would do is done
here in the same way: sequences are packed up to the recipe's tokens per micro-batch, the log-probs of all tokens are
taken from bf16 logits, the backward pass recomputes each layer.

Not measured: generation, the optimizer's step, communication between GPUs, Ray and TransferQueue.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from spo_verl.config import SpoConfig
from spo_verl.planning.formulas import figure
from spo_verl.planning.shapes import PUBLIC, DecoderShape
from spo_verl.tracker import Recall, Tracker, TrackerSettings
from spo_verl.training.estimator import PendingAdvantages
from spo_verl.training.outputs import Output
from spo_verl.training.stored_divergence import DivergenceProbe, new_responses

ATTENTION = "packed"
SPREAD = 0.6
"""Standard deviation of the logarithm of a response's length."""
CHUNK = 2048
"""Rows of logits that are converted to float32 at a time."""
BINS = 10


@dataclass(frozen=True)
class Setting:
    """Sizes of a recipe, and the mean lengths that its README assumes.

    Attributes:
        prompts: of the dataset.
        gpus: that share a step of ``batch`` trajectories.
        prompt_tokens, response_tokens: mean lengths; responses are log-normal, cut at ``longest``.
        train_tokens, log_prob_tokens: of a micro-batch on one GPU.
    """

    recipe: str
    shape: DecoderShape
    prompts: int
    batch: int
    gpus: int
    prompt_tokens: int
    response_tokens: int
    longest: int
    train_tokens: int
    log_prob_tokens: int

    def small(self) -> Setting:
        """The same with sizes for a CPU: lengths by 1/64, a decoder of two layers."""
        tiny = replace(
            self.shape, layers=2, hidden=32, intermediate=64, heads=4, key_value_heads=2, head_size=8, vocabulary=256
        )
        return replace(
            self,
            shape=tiny,
            prompts=4 * self.batch // self.gpus,
            batch=self.batch // self.gpus,
            prompt_tokens=max(4, self.prompt_tokens // 64),
            response_tokens=max(8, self.response_tokens // 64),
            longest=self.longest // 64,
            train_tokens=self.train_tokens // 64,
            log_prob_tokens=self.log_prob_tokens // 64,
        )


SETTINGS = {
    "qwen3_8b": Setting(
        "qwen3_8b_math_tir/spo", PUBLIC["Qwen3-8B"], 14_000, 2048, 8, 300, 6000, 16_384, 18_432, 36_864
    ),
    "qwen3_0_6b": Setting("gsm8k_qwen3_0_6b/spo", PUBLIC["Qwen3-0.6B"], 7473, 256, 1, 150, 300, 1024, 16_384, 32_768),
}


# ---------------------------------------------------------------- sequences


def response_lengths(setting: Setting, count: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of ``count`` responses, int64; the mean is that of the setting before the cut."""
    location = np.log(setting.response_tokens) - SPREAD**2 / 2
    drawn = np.exp(rng.normal(location, SPREAD, count))
    return np.clip(np.rint(drawn), 1, setting.longest).astype(np.int64)


def make_outputs(setting: Setting, lengths: Sequence[int], rng: np.random.Generator) -> list[Output]:
    """Random tokens; the old log-probs are made up until a model gives them."""
    outputs = []
    for row, length in enumerate(lengths):
        prompt = torch.as_tensor(rng.integers(0, setting.shape.vocabulary, setting.prompt_tokens))
        outputs.append(
            Output(
                key=str(row),
                prompt=prompt,
                response=torch.as_tensor(rng.integers(0, setting.shape.vocabulary, int(length))),
                mask=torch.ones(int(length), dtype=torch.int64),
                positions=torch.arange(setting.prompt_tokens + int(length)),
                old_log_prob=torch.as_tensor(-rng.random(int(length), dtype=np.float32)),
            )
        )
    return outputs


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Sequences by micro-batch, the longest first into the first one with room for it.

    Raises:
        ValueError: a sequence alone is longer than ``limit``.
    """
    if max(lengths) > limit:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit into a micro-batch of {limit}")
    packs: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = next((number for number, free in enumerate(room) if free >= lengths[row]), None)
        if place is None:
            packs.append([])
            room.append(limit)
            place = len(packs) - 1
        packs[place].append(row)
        room[place] -= lengths[row]
    return packs


# ---------------------------------------------------------------- the model


class PackedAttention:
    """Causal attention within each sequence of a packed micro-batch, as transformers calls it.

    One call of the flash kernel for all sequences where :meth:`choose_kernel` found that it agrees with torch's
    attention sequence by sequence; otherwise the latter. ``kernel`` says which.
    """

    def __init__(self) -> None:
        self.kernel = "one call per sequence"
        self.bounds: list[tuple[int, int]] = []
        self.offsets: torch.Tensor | None = None

    def set(self, lengths: Sequence[int], device: torch.device) -> None:
        """The sequences of the next forward, and of its backward."""
        ends = np.cumsum(lengths)
        self.bounds = [(int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]
        self.offsets = torch.tensor([0, *ends.tolist()], dtype=torch.int32, device=device)

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """query (1, heads, T, d), key and value (1, key heads, T, d) -> (1, T, heads, d)."""
        if self.kernel == "flash, packed":
            rows = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
            longest = max(end - begin for begin, end in self.bounds)
            offsets = self.offsets
            found = torch.ops.aten._flash_attention_forward(
                *rows, offsets, offsets, longest, longest, 0.0, True, False, scale=scaling
            )
            return found[0].unsqueeze(0), None
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, begin:end], key[:, :, begin:end], value[:, :, begin:end],
                is_causal=True, scale=scaling, enable_gqa=True,
            )
            for begin, end in self.bounds
        ]  # fmt: skip
        return torch.cat(parts, dim=2).transpose(1, 2), None

    def choose_kernel(self, device: torch.device) -> str:
        """Take the packed kernel if it gives the same output and gradients; returns why not otherwise, else ""."""
        generator = torch.Generator(device=device).manual_seed(0)

        def tensor(heads: int) -> torch.Tensor:
            shape = (1, heads, 384, 128)
            made = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
            return made.requires_grad_()

        inputs, weight = (
            [tensor(8), tensor(2), tensor(2)],
            torch.randn((1, 384, 8, 128), generator=generator, device=device, dtype=torch.bfloat16),
        )
        self.set([100, 7, 277], device)

        def results(kernel: str) -> list[torch.Tensor]:
            self.kernel = kernel
            out, _ = self(None, *inputs, None, scaling=128**-0.5)
            return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]

        separate = "one call per sequence"
        try:
            pairs = zip(results("flash, packed"), results(separate), strict=True)
            error = max(float((a - b).float().norm() / b.float().norm()) for a, b in pairs)
        except (RuntimeError, TypeError, NotImplementedError) as reason:
            self.kernel = separate
            return " ".join(str(reason).split())[:200]
        if not error < 0.02:  # bf16
            return f"the packed kernel differs by {error:.3f}"
        self.kernel = "flash, packed"
        return ""


class TokenLogProb(torch.autograd.Function):
    """Log-probs of labels under logits (T, V); float32 (T,). The backward pass overwrites the logits, as in verl."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = torch.cat([rows.float().logsumexp(dim=-1) for rows in logits.split(CHUNK)])
        ctx.save_for_backward(logits, labels, total)
        return logits.gather(1, labels[:, None]).squeeze(1).float() - total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, labels, total = ctx.saved_tensors
        for part in range(0, len(labels), CHUNK):
            rows = slice(part, part + CHUNK)
            probability = (logits[rows].float() - total[rows, None]).exp_()
            probability.mul_(-gradient[rows, None])
            probability.scatter_add_(1, labels[rows, None], gradient[rows, None].float())
            logits[rows] = probability.to(logits.dtype)
        return logits, None


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of each row, float32 (T,), in parts as verl computes it in parts."""
    found = []
    for rows in logits.split(CHUNK):
        rows = rows.float()
        found.append(rows.logsumexp(dim=-1) - (rows.softmax(dim=-1) * rows).sum(dim=-1))
    return torch.cat(found)


class Policy:
    """A randomly initialised decoder of a public shape, with the three forwards of a training step."""

    def __init__(self, setting: Setting, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        from transformers import AttentionInterface, AutoModelForCausalLM, Qwen3Config

        shape = setting.shape
        self.setting, self.device, self.attention = setting, device, PackedAttention()
        self.fallback = self.attention.choose_kernel(device) if device.type == "cuda" else "no CUDA device"
        AttentionInterface.register(ATTENTION, self.attention)
        config = Qwen3Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            head_dim=shape.head_size,
            tie_word_embeddings=shape.tied,
            max_position_embeddings=40_960,
            use_cache=False,
        )
        torch.manual_seed(seed)
        with device:
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model.eval()

    def _logits(self, sequences: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (T, V) of a micro-batch, and the token that follows each."""
        ids = torch.cat([fields["input_ids"] for fields in sequences]).to(self.device)
        positions = torch.cat([fields["position_ids"] for fields in sequences]).to(self.device)
        self.attention.set([len(fields["input_ids"]) for fields in sequences], self.device)
        hidden = self.model.model(
            input_ids=ids[None], position_ids=positions[None], attention_mask={"full_attention": None}
        ).last_hidden_state[0]
        return self.model.lm_head(hidden), ids.roll(-1)

    @staticmethod
    def _responses(sequences: Sequence[dict[str, Any]], log_prob: torch.Tensor) -> list[torch.Tensor]:
        """The part of each response: a token's log-prob is at the position before it."""
        found, begin = [], 0
        for fields in sequences:
            first, length = len(fields["prompts"]), len(fields["responses"])
            found.append(log_prob[begin + first - 1 : begin + first - 1 + length])
            begin += first + length
        return found

    def _micro_batches(self, sequences: Sequence[dict[str, Any]], limit: int) -> list[list[int]]:
        return pack([len(fields["input_ids"]) for fields in sequences], limit)

    def score(self, sequences: list[dict[str, Any]], *, with_entropy: bool = False) -> list[np.ndarray]:
        """Log-probs of the responses, float32 on the CPU: what verl's ``compute_log_prob`` returns."""
        found: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        if not sequences:
            return found
        self.model.eval()
        with torch.no_grad():
            for rows in self._micro_batches(sequences, self.setting.log_prob_tokens):
                chosen = [sequences[row] for row in rows]
                logits, labels = self._logits(chosen)
                log_prob = TokenLogProb.apply(logits, labels).cpu()
                if with_entropy:
                    entropy(logits).cpu()
                for row, part in zip(rows, self._responses(chosen, log_prob), strict=True):
                    found[row] = part.numpy()
        return found

    def train(self, outputs: Sequence[Output], advantage_B: np.ndarray) -> None:
        """Forward and backward over all outputs: the clipped loss of the paper's recipe, averaged over tokens."""
        self.model.train()
        sequences = [output.sequence(output.response, output.mask) for output in outputs]
        total = sum(len(output.response) for output in outputs)
        for rows in self._micro_batches(sequences, self.setting.train_tokens):
            chosen = [sequences[row] for row in rows]
            logits, labels = self._logits(chosen)
            now = torch.cat(self._responses(chosen, TokenLogProb.apply(logits, labels)))
            del logits
            old = torch.cat([torch.as_tensor(outputs[row].old_log_prob) for row in rows]).to(self.device)
            lengths = torch.tensor([len(outputs[row].response) for row in rows])
            advantage = torch.as_tensor(advantage_B[rows], dtype=torch.float32).repeat_interleave(lengths)
            advantage = advantage.to(self.device)
            ratio = (now - old).exp()
            loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.28)).sum() / total
            loss.backward()


# ---------------------------------------------------------------- measuring


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds from beginning to end on the device, and GiB at the peak (0 on a CPU)."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - began), 0.0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end), torch.cuda.max_memory_allocated(device) / 2**30


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def operations(setting: Setting, lengths: Sequence[int]) -> dict[str, float]:
    """Floating-point operations of a forward and of an update over sequences of these lengths, as `spo-verl plan`."""
    shape = setting.shape
    sizes = {"R": 1, "N": shape.matrix_parameters, "L": shape.layers, "q": shape.query}
    head = {"V": shape.vocabulary, "h": shape.hidden}
    forward = sum(figure("forward", "", s=int(s), **sizes, **head).value for s in lengths)
    layers = sum(figure("forward_layers", "", s=int(s), **sizes).value for s in lengths)
    update = figure("update", "", epochs=1, C=forward, r=1, C_l=layers).value
    return {"probe": forward, "old log-probs": forward, "training": update}


def keys(count: int, rng: np.random.Generator) -> np.ndarray:
    """Made-up identities of prompts."""
    return np.frombuffer(rng.bytes(16 * count), dtype="V16")


def visited(outputs: Sequence[Output], settings: TrackerSettings, rng: np.random.Generator) -> tuple[Tracker, Recall]:
    """A tracker whose prompts all have a stored response, and what it recalls of them at their second visit."""
    count = len(outputs)
    tracker = Tracker.create(keys(count, rng), settings)
    first, second = [f"first-{row}" for row in range(count)], [f"second-{row}" for row in range(count)]
    tracker.dispatch(first, np.arange(count), 0)
    own = {"acting": [np.asarray(output.old_log_prob) for output in outputs]}
    tracker.finish_step(
        first,
        np.zeros(count, dtype=np.int64),
        (rng.random(count) < 0.5).astype(np.float64),
        np.full(count, np.nan),
        remember_uids=first,
        responses=new_responses(outputs, own, None),
        settle_uids=first,
    )
    tracker.dispatch(second, np.arange(count), 1)
    return tracker, tracker.recall(second)


def measure_device(
    setting: Setting, device: torch.device, dtype: torch.dtype, *, micro_batches: int, repeats: int, seed: int = 0
) -> dict[str, Any]:
    """Probe, old log-probs and training on the same sequences, one after the other in each repeat.

    Args:
        micro_batches: log-prob micro-batches' worth of tokens, a sample of a step.
        repeats: timed ones, after one that warms up.
    """
    rng, spo = np.random.default_rng(seed), SpoConfig()
    wanted, lengths = micro_batches * setting.log_prob_tokens, list[int]()
    while sum(lengths) + len(lengths) * setting.prompt_tokens < 0.9 * wanted:
        lengths.append(int(response_lengths(setting, 1, rng)[0]))
    outputs = make_outputs(setting, lengths, rng)
    policy = Policy(setting, device, dtype, seed)
    now = policy.score([output.sequence(output.response, output.mask) for output in outputs])
    outputs = [replace(one, old_log_prob=torch.as_tensor(row)) for one, row in zip(outputs, now, strict=True)]
    _, recall = visited(outputs, TrackerSettings.of(spo), rng)
    advantage_B = rng.normal(size=len(outputs))
    forward_ms: list[float] = []
    divergences: list[float] = []

    def scored(sequences: list[dict[str, Any]]) -> list[np.ndarray]:
        began = time.perf_counter()  # ends with a copy to the host, so that the host's clock is right
        answer = policy.score(sequences)
        forward_ms.append(1000 * (time.perf_counter() - began))
        return answer

    def probe() -> None:
        found = DivergenceProbe(spo, recall, outputs, scored, version=1).after_update()
        divergences.append(float(found.divergence_B.max()))

    parts: dict[str, Callable[[], Any]] = {
        "probe": probe,
        "old log-probs": lambda: policy.score(
            [output.sequence(output.response, output.mask) for output in outputs], with_entropy=True
        ),
        "training": lambda: policy.train(outputs, advantage_B),
    }
    taken: dict[str, list[float]] = {name: [] for name in parts}
    peak = dict.fromkeys(parts, 0.0)
    for repeat in range(repeats + 1):
        order = list(parts)
        order = order[repeat % 3 :] + order[: repeat % 3]
        for name in order:
            milliseconds, gib = timed(device, parts[name])
            policy.model.zero_grad(set_to_none=True)
            if repeat:
                taken[name].append(milliseconds)
                peak[name] = max(peak[name], gib)
    sequences = [setting.prompt_tokens + length for length in lengths]
    tokens, flop = sum(sequences), operations(setting, sequences)
    found = {
        name: {
            "milliseconds": spread(taken[name]),
            "tokens_per_second": 1000 * tokens / statistics.median(taken[name]),
            "tflops": flop[name] / statistics.median(taken[name]) / 1e9,
            "peak_gib": peak[name],
        }
        for name in parts
    }
    both = [old + train for old, train in zip(taken["old log-probs"], taken["training"], strict=True)]

    def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
        return spread([a / b for a, b in zip(above, below, strict=True)])

    return {
        "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "attention": policy.attention.kernel,
        "attention_fallback": policy.fallback if policy.attention.kernel != "flash, packed" else "",
        "sequences": len(sequences),
        "tokens": tokens,
        "longest_sequence": max(sequences),
        "parts": found,
        "probe_forward_ms": statistics.median(forward_ms[1:]),
        "divergence_of_the_same_policy": max(divergences),
        "probe_over_training": ratio(taken["probe"], taken["training"]),
        "probe_over_old_and_training": ratio(taken["probe"], both),
        "probe_over_old_and_training_planned": flop["probe"] / (flop["old log-probs"] + flop["training"]),
    }


def measure_host(setting: Setting, *, repeats: int, seed: int = 0) -> dict[str, Any]:
    """The estimator's own work for a whole batch, on the CPU; every prompt has a stored response.

    ``probe without forward`` is the probe with log-probs that are there already: what it hashes, joins and compares.
    """
    rng, spo = np.random.default_rng(seed), SpoConfig()
    batch = setting.batch
    lengths = response_lengths(setting, batch, rng)
    outputs = make_outputs(setting, lengths.tolist(), rng)
    there = [np.asarray(output.old_log_prob) for output in outputs]
    mask = (torch.arange(int(lengths.max()))[None] < torch.as_tensor(lengths)[:, None]).to(torch.int64)
    tracker = Tracker.create(keys(setting.prompts, rng), TrackerSettings.of(spo))
    slots = np.arange(batch)
    taken: dict[str, list[float]] = {}
    for version in range(repeats + 2):  # the first fills the memory, the second warms up
        uids = [f"{version}-{row}" for row in range(batch)]
        reward_B = (rng.random(batch) < 0.5).astype(np.float64)
        began = time.perf_counter()
        seconds: dict[str, float] = {}

        def lap(name: str, seconds: dict[str, float] = seconds) -> None:
            nonlocal began
            now = time.perf_counter()
            seconds[name], began = seconds.get(name, 0.0) + now - began, now

        tracker.draw(batch, version)
        lap("draw")
        frozen = tracker.dispatch(uids, slots, version)
        lap("dispatch")
        recall = tracker.recall(uids)
        lap("recall")
        probe = DivergenceProbe(spo, recall, outputs, lambda sequences: there[: len(sequences)], version=version)
        lap("probe without forward")
        PendingAdvantages(reward_B - frozen.value_B, slots, spo.advantage).complete(mask)
        lap("advantage")
        divergence = probe.after_update()
        lap("probe without forward")
        tracker.finish_step(
            uids, np.zeros(batch, dtype=np.int64), reward_B, divergence.divergence_B,
            remember_uids=uids, responses=divergence.responses, settle_uids=uids,
        )  # fmt: skip
        tracker.value_histogram(BINS)
        lap("observe")
        if version > 1:
            for name, value in seconds.items():
                taken.setdefault(name, []).append(1000 * value)
    return {
        "prompts": setting.prompts,
        "batch": batch,
        "tokens": int(lengths.sum()) + batch * setting.prompt_tokens,
        "milliseconds": {name: spread(values) for name, values in taken.items()},
    }


def shares(setting: Setting, device: dict[str, Any], host: dict[str, Any]) -> dict[str, float]:
    """A step of the recipe on its GPUs, without generation, put together from both measurements."""
    scale = host["tokens"] / device["tokens"] / setting.gpus / 1000
    median = {name: one["milliseconds"]["median"] for name, one in device["parts"].items()}
    own = {name: one["median"] / 1000 for name, one in host["milliseconds"].items()}
    engine = (median["old log-probs"] + median["training"]) * scale
    probe = device["probe_forward_ms"] * scale + own.pop("probe without forward")
    estimator = sum(own.values())
    step = engine + probe + estimator
    return {
        "old_log_probs_and_training_s": engine,
        "probe_s": probe,
        "estimator_s": estimator,
        "probe_share": probe / step,
        "estimator_share": estimator / step,
    }


def measure(
    setting: Setting, device: torch.device, dtype: torch.dtype, *, micro_batches: int, repeats: int
) -> dict[str, Any]:
    """All of part two for one setting."""
    on_device = measure_device(setting, device, dtype, micro_batches=micro_batches, repeats=repeats)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    on_host = measure_host(setting, repeats=repeats)
    return {
        "recipe": setting.recipe,
        "model": setting.shape.name,
        "dtype": str(dtype).removeprefix("torch."),
        "gpus": setting.gpus,
        "mean_tokens": [setting.prompt_tokens, setting.response_tokens],
        "micro_batch_tokens": {"training": setting.train_tokens, "log-probs": setting.log_prob_tokens},
        "device": on_device,
        "host": on_host,
        "step": shares(setting, on_device, on_host),
    }
