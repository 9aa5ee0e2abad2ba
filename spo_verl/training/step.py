"""One update of the actor, seen from SPO: baselines, rewards, divergence, and what becomes evidence afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spo_verl.config import SpoConfig
from spo_verl.tracker.reports import Recall
from spo_verl.tracker.responses import StoredResponses
from spo_verl.training.in_flight import response_tokens
from spo_verl.training.log_probs import LogProbScorer, Output, read_outputs
from spo_verl.training.metrics import Stopwatch, batch_metrics, divergence_metrics, length_metrics
from spo_verl.training.rewards import session_rewards
from spo_verl.training.sessions import Sessions, read_sessions
from spo_verl.training.stored_divergence import (
    comparable,
    fill_unmeasured,
    new_responses,
    stored_divergence,
    stored_sequences,
    within_budget,
)


class StepRecord:
    """From the recall of frozen values to the report of the tracker; lives for one update.

    Order: :meth:`recall`, :meth:`before_update` (acting policy in the engine), :meth:`read_rewards`, the update,
    :meth:`after_update`, :meth:`evidence`. Suffixes: S sessions of the batch, B its prompts.
    """

    def __init__(
        self,
        spo: SpoConfig,
        sessions: Sessions,
        recalled: Recall,
        outputs: list[Output],
        batch: Any,
        version: int,
        static_value_P: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            static_value_P: with ``spo.advantage.baseline=initial`` the value of every slot before training.
        """
        self.spo = spo
        self.sessions = sessions
        self.frozen = recalled.frozen
        self._value_B = self.frozen.value_B if static_value_P is None else static_value_P[self.frozen.slot_B]
        self.stored: StoredResponses = recalled.stored
        self.version = version
        self.token_count_S: np.ndarray | None = None
        self.reward_S = np.zeros(0)
        self.raw_S = np.zeros(0)
        self._outputs = outputs
        self._keys = list(batch.keys)
        self._tokens_S = response_tokens(sessions, batch.tags)
        self._partition = batch.partition_id
        self._comparable = comparable(self.stored, outputs) if outputs else np.zeros(0, dtype=np.int64)
        self._entries = within_budget(
            self._comparable,
            self.frozen.slot_B[self.stored.row_B[self._comparable]],
            spo.drift.max_prompts,
            seed=(spo.seed, version),
        )
        self._drift: dict[str, np.ndarray] = {}
        self._log_prob: dict[str, list[np.ndarray]] = {}
        self._forwards = 0
        self._tokens = 0

    @classmethod
    def recall(
        cls, spo: SpoConfig, tracker: Any, batch: Any, *, version: int, static_value_P: np.ndarray | None = None
    ) -> StepRecord:
        """Fetch what was frozen at dispatch, and where forgetting needs it the stored responses and the new ones.

        Args:
            spo: settings.
            tracker: the tracker or its client.
            batch: verl's batch; its ``old_log_probs`` have been computed.
            version: the policy version that is being updated.
            static_value_P: see the constructor.
        """
        sessions = read_sessions(batch.keys, batch.tags)
        recalled = tracker.recall(list(sessions.uid_B))
        outputs = []
        if spo.remembers_responses:
            outputs = read_outputs([batch.keys[row] for row in sessions.first_row_B()], batch.partition_id)
        return cls(spo, sessions, recalled, outputs, batch, version, static_value_P)

    def attach_scorer(self, worker_group: Any, rollout: Any) -> None:
        """Give access to the training engine of the actor."""
        dynamic = bool(rollout.get("log_prob_use_dynamic_bsz", False))
        self._score = LogProbScorer(
            worker_group,
            temperature=rollout.temperature,
            micro_batch_size=None if dynamic else rollout.get("log_prob_micro_batch_size_per_gpu"),
        )

    def slot_of(self, uid: str) -> int:
        """The prompt slot that a rollout of this batch was dispatched for."""
        return int(self.frozen.slot_B[self.sessions.uid_B.index(uid)])

    # ------------------------------------------------------------------ divergence

    def before_update(self, watch: Stopwatch) -> None:
        """With ``reference=acting``: score the stored responses by the policy that generated this batch."""
        if "acting" not in self.spo.references:
            return
        with watch("probe"):
            now = self._forward(stored_sequences(self.stored, self._entries, self._outputs))
        self._note_drift("acting", now)
        self._log_prob["acting"] = [np.asarray(output.old_log_prob) for output in self._outputs]

    def after_update(self, watch: Stopwatch) -> None:
        """With ``reference=updated``: score the stored and the new responses by the policy after its update."""
        if "updated" not in self.spo.references:
            return
        with watch("probe"):
            now = self._forward(stored_sequences(self.stored, self._entries, self._outputs))
            new = self._forward([output.sequence(output.response, output.mask) for output in self._outputs])
        self._note_drift("updated", now)
        self._log_prob["updated"] = new

    def _forward(self, sequences: list[dict[str, Any]]) -> list[np.ndarray]:
        self._forwards += bool(sequences)
        self._tokens += sum(int(fields["input_ids"].size(0)) for fields in sequences)
        return self._score(sequences)

    def _note_drift(self, reference: str, now: list[np.ndarray]) -> None:
        size = len(self.sessions.uid_B)
        self._drift[reference] = stored_divergence(
            self.stored, self._entries, reference, now, size, tokens=self.spo.drift.tokens
        )

    def _unmeasured_slots(self) -> np.ndarray:
        """Prompts with a comparable stored response that the budget left out."""
        slot_B, row_B = self.frozen.slot_B, self.stored.row_B
        return np.setdiff1d(slot_B[row_B[self._comparable]], slot_B[row_B[self._entries]])

    @property
    def drift_B(self) -> np.ndarray:
        """Divergence that forgetting uses, NaN where the prompt has no comparable stored response.

        Prompts beyond the budget get the divergence whose retention is the mean of those that were measured.
        """
        if not self.spo.references:
            return np.full(len(self.sessions.uid_B), np.nan)
        measured_B = self._drift[self.spo.references[0]]
        row_E = self.stored.row_B[self._comparable]
        if len(self._entries) == len(row_E):
            return measured_B
        return fill_unmeasured(measured_B, row_E, self.frozen.slot_B, self.spo.forgetting)

    # ------------------------------------------------------------------ rewards and evidence

    def read_rewards(self, batch: Any, describe: Callable[[str], str]) -> None:
        """Read the outcomes and form the raw advantages, reward minus baseline, equation (8)."""
        self.reward_S = session_rewards(batch.keys, batch.partition_id, self.sessions, self.spo.reward, describe)
        baseline_S = self._value_B[self.sessions.prompt_S]
        if self.spo.advantage.baseline == "none":
            baseline_S = np.zeros_like(baseline_S)
        self.raw_S = self.reward_S - baseline_S

    def evidence(self) -> dict[str, Any]:
        """Arguments of the tracker's ``finish_step``: one outcome per session, and the responses to remember."""
        responses = None
        if self.spo.references:
            responses = new_responses(self._outputs, self._log_prob, self.spo.drift.max_tokens)
        return {
            "uids": self.sessions.uid_S,
            "session_B": self.sessions.session_S,
            "reward_B": self.reward_S,
            "divergence_B": self.drift_B[self.sessions.prompt_S],
            "remember_uids": list(self.sessions.uid_B) if responses is not None else [],
            "responses": responses,
        }

    # ------------------------------------------------------------------ metrics

    def metrics(self) -> dict[str, float]:
        """What the step itself can tell."""
        assert self.token_count_S is not None
        metrics = batch_metrics(
            self.reward_S,
            self._value_B[self.sessions.prompt_S],
            self.version - self.frozen.version_B,
        )
        carried_B = self.frozen.version_B < self.version
        metrics |= length_metrics(self._tokens_S, carried_B[self.sessions.prompt_S])
        for reference, drift_B in self._drift.items():
            metrics |= divergence_metrics(reference, drift_B, used=reference == self.spo.references[0])
        metrics["evidence/untrained_total"] = float((self.token_count_S == 0).sum())
        if self.spo.references:
            metrics["drift/forwards_total"] = float(self._forwards)
            metrics["drift/tokens_total"] = float(self._tokens)
            metrics["drift/incomparable_total"] = float(len(self.stored) - len(self._comparable))
            metrics["drift/unmeasured_total"] = float(len(self._unmeasured_slots()))
        return metrics
