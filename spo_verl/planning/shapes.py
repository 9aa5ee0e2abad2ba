"""The shape of a model: from its ``config.json``, or from a small table of public models."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
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


SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
"""Fields of a ``config.json`` that a shape is made of."""


def model_shape(path: str, config_file: Path | None = None) -> DecoderShape:
    """The shape of the model that ``actor_rollout_ref.model.path`` names.

    Looks, in this order, at ``config_file``, a local folder, the hub's cache on this machine, and the table of public
    shapes, for ``Qwen/<name>`` and ``Qwen/<name>-Base``. Nothing is downloaded and no code of a model is run.

    Raises:
        SpoConfigError: none of them knows it, or it is no dense decoder of :data:`FAMILIES`.
    """
    where = path if config_file is None else str(config_file)
    if reason := not_dense(path, config_file):
        raise SpoConfigError(_unplanned(path, reason))
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


def not_dense(path: str, config_file: Path | None = None) -> str | None:
    """Why a model is no dense decoder of text, as far as its ``config.json`` or its name says; None otherwise.

    Args:
        path: as ``actor_rollout_ref.model.path``.
        config_file: where its ``config.json`` is, or the folder of it; default: as for :func:`model_shape`.
    """
    file = _config_file(path if config_file is None else str(config_file))
    content = {} if file is None else read_json(file, SpoConfigError)
    if isinstance(content, Mapping) and content:
        return _kind_of(content)
    name = path.rpartition("/")[2]
    if re.search(r"-A[0-9.]+B|MoE|Mixtral|[0-9]x[0-9.]+B", name, re.IGNORECASE):
        return _MIXTURE
    if re.search(r"(?:[-_.0-9]|\b)(?:VL|Vision|Omni)(?:[-_.0-9]|\b)|LLaVA|InternVL", name, re.IGNORECASE):
        return _MULTIMODAL
    return None


def _kind_of(content: Mapping[str, Any]) -> str | None:
    inner = content.get("text_config") or content.get("llm_config") or {}
    both = {**inner, **content} if isinstance(inner, Mapping) else dict(content)
    if any(
        re.search(r"vision|visual|audio|mm_projector", key) and content[key] not in (None, False) for key in content
    ):
        return _MULTIMODAL
    experts = [value for key, value in both.items() if re.fullmatch(r"(?:n|num)_(?:local_|routed_)?experts", key)]
    if "moe" in str(content.get("model_type")) or any(isinstance(count, int) and count > 1 for count in experts):
        return _MIXTURE
    return None


_MIXTURE = "a mixture of experts: each token uses a part of the weights, and experts are spread over GPUs"
_MULTIMODAL = "a multimodal model: its other towers and their tokens take memory and time too"


def shape_of(config: Any, *, name: str, source: str) -> DecoderShape:
    """The shape in a configuration of transformers.

    Raises:
        SpoConfigError: the family is not in :data:`FAMILIES`, or a size is no whole number of at least 1.
    """
    family = str(config.model_type)
    if family not in FAMILIES:
        raise SpoConfigError(_unplanned(name, f"of the family {family!r}"))
    for field in SIZES:
        size = getattr(config, field)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise SpoConfigError(f"{source}: {field} is {size!r}, and has to be a whole number of at least 1.")
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


def _unplanned(name: str, reason: str) -> str:
    return (
        f"{name} is {reason}. A plan's formulae describe dense decoders of text ({', '.join(FAMILIES)}); give the "
        "config.json of a dense model with --model-config FILE for a comparison."
    )


def _config_file(where: str) -> Path | None:
    """The ``config.json`` of a file, a folder or the hub's cache on this machine; None if there is no such file."""
    from huggingface_hub import try_to_load_from_cache

    path = Path(os.path.expanduser(where))
    for file in (path, path / "config.json"):
        if os.path.isfile(file):
            return file
    try:
        cached = try_to_load_from_cache(where, "config.json")
    except ValueError:  # no name that the hub could have
        return None
    return Path(cached) if isinstance(cached, str) else None


def _auto_config(where: str) -> Any | None:
    """What transformers makes of a ``config.json``; None where there is none."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    file = _config_file(where)
    if file is None:
        return None
    content = read_json(file, SpoConfigError)
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise SpoConfigError(
            f"{file}: it is no model's configuration, as it has no text model_type (planned: {', '.join(FAMILIES)}): "
            "give the model's own config.json with --model-config FILE."
        )
    if content["model_type"] not in FAMILIES:
        raise SpoConfigError(_unplanned(where, f"of the family {content['model_type']!r}"))
    try:
        return AutoConfig.for_model(**content)
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as reason:
        raise SpoConfigError(
            f"{file}: transformers cannot read it as {content['model_type']} "
            f"({' '.join(str(reason).split())[:200]}): give another config.json with --model-config FILE."
        ) from reason
