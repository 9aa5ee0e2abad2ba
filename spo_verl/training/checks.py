"""What is checked before an SPO run starts: settings, contradictions with verl's keys, and differences to the paper.

Everything that cannot work is reported in one message; what is merely unusual is a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spo_verl.conf import PRESETS
from spo_verl.config import SpoConfig, mentions, no_count, read, refuse
from spo_verl.core import quota_limits
from spo_verl.errors import SpoConfigError
from spo_verl.tracker.quota import IN_FLIGHT_REMEDY, PromptSources, parts_of
from spo_verl.training import megatron_checks, reward_checks

logger = logging.getLogger(__name__)

_MISSING = object()
MODES = ("sync", "colocate_async", "separate_async")
STOCK_WARMUP = 1
"""verl's default of ``num_warmup_batches``, which cannot be distinguished from the same value set by a user."""
POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
MEASURABLE_TARGETS = (
    "verl.workers.config.PolicyLossConfig",
    "spo_verl.training.movement.MeasuredPolicyLossConfig",
)
COUNTS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
)
"""Keys of verl without which, or with less than 1 of which, there is nothing to train on or with."""
_MODEL = "actor_rollout_ref.model"
_LORA = f"{_MODEL}.lora"
_ROUTER_REPLAY = tuple(
    f"actor_rollout_ref.actor.{engine}router_replay" for engine in ("", "fsdp_config.", "megatron.", "veomni.")
)


def select(config: DictConfig, key: str, default: Any = None) -> Any:
    """A value of verl's configuration, or ``default`` where the key does not exist."""
    return OmegaConf.select(config, key, default=default)


def _count(config: DictConfig, key: str, default: int | None = None) -> int | None:
    """A whole number from 1 on, or ``default`` where the key does not exist; None where the value is something else."""
    value = select(config, key, default)
    return value if isinstance(value, int) and value >= 1 else None


def _is_above_one(value: Any) -> bool:
    return isinstance(value, int) and value > 1


def contradictions(config: DictConfig, spo: SpoConfig) -> Iterator[str]:
    """Yield every setting of verl that cannot go together with SPO, with its fix."""
    if not select(config, "trainer.use_v1", True):
        yield "trainer.use_v1=False: SPO lives in verl's V1 trainer; set trainer.use_v1=True."
    yield from _in_flight(config, spo)
    if select(config, "algorithm.use_kl_in_reward", False):
        yield (
            "algorithm.use_kl_in_reward=True: the tracker's values are success probabilities, and a reward with a "
            "KL penalty is not one; set algorithm.use_kl_in_reward=False (a KL loss, actor.use_kl_loss=True, is fine)."
        )
    if select(config, "critic.enable", None):
        yield "critic.enable=True: SPO's baseline is the tracker, a critic would train unused; set critic.enable=null."
    if select(config, "algorithm.filter_groups.enable", False):
        yield (
            "algorithm.filter_groups.enable=True: group filtering would throw away every prompt with one rollout; "
            "set algorithm.filter_groups.enable=False (prioritized sampling takes its place)."
        )
    if select(config, "skip.rollout_tq.enable", False):
        yield (
            "skip.rollout_tq.enable=True: replayed rollouts carry the uids of another run, for which no baseline "
            "was frozen; set skip.rollout_tq.enable=False."
        )
    yield from reward_checks.contradictions(config, spo)
    yield from _adapter(config)
    yield from megatron_checks.contradictions(config)
    yield from _movement(config, spo)
    yield from _estimating(config, spo)
    if select(config, "algorithm.rollout_correction.bypass_mode", False) and "acting" in spo.references:
        yield (
            "algorithm.rollout_correction.bypass_mode=True takes old_log_probs from the rollout engine, whose noise "
            "is of the size of the divergence to be measured; set bypass_mode=False, or "
            "spo.forgetting.reference=updated (both sides from the training engine), or spo.forgetting.mode=constant."
        )
    ulysses = select(config, "actor_rollout_ref.actor.ulysses_sequence_parallel_size", 1)
    attention = select(config, "actor_rollout_ref.model.override_config.attn_implementation", None)
    if _is_above_one(ulysses) and attention is not None and not str(attention).startswith("flash_attention"):
        yield (
            f"actor_rollout_ref.actor.ulysses_sequence_parallel_size={ulysses} with attn_implementation={attention}: "
            "verl exchanges the parts of a sequence inside flash attention only, so each rank would attend to its own "
            "part alone and train a wrong model without an error; set ulysses_sequence_parallel_size=1, or "
            "actor_rollout_ref.model.override_config.attn_implementation=flash_attention_2."
        )
    platform = select(config, "platform", None)
    if isinstance(platform, str):
        yield (
            f"platform={platform} was taken as a plain key, because the config group of that name exists only with "
            "VERL_PLATFORM=cpu in the environment; export VERL_PLATFORM=cpu before the command."
        )
    for section in _ROUTER_REPLAY:
        if select(config, f"{section}.mode", "disabled") not in ("disabled", None) and spo.remembers_responses:
            yield (
                f"{section}: stored responses have no recorded expert routes to replay in the divergence forward; "
                f"set {section}.mode=disabled, or spo.forgetting.mode=constant."
            )


def _adapter(config: DictConfig) -> Iterator[str]:
    """verl 0.9.1 sends rollout processes of their own the frozen base model, without the adapter (verl issue 7495)."""
    if select(config, "trainer.v1.trainer_mode", "sync") != "separate_async" or select(config, f"{_LORA}.merge", False):
        return
    for key in (f"{_MODEL}.lora_rank", f"{_LORA}.rank"):
        if _count(config, key) is not None:
            yield (
                f"{key}={select(config, key)} with trainer.v1.trainer_mode=separate_async: verl sends the rollout "
                "processes the base model without its adapter, so that every rollout would come from the untrained "
                f"policy; set {_LORA}.merge=True (the merged weights are sent), or "
                "trainer.v1.trainer_mode=colocate_async."
            )


def _estimating(config: DictConfig, spo: SpoConfig) -> Iterator[str]:
    """An estimation scores the prompts that it dispatched, each of them; a refill would bring others in."""
    if spo.estimate.output is None:
        return
    mode = select(config, "trainer.v1.trainer_mode", "sync")
    if mode != "sync":
        yield (
            f"trainer.v1.trainer_mode={mode} with spo.estimate.output: an asynchronous trainer replaces prompts with a "
            "failed rollout by others, and an estimation needs every prompt that it asked for; set "
            "trainer.v1.trainer_mode=sync (the values serve every mode)."
        )
    if select(config, "trainer.v1.sampler.sync_refill_failed_groups", False):
        yield (
            "trainer.v1.sampler.sync_refill_failed_groups=True with spo.estimate.output: failed prompts would be "
            "replaced by others; set it to False (a failed rollout is no trial)."
        )


def _movement(config: DictConfig, spo: SpoConfig) -> Iterator[str]:
    """What the measure of ``spo.forgetting.mode=drift`` needs: log-probs of one engine, and several mini-batches."""
    if spo.forgetting.mode != "drift":
        return
    if select(config, "algorithm.rollout_correction.bypass_mode", False):
        yield (
            "algorithm.rollout_correction.bypass_mode=True with spo.forgetting.mode=drift: old_log_probs are the "
            "rollout engine's, so that its noise, and the age of late rollouts, would be taken for movement and add up "
            "from step to step; set bypass_mode=False, or spo.forgetting.mode=version or constant, or mode=kl with "
            "spo.forgetting.reference=updated."
        )
    target = select(config, f"{POLICY_LOSS}._target_", None)
    if target not in (None, *MEASURABLE_TARGETS):
        yield (
            f"{POLICY_LOSS}._target_={target}: spo.forgetting.mode=drift puts a class of its own there, which knows "
            f"verl's keys only; set {POLICY_LOSS}._target_={MEASURABLE_TARGETS[0]}, or spo.forgetting.mode=kl."
        )
    count = mini_batches(config)
    if count is not None and count < 2:
        yield (
            f"spo.forgetting.mode=drift reads the policy's movement off the mini-batches after the first, and this "
            f"run has {count:g} per update (data.train_batch_size, actor.ppo_mini_batch_size, actor.ppo_epochs"
            f"{', parameter_sync_step' if select(config, 'trainer.v1.trainer_mode') == 'separate_async' else ''}); "
            "lower actor_rollout_ref.actor.ppo_mini_batch_size to half a batch or less, or set "
            "spo.forgetting.mode=kl."
        )


def mini_batches(config: DictConfig) -> float | None:
    """Mini-batches, over all epochs, whose log-probs are compared with one and the same policy; None if unknown.

    The separate asynchronous trainer compares all updates of a version with the policy that the version began with; the
    other two compare each update with the policy before it.
    """
    mode = select(config, "trainer.v1.trainer_mode", "sync")
    batch = _count(config, "data.train_batch_size")
    mini_batch = _count(config, "actor_rollout_ref.actor.ppo_mini_batch_size")
    updates = _count(config, f"trainer.v1.{mode}.parameter_sync_step", 1)
    epochs = _count(config, "actor_rollout_ref.actor.ppo_epochs", 1)
    if batch is None or mini_batch is None or updates is None or epochs is None:
        return None
    per_version = batch / mini_batch * epochs
    return per_version if mode == "separate_async" else per_version / updates


def _in_flight(config: DictConfig, spo: SpoConfig) -> Iterator[str]:
    """What depends on whether rollouts outlive a step."""
    mode = select(config, "trainer.v1.trainer_mode", "sync")
    warmup = f"trainer.v1.{mode}.num_warmup_batches"
    if mode not in MODES:
        yield f"trainer.v1.trainer_mode={mode}: SPO knows {', '.join(MODES)}; set one of them."
        return
    if mode == "sync" and spo.oversample:
        yield (
            f"spo.oversample={spo.oversample}: the synchronous trainer waits for every rollout of a step, so there "
            "is no surplus; set spo.oversample=null, or trainer.v1.trainer_mode=colocate_async."
        )
    manager = select(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class", None)
    if aborts(config, spo) and manager is not None:
        yield (
            f"actor_rollout_ref.rollout.agent.agent_loop_manager_class={manager} with spo.late.policy=abort: rollouts "
            "are stopped by a manager of the plugin's own; set agent_loop_manager_class=null, or spo.late.policy=drop."
        )
    if mode != "sync" and spo.oversample is not None and select(config, warmup, STOCK_WARMUP) != STOCK_WARMUP:
        yield (
            f"spo.oversample={spo.oversample} and {warmup}={select(config, warmup)} both say how many rollouts are in "
            f"flight next to a batch; leave {warmup} at verl's {STOCK_WARMUP}, or set spo.oversample=null."
        )


def apply_oversampling(config: DictConfig, spo: SpoConfig) -> None:
    """``spo.oversample`` is verl's surplus of warm-up batches: it is added once and stays in flight from then on."""
    mode = select(config, "trainer.v1.trainer_mode", "sync")
    if mode != "sync" and spo.oversample is not None:
        OmegaConf.update(config, f"trainer.v1.{mode}.num_warmup_batches", spo.oversample, merge=False)


def aborts(config: DictConfig, spo: SpoConfig) -> bool:
    """Whether rollouts are stopped: never in the synchronous trainer, where none is late."""
    return spo.late.policy == "abort" and bool(select(config, "trainer.v1.trainer_mode", "sync") != "sync")


def surplus(config: DictConfig) -> int:
    """W: prompts that verl keeps in flight next to a batch; 0 in the synchronous trainer."""
    mode = select(config, "trainer.v1.trainer_mode", "sync")
    warmup = 0 if mode == "sync" else select(config, f"trainer.v1.{mode}.num_warmup_batches", STOCK_WARMUP)
    return max(0, math.floor(warmup * int(config.data.train_batch_size)))


def in_flight_problems(
    prompts: int, config: DictConfig, spo: SpoConfig, sources: PromptSources | None = None, *, restored: int = 0
) -> Iterator[str]:
    """Yield why a draw could find too few prompts while others are in flight.

    Every rollout ends in the tracker before its replacement is drawn, under every ``spo.late.policy``, also with
    failures. So the worst draw takes a whole batch, B prompts, while the surplus of W rollouts is in flight. A prompt
    with m = ``max_in_flight`` of these rollouts cannot be drawn, and W rollouts can block floor(W / m) prompts:
    ``B + floor(W / m)`` different prompts are needed, and are enough. With quotas the same holds for each data source,
    with its part of a batch for B and all of W. (A source can need more only where rollouts fail so often that
    replacements change the mixture.)

    Args:
        prompts: different prompts of the training data.
        config: verl's configuration.
        spo: settings.
        sources: of the prompts, where there are quotas.
        restored: rollouts in flight at the checkpoint that is resumed; they stay W where they are more.
    """
    mode, limit = select(config, "trainer.v1.trainer_mode", "sync"), spo.sampling.max_in_flight
    if mode == "sync" or limit is None:
        return
    batch_size, others = int(config.data.train_batch_size), max(surplus(config), restored)
    held = others // limit
    origin = f"trainer.v1.{mode}.num_warmup_batches={select(config, f'trainer.v1.{mode}.num_warmup_batches'):g}"
    if others > surplus(config):
        origin = "the checkpoint that is resumed"
    needs = [("", batch_size, prompts)]
    if spo.sampling.quota is not None and sources is not None:
        _, most_Q = quota_limits(parts_of(spo.sampling.quota, sources.names), batch_size)
        needs += [
            (f" of the data source {name!r}", most, there)
            for name, most, there in zip(sources.names, most_Q.tolist(), sources.prompts_Q.tolist(), strict=True)
        ]
    for of_source, most, there in needs:
        if most + held > there:
            yield (
                f"a batch draws up to {most} prompts{of_source} (data.train_batch_size={batch_size}) while {others} "
                f"rollouts of earlier draws are in flight ({origin}), which keep {others} / {limit} = {held} prompts "
                f"from being drawn (spo.sampling.max_in_flight={limit}): {most} + {held} = {most + held} different "
                f"prompts{of_source} are needed, and the training data has {there}; {IN_FLIGHT_REMEDY}."
            )


def unusual(config: DictConfig, spo: SpoConfig) -> Iterator[str]:
    """Yield what works but may not be what the user meant."""
    mode = select(config, "trainer.v1.trainer_mode", "sync")
    # The preset means the asynchronous modes, so that it is no mistake in a synchronous run.
    if mode == "sync" and spo.late.policy != "carry" and spo.preset != "plus_plus":
        yield (
            f"spo.late.policy={spo.late.policy} has no effect in the synchronous trainer, which waits for every "
            "rollout of a step; set trainer.v1.trainer_mode=colocate_async where it is meant."
        )
    yield from _repeats(config, spo)
    yield from reward_checks.unusual(config, spo)
    if spo.preset is None:
        differing = list(differences_to_paper(config))
        if differing:
            yield (
                "no preset was composed: the tracker runs with the paper's defaults and verl's own keys are as you "
                "set them. Different from the paper: "
                + "; ".join(f"{key}={actual} (paper: {paper})" for key, actual, paper in differing)
                + ". Add +spo=paper to the command line to take the paper's."
            )


def _repeats(config: DictConfig, spo: SpoConfig) -> Iterator[str]:
    """``rollout.n`` left from a method with groups: what a step has now, and what has the same trajectories."""
    repeats = _count(config, "actor_rollout_ref.rollout.n", 1)
    batch = _count(config, "data.train_batch_size")
    mini_batch = _count(config, "actor_rollout_ref.actor.ppo_mini_batch_size")
    if repeats is None or repeats == 1 or batch is None or mini_batch is None or spo.bspo:
        return
    steps = ""
    if select(config, "trainer.total_training_steps") is None:
        steps = f" and set trainer.total_training_steps, as verl would count {repeats} times fewer steps"
    yield (
        f"actor_rollout_ref.rollout.n={repeats} with data.train_batch_size={batch}: a step has {batch} x {repeats} = "
        f"{batch * repeats} trajectories, and the {repeats} of a prompt share one baseline. SPO takes as many prompts "
        f"instead: for the same trajectories and updates set actor_rollout_ref.rollout.n=1, data.train_batch_size="
        f"{batch * repeats} (so many different prompts are needed) and actor_rollout_ref.actor.ppo_mini_batch_size="
        f"{mini_batch * repeats} ({mini_batch} x {repeats}){steps}. Where several are meant, say so with spo.bspo=True "
        "(or +spo=bspo)."
    )


def other_estimator(config: DictConfig) -> str:
    """Why a run whose ``algorithm.adv_estimator`` is not ``spo`` would not train with SPO, with the fix."""
    estimator = select(config, "algorithm.adv_estimator")
    preset = composed_preset(config)
    if preset is None:
        return (
            f"algorithm.adv_estimator={estimator}: this run would not use SPO; compose a preset with +spo=paper, or "
            "set algorithm.adv_estimator=spo."
        )
    return (
        f"algorithm.adv_estimator={estimator} wins over the preset spo={preset}, and the run would train with "
        f"{estimator} instead of SPO: delete algorithm.adv_estimator={estimator} (the preset sets spo; in a "
        f"configuration file it is named after ppo_trainer), or delete +spo={preset} to train with {estimator}."
    )


def composed_preset(config: Any) -> str | None:
    """The preset that a configuration was composed with; None without one."""
    preset = select(config, "spo.preset") if isinstance(select(config, "spo"), DictConfig) else None
    return None if preset is None else str(preset)


def refuse_other_estimator(config: Any) -> None:
    """A preset asks for SPO: with it, another estimator is a line left over from another method.

    Raises:
        SpoConfigError: names the line to delete.
    """
    if composed_preset(config) is not None:
        raise SpoConfigError(other_estimator(config))


def paper_keys() -> dict[str, Any]:
    """verl's own keys, flattened, as the preset ``paper`` sets them."""
    preset = OmegaConf.load(PRESETS / "paper.yaml")
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, item in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(item, DictConfig):
                walk(item, name)
            else:
                flat[name] = item

    walk(preset, "")
    return {key: item for key, item in flat.items() if not key.startswith("spo.")}


def differences_to_paper(config: DictConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield ``(key, value in this run, value in the paper)`` for each of verl's keys that differs."""
    for key, paper in paper_keys().items():
        actual = select(config, key, _MISSING)
        if actual is _MISSING:
            yield key, "absent", paper
        elif actual != paper:
            yield key, actual, paper


def sizes(config: DictConfig, left_out: Collection[str] = ()) -> Iterator[str]:
    """Yield each of :data:`COUNTS` that holds no whole number of at least 1, with its fix.

    Args:
        config: verl's configuration.
        left_out: keys and sections that were taken out of it.
    """
    for key in COUNTS:
        problem = no_count(key, select(config, key))
        if problem is not None and not any(f"{key}.".startswith(f"{gone}.") for gone in left_out):
            yield problem


def find(config: DictConfig, left_out: Collection[str] = ()) -> tuple[SpoConfig | None, list[str], list[str]]:
    """Read and check the whole configuration of an SPO run.

    Args:
        config: verl's configuration.
        left_out: keys and sections that were taken out of it, because they are reported already.

    Returns:
        The settings under ``spo`` (the paper's defaults where nothing is set, or something wrong; None where they
        cannot be read at all); every problem, and every remark of what may not be meant, each with its fix.
    """
    section = select(config, "spo", None)
    if section is not None and not isinstance(section, DictConfig):
        wrong = f"spo={section!r}: it must be a section; compose a preset with +spo=paper (with the plus sign)."
        return None, [wrong], []
    plain = OmegaConf.to_container(section, resolve=True) if section is not None else {}
    assert isinstance(plain, dict)
    spo, problems, refused = read({str(key): item for key, item in plain.items()})
    problems += sizes(config, left_out)
    # A refused value was replaced: what follows from the replacement is not the user's problem.
    problems += [problem for problem in contradictions(config, spo) if not mentions(problem, refused)]
    return spo, problems, [remark for remark in unusual(config, spo) if not mentions(remark, refused)]


def check(config: DictConfig) -> SpoConfig:
    """The settings under ``spo`` of a configuration without a problem; what is unusual is logged as a warning.

    Raises:
        SpoConfigError: lists every problem at once, each with its fix.
    """
    spo, problems, remarks = find(config)
    refuse(problems)
    assert spo is not None
    for remark in remarks:
        logger.warning("spo: %s", remark)
    return spo
