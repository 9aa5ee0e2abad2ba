"""Every name of verl (and TransferQueue) that the trainer side of the plugin overrides, wraps or reads.

An SPO run checks the list before it starts and a test checks it against the installed verl, so that another version
fails here, with the names that moved, and not in the middle of training. The CPU platform keeps its own list in
:mod:`spo_verl.cpu`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from spo_verl import SUPPORTED_VERL
from spo_verl.errors import SpoVersionError
from spo_verl.seam import Seam

_BASE = "verl.trainer.ppo.v1.trainer_base"
_BUFFER = "verl.trainer.ppo.v1.replay_buffer"
_LOOPS = "verl.trainer.ppo.v1.agent_loop_tq"
_CLIENT = "verl.workers.rollout.llm_server"

SEAMS: tuple[Seam, ...] = (
    # trainer
    Seam(_BASE, "PPOTrainer.__init__", "override", "(self, config)"),
    Seam(_BASE, "PPOTrainer.fit", "override", "(self, agent_loop_manager)"),
    Seam(_BASE, "PPOTrainer._init_tokenizer", "override", "(self)"),
    Seam(_BASE, "PPOTrainer._init_dataloader", "override", "(self)"),
    Seam(_BASE, "PPOTrainer._next_train_batch", "override", "(self, num_prompts=None)"),
    Seam(_BASE, "PPOTrainer.prepare_step", "override", "(self)"),
    Seam(_BASE, "PPOTrainer._step_once", "override", "(self, metrics, timing_raw, sample_batch_size)"),
    Seam(_BASE, "PPOTrainer._compute_old_log_prob", "override", "(self, batch, metrics)"),
    Seam(_BASE, "PPOTrainer._compute_advantage", "override", "(self, batch, metrics)"),
    Seam(_BASE, "PPOTrainer._save_checkpoint", "override", "(self)"),
    Seam(_BASE, "PPOTrainer._validate", "override", "(self)"),
    Seam(_BASE, "PPOTrainer._load_checkpoint", "override", "(self)"),
    Seam(
        _BASE,
        "PPOTrainer._compute_metrics",
        "override",
        "(self, batch, metrics, timing_raw, global_steps, epoch)",
    ),
    Seam(_BASE, "PPOTrainer._fetch_one_gen_batch", "read", "(self)"),
    Seam(_BASE, "PPOTrainer._submit_batch_to_rollout", "read", "(self, batch)"),
    Seam(_BASE, "PPOTrainer._compute_reward_colocate", "read", "(self, batch, metrics=None)"),
    Seam(
        _BUFFER,
        "ReplayBuffer.sample",
        "override",
        "(self, global_steps, partition_id, batch_size)",
    ),
    # which rows share a mini-batch
    Seam(
        _BASE,
        "PPOTrainer._balance_batch",
        "override",
        "(self, batch, metrics, logging_prefix='global_seqlen', keep_minibatch=False)",
    ),
    Seam(
        _BUFFER,
        "ReplayBuffer._materialize_batch",
        "override",
        "(self, partition_id, selected_prompt_uids, partition_snapshot)",
    ),
    Seam("verl.workers.engine_workers", "TrainingWorker.train_mini_batch", "read", "(self, data)"),
    Seam(
        "verl.utils.tensordict_utils",
        "make_iterator",
        "read",
        "(tensordict, mini_batch_size, epochs, seed=None, dataloader_kwargs=None)",
    ),
    Seam("verl.utils.seqlen_balancing", "log_seqlen_unbalance", "read", "(seqlen_list, partitions, prefix)"),
    # rollouts that outlive a step
    Seam(_BASE, "PPOTrainer._build_replay_buffer", "override", "(self)"),
    Seam(_BASE, "PPOTrainer._reissue_inflight_prompts", "override", "(self, partition_id='train')"),
    Seam(_BASE, "PPOTrainer._add_async_warmup_batches", "read", "(self, num_warmup_batches)"),
    Seam(_BUFFER, "ReplayBuffer._sync_metadata_from_transfer_queue", "override", "(self)"),
    Seam(_BUFFER, "ReplayBuffer._terminal_eviction_reasons", "override", "(self, global_steps, partition_id)"),
    Seam(
        _BUFFER,
        "ReplayBuffer._evict_terminal_groups",
        "override",
        "(self, global_steps, partition_id, eviction_reasons)",
    ),
    Seam(
        _BUFFER,
        "ReplayBuffer._select_prompt_uids",
        "override",
        "(self, partition_id, sampleable_keys, batch_size)",
    ),
    Seam("verl.utils.import_utils", "resolve_config_path", "read", "(config_path)"),
    # rollouts that are stopped
    Seam(_BASE, "PPOTrainer.on_sample_end", "override", "(self)"),
    Seam(_BASE, "PPOTrainer.on_step_end", "override", "(self)"),
    Seam(_BASE, "PPOTrainer._add_prompts_to_generate", "read", "(self, num_prompts)"),
    Seam(_BASE, "PPOTrainer.get_llm_client", "override", "(self)"),
    Seam(_LOOPS, "AgentLoopManagerTQ.__init__", "override", "(self, *args, **kwargs)"),
    # Without a signature: Ray's tracing adds a parameter to it.
    Seam(_LOOPS, "AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_prompt", "override"),
    Seam(_CLIENT, "LLMServerClient._acquire_server", "override", "(self, request_id, **extra)"),
    Seam(_CLIENT, "LLMServerClient._vllm_request_id", "override", "(self, request_id)"),
    Seam(
        _CLIENT,
        "FullyAsyncLLMServerClient.generate",
        "override",
        "(self, request_id, *, prompt_ids, sampling_params, image_data=None, video_data=None, audio_data=None, "
        "mm_processor_kwargs=None, **kwargs)",
    ),
    Seam("transfer_queue", "kv_list", "read", "(partition_id=None)"),
    Seam("transfer_queue", "interface._TQ_STORAGE", "read"),
    Seam("transfer_queue", "interface._TQ_CONTROLLER", "read"),
    Seam("verl.trainer.ppo.v1.trainer_colocate_async", "PPOTrainerColocateAsync", "override", "(config)"),
    Seam("verl.trainer.ppo.v1.trainer_separate_async", "PPOTrainerSeparateAsync", "override", "(config)"),
    Seam("verl.utils.skip", "SkipManager", "read"),
    Seam(_BASE, "PPOTrainer.step", "wrap", "(self, metrics, timing_raw)"),
    Seam(_BASE, "PPOTrainer._validate", "wrap", "(self)"),
    Seam(_BASE, "get_trainer_cls", "read", "(name)"),
    Seam("verl.trainer.ppo.v1.trainer_sync", "PPOTrainerSync", "override", "(config)"),
    Seam("verl.trainer.ppo.ray_trainer", "RayPPOTrainer.__init__", "wrap"),
    # histograms and samples
    Seam(
        "verl.utils.tracking",
        "Tracking",
        "read",
        "(project_name, experiment_name, default_backend='console', config=None)",
    ),
    Seam("verl.utils.tracking", "_TensorboardAdapter", "read", "(project_name, experiment_name)"),
    Seam("verl.utils.tracking", "_TrackioLoggingAdapter", "read", "(trackio)"),
    # rewards of sessions with several outputs
    Seam("verl.experimental.reward_loop.reward_loop", "RewardLoopWorker.compute_score", "wrap", "(self, data)"),
    # estimator
    Seam("verl.trainer.ppo.core_algos", "register_adv_est", "read", "(name_or_enum)"),
    Seam("verl.trainer.ppo.core_algos", "get_adv_estimator_fn", "read", "(name_or_enum)"),
    # the policy's movement
    Seam("verl.trainer.ppo.core_algos", "register_policy_loss", "read", "(name)"),
    Seam("verl.trainer.ppo.core_algos", "get_policy_loss_fn", "read", "(name)"),
    Seam(
        "verl.trainer.ppo.core_algos",
        "compute_policy_loss_vanilla",
        "read",
        "(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode='token-mean', config=None, "
        "rollout_is_weights=None)",
    ),
    Seam("verl.workers.config", "PolicyLossConfig", "read"),
    Seam("verl.workers.utils.losses", "ppo_loss", "read", "(config, model_output, data, dp_group=None)"),
    Seam(_BASE, "PPOTrainer._update_actor", "read", "(self, batch, metrics)"),
    # which policy the old log-probs of a version's later updates come from
    Seam(
        "verl.trainer.ppo.v1.trainer_separate_async",
        "PPOTrainerSeparateAsync._compute_old_log_prob",
        "read",
        "(self, batch, metrics)",
    ),
    Seam(
        "verl.trainer.ppo.v1.utils",
        "compute_advantage_for_multi_trajectories",
        "read",
        "(data, batch_keys, adv_estimator, gamma=1.0, lam=1.0, num_repeat=1, norm_adv_by_std_in_grpo=True, "
        "config=None)",
    ),
    Seam("verl.trainer.ppo.v1.utils", "MetricsAggregator", "read", "()"),
    # data and checkpoints
    Seam("verl.utils.dataset.rl_dataset", "RLHFDataset", "read"),
    Seam("verl.utils.dataset.rl_dataset", "collate_fn", "read", "(data_list)"),
    Seam("verl.utils.checkpoint.checkpoint_manager", "get_checkpoint_tracker_filename", "read", "(root_path)"),
    Seam(
        "verl.utils.checkpoint.checkpoint_manager",
        "find_latest_ckpt_path",
        "read",
        "(path, directory_format='global_step_{}')",
    ),
    Seam("verl.utils.tensordict_utils", "get_tensordict", "read", "(tensor_dict, non_tensor_dict=None)"),
    Seam("verl.utils.tensordict_utils", "assign_non_tensor_data", "read", "(tensor_dict, key, val)"),
    Seam("verl.utils.tensordict_utils", "assign_non_tensor_stack", "read", "(tensor_dict, key, val)"),
    Seam("verl.utils.tensordict_utils", "list_of_dict_to_tensordict", "read", "(list_of_dicts)"),
    # the forward over stored responses
    Seam("verl.workers.engine_workers", "ActorRolloutRefWorker.compute_log_prob", "read", "(self, data)"),
    Seam("verl.workers.utils.padding", "response_from_nested", "read", "(tensor, response_mask)"),
    Seam("verl.utils.seqlen_balancing", "calculate_workload", "read", "(seqlen_list)"),
    Seam(
        "verl.utils.seqlen_balancing",
        "get_seqlen_balanced_partitions",
        "read",
        "(seqlen_list, k_partitions, equal_size)",
    ),
    Seam(
        "transfer_queue",
        "kv_batch_put",
        "read",
        "(keys, partition_id, fields=None, tags=None, data_parser=None)",
    ),
    Seam("transfer_queue", "kv_batch_get", "read", "(keys, partition_id, select_fields=None)"),
    Seam("transfer_queue", "kv_clear", "read", "(keys, partition_id)"),
    Seam(
        "transfer_queue",
        "KVBatchMeta",
        "read",
        "(keys=<factory>, tags=<factory>, partition_id=None, fields=None, extra_info=<factory>)",
    ),
)


def plain_signature(callable_: Any) -> str:
    """The signature without annotations, which change between versions without changing what a call may pass."""
    signature = inspect.signature(callable_)
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


class Difference(NamedTuple):
    """A seam that the installed verl does not have as expected: its module, its name or its signature differs."""

    seam: Seam
    differs: Literal["module", "name", "signature"]
    what: str


def differences(seams: Iterable[Seam]) -> Iterator[Difference]:
    """Yield each seam that the installed verl does not have as expected, and what is different."""
    for seam in seams:
        try:
            module = importlib.import_module(seam.module)
        except ModuleNotFoundError as error:
            own = error.name is not None and f"{seam.module}.".startswith(f"{error.name}.")
            yield Difference(seam, "module", f"{'is gone' if own else 'cannot be imported'} ({error})")
            continue
        except Exception as error:  # noqa: BLE001 - another version's module may raise anything; it is reported
            yield Difference(seam, "module", f"cannot be imported ({type(error).__name__}: {error})")
            continue
        try:
            found = functools.reduce(getattr, seam.name.split("."), module)
        except AttributeError as error:
            yield Difference(seam, "name", f"is gone ({error})")
            continue
        if seam.signature and (signature := plain_signature(found)) != seam.signature:
            yield Difference(seam, "signature", f"is {signature}, expected {seam.signature}")


def mismatches() -> Iterator[str]:
    """Yield each seam of the trainer that the installed verl does not have as expected, as a sentence."""
    for seam, _, what in differences(SEAMS):
        yield f"{seam.target} {what}"


def require() -> None:
    """Raise unless the installed verl has every seam.

    Raises:
        SpoVersionError: lists what differs and the versions that work.
    """
    problems = list(mismatches())
    if problems:
        import verl

        raise SpoVersionError(
            f"verl {verl.__version__} differs from what spo_verl builds on; it works with verl "
            f"{', '.join(SUPPORTED_VERL)}: pip install verl=={SUPPORTED_VERL[-1]}\n  " + "\n  ".join(problems)
        )
