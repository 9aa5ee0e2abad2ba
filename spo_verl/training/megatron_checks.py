"""What is known to go wrong with ``model_engine=megatron`` on any hardware, found before a run takes accelerators.

``patches/upstream`` has the fixes for verl. What Megatron-Bridge makes of a model is judged for the versions that were
read, and only where this environment can train with it on an accelerator: the CPU platform corrects the bridge itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from packaging.version import Version

from spo_verl.conf import chosen_platform
from spo_verl.errors import SpoConfigError
from spo_verl.files import read_json

ENGINE = "actor_rollout_ref.actor.megatron"
READ_BRIDGE = Version("0.3.1")
"""The newest Megatron-Bridge that was read; the faults below are in it."""
BRIDGE_DEFAULTS: dict[str, float] = {
    **dict.fromkeys(
        (
            "gemma", "gemma2", "glm4_moe", "gpt_oss", "llama", "nemotron", "olmoe", "qwen2", "qwen2_5_vl", "qwen3",
            "qwen3_moe",
        ),
        10_000.0,
    ),
    "qwen3_vl": 5_000_000.0,
    "qwen3_vl_moe": 5_000_000.0,
}  # fmt: skip
"""By ``model_type``: the base that Megatron-Bridge takes where the model's configuration has no attribute
``rope_theta``. Models that are not here read another attribute, or stop without it."""


def contradictions(config: DictConfig) -> Iterator[str]:
    """Yield every setting of the actor's Megatron engine that stops a run late, or trains another model, with its fix.

    The model is judged where its ``config.json`` is on this machine: a folder, or the hub's cache.
    """
    if _select(config, "actor_rollout_ref.actor.strategy") != "megatron":
        return
    if not _distributed_optimizer(config):
        yield (
            f"{ENGINE}.use_distributed_optimizer=False: verl 0.9.1 stops when it first moves the weights (param_data "
            f"is None); set {ENGINE}.use_distributed_optimizer=True, and leave it out of override_ddp_config."
        )
    if (file := _config_file(str(_select(config, "actor_rollout_ref.model.path")))) is not None:
        yield from model_problems(config, file)


def model_problems(config: DictConfig, file: Path) -> Iterator[str]:
    """Yield what Megatron-Bridge would make of the model wrongly, with the setting that corrects it.

    Args:
        config: a run with ``actor.strategy=megatron``.
        file: the model's ``config.json``.
    """
    bridge = _bridge()
    if bridge is None or bridge > READ_BRIDGE or not _select(config, f"{ENGINE}.use_mbridge"):
        return
    if _select(config, f"{ENGINE}.vanilla_mbridge"):
        return
    model = _read_model(file)
    overridden: Any = _select(config, f"{ENGINE}.override_transformer_config") or {}
    yield from _rotary_base(model, file.parent, overridden, bridge)
    stages = _select(config, f"{ENGINE}.pipeline_model_parallel_size") or 1
    parts = _select(config, f"{ENGINE}.virtual_pipeline_model_parallel_size") or 1
    tied = overridden.get("share_embeddings_and_output_weights", getattr(model, "tie_word_embeddings", False))
    if stages > 1 and parts > 1 and tied:
        yield (
            f"{ENGINE}.virtual_pipeline_model_parallel_size={parts}: {file.parent} uses one matrix for input and "
            f"output embeddings, and megatron-bridge {bridge} looks for it in the wrong part of the last stage "
            f'("Output layer not found"); set {ENGINE}.virtual_pipeline_model_parallel_size=null.'
        )


def _rotary_base(model: Any, where: Path, overridden: Any, bridge: Version) -> Iterator[str]:
    """transformers 5 keeps ``rope_theta`` in ``rope_parameters``, where this bridge does not look."""
    key = "rotary_base"
    text = model.get_text_config() if hasattr(model, "get_text_config") else model
    default = BRIDGE_DEFAULTS.get(str(getattr(model, "model_type", None)))
    parameters = getattr(text, "rope_parameters", None)
    theta = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    if default is None or theta is None or getattr(text, "rope_theta", None) is not None:
        return
    setting = f"{ENGINE}.override_transformer_config.{key}"
    if key not in overridden and default != theta:
        yield (
            f"megatron-bridge {bridge} does not find rope_theta where transformers {_installed('transformers')} has "
            f"it, and takes {default:.10g} without a word; the model ({where}) has {theta:.10g}, so that another model "
            f"would be trained; set +{setting}={theta:.10g}."
        )
    elif key in overridden and overridden[key] != theta:
        yield f"{setting}={overridden[key]}: the model ({where}) has rope_theta {theta:.10g}; set it to that."


def _distributed_optimizer(config: DictConfig) -> bool:
    """Whether weights lie in buffers of Megatron's distributed optimizer, as verl's engine decides it."""
    optimizer = "actor_rollout_ref.actor.optim"
    muon = str(_select(config, f"{optimizer}.optimizer")).lower() == "muon"
    if muon and _select(config, f"{optimizer}.use_layer_wise_distributed_optimizer"):
        return True
    wanted = _select(config, f"{ENGINE}.use_distributed_optimizer") or _select(config, f"{ENGINE}.use_megatron_fsdp")
    overridden: Any = _select(config, f"{ENGINE}.override_ddp_config") or {}
    return bool(overridden.get("use_distributed_optimizer", wanted))


def _bridge() -> Version | None:
    """Megatron-Bridge as this environment would use it on an accelerator; None where it would not."""
    if chosen_platform() == "cpu" or _installed("transformer-engine") is None:
        return None
    found = _installed("megatron-bridge")
    return None if found is None else Version(found)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _config_file(model: str) -> Path | None:
    """The ``config.json`` of a folder or of a model in the hub's cache; None where it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    file = Path(os.path.expanduser(model)) / "config.json"
    if os.path.isfile(file):
        return file
    try:
        cached = try_to_load_from_cache(model, "config.json")
    except ValueError:  # no name that the hub could have
        return None
    return Path(cached) if isinstance(cached, str) else None


def _read_model(file: Path) -> Any:
    """The configuration as transformers lays it out; as it is in the file where transformers does not know its type."""
    from transformers import CONFIG_MAPPING, AutoConfig

    content = read_json(file, SpoConfigError)
    if not isinstance(content, dict):
        raise SpoConfigError(f"{file} is no model's config.json: give the folder of a model.")
    if content.get("model_type") in CONFIG_MAPPING:
        return AutoConfig.for_model(**content)
    return SimpleNamespace(**content)


def _select(config: DictConfig, key: str) -> Any:
    found = OmegaConf.select(config, key, default=None)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
