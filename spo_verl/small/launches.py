"""What can be chosen in a run of the small model, and the hydra overrides of its launches that follow from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spo_verl.errors import SpoConfigError
from spo_verl.launching.launch import hydra_value
from spo_verl.small.model import ModelShape
from spo_verl.small.task import LEVELS, MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS
from spo_verl.small.warmstart import WarmStartSettings

LAUNCH_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Lets vLLM's CPU platform take the executor ``uni``, the model in the engine's process: threads are not bound here."""
GROUP_SIZE = 8
MINI_BATCHES = 4


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run. ``trajectories`` is per step, for either estimator.

    ``offline_trials`` responses per training prompt are sampled before the training, 0 for none; the group baseline has
    no use for them.
    """

    estimator: Literal["spo", "grpo"] = "spo"
    seed: int = 0
    steps: int = 16
    trajectories: int = 256
    learning_rate: float = 1e-4
    train_prompts: int = 1024
    held_out_prompts: int = 512
    offline_trials: int = 4
    validate_every: int = 25
    save_every: int = 5
    shape: ModelShape = field(default_factory=ModelShape)
    warm_start: WarmStartSettings = field(default_factory=WarmStartSettings)
    overrides: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise one :class:`SpoConfigError` that lists every problem."""
        unit, levels = GROUP_SIZE * MINI_BATCHES, len(LEVELS)
        of_units = f"a multiple of {unit} (groups times mini-batches)"
        # Accuracies are stated with the standard error of a stratified sample, which needs two prompts per level.
        of_levels = f"a multiple of the {levels} levels, from {2 * levels} on"
        target, seconds = self.warm_start.target, self.warm_start.max_seconds
        wanted: dict[str, tuple[float, Callable[[Any], bool], str]] = {
            "trajectories": (self.trajectories, lambda n: n > 0 and n % unit == 0, of_units),
            "train-prompts": (self.train_prompts, lambda n: n >= 2 * levels and n % levels == 0, of_levels),
            "held-out-prompts": (self.held_out_prompts, lambda n: n >= 2 * levels and n % levels == 0, of_levels),
            "steps": (self.steps, lambda n: n >= 1, "at least 1"),
            "seed": (self.seed, lambda n: n >= 0, "at least 0"),
            "offline-trials": (self.offline_trials, lambda n: n >= 0, "at least 0"),
            "learning-rate": (self.learning_rate, lambda x: 0 < x < math.inf, "above 0"),
            "warm-start-accuracy": (target, lambda x: 0 < x <= 1, "above 0 and at most 1"),
            "warm-start-seconds": (seconds, lambda x: x >= 0, "at least 0"),
        }
        problems = [f"--{option} must be {what}: {x}" for option, (x, fine, what) in wanted.items() if not fine(x)]
        if self.train_prompts < self.trajectories:
            problems.append(f"--train-prompts {self.train_prompts} is less than one batch of {self.trajectories}")
        refuse(problems)

    @property
    def offline(self) -> bool:
        """Whether offline values are estimated before the training."""
        return self.estimator == "spo" and self.offline_trials > 0

    @property
    def variant(self) -> str:
        """What a run is called: the estimator, and everything that differs from the defaults but the seed."""
        return ", ".join([self.estimator, *self.differences()])

    def differences(self) -> list[str]:
        """Each setting that differs from its default, as text; those that are without effect are left out."""
        default = dict(_leaves(Settings(estimator=self.estimator)))
        parts = ["no offline values"] if self.estimator == "spo" and not self.offline else []
        unused = set() if self.offline else {"offline_trials"}
        for name, value in _leaves(self):
            if name not in {"estimator", "seed", "overrides"} | unused and value != default[name]:
                parts.append(f"{name.replace('_', ' ')} {value}")
        return [*parts, *self.overrides]

    def identity(self) -> str:
        """Eight hexadecimal digits that tell runs with other settings apart."""
        # Without offline values in any case, the group baseline has one run whatever is asked for.
        same = self if self.estimator == "spo" else dataclasses.replace(self, offline_trials=Settings().offline_trials)
        return digest(dataclasses.asdict(same))[:8]

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values; :meth:`from_json` reads them back."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Settings:
        """Settings from what :meth:`as_json` gave."""
        nested = {"shape": ModelShape(**saved["shape"]), "warm_start": WarmStartSettings(**saved["warm_start"])}
        return cls(**{**saved, **nested, "overrides": tuple(saved["overrides"])})


def _leaves(settings: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of each setting, those of nested settings too."""
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if dataclasses.is_dataclass(value):
            yield from ((f"{one.name} {name}", nested) for name, nested in _leaves(value))
        else:
            yield one.name, value


def refuse(problems: Sequence[str]) -> None:
    """Raise one :class:`SpoConfigError` for all problems, if there are any; a single one is shown on one line."""
    if problems:
        listed = problems[0] if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        raise SpoConfigError(f"these settings cannot be run: {listed}")


def digest(*parts: object) -> str:
    """SHA-256 of JSON values, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def training_overrides(
    settings: Settings, *, model: Path, train: Path, held_out: Path, checkpoints: Path, values: Path | None
) -> list[str]:
    """The hydra overrides that a user would write by hand; what a CPU needs is in ``+platform=cpu``.

    Args:
        values: file of offline values for spo, None without; what is missing of them is sampled first.
    """
    group = GROUP_SIZE if settings.estimator == "grpo" else 1
    prompts = settings.trajectories // group
    estimator = {
        "spo": ["algorithm.adv_estimator=spo", "+spo=paper", f"spo.seed={settings.seed}"],
        # The clipping of SPO's preset and its order of mini-batches, so that only estimator and grouping differ.
        "grpo": [
            "algorithm.adv_estimator=grpo",
            f"+mini_batch_seed={settings.seed}",
            f"actor_rollout_ref.rollout.n={GROUP_SIZE}",
            "actor_rollout_ref.actor.clip_ratio_low=0.2",
            "actor_rollout_ref.actor.clip_ratio_high=0.28",
            "actor_rollout_ref.actor.clip_ratio_c=10.0",
        ],
    }[settings.estimator]
    if values is not None:
        estimator += [
            f"spo.initial.values={hydra_value(values)}",
            f"spo.estimate.output={hydra_value(values)}",
            f"spo.estimate.trials={settings.offline_trials}",
            # Parts that are finished outlast a call that is not; eight of them cost nothing.
            f"spo.estimate.chunk={max(1, settings.train_prompts // 8)}",
        ]
    micro = settings.trajectories // MINI_BATCHES
    return [
        *estimator,
        f"data.train_files={hydra_value(train)}",
        f"data.val_files={hydra_value(held_out)}",
        f"data.train_batch_size={prompts}",
        f"data.max_prompt_length={MAX_PROMPT_TOKENS}",
        f"data.max_response_length={MAX_RESPONSE_TOKENS}",
        # The same numbers: as references they are parsed again for each rollout, which takes longer than its tokens.
        f"actor_rollout_ref.rollout.prompt_length={MAX_PROMPT_TOKENS}",
        f"actor_rollout_ref.rollout.response_length={MAX_RESPONSE_TOKENS}",
        f"data.seed={settings.seed}",
        f"actor_rollout_ref.model.path={hydra_value(model)}",
        f"actor_rollout_ref.actor.optim.lr={settings.learning_rate}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts // MINI_BATCHES}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
        # Each checkpoint also holds the weights as transformers reads them, for the accuracies at the end.
        "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={settings.trajectories}",
        f"actor_rollout_ref.rollout.seed={settings.seed}",
        f"actor_rollout_ref.rollout.max_model_len={MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS}",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        # One process for all rollouts, which scores them as well: each further one takes as long to start as ten steps.
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "reward.num_workers=0",
        "+actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend=uni",
        "reward.custom_reward_function.path=pkg://spo_verl.small.reward",
        f"trainer.total_training_steps={settings.steps}",
        # verl's loop ends at the last epoch as well; steps are what counts here.
        "trainer.total_epochs=1000000",
        f"trainer.test_freq={settings.validate_every}",
        f"trainer.save_freq={settings.save_every}",
        f"trainer.default_local_dir={hydra_value(checkpoints)}",
        "trainer.resume_mode=auto",
        "trainer.project_name=quickstart",
        f"trainer.experiment_name={settings.estimator}-{settings.seed}",
        *settings.overrides,
    ]
