"""One update of the actor in two stages, each complete when it is made: :class:`Recalled`, then :class:`Rewarded`.

Suffixes: S sessions of the batch, B its prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spo_verl.config import AdvantageConfig
from spo_verl.tracker.reports import Frozen
from spo_verl.training.metrics import batch_metrics, length_metrics
from spo_verl.training.sessions import Sessions, response_tokens, version_spans
from spo_verl.training.stored_divergence import Divergence, DivergenceProbe


@dataclass(frozen=True)
class Recalled:
    """A batch whose old log-probs are there, with what was frozen at the dispatch of its rollouts.

    Attributes:
        sessions: which rows belong to which rollout.
        frozen: what was noted of each prompt at dispatch; with ``baseline=initial`` its value before training.
        advantage: says which baseline is subtracted.
        version: the policy version that generates now and is about to be updated.
        length_S: int64, response tokens.
        span_S: int64 (S, 2), oldest and newest policy version that generated, -1 where unknown.
        probe: measures the divergence; None where forgetting does not go by one.
    """

    sessions: Sessions
    frozen: Frozen
    advantage: AdvantageConfig
    version: int
    length_S: np.ndarray
    span_S: np.ndarray
    probe: DivergenceProbe | None

    @classmethod
    def of(
        cls,
        batch: Any,
        sessions: Sessions,
        frozen: Frozen,
        probe: DivergenceProbe | None,
        *,
        advantage: AdvantageConfig,
        version: int,
        static_value_P: np.ndarray | None = None,
    ) -> Recalled:
        """
        Args:
            batch: verl's batch.
            sessions, frozen, probe, advantage, version: see the class.
            static_value_P: with ``baseline=initial`` the value of every slot before training.
        """
        if static_value_P is not None:
            frozen = replace(frozen, value_B=static_value_P[frozen.slot_B])
        length_S, span_S = response_tokens(sessions, batch.tags), version_spans(sessions, batch.tags)
        return cls(sessions, frozen, advantage, version, length_S, span_S, probe)

    @property
    def value_S(self) -> np.ndarray:
        """The value that each session's reward is compared with, float64 (S,)."""
        value_S: np.ndarray = self.frozen.value_B[self.sessions.prompt_S]
        return value_S

    def raw_advantage(self, reward_S: np.ndarray) -> np.ndarray:
        """Reward minus baseline, equation (8), float64 (S,)."""
        return reward_S if self.advantage.baseline == "none" else reward_S - self.value_S

    def slot_of(self, uid: str) -> int:
        """The prompt slot that a rollout of this batch was dispatched for."""
        return int(self.frozen.slot_B[self.sessions.uid_B.index(uid)])


@dataclass(frozen=True)
class Rewarded:
    """The same batch with its rewards and advantages.

    Attributes:
        recalled: the stage before.
        reward_S: float64, in [0, 1].
        advantage_S: float64, normalised over the batch.
        token_count_S: int64, generated tokens that the loss sees.
    """

    recalled: Recalled
    reward_S: np.ndarray
    advantage_S: np.ndarray
    token_count_S: np.ndarray

    def outcomes(self, divergence: Divergence | None) -> dict[str, Any]:
        """Arguments of the tracker's ``finish_step``: one outcome per session, and the responses to remember.

        Args:
            divergence: what the probe measured; None where forgetting does not go by one.
        """
        sessions = self.recalled.sessions
        outcomes: dict[str, Any] = {
            "uids": sessions.uid_S,
            "session_B": sessions.session_S,
            "reward_B": self.reward_S,
        }
        if divergence is not None:
            outcomes |= {
                "divergence_B": divergence.divergence_B[sessions.prompt_S],
                "remember_uids": list(sessions.uid_B),
                "responses": divergence.responses,
            }
        return outcomes

    def metrics(self) -> dict[str, float]:
        """What can be said of the batch before its outcomes are observed."""
        before = self.recalled
        lag_B = before.version - before.frozen.version_B
        return {
            **batch_metrics(self.reward_S, before.value_S, lag_B),
            **length_metrics(before.length_S, (lag_B > 0)[before.sessions.prompt_S]),
            "evidence/untrained_total": float((self.token_count_S == 0).sum()),
        }
