"""What the asynchronous modes add to a step: rollouts outlive it, are restored after a restart, and may be stopped.

verl's queue (TransferQueue) and the tracker both hold the open rollouts; this module keeps them alike. In the
synchronous mode nothing here does anything.
"""

from __future__ import annotations

import logging
from typing import Any

import transfer_queue as tq

from spo_verl.config import SpoConfig, refuse
from spo_verl.data.identity import DatasetKeys
from spo_verl.tracker.quota import PromptSources
from spo_verl.tracker.service import TrackerClient
from spo_verl.training.abort import abort_rollouts, cancellable_client
from spo_verl.training.checks import in_flight_problems, surplus
from spo_verl.training.in_flight import TRAIN, EvictedRollouts
from spo_verl.training.recording import Recorder

logger = logging.getLogger(__name__)


class OpenRollouts:
    """Mixed in before a trainer class of verl; see the module."""

    # Provided by the trainer class that this is mixed into.
    config: Any
    global_steps: int
    replay_buffer: Any
    trainer_mode: str
    agent_loop_manager: Any
    local_trigger_step: int
    parameter_sync_step: int
    _restored_tq_prompt_count: int

    # Provided by the SPO trainer.
    spo: SpoConfig
    tracker: TrackerClient
    _aborts: bool
    _evicted: EvictedRollouts
    _recorder: Recorder
    _keys: DatasetKeys
    _sources: PromptSources | None

    # ------------------------------------------------------------------ after a restart

    def _match_restored_rollouts(self) -> None:
        """Make verl's queue and the tracker hold the same open rollouts after a restart.

        They already do where one checkpoint holds both. A checkpoint of another estimator has rollouts without a frozen
        value, which cannot be scored: they are dropped, and their prompts can be drawn again.
        """
        restored = set(_registered_prompts())
        known = set(self.tracker.open_uids())
        strange, lost = restored - known, known - restored
        if strange:
            logger.warning(
                "spo: %d rollouts of the checkpoint were dispatched without SPO and have no frozen value; they are "
                "dropped and other prompts are drawn instead",
                len(strange),
            )
            tq.kv_clear(keys=_keys_of(strange), partition_id=TRAIN)
            self._restored_tq_prompt_count -= len(strange)
        if lost:
            logger.warning("spo: %d rollouts of the tracker are not in verl's queue; they count as aborted", len(lost))
            self._evicted.add("aborted", lost, {}, TRAIN)
        restored_count = self._restored_tq_prompt_count
        require_enough_in_flight(self._keys, self.config, self.spo, self._sources, restored=restored_count)

    def _reissue_inflight_prompts(self, partition_id: str = TRAIN) -> int:
        """Prompts that were being answered at the checkpoint are answered again, by the current policy.

        They keep their uid; the value, effective sample size and version that they are scored by are read again.
        """
        if self.trainer_mode != "sync":
            waiting = sorted(_under_way())
            if waiting:
                self._recorder.dispatched(waiting, self.tracker.redispatch(waiting, self.global_steps - 1))
                logger.info("spo: froze the values of %d re-issued prompts again", len(waiting))
        return int(super()._reissue_inflight_prompts(partition_id))  # type: ignore[misc]

    # ------------------------------------------------------------------ replaced

    def prepare_step(self) -> dict:
        if self.trainer_mode != "sync":
            registered = _registered_prompts()
            # A batch that was full at once left prompts of its step untouched: the version of now begins with them.
            untouched = sorted(uid for uid, tag in registered.items() if tag.get("status") == "pending")
            if untouched:
                self._recorder.dispatched(untouched, self.tracker.redispatch(untouched, self.global_steps - 1))
            # What was stopped, or not replaced as generation was about to pause, is replaced by prompts that are drawn
            # now and answered by the version of now.
            missing = surplus(self.config) - len(registered)
            if missing > 0:
                self._add_prompts_to_generate(missing)  # type: ignore[attr-defined]
        metrics: dict = super().prepare_step()  # type: ignore[misc]
        return metrics

    # ------------------------------------------------------------------ stopped at the end of their version

    def get_llm_client(self) -> Any:
        client = super().get_llm_client()  # type: ignore[misc]
        return cancellable_client(client) if self._aborts else client

    def on_sample_end(self) -> None:
        # Generation pauses here, after the last batch of a version. Before that, what is under way is still wanted.
        if self.trainer_mode == "colocate_async" and self.local_trigger_step == self.parameter_sync_step - 1:
            self._end_version()
        super().on_sample_end()  # type: ignore[misc]

    def on_step_end(self) -> None:
        # Generation continues during the updates and gets new weights here.
        if self.trainer_mode == "separate_async":
            self._end_version()
        super().on_step_end()  # type: ignore[misc]

    def _end_version(self) -> None:
        """With ``abort``: stop what the version's batches did not wait for; what has finished becomes evidence."""
        if not self._aborts:
            return
        under_way = _under_way()
        if under_way:
            abort_rollouts(self.agent_loop_manager, under_way)
        items = (tq.kv_list(TRAIN) or {}).get(TRAIN, {})
        status = {uid: tag["status"] for uid, tag in items.items() if tag.get("is_prompt", False)}
        trajectories = {key: tag for key, tag in items.items() if not tag.get("is_prompt", False)}
        # Who finished before the cancellation reached it keeps its outcome.
        kinds = {"finished": "surplus", "failure": "failed"}
        ended: dict[str, set[str]] = {}
        for uid in status:
            ended.setdefault(kinds.get(status[uid], "aborted"), set()).add(uid)
        for kind, uids in ended.items():
            self._evicted.add(kind, uids, trajectories, TRAIN)
        tq.kv_clear(keys=_keys_of(set(status)), partition_id=TRAIN)
        stopped = ended.get("aborted", set())
        self.replay_buffer.spo_aborted = stopped
        logger.info("spo: step=%d stopped=%d late rollouts", self.global_steps, len(stopped))


def _registered_prompts() -> dict[str, dict]:
    """Tag by uid of every prompt group in verl's training queue."""
    items = (tq.kv_list(TRAIN) or {}).get(TRAIN, {})
    return {key: tag for key, tag in items.items() if tag.get("is_prompt", False)}


def _under_way() -> set[str]:
    """Prompts whose rollouts have not ended."""
    return {uid for uid, tag in _registered_prompts().items() if tag.get("status") in ("pending", "running")}


def _keys_of(uids: set[str]) -> list[str]:
    """Keys of these groups and of all their trajectories in verl's training queue."""
    items = (tq.kv_list(TRAIN) or {}).get(TRAIN, {})
    return [key for key in items if key.split("_")[0] in uids]


def require_enough_in_flight(
    keys: DatasetKeys, config: Any, spo: SpoConfig, sources: PromptSources | None = None, *, restored: int = 0
) -> None:
    refuse(list(in_flight_problems(len(keys.key_P), config, spo, sources, restored=restored)))
