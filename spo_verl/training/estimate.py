"""Estimating offline values: n0 responses per prompt by the initial policy, through verl's own rollout workers.

Two kinds of trainer do so: that of :func:`estimator_class` samples instead of training, that of
:func:`values_first_class` samples first and then trains. Both go through the data in parts of ``spo.estimate.chunk``
prompts; a finished part is a file, so that an interrupted estimation loses one part at most and a second call
continues where the first one ended.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transfer_queue as tq
from tqdm import tqdm
from verl.utils import tensordict_utils as tu
from verl.utils.skip import SkipManager

from spo_verl.config import SpoConfig, still_to_estimate
from spo_verl.data.identity import DatasetKeys, dataset_keys
from spo_verl.data.values import OfflineValues, merge, provenance
from spo_verl.errors import SpoStateError, SpoValuesError
from spo_verl.files import content_faults, read_json, replacing
from spo_verl.training import seams
from spo_verl.training.checkpoint import CheckpointFollower
from spo_verl.training.checks import check
from spo_verl.training.in_flight import EvictedRollouts
from spo_verl.training.initial import initial_evidence, static_values
from spo_verl.training.logs import configure_logging
from spo_verl.training.lost_actors import ended_by_a_lost_actor, needed_actors
from spo_verl.training.rewards import session_rewards
from spo_verl.training.sessions import Sessions, read_sessions

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"
SPENT = ("responses", "response_tokens", "prompt_tokens")
"""What an estimation has cost, in its provenance: rollouts that were scored, and the tokens of all their outputs.

Each part states its own, so that nothing is lost or counted twice when an estimation is interrupted; the output states
their sum.
"""


class Parts:
    """The finished parts of one estimation, in a folder next to the output.

    The folder remembers what it is an estimation of; a call with other settings is refused instead of mixed in.
    """

    def __init__(self, output: Path, settings: dict[str, Any], prompts: int, chunk: int) -> None:
        """
        Args:
            output: the Parquet file to be written in the end.
            settings: everything that decides what a part contains, as JSON values.
            prompts: number of prompts in all.
            chunk: prompts per part.

        Raises:
            SpoValuesError: the output exists, or the folder belongs to an estimation with other settings.
        """
        if output.exists():
            raise SpoValuesError(
                f"{output} exists; it is a finished estimation. Remove it, or name another file with "
                "spo.estimate.output."
            )
        self.output = output
        self.folder = output.with_name(output.name + ".parts")
        self.settings = settings
        self._ranges = [slice(start, min(start + chunk, prompts)) for start in range(0, prompts, chunk)]
        self._open()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / SETTINGS_FILE
        if not file.exists():
            self.started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            with replacing(file, SpoValuesError) as stage:
                stage().write_text(json.dumps({**self.settings, "started": self.started}, indent=2, sort_keys=True))
            return
        before = read_json(file, SpoValuesError)
        with content_faults(file, SpoValuesError, f"remove {self.folder} to start again"):
            self.started = before.pop("started")
        differing = sorted(key for key in before | self.settings if before.get(key) != self.settings.get(key))
        if differing:
            changes = "; ".join(f"{key} was {before.get(key)!r}, is {self.settings.get(key)!r}" for key in differing)
            raise SpoValuesError(
                f"{self.folder} holds parts of an estimation with other settings ({changes}); take the old settings "
                "to finish it, remove the folder to start again, or name another file with spo.estimate.output."
            )

    def file(self, number: int) -> Path:
        """The file of one part."""
        return self.folder / f"part-{number:06d}.parquet"

    def missing(self) -> Iterator[tuple[int, slice]]:
        """Number and prompts of each part that is not there yet."""
        for number, part in enumerate(self._ranges):
            if not self.file(number).exists():
                yield number, part

    @property
    def finished_prompts(self) -> int:
        """Prompts in the parts that are there."""
        return sum(part.stop - part.start for number, part in enumerate(self._ranges) if self.file(number).exists())

    def join(self) -> OfflineValues:
        """Write the output from all parts, then remove them."""
        values = joined([OfflineValues.read(self.file(number)) for number in range(len(self._ranges))])
        values.write(self.output)
        shutil.rmtree(self.folder)
        return values


def joined(parts: Sequence[OfflineValues]) -> OfflineValues:
    """The parts of one estimation as one table with one provenance, whose costs (:data:`SPENT`) are added up."""
    entries = [entry for part in parts for entry in part.source]
    spent = {name: sum(entry[name] for entry in entries) for name in SPENT}
    return dataclasses.replace(merge(*parts), source=({**entries[0], **spent},))


def spent_on(sessions: Sessions, tags: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The costs (:data:`SPENT`) of a batch, by the lengths that verl's rollout workers note in their tags.

    They are those of verl's metrics ``prompt_length`` and ``response_length``: a response's tokens include what tools
    returned. A rollout of several outputs counts all of them, padding counts nothing.
    """
    rows = [tag for tag, session in zip(tags, sessions.session_R.tolist(), strict=True) if session >= 0]
    return {
        "responses": len(sessions),
        "response_tokens": sum(int(tag["response_len"]) for tag in rows),
        "prompt_tokens": sum(int(tag["prompt_len"]) for tag in rows),
    }


class ValueSampler:
    """Samples what is missing of an estimation. Keeps no state but the finished parts."""

    # Provided by the trainer class that this is mixed into.
    config: Any
    global_steps: int
    train_dataset: Any
    train_dataloader: Any
    replay_buffer: Any
    reward_loop_manager: Any
    checkpoint_manager: Any
    # Provided by the classes below.
    spo: SpoConfig
    _keys: DatasetKeys

    def _open_parts(self) -> Parts:
        return Parts(
            Path(os.path.abspath(str(self.spo.estimate.output))),
            self._settings(),
            len(self._keys.key_P),
            self.spo.estimate.chunk,
        )

    def _settings(self) -> dict[str, Any]:
        rollout = self.config.actor_rollout_ref.rollout
        return {
            "policy": str(self.config.actor_rollout_ref.model.path),
            "prompts": hashlib.sha256(self._keys.key_P.tobytes()).hexdigest(),
            "trials": self.spo.estimate.trials,
            "chunk": self.spo.estimate.chunk,
            "temperature": float(rollout.temperature),
            "top_p": float(rollout.top_p),
            "top_k": int(rollout.top_k),
            "response_length": int(self.config.data.max_response_length),
            "reward": [self.spo.reward.key, self.spo.reward.low, self.spo.reward.high],
        }

    def _sample_missing(self, parts: Parts, agent_loop_manager: Any) -> None:
        """Sample every missing part, then write the output."""
        self.agent_loop_manager = agent_loop_manager
        SkipManager.init(self.config)
        done = parts.finished_prompts
        if done:
            logger.info("spo: continuing after %d finished prompts in %s", done, parts.folder)
        needed = needed_actors(self, agent_loop_manager)
        progress = tqdm(total=len(self._keys.key_P), initial=done, desc="Offline values", unit="prompt")
        with ended_by_a_lost_actor(needed), progress:
            for number, part in list(parts.missing()):
                self._estimate(parts, np.arange(part.start, part.stop)).write(parts.file(number))
                progress.update(part.stop - part.start)
        values = parts.join()
        logger.info("spo: wrote %s: %s", parts.output, values.describe())

    def _estimate(self, parts: Parts, slot_B: np.ndarray) -> OfflineValues:
        """n0 rollouts of each of these prompts, as verl makes them in training."""
        rows = [self.train_dataset[int(row)] for row in self._keys.row_of_slot_P[slot_B]]
        fields = self.train_dataloader.collate_fn(rows)
        uids = [str(uuid.uuid4()) for _ in rows]
        fields["uid"] = np.array(uids, dtype=object)
        fields["__rollout_n__"] = np.full(len(rows), self.spo.estimate.trials, dtype=object)
        batch = tu.get_tensordict(fields)
        tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
        self._submit_batch_to_rollout(batch)  # type: ignore[attr-defined]
        done, _ = self.replay_buffer.sample(global_steps=self.global_steps, partition_id="train", batch_size=len(rows))
        if self.reward_loop_manager.reward_loop_worker_handles is None:
            # A reward model that shares the accelerators needs the rollout engine out of the way.
            self.checkpoint_manager.sleep_replicas()
            done = self._compute_reward_colocate(done)  # type: ignore[attr-defined]
            self.checkpoint_manager.update_weights()
        try:
            return self._count(parts, done, dict(zip(uids, slot_B.tolist(), strict=True)), slot_B)
        finally:
            tq.kv_clear(keys=done.keys, partition_id=done.partition_id)

    def _count(self, parts: Parts, done: Any, slot_of_uid: dict[str, int], slot_B: np.ndarray) -> OfflineValues:
        sessions = read_sessions(done.keys, done.tags)
        if strange := set(sessions.uid_B).difference(slot_of_uid):
            raise SpoStateError(
                f"{len(strange)} of {len(sessions.uid_B)} prompts that the replay buffer returned were not asked for; "
                "an estimation needs verl's own buffer: set trainer.v1.sampler.custom_sampler.path=null."
            )
        rewards = session_rewards(
            done.keys, done.partition_id, sessions, self.spo.reward, lambda uid: f"prompt {slot_of_uid[uid]}"
        )
        place = np.array([slot_of_uid[uid] - int(slot_B[0]) for uid in sessions.uid_S], dtype=np.int64)
        successes_B = np.zeros(len(slot_B))
        np.add.at(successes_B, place, rewards)
        trials_B = np.bincount(place, minlength=len(slot_B)).astype(np.int64)
        settings = parts.settings
        sampling = {key: settings[key] for key in ("temperature", "top_p", "top_k", "response_length")}
        source = provenance(
            "estimate",
            policy=settings["policy"],
            sampling=sampling,
            date=parts.started,
            trials=settings["trials"],
            **spent_on(sessions, done.tags),
        )
        return OfflineValues(self._keys.key_P[slot_B], successes_B, trials_B, (source,))


class ValueEstimator(ValueSampler):
    """Samples instead of training; mixed in by :func:`estimator_class`."""

    def __init__(self, config: Any) -> None:
        configure_logging()
        seams.require()
        self.spo = check(config)
        super().__init__(config)  # type: ignore[call-arg]

    def _init_dataloader(self) -> None:
        super()._init_dataloader()  # type: ignore[misc]
        self._keys = dataset_keys(self.train_dataset)
        self._parts = self._open_parts()

    def fit(self, agent_loop_manager: Any) -> None:
        """Sample every missing part, then write the output."""
        self._sample_missing(self._parts, agent_loop_manager)


class ValuesFirst(ValueSampler):
    """Samples, then trains from that; mixed in before an SPO trainer by :func:`values_first_class`.

    The tracker is made when the values are there. A run whose values were sampled before only trains.
    """

    # Provided by the SPO trainer.
    _checkpoint: CheckpointFollower
    _evicted: EvictedRollouts
    _static_value_P: np.ndarray | None
    _parts: Parts | None

    def _init_dataloader(self) -> None:
        missing = still_to_estimate(self.spo.estimate.output, self.spo.initial.values)
        super()._init_dataloader()  # type: ignore[misc]
        self._parts = self._open_parts() if missing else None

    def _begin_tracker(self) -> None:
        if self._parts is None:
            super()._begin_tracker()  # type: ignore[misc]
        elif self.global_steps > 0:
            raise SpoValuesError(
                f"{self._parts.output} is missing, and the policy is already that of step {self.global_steps}, not the "
                "initial one that offline values are of: restore the file, or continue without it "
                "(spo.initial.values=null spo.estimate.output=null), or start again: trainer.resume_mode=disable."
            )

    def fit(self, agent_loop_manager: Any) -> None:
        """Sample what is missing, make the tracker from it, and train."""
        if self._parts is not None:
            self._sample_missing(self._parts, agent_loop_manager)
            self._evicted.drain_step()  # failed rollouts of the estimation; the tracker never knew them
            evidence = initial_evidence(self.spo, self._keys.key_P)
            self._static_value_P = static_values(self.spo, evidence)
            self._checkpoint.create(evidence)
        super().fit(agent_loop_manager)  # type: ignore[misc]


@functools.cache
def estimator_class(mode_class: type) -> type:
    """The estimating class for a trainer class of verl."""
    return type(f"Estimating{mode_class.__name__}", (ValueEstimator, mode_class), {"__module__": __name__})


@functools.cache
def values_first_class(spo_class: type) -> type:
    """The class for a class of :func:`spo_verl.training.trainer.spo_trainer_class` that samples its values first."""
    return type(f"ValuesFirst{spo_class.__name__}", (ValuesFirst, spo_class), {"__module__": __name__})
