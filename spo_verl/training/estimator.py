"""The advantage estimator ``spo`` that verl's registry calls.

verl hands an estimator the rows of a batch, but neither the session of a row nor the tracker. The trainer
therefore lays out what is known before (:class:`PendingAdvantages`), and the estimator completes it with what only
verl's call knows: the response mask that the loss will see, after rejection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

from spo_verl.config import AdvantageConfig
from spo_verl.core import normalize_advantages
from spo_verl.errors import SpoStateError


class PendingAdvantages:
    """Raw advantages of a batch on their way to the estimator's call, which completes them.

    Everything that the estimator needs, and what its call alone finds out, travels in this object.
    """

    def __init__(self, raw_S: np.ndarray, session_R: np.ndarray, config: AdvantageConfig) -> None:
        """
        Args:
            raw_S: float64 (S,), reward minus baseline of each session, equation (8).
            session_R: int64 (R,), session of each row, -1 for padding.
            config: measure and eps of the normalisation.
        """
        self.raw_S, self.session_R, self.config = raw_S, session_R, config
        self._token_count_S: np.ndarray | None = None
        self._advantage_S: np.ndarray | None = None

    def __len__(self) -> int:
        """Rows of the batch."""
        return len(self.session_R)

    def complete(self, response_mask: torch.Tensor) -> torch.Tensor:
        """The normalised advantages, equation (9), float32 (R, T): that of its session at every token in the loss.

        Args:
            response_mask: (R, T), 1 where a token counts in the loss.
        """
        session_R = torch.as_tensor(self.session_R, device=response_mask.device)
        real_R = session_R >= 0
        token_count_R = response_mask.sum(dim=-1).to(torch.int64)
        token_count_S = torch.zeros(len(self.raw_S), dtype=torch.int64, device=response_mask.device)
        token_count_S.index_add_(0, session_R[real_R], token_count_R[real_R])
        self._token_count_S = token_count_S.cpu().numpy()
        self._advantage_S = normalize_advantages(
            self.raw_S, self._token_count_S, measure=self.config.measure, eps=self.config.eps
        )
        advantage_S = torch.as_tensor(self._advantage_S, dtype=torch.float32, device=response_mask.device)
        advantage_R = torch.zeros(len(session_R), dtype=torch.float32, device=response_mask.device)
        advantage_R[real_R] = advantage_S[session_R[real_R]]
        return advantage_R.unsqueeze(-1) * response_mask

    @property
    def token_count_S(self) -> np.ndarray:
        """Tokens of each session that the loss sees, over all its outputs, int64 (S,).

        Raises:
            SpoStateError: the estimator has not been called.
        """
        return self._completed(self._token_count_S)

    @property
    def advantage_S(self) -> np.ndarray:
        """The normalised advantage of each session, float64 (S,); raises as ``token_count_S``."""
        return self._completed(self._advantage_S)

    @staticmethod
    def _completed(found_S: np.ndarray | None) -> np.ndarray:
        if found_S is None:
            raise SpoStateError(
                "verl has not called the estimator 'spo' for this batch: a subclass of the trainer overrides "
                "_compute_advantage; call super() in every method that it overrides."
            )
        return found_S


_pending: ContextVar[PendingAdvantages | None] = ContextVar("spo_pending_advantages", default=None)


@contextmanager
def pending_advantages(pending: PendingAdvantages) -> Iterator[PendingAdvantages]:
    """Make ``pending`` the batch that :func:`spo_advantage` completes inside the block."""
    token = _pending.set(pending)
    try:
        yield pending
    finally:
        _pending.reset(token)


def spo_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray | None = None,
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages of single-stream policy optimization, equations (8) and (9).

    One advantage per session, normalised over the sessions of the batch that have tokens in the loss, given to
    every generated token of all its outputs. Padding rows get 0 and take no part.

    Args:
        token_level_rewards: (R, T); unused, the trainer has read the rewards (see ``spo.reward.key``).
        response_mask: (R, T), 1 where a token counts in the loss.
        index: uid of each row; unused, it does not tell sessions apart.
        config: verl's ``algorithm`` section; unused.

    Returns:
        ``(advantages, returns)``, both the same (R, T) tensor, as verl expects for outcome estimators.

    Raises:
        SpoStateError: called outside an SPO trainer step.
    """
    pending = _pending.get()
    if pending is None or len(pending) != len(response_mask):
        raise SpoStateError(
            "The estimator 'spo' was called without the record of which prompts were dispatched at which value. "
            "It works inside verl's V1 trainer only: start `python -m verl.trainer.main_ppo` with "
            "trainer.use_v1=True, and do not call the estimator on its own (use spo_verl.core instead)."
        )
    advantage_RT = pending.complete(response_mask)
    return advantage_RT, advantage_RT
