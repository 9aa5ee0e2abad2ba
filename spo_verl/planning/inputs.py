"""What a plan reads from verl's configuration, and what the user assumes in addition."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from spo_verl.config import SpoConfig, no_count, parse, refuse
from spo_verl.errors import SpoConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

GIB = 2**30
DTYPE_BYTES = {"fp32": 4, "float32": 4, "float": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "half": 2,
               "auto": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}  # fmt: skip


@dataclass(frozen=True)
class Assumptions:
    """What no configuration says. ``None``: not given.

    Attributes:
        gpu_memory: bytes of one GPU.
        reserve: bytes of it for what no formula covers.
        prompts: different prompts in the training data.
        prompt_tokens, response_tokens: means over a step's trajectories.
        mfu, gpu_tflops: share of the GPU's peak that training reaches, and that peak, in 10**12 per second.
        tokens_per_second: generated tokens per second and rollout GPU, over the whole generation of a step.
    """

    gpu_memory: float = 80 * GIB
    reserve: float = 4 * GIB
    prompts: int | None = None
    prompt_tokens: float | None = None
    response_tokens: float | None = None
    mfu: float | None = None
    gpu_tflops: float | None = None
    tokens_per_second: float | None = None

    def check(self) -> None:
        """Raises :class:`SpoConfigError` for assumptions that do not go together."""
        if (self.mfu is None) != (self.gpu_tflops is None):
            raise SpoConfigError(
                "a time of training needs both --mfu (share of the peak) and --gpu-tflops (the peak of one GPU, from "
                "its data sheet, without sparsity): give both or neither."
            )


@dataclass(frozen=True)
class PlannedRun:
    """A run as its configuration describes it; sizes are per GPU where the name says so."""

    model_path: str
    megatron: bool
    separate: bool
    nodes: int
    gpus_per_node: int
    rollout_gpus: int
    batch: int
    rollouts: int
    mini_batch: int
    epochs: int
    max_prompt: int
    max_response: int
    dynamic: bool
    token_limit: int
    micro_batch: int | None
    forward_dynamic: bool
    forward_token_limit: int
    forward_micro_batch: int | None
    sequence_parallel: int
    shards: int
    tensor_parallel: int
    pipeline_parallel: int
    context_parallel: int
    distributed_optimizer: bool
    weight_bytes: int
    compute_bytes: int
    reshard: bool
    param_offload: bool
    optimizer_offload: bool
    gradient_checkpointing: bool
    activation_offload: bool
    fused_kernels: bool
    chunked_entropy: bool
    entropy_in_update: bool
    scaled_logits: bool
    lora_rank: int
    reference: bool
    reference_offload: bool
    bypass: bool
    rollout_tensor_parallel: int
    rollout_pipeline_parallel: int
    rollout_share: float
    rollout_bytes: int
    cache_bytes: int
    max_model_len: int | None
    max_num_seqs: int
    frees_cache: bool
    hf_model: bool
    spo: SpoConfig | None

    @property
    def gpus(self) -> int:
        """Training GPUs."""
        return self.nodes * self.gpus_per_node

    @property
    def trajectories(self) -> int:
        return self.batch * self.rollouts

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_prompt + self.max_response

    @property
    def split(self) -> int:
        """GPUs that one sequence's tokens are spread over while training."""
        return self.context_parallel if self.megatron else self.sequence_parallel

    @property
    def engines(self) -> int:
        return self.rollout_gpus // (self.rollout_tensor_parallel * self.rollout_pipeline_parallel)

    @property
    def update_tokens(self) -> int:
        """T: tokens of a micro-batch of the update on one GPU, at most."""
        return self._tokens(self.dynamic, self.token_limit, self.micro_batch, self.mini_batch * self.rollouts)

    @property
    def forward_tokens(self) -> int:
        """T_f: the same for a forward alone."""
        return self._tokens(self.forward_dynamic, self.forward_token_limit, self.forward_micro_batch, self.trajectories)

    def _tokens(self, dynamic: bool, limit: int, micro_batch: int | None, trajectories: int) -> int:
        longest = ceil(self.longest / self.split)
        if not dynamic:
            return (micro_batch or 1) * longest
        groups = max(1, self.gpus // (self.tensor_parallel * self.pipeline_parallel))
        # All that a GPU has to work on may be less than the limit. A limit below the longest sequence is refused by
        # verl; the plan says so and computes with the sequence.
        return max(longest, min(limit, ceil(trajectories * self.longest / groups)))


def run_of(config: DictConfig) -> PlannedRun:
    """Read a composed configuration.

    Raises:
        SpoConfigError: a key that the plan needs is missing or is no number.
    """
    get = _Reader(config)
    actor, model, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"
    megatron = str(get(f"{actor}.strategy")) == "megatron"
    engine = f"{actor}.megatron" if megatron else f"{actor}.fsdp_config"
    nodes, gpus = get.count("trainer.nnodes"), get.count("trainer.n_gpus_per_node")
    separate = get("trainer.v1.trainer_mode", "sync") == "separate_async"
    rollout_gpus = (
        get.count(f"{rollout}.nnodes") * get.count(f"{rollout}.n_gpus_per_node") if separate else nodes * gpus
    )
    shards = get.whole(f"{engine}.fsdp_size", -1)
    is_spo = get("algorithm.adv_estimator") == "spo"
    compute = get(f"{engine}.mixed_precision.param_dtype", None) or get(f"{engine}.dtype", "bfloat16")
    entropy = float(get(f"{actor}.entropy_coeff", 0) or 0) != 0 or bool(get(f"{actor}.calculate_entropy", False))
    return PlannedRun(
        model_path=str(get(f"{model}.path")),
        megatron=megatron,
        separate=separate,
        nodes=nodes,
        gpus_per_node=gpus,
        rollout_gpus=rollout_gpus,
        batch=get.count("data.train_batch_size"),
        rollouts=get.count(f"{rollout}.n"),
        mini_batch=get.count(f"{actor}.ppo_mini_batch_size"),
        epochs=get.count(f"{actor}.ppo_epochs"),
        max_prompt=get.count("data.max_prompt_length"),
        max_response=get.count("data.max_response_length"),
        dynamic=bool(get(f"{actor}.use_dynamic_bsz")),
        token_limit=get.count(f"{actor}.ppo_max_token_len_per_gpu"),
        micro_batch=get.count_or_none(f"{actor}.ppo_micro_batch_size_per_gpu"),
        forward_dynamic=bool(get(f"{rollout}.log_prob_use_dynamic_bsz")),
        forward_token_limit=get.count(f"{rollout}.log_prob_max_token_len_per_gpu"),
        forward_micro_batch=get.count_or_none(f"{rollout}.log_prob_micro_batch_size_per_gpu"),
        sequence_parallel=1 if megatron else get.count(f"{actor}.ulysses_sequence_parallel_size", 1),
        shards=nodes * gpus if shards <= 0 else min(shards, nodes * gpus),
        tensor_parallel=get.count(f"{engine}.tensor_model_parallel_size", 1) if megatron else 1,
        pipeline_parallel=get.count(f"{engine}.pipeline_model_parallel_size", 1) if megatron else 1,
        context_parallel=get.count(f"{engine}.context_parallel_size", 1) if megatron else 1,
        distributed_optimizer=bool(get(f"{engine}.use_distributed_optimizer", False)) if megatron else False,
        weight_bytes=_bytes_of(get(f"{engine}.model_dtype", None) or "fp32", f"{engine}.model_dtype"),
        compute_bytes=_bytes_of(compute, f"{engine}.dtype"),
        reshard=bool(get(f"{engine}.reshard_after_forward", True)),
        param_offload=bool(get(f"{engine}.param_offload", False) or get(f"{engine}.offload_policy", False)),
        optimizer_offload=bool(get(f"{engine}.optimizer_offload", False) or get(f"{engine}.offload_policy", False)),
        gradient_checkpointing=get(f"{engine}.override_transformer_config.recompute_granularity", None) == "full"
        if megatron
        else bool(get(f"{model}.enable_gradient_checkpointing")),
        activation_offload=bool(get(f"{model}.enable_activation_offload", False)),
        fused_kernels=bool(get(f"{model}.use_fused_kernels", False)),
        chunked_entropy=bool(get(f"{actor}.entropy_from_logits_with_chunking", False)),
        entropy_in_update=entropy,
        scaled_logits=float(get(f"{rollout}.temperature", 1.0)) != 1.0,
        lora_rank=get.whole(f"{model}.lora.rank" if megatron else f"{model}.lora_rank", 0),
        reference=bool(get(f"{actor}.use_kl_loss", False) or get("algorithm.use_kl_in_reward", False)),
        reference_offload=bool(
            get(f"actor_rollout_ref.ref.{'megatron' if megatron else 'fsdp_config'}.param_offload", False)
        ),
        bypass=bool(get("algorithm.rollout_correction.bypass_mode", False)),
        rollout_tensor_parallel=get.count(f"{rollout}.tensor_model_parallel_size", 1),
        rollout_pipeline_parallel=get.count(f"{rollout}.pipeline_model_parallel_size", 1),
        rollout_share=get.share(f"{rollout}.gpu_memory_utilization"),
        rollout_bytes=_bytes_of(get(f"{rollout}.dtype"), f"{rollout}.dtype"),
        cache_bytes=_cache_bytes(get, rollout),
        max_model_len=get.count_or_none(f"{rollout}.max_model_len"),
        max_num_seqs=get.count(f"{rollout}.max_num_seqs"),
        frees_cache=bool(get(f"{rollout}.free_cache_engine", True)),
        hf_model="hf_model" in list(get(f"{actor}.checkpoint.save_contents", [])),
        spo=_spo_of(config) if is_spo else None,
    )


def _spo_of(config: DictConfig) -> SpoConfig:
    from omegaconf import OmegaConf

    section = OmegaConf.select(config, "spo", default=None)
    plain: Any = None if section is None else OmegaConf.to_container(section, resolve=True)
    parsed, problems = parse(plain)
    refuse(problems)
    assert parsed is not None  # there were no problems
    return parsed


def _bytes_of(dtype: Any, key: str) -> int:
    try:
        return DTYPE_BYTES[str(dtype).removeprefix("torch.")]
    except KeyError:
        raise SpoConfigError(
            f"{key}={dtype}: a plan knows the types {', '.join(DTYPE_BYTES)}; set one of them."
        ) from None


def _cache_bytes(get: _Reader, rollout: str) -> int:
    key = f"{rollout}.engine_kwargs.vllm.kv_cache_dtype"
    chosen = get(key, None)
    if chosen in (None, "auto"):
        return _bytes_of(get(f"{rollout}.dtype"), f"{rollout}.dtype")
    return _bytes_of(chosen, key)


_REQUIRED: Any = object()


class _Reader:
    """Values of a configuration by dotted key, resolved."""

    def __init__(self, config: DictConfig) -> None:
        self._config = config

    def __call__(self, key: str, default: Any = _REQUIRED) -> Any:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            found = OmegaConf.select(self._config, key, default=None)
        except OmegaConfBaseException as error:
            raise SpoConfigError(f"{key} cannot be resolved ({error}); set {key}.") from error
        if found is not None:
            return found
        if default is _REQUIRED:
            raise SpoConfigError(f"{key} is not set, and a plan needs it; set {key}=...")
        return default

    def whole(self, key: str, default: Any = _REQUIRED) -> int:
        value = self(key, default)
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError):
            raise SpoConfigError(f"{key}={value!r} is no whole number; set one.") from None

    def count(self, key: str, default: Any = _REQUIRED) -> int:
        """A whole number of at least 1."""
        value = self(key, default)
        if problem := no_count(key, value):
            raise SpoConfigError(problem)
        return int(value)

    def count_or_none(self, key: str) -> int | None:
        return None if self(key, None) is None else self.count(key)

    def share(self, key: str) -> float:
        """A number in (0, 1]."""
        value = self(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise SpoConfigError(f"{key}={value}: it has to be a share above 0 and at most 1; set {key} to one.")
        return float(value)
