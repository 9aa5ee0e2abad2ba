"""verl's V1 trainer with SPO. A step, in the order of this file; docs/algorithm.md has the equations:

| step | what happens | where verl calls it |
|---|---|---|
| draw | prompts by their weights | ``_next_train_batch`` |
| dispatch | the value of each prompt is frozen with its rollout | ``_next_train_batch`` |
| | *verl generates, verifies, and computes old log-probs* | ``_step_once`` |
| probe | the divergence since each prompt's last visit | ``_compute_old_log_prob`` (:class:`AfterOldLogProb`) |
| advantage | reward minus frozen value, normalised over the batch | ``_compute_advantage`` |
| | *verl updates the actor* | ``_step_once`` |
| observe | the tracker discounts and adds the outcomes | end of ``_step_once`` |
| save | the tracker's part of the checkpoint | ``_save_checkpoint`` |

What the asynchronous modes add is in :mod:`spo_verl.training.asynchronous`, which rows share a mini-batch in
:mod:`spo_verl.training.order`.

:func:`spo_trainer_class` puts two classes around the trainer class of the chosen mode::

    SpoTrainer -> PPOTrainerSync -> AfterOldLogProb -> PPOTrainer

``AfterOldLogProb`` comes after the mode's class because a mode may hold other weights in the engine only inside its own
``_compute_old_log_prob``; the forward over stored responses has to run there.

State: ``self._stage`` is what the running update has reached, ``self._dispatched`` are the rollouts of the running step
of the synchronous mode, ``self._evicted`` what was thrown out of verl's queue since the last draw or report. Everything
that outlives a step is in the tracker's actor and in its part of the checkpoint; this object holds nothing that a
restart would lose.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.import_utils import resolve_config_path

from spo_verl.agent.start import require_working_loops
from spo_verl.config import estimates_first, refuse
from spo_verl.data.identity import DatasetKeys, dataset_keys
from spo_verl.data.loader import PrioritizedDataLoader
from spo_verl.errors import SpoConfigError, SpoStateError
from spo_verl.tracker.reports import Draw, ObserveReport
from spo_verl.tracker.service import TrackerClient, start_service
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.training import megatron_checks, seams
from spo_verl.training.abort import stoppable_rollouts
from spo_verl.training.asynchronous import OpenRollouts
from spo_verl.training.asynchronous import require_enough_in_flight as _require_enough_in_flight
from spo_verl.training.checkpoint import CheckpointFollower
from spo_verl.training.checks import aborts, apply_oversampling, check, select
from spo_verl.training.early_warnings import EarlyWarnings, RunFacts
from spo_verl.training.estimator import PendingAdvantages, pending_advantages
from spo_verl.training.features import read_features, require_functions
from spo_verl.training.in_flight import EvictedRollouts, watched_buffer
from spo_verl.training.initial import initial_evidence, static_values
from spo_verl.training.log_probs import LogProbScorer, read_outputs, read_texts
from spo_verl.training.logs import configure_logging
from spo_verl.training.lost_actors import ended_by_a_lost_actor, needed_actors
from spo_verl.training.metrics import (
    VALUE_BINS,
    Stopwatch,
    eviction_metrics,
    joined_reports,
    observation_metrics,
    prefixed,
    table_metrics,
)
from spo_verl.training.movement import MovementMeter, measure_movement
from spo_verl.training.order import SeededMiniBatches, mini_batch_seed
from spo_verl.training.quotas import SourceRecord, read_sources, sources_of_readout
from spo_verl.training.recording import Recorder
from spo_verl.training.rewards import session_rewards
from spo_verl.training.rollout_n import choose, load_chooser
from spo_verl.training.samples import SampleLog, step_samples
from spo_verl.training.sessions import read_sessions
from spo_verl.training.step import Recalled, Rewarded
from spo_verl.training.stored_divergence import Divergence, DivergenceProbe

logger = logging.getLogger(__name__)

SLOT_FIELD = "spo_slot"
Stage = TypeVar("Stage", Recalled, Rewarded)


class AfterOldLogProb(PPOTrainer):
    """Runs :meth:`SpoTrainer._after_old_log_prob` while the acting policy's weights are in the engine."""

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_old_log_prob(batch, metrics)
        self._after_old_log_prob(batch)
        return batch


class SpoTrainer(OpenRollouts, SeededMiniBatches):
    """The part of an SPO trainer that is the same in every mode; mixed in by :func:`spo_trainer_class`."""

    # Provided by the trainer class that this is mixed into.
    config: Any
    global_steps: int
    train_dataset: Any
    train_dataloader: Any
    train_dataloader_it: Any
    actor_rollout_wg: Any
    logger: Any
    tokenizer: Any
    total_training_steps: int
    steps_per_epoch: int
    reward_loop_manager: Any

    def __init__(self, config: Any) -> None:
        configure_logging()
        seams.require()
        self.spo = check(config)
        seed = mini_batch_seed(config)
        self.mini_batch_seed = self.spo.seed if seed is None else seed
        apply_oversampling(config, self.spo)
        if loops := select(config, "actor_rollout_ref.rollout.agent.agent_loop_config_path"):
            require_working_loops(resolve_config_path(loops))
        self._movement: MovementMeter | None = None
        if self.spo.forgetting.mode == "drift":
            measure_movement(config)
            self._movement = MovementMeter.of(config)
        self._aborts = aborts(config, self.spo)
        if self._aborts:
            stoppable_rollouts(config)
        require_functions(self.spo)
        self._choose_n = None if self.spo.rollout_n is None else load_chooser(self.spo.rollout_n)
        self._stopwatch = Stopwatch()
        self._samples = SampleLog(self.spo.samples_every)
        self._warnings = EarlyWarnings(RunFacts.of(self.spo, int(config.data.train_batch_size)))
        self._dispatched: set[str] = set()
        self._saving = False
        self._stage: Recalled | Rewarded | None = None
        self._source_record: SourceRecord | None = None
        super().__init__(config)  # type: ignore[call-arg]

    # ------------------------------------------------------------------ start

    def _init_tokenizer(self) -> None:
        """verl fetches the model here: a model of the hub that was not on this machine before can be judged now."""
        super()._init_tokenizer()  # type: ignore[misc]
        refuse(list(megatron_checks.contradictions(self.config)))

    def _init_dataloader(self) -> None:
        super()._init_dataloader()  # type: ignore[misc]
        batch_size = int(self.config.data.train_batch_size)
        keys = dataset_keys(self.train_dataset)
        _require_enough_prompts(keys, batch_size)
        sources = read_sources(self.spo, self.train_dataset, keys, batch_size)
        _require_enough_in_flight(keys, self.config, self.spo, sources)
        self._source_record = None if sources is None else SourceRecord(sources)
        # A namespace of its own: several runs may share one Ray cluster.
        namespace = f"spo-{uuid.uuid4().hex[:12]}"
        self.tracker: TrackerClient = start_service("spo_tracker", namespace)
        service = {"name": self.tracker.name, "namespace": namespace}
        self._recorder = Recorder.of(self.config, self.spo, keys, self.train_dataset, service)
        evidence = initial_evidence(self.spo, keys.key_P)
        self._static_value_P = static_values(self.spo, evidence)
        self._checkpoint = CheckpointFollower(
            self.config.trainer,
            self.tracker,
            keys.key_P,
            TrackerSettings.of(self.spo),
            initial_evidence=evidence,
            sources=sources or sources_of_readout(self.spo, self.train_dataset, keys),
            features=read_features(self.spo, self.train_dataset, keys),
            recorder=self._recorder,
        )
        self.train_dataloader = PrioritizedDataLoader(
            self.train_dataset,
            CurrentWeights(self.tracker, lambda: self.global_steps - 1),
            batch_size=batch_size,
            row_of_slot_P=keys.row_of_slot_P,
            collate_fn=self.train_dataloader.collate_fn,
            slot_field=SLOT_FIELD,
            before_state_dict=self._checkpoint.finish_write,
            on_foreign_state=self._checkpoint.note_foreign_state,
        )
        self.train_dataloader_it = None
        self._keys, self._sources = keys, sources
        # SPO counts steps. verl's loop also ends when `step // steps_per_epoch` reaches total_epochs, and then
        # neither saves nor validates; this keeps that from happening before the last step.
        epochs = max(1, int(self.config.trainer.total_epochs))
        self.steps_per_epoch = max(1, -(-self.total_training_steps // epochs))

    def _load_checkpoint(self) -> None:
        self._checkpoint.require_marked_folder()
        self._checkpoint.require_same_ranks()
        super()._load_checkpoint()  # type: ignore[misc]
        self._begin_tracker()

    def _begin_tracker(self) -> None:
        self._checkpoint.load(self.global_steps)
        if self.trainer_mode != "sync":
            self._match_restored_rollouts()

    def _build_replay_buffer(self) -> Any:
        # The reward loop is not there yet: whether rollouts finish with their reward is asked when one is evicted.
        self._evicted = EvictedRollouts(
            self.spo, verified=lambda: self.reward_loop_manager.reward_loop_worker_handles is not None
        )
        return watched_buffer(super()._build_replay_buffer(), self.spo, self._evicted)

    def fit(self, agent_loop_manager: Any) -> None:
        try:
            self._recorder.begin(self.global_steps, self.tracker)
            with ended_by_a_lost_actor(needed_actors(self, agent_loop_manager), saving=lambda: self._saving):
                super().fit(agent_loop_manager)  # type: ignore[misc]
        finally:
            self._recorder.close()
            self.tracker.stop()

    # ------------------------------------------------------------------ draw

    def prepare_step(self) -> dict:
        metrics = super().prepare_step()
        return {**metrics, **prefixed(self._stopwatch.drain())}

    def _next_train_batch(self, num_prompts: int | None = None) -> Any:
        """Draw the requested number of prompts and freeze their values.

        One draw for up to a batch, whatever ``gen_batch_size`` is: prompts of one draw differ, and the tracker is asked
        a constant number of times per step.
        """
        batch_size = int(self.config.data.train_batch_size)
        wanted = num_prompts or batch_size
        with self._stopwatch("observe"):
            self._evicted.absorb(self.tracker)
        sizes = [min(batch_size, wanted - done) for done in range(0, wanted, batch_size)]
        parts = [self._dispatch(self._draw(size)) for size in sizes]
        batch = parts[0] if len(parts) == 1 else tu.concat_tensordict(parts)
        tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
        return batch

    def _draw(self, size: int) -> Any:
        """Prompts by the weights of now, equation (11)."""
        self.train_dataloader.batch_size = size
        with self._stopwatch("draw"):
            return self._fetch_one_gen_batch()  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ dispatch

    def _dispatch(self, batch: Any) -> Any:
        """Freeze the value of each prompt under the uid of its rollout: the baseline when the rollout returns."""
        slot_B = batch.pop(SLOT_FIELD).numpy()
        uids = [str(uid) for uid in batch["uid"]]
        with self._stopwatch("dispatch"):
            frozen = self.tracker.dispatch(uids, slot_B, self.global_steps - 1)
            self._recorder.dispatched(uids, frozen)
        if self._choose_n is not None:
            n_B = choose(self._choose_n, frozen.value_B, frozen.n_eff_B)
            tu.assign_non_tensor_stack(batch, "__rollout_n__", n_B.tolist())
        if self.trainer_mode == "sync":
            self._dispatched.update(uids)
        if self._source_record is not None:
            self._source_record.note_draw(slot_B)
        digest = hashlib.blake2b(np.ascontiguousarray(slot_B, dtype=np.int64).tobytes(), digest_size=8).hexdigest()
        logger.info("spo: step=%d drew=%d draw_digest=%s", self.global_steps, len(uids), digest)
        return batch

    # ------------------------------------------------------------------ probe

    def _after_old_log_prob(self, batch: KVBatchMeta) -> None:
        """Recall what was frozen at dispatch; measure D by the acting policy where forgetting goes by a divergence."""
        version, probe = self.global_steps - 1, None
        with self._stopwatch("recall"):
            sessions = read_sessions(batch.keys, batch.tags)
            recall = self.tracker.recall(list(sessions.uid_B))
            keys = [batch.keys[row] for row in sessions.first_row_B()]
            outputs = read_outputs(keys, batch.partition_id) if self.spo.references else []
        if self.spo.references:
            score = LogProbScorer.of(self.actor_rollout_wg, self.config.actor_rollout_ref.rollout, batch.partition_id)
            with self._stopwatch("probe"):
                probe = DivergenceProbe(self.spo, recall, outputs, score, version=version)
        self._stage = Recalled.of(
            batch,
            sessions,
            recall.frozen,
            probe,
            advantage=self.spo.advantage,
            version=version,
            static_value_P=self._static_value_P,
        )

    def _measured_divergence(self, probe: DivergenceProbe | None) -> Divergence | None:
        """After the update: what the probe measured in the step; None where forgetting needs no divergence."""
        if probe is None:
            return None
        with self._stopwatch("probe"):
            return probe.after_update()

    def _measured_movement(self, metrics: dict, rows: int) -> float | None:
        """After the update: how far it moved the policy; None where forgetting does not go by movement."""
        return None if self._movement is None else self._movement.read(metrics, rows, step=self.global_steps)

    def _reached(self, stage: type[Stage]) -> Stage:
        if not isinstance(self._stage, stage):
            raise SpoStateError(
                "The step has no record of its dispatched prompts: a subclass of the trainer skipped "
                "_compute_old_log_prob or _compute_advantage; call super() in every method that it overrides."
            )
        return self._stage

    # ------------------------------------------------------------------ advantage

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Reward minus baseline, equation (8); verl then calls the estimator, equation (9)."""
        recalled = self._reached(Recalled)
        sessions = recalled.sessions
        reward_S = session_rewards(batch.keys, batch.partition_id, sessions, self.spo.reward, self._describe_prompt)
        pending = PendingAdvantages(recalled.raw_advantage(reward_S), sessions.session_R, self.spo.advantage)
        with pending_advantages(pending):
            batch = super()._compute_advantage(batch, metrics)  # type: ignore[misc]
        self._stage = Rewarded(recalled, reward_S, pending.advantage_S, pending.token_count_S)
        return batch

    def _describe_prompt(self, uid: str) -> str:
        """For an error about its reward."""
        slot = self._reached(Recalled).slot_of(uid)
        row = int(self._keys.row_of_slot_P[slot])
        messages = self.train_dataset[row].get("raw_prompt", "")
        text = messages[-1].get("content", "") if isinstance(messages, list) and messages else messages
        return f"prompt {slot} (dataset row {row}: {str(text)[:80]!r})"

    # ------------------------------------------------------------------ observe

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        """verl samples a batch and updates the actor, with the probe and the advantage in between; then observe.

        Observing is equation (5), in the tracker.
        """
        batch = super()._step_once(metrics, timing_raw, sample_batch_size)  # type: ignore[misc]
        rewarded, self._stage = self._reached(Rewarded), None
        divergence = self._measured_divergence(rewarded.recalled.probe)
        movement = self._measured_movement(metrics, len(batch.keys))
        trained, evicted = set(rewarded.recalled.sessions.uid_B), self._evicted.drain_step()
        # A synchronous step leaves nothing open; an asynchronous one only ends what it has taken.
        ended = (self._dispatched if self.trainer_mode == "sync" else trained) - evicted.uids
        self._dispatched.clear()
        with self._stopwatch("observe"):
            report = self.tracker.finish_step(
                **rewarded.outcomes(divergence), settle_uids=sorted(ended), late=evicted.late, movement=movement
            )
            bins = self.tracker.value_histogram(VALUE_BINS)
        seen = self.replay_buffer.spo_seen
        self._recorder.observed(self.global_steps, rewarded, divergence, evicted, report.observe, ended, seen)
        if self._source_record is not None:
            self._source_record.note_values(report.metrics)
        metrics.update(
            prefixed(
                {
                    **rewarded.metrics(),
                    **({} if divergence is None else divergence.metrics),
                    **({} if movement is None else {"drift/movement_total": movement}),
                    **observation_metrics(joined_reports([*evicted.reports, report.observe]), self.spo.forgetting),
                    **table_metrics(report.metrics, bins),
                    **eviction_metrics(evicted.all, evicted.token_count, failed=len(ended - trained)),
                    **self._stopwatch.drain(),
                }
            )
        )
        if self._samples.due(self.logger.logger, self.global_steps):
            self._show_samples(batch, rewarded, report.observe)
        return batch

    def _show_samples(self, batch: KVBatchMeta, rewarded: Rewarded, report: ObserveReport) -> None:
        """Histograms and a table of samples for the loggers that can show them."""

        def texts(chosen: np.ndarray) -> list[tuple[str, str]]:
            keys = [batch.keys[row] for row in rewarded.recalled.sessions.final_row_S[chosen]]
            return read_texts(keys, batch.partition_id, self.tokenizer)

        before = rewarded.recalled
        samples = step_samples(
            raw_S=before.raw_advantage(rewarded.reward_S),
            advantage_S=rewarded.advantage_S,
            reward_S=rewarded.reward_S,
            value_S=before.value_S,
            row_S=self._keys.row_of_slot_P[before.frozen.slot_B[before.sessions.prompt_S]],
            evidence=self.tracker.evidence(),
            rho_B=report.rho_B[report.discounted_B],
            texts=texts,
        )
        self._samples.show(self.logger.logger, samples, self.global_steps)

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> None:
        super()._compute_metrics(batch, metrics, *args, **kwargs)  # type: ignore[misc]
        metrics.update(prefixed(self._stopwatch.drain()))
        if self._source_record is not None:
            # Here and not in _step_once: verl's aggregator would read words such as "min" in the name of a source.
            metrics.update(prefixed(self._source_record.drain()))
        self._warnings.read(metrics)
        self._recorder.numbers(self.global_steps, metrics)

    def _validate(self) -> dict[str, float]:
        metrics: dict[str, float] = super()._validate()  # type: ignore[misc]
        if self.global_steps == 0:  # later ones are among the numbers of their step
            self._recorder.numbers(0, metrics)
        return metrics

    # ------------------------------------------------------------------ save

    def _save_checkpoint(self) -> None:
        self._saving = True
        with self._stopwatch("save"):
            self._checkpoint.begin_save(self.global_steps)
        with self._checkpoint.explained(self.global_steps):
            super()._save_checkpoint()  # type: ignore[misc]
        with self._stopwatch("save"):
            self._checkpoint.end_save(self.global_steps)
        self._saving = False


class CurrentWeights:
    """The tracker as the dataloader sees it: each draw names the policy version that will answer the prompts."""

    def __init__(self, tracker: TrackerClient, version: Callable[[], int]) -> None:
        self._tracker, self._version = tracker, version

    def draw(self, size: int) -> Draw:
        return self._tracker.draw(size, self._version())


def _require_enough_prompts(keys: DatasetKeys, batch_size: int) -> None:
    if batch_size > len(keys.key_P):
        raise SpoConfigError(
            f"data.train_batch_size={batch_size} asks for more prompts than the {len(keys.key_P)} different ones in "
            f"the training data ({keys.rows} rows, {keys.duplicates} duplicates), and a prompt is drawn at most once "
            f"per batch; set data.train_batch_size to {len(keys.key_P)} or less, or add prompts. For several rollouts "
            "per prompt use +spo=bspo with actor_rollout_ref.rollout.n."
        )


@functools.cache
def spo_trainer_class(mode_class: type) -> type:
    """The SPO trainer for a trainer class of verl, e.g. ``PPOTrainerSync``; an SPO class is returned as it is."""
    if issubclass(mode_class, SpoTrainer):
        return mode_class
    return type(f"Spo{mode_class.__name__}", (SpoTrainer, mode_class, AfterOldLogProb), {"__module__": __name__})


def class_for(config: Any, mode_class: type) -> type:
    """The class that verl should build instead of ``mode_class`` for a run with ``adv_estimator=spo``."""
    output = select(config, "spo.estimate.output", None)
    if output:
        from spo_verl.training.estimate import estimator_class, values_first_class

        if estimates_first(output, select(config, "spo.initial.values", None)):
            return values_first_class(spo_trainer_class(mode_class))
        return estimator_class(mode_class)
    return spo_trainer_class(mode_class)
