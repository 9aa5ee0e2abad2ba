"""Transformer Engine's layers in plain torch, with its class names, parameter names and layouts.

The bridges between Megatron and Hugging Face know a weight by the class of its layer and by its name, and checkpoints
by its name. With these layers a model on a CPU has the parameters and shards that it has on an accelerator.
Source of the layouts: ``megatron/core/extensions/transformer_engine.py``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from torch.nn import functional


class _Norm:
    """The parameters of a norm in the module that it is mixed into, and their use."""

    config: Any

    def _add_norm(self, size: int, prefix: str = "") -> None:
        self._prefix = prefix
        start = 0.0 if self.config.layernorm_zero_centered_gamma else 1.0
        names = {"weight": start, **({"bias": 0.0} if self.config.normalization == "LayerNorm" else {})}
        for name, value in names.items():
            parameter = torch.nn.Parameter(torch.full((size,), value, dtype=self.config.params_dtype))
            # Its gradients are then summed over the ranks, each of which has a part of every sequence.
            parameter.sequence_parallel = self.config.sequence_parallel  # type: ignore[attr-defined]
            setattr(self, prefix + name, parameter)

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        weight = getattr(self, f"{self._prefix}weight").float() + float(self.config.layernorm_zero_centered_gamma)
        shape, epsilon = x.shape[-1:], self.config.layernorm_epsilon
        if self.config.normalization == "RMSNorm":
            return functional.rms_norm(x.float(), shape, weight, epsilon).to(x.dtype)
        bias = getattr(self, f"{self._prefix}bias").float()
        return functional.layer_norm(x.float(), shape, weight, bias, epsilon).to(x.dtype)


class TENorm(_Norm, torch.nn.Module):
    """RMSNorm or LayerNorm over the last axis."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_ignored: Any) -> None:
        super().__init__()
        self.config = config
        self._add_norm(hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._normalise(x)


class TEColumnParallelLinear(ColumnParallelLinear):  # type: ignore[misc]
    """A linear layer whose outputs are divided among the tensor-parallel ranks."""


class TERowParallelLinear(RowParallelLinear):  # type: ignore[misc]
    """A linear layer whose inputs are divided among the tensor-parallel ranks."""


class TELayerNormColumnParallelLinear(_Norm, ColumnParallelLinear):  # type: ignore[misc]
    """A norm and a column-parallel linear layer in one module."""

    def __init__(self, input_size: int, output_size: int, *, config: Any, **more: Any) -> None:
        super().__init__(input_size, output_size, config=config, **more)
        self._add_norm(input_size, "layer_norm_")

    def forward(self, x: Any, *more: Any, **named: Any) -> Any:  # type: ignore[override, unused-ignore]
        return super().forward(self._normalise(x), *more, **named)


class TEDotProductAttention(torch.nn.Module):
    """Causal attention for sequences of one length ([s, b, heads, d]) and for packed ones ([t, heads, d])."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_ignored: Any,
    ) -> None:
        super().__init__()
        unsupported = {
            "context parallelism (context_parallel_size)": config.context_parallel_size != 1,
            f"softmax_type {config.softmax_type}": config.softmax_type != "vanilla",
            "a sliding window (window_size)": config.window_size is not None,
            "apply_query_key_layer_scaling": config.apply_query_key_layer_scaling,
        }
        for what, asked in unsupported.items():
            if asked:
                raise NotImplementedError(f"Megatron on a CPU has plain causal attention only: {what} needs CUDA.")
        self.mask = attn_mask_type
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
        **_ignored: Any,
    ) -> torch.Tensor:
        """Attend; padding is at the end of a sequence, where causal attention does not see it.

        Returns:
            [s, b, heads * d], or [t, heads * d] of packed sequences.

        Raises:
            NotImplementedError: another mask than the causal one, or a bias.
        """
        if "causal" not in (attn_mask_type or self.mask).name or attention_bias is not None:
            raise NotImplementedError("Megatron on a CPU has plain causal attention only: no other mask, no bias.")
        if packed_seq_params is None:
            return self._attend(*(x.permute(1, 2, 0, 3) for x in (query, key, value))).permute(2, 0, 1, 3).flatten(2)
        padded = packed_seq_params.cu_seqlens_q_padded
        bounds = (packed_seq_params.cu_seqlens_q if padded is None else padded).tolist()
        if bounds[-1] != len(query):
            raise ValueError(f"packed sequences of {bounds[-1]} tokens in a batch of {len(query)}")
        parts = [
            self._attend(*(x[first:last].transpose(0, 1).unsqueeze(0) for x in (query, key, value)))
            for first, last in pairwise(bounds)
        ]
        return torch.cat(parts, dim=2).squeeze(0).transpose(0, 1).flatten(1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[b, heads, s, d] of each."""
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def sharded_state_dict(self, *_ignored: Any, **_more: Any) -> dict[str, Any]:
        """Nothing to save."""
        return {}


class CpuSpecProvider(BackendSpecProvider):  # type: ignore[misc]
    """In the place of ``TESpecProvider``: which class a layer's part has."""

    def linear(self) -> type:
        raise NotImplementedError("Megatron on a CPU has no multi-latent attention (TELinear).")

    def column_parallel_linear(self) -> type:
        return TEColumnParallelLinear

    def row_parallel_linear(self) -> type:
        return TERowParallelLinear

    def fuse_layernorm_and_linear(self) -> bool:
        return True

    def column_parallel_layer_norm_linear(self) -> type:
        return TELayerNormColumnParallelLinear

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False) -> type:
        return TENorm

    def core_attention(self) -> type:
        return TEDotProductAttention

    def grouped_mlp_modules(self, *_ignored: Any, **_more: Any) -> tuple[type, Any]:
        return SequentialMLP, MLPSubmodules(linear_fc1=TEColumnParallelLinear, linear_fc2=TERowParallelLinear)

    def activation_func(self) -> None:  # type: ignore[override, unused-ignore]
        return None
