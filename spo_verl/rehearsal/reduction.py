"""What a rehearsal changes in a recipe, key by key with the reason; everything else stays as the recipe has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spo_verl.conf import platform_values
from spo_verl.config import estimates_first
from spo_verl.rehearsal.split import Split

if TYPE_CHECKING:
    from omegaconf import DictConfig

Kind = Literal["training", "offline values", "evaluation"]
Device = Literal["cpu", "gpu"]

STEPS = 2
TRAJECTORIES = 16
MINI_BATCHES = 2
HELD_OUT = 4
RESPONSE_TOKENS = 48
"""Tokens of a response of one turn."""
TURNS_TOKENS = 192
"""The same where an agent loop calls tools: two calls with what they return fit."""

ONE = Split()
MICRO_BATCH = 2
MICRO_BATCHES = (
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
)

NO_ACCELERATOR = "a CPU has no accelerator (+platform=cpu)"
SMALL = "two steps in a minute or two"
PLACE = "everything is written into the rehearsal's folder"


@dataclass(frozen=True)
class Change:
    """One key that differs: the recipe's value, the rehearsal's, and why."""

    key: str
    recipe: Any
    rehearsal: Any
    why: str
    group: bool = False
    """Set by the platform's group, not by an override."""


@dataclass(frozen=True)
class Files:
    """What was made for a rehearsal."""

    folder: Path
    model: Path
    train: Path
    held_out: Path
    values: Path
    longest_prompt: int

    @property
    def estimated(self) -> Path:
        """Where a rehearsed estimation writes."""
        return self.folder / "estimated.parquet"

    @property
    def dumps(self) -> Path:
        """Where a rehearsed evaluation dumps its responses."""
        return self.folder / "validation"


def kind_of(config: DictConfig) -> Kind:
    """What a recipe does."""
    output = _select(config, "spo.estimate.output")
    if output is not None and not estimates_first(output, _select(config, "spo.initial.values")):
        return "offline values"
    return "evaluation" if config.trainer.val_only else "training"


def calls_tools(config: DictConfig) -> bool:
    """Whether the agent loop is another than verl's single turn."""
    return str(config.actor_rollout_ref.rollout.agent.default_agent_loop) != "single_turn_agent"


def response_tokens(config: DictConfig) -> int:
    """Length of a rehearsed response."""
    return TURNS_TOKENS if calls_tools(config) else RESPONSE_TOKENS


def shared_rows(config: DictConfig) -> int:
    """Rows that data-parallel ranks share at a time: of a mini-batch, or the held-out ones where nothing is trained."""
    if kind_of(config) == "evaluation":
        return HELD_OUT
    return _mini_batch(config) * int(config.actor_rollout_ref.rollout.n)


def train_prompts(config: DictConfig) -> int:
    """Rows that are needed: a batch, and what is in flight at the same time."""
    return 3 * _prompts(config)


def changes(config: DictConfig, files: Files, *, device: Device, split: Split = ONE) -> list[Change]:
    """Every key whose value differs from the recipe's, in the order of the table that is printed.

    Args:
        config: the composed recipe, with the caller's own overrides.
        files: stand-ins for model and data.
        split: training processes.
    """
    reduced = {key: (value, why, False) for key, value, why in _reduced(config, files, device, split)}
    wanted = {**_platform(config, device), **reduced}
    found = []
    for key, (value, why, group) in wanted.items():
        recipe = _select(config, key)
        if recipe != value:
            found.append(Change(key, recipe, value, why, group))
    return found


def overrides(found: list[Change]) -> list[str]:
    """The changes on hydra's command line; ``+platform=cpu`` is that of its group."""
    from spo_verl.launching.launch import hydra_value

    return [f"{change.key}={hydra_value(change.rehearsal)}" for change in found if not change.group]


def _prompts(config: DictConfig) -> int:
    return max(1, TRAJECTORIES // int(config.actor_rollout_ref.rollout.n))


def _mini_batch(config: DictConfig) -> int:
    """Prompts of a mini-batch."""
    return max(1, _prompts(config) // MINI_BATCHES)


def _platform(config: DictConfig, device: Device) -> dict[str, tuple[Any, str, bool]]:
    from spo_verl.launching.composition import leaves

    if device != "cpu":
        return {}
    values = platform_values(str(config.model_engine))
    return {key: (value, NO_ACCELERATOR, True) for key, value in leaves(values)}


def _reduced(config: DictConfig, files: Files, device: Device, split: Split) -> Iterator[tuple[str, Any, str]]:
    yield from _model_and_data(config, files)
    yield from _sizes(config, files, split)
    yield from _devices(config, device, split)
    yield from _of_kind(config, files, split)
    yield "trainer.logger", ["console", "file"], "the verdict reads verl's file log"
    yield "trainer.default_local_dir", str(files.folder / "checkpoints"), PLACE
    yield "trainer.resume_mode", "disable", "each rehearsal begins at step 0"


def _model_and_data(config: DictConfig, files: Files) -> Iterator[tuple[str, Any, str]]:
    yield "actor_rollout_ref.model.path", str(files.model), "a small stand-in"
    yield "data.train_files", [str(files.train)], "the first rows of the data"
    yield "data.val_files", [str(files.held_out)], "rows after those"
    if _select(config, "actor_rollout_ref.model.tokenizer_path") is not None:
        yield "actor_rollout_ref.model.tokenizer_path", str(files.model), "the stand-in's own"
    values, output = _select(config, "spo.initial.values"), _select(config, "spo.estimate.output")
    if estimates_first(output, values):
        yield "spo.initial.values", str(files.estimated), PLACE
        yield from _estimation(config, files)
    elif values is not None:
        yield "spo.initial.values", str(files.values), "made-up values of these rows, in the same format"


def _sizes(config: DictConfig, files: Files, split: Split) -> Iterator[tuple[str, Any, str]]:
    prompts, response = _prompts(config), response_tokens(config)
    whole = files.longest_prompt + response
    rollout = "actor_rollout_ref.rollout"
    yield "data.train_batch_size", prompts, SMALL
    yield "actor_rollout_ref.actor.ppo_mini_batch_size", _mini_batch(config), "two updates per step"
    yield "data.max_prompt_length", files.longest_prompt, "the longest of these rows in the stand-in's tokens"
    yield "data.max_response_length", response, SMALL
    yield f"{rollout}.max_num_batched_tokens", max(1024, whole), SMALL
    yield f"{rollout}.max_num_seqs", 64, "buffers of a small engine"
    if config.actor_rollout_ref.actor.use_dynamic_bsz:
        # So small that a mini-batch still takes several micro-batches.
        yield "actor_rollout_ref.actor.ppo_max_token_len_per_gpu", 3 * whole, "several micro-batches per update"
        yield f"{rollout}.log_prob_max_token_len_per_gpu", 6 * whole, "several micro-batches per forward"
    for key in MICRO_BATCHES:
        if (micro := _select(config, key)) is not None:
            most = max(1, min(MICRO_BATCH, shared_rows(config) // split.copies))
            yield key, min(int(micro), most), "a mini-batch has no more"
    if _select(config, f"{rollout}.max_model_len") is not None:
        yield f"{rollout}.max_model_len", whole, "the stand-in's longest sequence"
    if _select(config, "data.val_batch_size") is not None:
        yield "data.val_batch_size", HELD_OUT, "as many rows are held out"
    yield f"{rollout}.val_kwargs.n", min(2, int(config.actor_rollout_ref.rollout.val_kwargs.n)), SMALL
    if config.trainer.v1.trainer_mode == "separate_async":
        yield "trainer.v1.separate_async.parameter_sync_step", MINI_BATCHES, "as many as updates per step"


def _devices(config: DictConfig, device: Device, split: Split) -> Iterator[tuple[str, Any, str]]:
    why = split.text() or "one device"
    yield "trainer.n_gpus_per_node", split.ranks, why
    yield "trainer.nnodes", 1, why
    yield "actor_rollout_ref.rollout.n_gpus_per_node", split.ranks, why
    yield "actor_rollout_ref.rollout.tensor_model_parallel_size", 1, why
    actor = config.actor_rollout_ref.actor
    if "ulysses_sequence_parallel_size" in actor:
        yield "actor_rollout_ref.actor.ulysses_sequence_parallel_size", split.sp, why
    if "megatron" in actor:
        yield "actor_rollout_ref.actor.megatron.tensor_model_parallel_size", split.tp, why
        yield "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size", split.pp, why
        yield "actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size", None, why
        for key in ("context", "expert_model"):
            yield f"actor_rollout_ref.actor.megatron.{key}_parallel_size", 1, why
    if device == "cpu" and "fsdp_config" in actor:
        yield "actor_rollout_ref.actor.fsdp_config.param_offload", False, "nothing to offload to"
        yield "actor_rollout_ref.actor.fsdp_config.optimizer_offload", False, "nothing to offload to"
    if device == "cpu" and split.ranks > 2:
        yield "ray_kwargs.ray_init.num_cpus", 16 * split.ranks, "Ray's slots for all processes"


def _of_kind(config: DictConfig, files: Files, split: Split) -> Iterator[tuple[str, Any, str]]:
    kind = kind_of(config)
    if kind == "training":
        yield "trainer.total_training_steps", STEPS, SMALL
        yield "trainer.save_freq", STEPS, "a checkpoint at the end"
        yield "trainer.test_freq", STEPS, "one validation at the end"
        yield "trainer.val_before_train", False, SMALL
    elif kind == "offline values":
        yield from _estimation(config, files)
        yield "data.val_files", [str(files.train)], "as the training data"
    else:
        yield "trainer.validation_data_dir", str(files.dumps), PLACE
        yield "data.train_files", [str(files.held_out)], "as the validation data"
        yield "data.train_batch_size", split.ranks, "nothing is trained"
        yield "actor_rollout_ref.actor.ppo_mini_batch_size", split.ranks, "nothing is trained"


def _estimation(config: DictConfig, files: Files) -> Iterator[tuple[str, Any, str]]:
    yield "spo.estimate.output", str(files.estimated), PLACE
    yield "spo.estimate.trials", 2, SMALL
    yield "spo.estimate.chunk", max(1, train_prompts(config) // 2), "two parts"


def _select(config: DictConfig, key: str) -> Any:
    from omegaconf import OmegaConf

    found = OmegaConf.select(config, key)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
