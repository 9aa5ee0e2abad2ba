"""K small decoders of one shape, trained and sampled together: every matrix has a leading axis of models.

The shape is the quickstart's (``spo_verl.small.model.ModelShape``): RMS norms, rotary positions, norms of queries and
keys, grouped heads, gated MLP, untied head. All weights of a model are one row of a (K, D) tensor, so an optimiser step
of all models is a few elementwise kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from spo_verl.small.model import ModelShape

from .tasks import PADDING, STOP, VOCABULARY

SHAPE = ModelShape()
Layout = tuple[tuple[str, tuple[int, ...], bool], ...]


def layout(shape: ModelShape = SHAPE) -> Layout:
    """Name, size and whether it is a norm (initially 1) of each weight."""
    width, head = shape.width, shape.head_dim
    rows: list[tuple[str, tuple[int, ...], bool]] = [("embedding", (VOCABULARY, width), False)]
    for index in range(shape.layers):
        heads = (shape.heads + 2 * shape.key_value_heads) * head
        rows += [
            (f"{index}.norm", (width,), True),
            (f"{index}.qkv", (width, heads), False),
            (f"{index}.q_norm", (head,), True),
            (f"{index}.k_norm", (head,), True),
            (f"{index}.out", (shape.heads * head, width), False),
            (f"{index}.mlp_norm", (width,), True),
            (f"{index}.gate_up", (width, 2 * shape.mlp_width), False),
            (f"{index}.down", (shape.mlp_width, width), False),
        ]
    return (*rows, ("norm", (width,), True), ("head", (width, VOCABULARY), False))


LAYOUT = layout()
SIZES = [math.prod(size) for _, size, _ in LAYOUT]
PARAMETERS = sum(SIZES)


def fresh(seeds: list[int], device: str | torch.device) -> Tensor:
    """(K, D) initial weights; each row depends on its seed only."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        parts = [
            torch.ones(size) if norm else SHAPE.initializer_range * torch.randn(size, generator=generator)
            for _, size, norm in LAYOUT
        ]
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows).to(device)


def from_transformers(folder: Path) -> Tensor:
    """(D,) weights of the quickstart's model in a folder."""
    from transformers import AutoModelForCausalLM

    return flattened(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def flattened(reference: torch.nn.Module) -> Tensor:
    """(D,) weights of the quickstart's model, a ``Qwen3ForCausalLM``."""
    named = {name: weight.detach() for name, weight in reference.named_parameters()}
    parts = [named["model.embed_tokens.weight"]]
    for index in range(SHAPE.layers):

        def of(name: str, layer: int = index) -> Tensor:
            return named[f"model.layers.{layer}.{name}.weight"]

        parts += [
            of("input_layernorm"),
            torch.cat([of(f"self_attn.{x}_proj") for x in "qkv"]).T,
            of("self_attn.q_norm"),
            of("self_attn.k_norm"),
            of("self_attn.o_proj").T,
            of("post_attention_layernorm"),
            torch.cat([of("mlp.gate_proj"), of("mlp.up_proj")]).T,
            of("mlp.down_proj").T,
        ]
    parts += [named["model.norm.weight"], named["lm_head.weight"].T]
    return torch.cat([part.reshape(-1) for part in parts])


def unflatten(flat_KD: Tensor) -> dict[str, Tensor]:
    parts = flat_KD.split(SIZES, dim=1)
    return {name: part.view(-1, *size) for (name, size, _), part in zip(LAYOUT, parts, strict=True)}


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    scaled = functional.rms_norm(x, (x.shape[-1],), eps=1e-6)
    return scaled * weight.view(weight.shape[0], *([1] * (x.dim() - 2)), weight.shape[-1])


def _rotary(position: Tensor) -> tuple[Tensor, Tensor]:
    half = SHAPE.head_dim // 2
    frequency = SHAPE.rope_theta ** (-torch.arange(half, device=position.device, dtype=torch.float32) / half)
    angle = position[..., None].float() * frequency
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-two, one], -1) * sin


@dataclass
class Cache:
    """Keys and values of all layers, (K, B, heads, T, d), filled up to ``length``."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0


def forward(
    weights: dict[str, Tensor], token_KBT: Tensor, position_KBT: Tensor, bias: Tensor, cache: Cache | None = None
) -> Tensor:
    """Logits (K, B, T, V). ``bias`` (K, B, 1, T, S) is added to attention scores: 0 where looking is allowed."""
    models, batch, length = token_KBT.shape
    heads, shared, size = SHAPE.heads, SHAPE.key_value_heads, SHAPE.head_dim
    which = torch.arange(models, device=token_KBT.device)[:, None]
    x = weights["embedding"][which, token_KBT.reshape(models, -1)]
    cos, sin = (part[:, :, None] for part in _rotary(position_KBT))
    for index in range(SHAPE.layers):
        normed = _norm(x, weights[f"{index}.norm"])
        qkv = torch.bmm(normed, weights[f"{index}.qkv"]).view(models, batch, length, heads + 2 * shared, size)
        q, k, v = qkv.transpose(2, 3).split([heads, shared, shared], dim=2)
        q = _rotate(_norm(q, weights[f"{index}.q_norm"]), cos, sin)
        k = _rotate(_norm(k, weights[f"{index}.k_norm"]), cos, sin)
        if cache is not None:
            end = cache.length + length
            cache.keys[index][:, :, :, cache.length : end] = k
            cache.values[index][:, :, :, cache.length : end] = v
            k, v = cache.keys[index][:, :, :, :end], cache.values[index][:, :, :, :end]
        # Query heads that share a key head are further rows of one product.
        grouped = q.reshape(models, batch, shared, heads // shared * length, size)
        score = torch.matmul(grouped, k.transpose(-1, -2)) / math.sqrt(size)
        score = score.view(models, batch, shared, heads // shared, length, -1) + bias[:, :, :, None]
        share = score.softmax(-1).view(models, batch, shared, heads // shared * length, -1)
        seen = torch.matmul(share, v).view(models, batch, heads, length, size)
        seen = seen.transpose(2, 3).reshape(models, batch * length, heads * size)
        x = x + torch.bmm(seen, weights[f"{index}.out"])
        gate, up = torch.bmm(_norm(x, weights[f"{index}.mlp_norm"]), weights[f"{index}.gate_up"]).chunk(2, dim=-1)
        x = x + torch.bmm(functional.silu(gate) * up, weights[f"{index}.down"])
    if cache is not None:
        cache.length += length
    logits = torch.bmm(_norm(x, weights["norm"]), weights["head"]).view(models, batch, length, VOCABULARY)
    never = torch.zeros(VOCABULARY, device=logits.device)
    never[PADDING] = -1e9  # padding has no probability, neither where it is sampled nor where it is scored
    return logits + never


def attention(token_KBT: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and causal bias for rows that are padded on the left, and perhaps on the right."""
    real = token_KBT != PADDING
    position = (real.long().cumsum(-1) - 1).clamp(min=0)
    length = token_KBT.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=token_KBT.device).tril()
    allowed = causal & (real[..., None, :] | torch.eye(length, dtype=torch.bool, device=token_KBT.device))
    bias = torch.zeros(allowed.shape, device=token_KBT.device).masked_fill_(~allowed, -1e9)
    return position, bias[:, :, None]


def log_probs(weights: dict[str, Tensor], prompt_KBL: Tensor, response_KBT: Tensor) -> Tensor:
    """(K, B, T) log-probability of each response token; 0 at padding."""
    tokens = torch.cat([prompt_KBL, response_KBT], dim=-1)
    start = prompt_KBL.shape[-1] - 1
    logits = forward(weights, tokens[..., :-1], *attention(tokens[..., :-1]))[:, :, start:]
    taken = torch.log_softmax(logits, -1).gather(-1, response_KBT[..., None]).squeeze(-1)
    return taken * (response_KBT != PADDING)


@torch.no_grad()
def sample(weights: dict[str, Tensor], prompt_KBL: Tensor, uniform_KBT: Tensor) -> Tensor:
    """Responses (K, B, T) at temperature 1, padded after their end. ``uniform_KBT`` is all of the randomness."""
    models, batch, start = prompt_KBL.shape
    most, device = uniform_KBT.shape[-1], prompt_KBL.device
    size = (models, batch, SHAPE.key_value_heads, start + most, SHAPE.head_dim)
    cache = Cache(*([torch.zeros(size, device=device) for _ in range(SHAPE.layers)] for _ in range(2)))
    position, bias = attention(prompt_KBL)
    logits = forward(weights, prompt_KBL, position, bias, cache)[:, :, -1]
    response = torch.full((models, batch, most), PADDING, device=device)
    done = torch.zeros((models, batch), dtype=torch.bool, device=device)
    position = position[:, :, -1:]
    seen = torch.zeros((models, batch, start + most), device=device)
    seen[:, :, :start].masked_fill_(prompt_KBL == PADDING, -1e9)
    for step in range(most):
        total = torch.softmax(logits, -1).cumsum(-1)
        token = (total <= uniform_KBT[..., step : step + 1] * total[..., -1:]).sum(-1).clamp(max=VOCABULARY - 1)
        token = torch.where(done, PADDING, token)
        response[:, :, step] = token
        done = done | (token == STOP)
        if step + 1 == most or (step % 4 == 3 and bool(done.all())):
            break
        position = position + 1
        # Rows that have ended still run along; what they see and write does not matter.
        bias = seen[:, :, None, None, : start + step + 1]
        logits = forward(weights, token[..., None], position, bias, cache)[:, :, -1]
    return response


class AdamW:
    """torch's AdamW with the gradient's norm clipped, for each row of (K, D) apart and with its own learning rate."""

    def __init__(self, flat_KD: Tensor, rate_K: Tensor, *, decay: float = 0.01, clip: float = 1.0) -> None:
        self.rate, self.decay, self.clip, self.steps = rate_K[:, None], decay, clip, 0
        self.mean, self.square = torch.zeros_like(flat_KD), torch.zeros_like(flat_KD)

    @torch.no_grad()
    def step(self, flat_KD: Tensor, gradient_KD: Tensor, factor: float = 1.0) -> None:
        self.steps += 1
        norm = gradient_KD.norm(dim=1, keepdim=True)
        gradient = gradient_KD * (self.clip / (norm + 1e-6)).clamp(max=1.0)
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        root = (self.square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
        rate = self.rate * factor
        flat_KD.mul_(1 - rate * self.decay)
        flat_KD.sub_(rate / (1 - 0.9**self.steps) * self.mean / root)
