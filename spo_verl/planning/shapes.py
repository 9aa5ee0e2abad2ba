"""The shape of a model: from its ``config.json``, or from a small table of public models."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spo_verl.errors import SpoConfigError
from spo_verl.files import read_json
from spo_verl.planning.formulas import evaluate, figure

FAMILIES = ("qwen3", "qwen2", "llama", "mistral")
"""``model_type`` of dense decoders with gated MLPs, which the formulae describe."""


@dataclass(frozen=True)
class DecoderShape:
    """A dense decoder. ``source`` says where the numbers come from."""

    name: str
    source: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    query_key_norm: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    @property
    def query(self) -> int:
        """Query heads times head size."""
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        """Key-value heads times head size."""
        return self.key_value_heads * self.head_size

    @property
    def embeddings(self) -> int:
        """Embedding matrices: 1 if input and output share one, else 2."""
        return 1 if self.tied else 2

    @property
    def layer_parameters(self) -> int:
        return int(
            figure(
                "layer_parameters", "parameters of a layer", h=self.hidden, q=self.query, k=self.key,
                f=self.intermediate, d=self.head_size, g=int(self.query_key_norm), b_qkv=int(self.qkv_bias),
                b_o=int(self.output_bias), b_mlp=int(self.mlp_bias),
            ).value
        )  # fmt: skip

    @property
    def matrix_parameters(self) -> int:
        """N: parameters of the layers' matrix products, without biases and norms."""
        symbols = {"L": self.layers, "h": self.hidden, "q": self.query, "k": self.key, "f": self.intermediate}
        return int(evaluate("L*(2*h*q + 2*h*k + 3*h*f)", symbols))

    @property
    def parameters(self) -> int:
        return int(
            figure(
                "parameters", "parameters", L=self.layers, P_l=self.layer_parameters, e=self.embeddings,
                V=self.vocabulary, h=self.hidden,
            ).value
        )  # fmt: skip


def _qwen3(name: str, layers: int, hidden: int, intermediate: int, heads: int, *, tied: bool) -> DecoderShape:
    return DecoderShape(name, "table of public shapes", layers, hidden, intermediate, heads, 8, 128, 151_936, tied)


# From the config.json on each model's page, https://huggingface.co/Qwen/<name>; compared with the Megatron arguments in
# slime's scripts/models/qwen3-*.sh, of 32B with MindSpeed-RL's configs/model/qwen3_32b.yaml. A test compares the
# parameter counts with those of the model cards.
PUBLIC = {
    shape.name: shape
    for shape in (
        _qwen3("Qwen3-0.6B", 28, 1024, 3072, 16, tied=True),
        _qwen3("Qwen3-1.7B", 28, 2048, 6144, 16, tied=True),
        _qwen3("Qwen3-4B", 36, 2560, 9728, 32, tied=True),
        _qwen3("Qwen3-8B", 36, 4096, 12288, 32, tied=False),
        _qwen3("Qwen3-14B", 40, 5120, 17408, 40, tied=False),
        _qwen3("Qwen3-32B", 64, 5120, 25600, 64, tied=False),
    )
}


def model_shape(path: str, config_file: Path | None = None) -> DecoderShape:
    """The shape of the model that ``actor_rollout_ref.model.path`` names.

    Looks, in this order, at ``config_file``, a local folder, the hub's cache on this machine, and the table of public
    shapes, for ``Qwen/<name>`` and ``Qwen/<name>-Base``. Nothing is downloaded and no code of a model is run.

    Raises:
        SpoConfigError: none of them knows it, or it is no dense decoder of :data:`FAMILIES`.
    """
    where = path if config_file is None else str(config_file)
    config = _auto_config(where)
    if config is not None:
        return shape_of(config, name=path, source=f"config.json of {where}")
    owner, _, name = path.rpartition("/")
    public = PUBLIC.get(name.removesuffix("-Base")) if owner == "Qwen" and config_file is None else None
    if public is not None:
        return public
    raise SpoConfigError(
        f"the shape of the model {path} is not known: {where} is no folder with a readable config.json, it is not in "
        f"the hub's cache on this machine, and the table of public shapes has only {', '.join(PUBLIC)}. Give the "
        "model's config.json, or its folder, with --model-config FILE."
    )


def shape_of(config: Any, *, name: str, source: str) -> DecoderShape:
    """The shape in a configuration of transformers.

    Raises:
        SpoConfigError: the family is none of :data:`FAMILIES`.
    """
    family = str(config.model_type)
    if family not in FAMILIES:
        raise SpoConfigError(
            f"{name} is of the family {family!r}; a plan describes dense decoders ({', '.join(FAMILIES)}). "
            "Mixtures of experts and multimodal models cannot be planned; give a dense model with --model-config FILE "
            "for a comparison."
        )
    bias = bool(getattr(config, "attention_bias", False))
    return DecoderShape(
        name=name,
        source=source,
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        intermediate=int(config.intermediate_size),
        heads=int(config.num_attention_heads),
        key_value_heads=int(config.num_key_value_heads),
        head_size=int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
        vocabulary=int(config.vocab_size),
        tied=bool(config.tie_word_embeddings),
        query_key_norm=family == "qwen3",
        qkv_bias=family == "qwen2" or bias,
        output_bias=bias and family != "qwen2",
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
    )


def _auto_config(where: str) -> Any | None:
    """What transformers reads from a file, a folder or the hub's cache; None where there is nothing to read."""
    from transformers import AutoConfig

    file = Path(os.path.expanduser(where))
    try:
        if os.path.isfile(file):
            return AutoConfig.for_model(**read_json(file, SpoConfigError))
        return AutoConfig.from_pretrained(str(file), local_files_only=True, trust_remote_code=False)
    except (
        OSError,
        ValueError,
        TypeError,
    ):  # not there, no JSON, or of no type that transformers knows: the caller says
        return None
