"""The divergence that forgetting goes by: how far the policy has moved since a prompt's last visit.

The prompt's last response is stored with its log-probs and is scored again, by the policy of now. Prompt tokens,
positions and multimodal inputs come from the current rollout of the same prompt; only response tokens, their mask and
log-probs are stored. Suffixes: B prompts of a batch, E stored responses, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from spo_verl.config import ForgettingConfig, SpoConfig
from spo_verl.core import divergence, retention
from spo_verl.tracker.reports import Recall
from spo_verl.tracker.responses import StoredResponses
from spo_verl.training.metrics import divergence_metrics
from spo_verl.training.outputs import Output

Scorer = Callable[[list[dict[str, Any]]], list[np.ndarray]]
"""Sequences to the log-probs of their response tokens, see :class:`~spo_verl.training.log_probs.LogProbScorer`."""


@dataclass(frozen=True)
class Divergence:
    """What was measured in a step.

    Attributes:
        divergence_B: float64, the D that forgetting uses, NaN where the prompt has no comparable stored response.
            Prompts beyond the budget have the D whose retention is the mean of those that were measured.
        measured_B: by reference, D where it was measured and NaN elsewhere.
        responses: those of this batch, to be stored.
        metrics: under the names of ``METRICS``.
    """

    divergence_B: np.ndarray
    measured_B: dict[str, np.ndarray]
    responses: StoredResponses
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Comparison:
    """D against one reference policy, and its log-probs of this batch's own responses, which are stored."""

    measured_B: np.ndarray
    own_log_prob: list[np.ndarray]
    forwards: int
    tokens: int


class DivergenceProbe:
    """Measures the divergence of one step; exists only where forgetting goes by it.

    It is made while the engine holds the policy that generated the batch, which is one side of ``reference=acting``.
    :meth:`after_update` is called once the policy is updated, which is one side of ``reference=updated``.
    """

    def __init__(
        self, spo: SpoConfig, recall: Recall, outputs: Sequence[Output], score: Scorer, *, version: int
    ) -> None:
        """
        Args:
            spo: settings, with at least one reference.
            recall: what the tracker holds of the batch's prompts.
            outputs: this batch's output of each of them; its old log-probs are those of the acting policy.
            score: by the policy that the engine holds.
            version: the policy version that generated the batch; with ``spo.seed`` it decides who is in the budget.
        """
        self._spo, self._outputs, self._score = spo, outputs, score
        self._stored, self._slot_B = recall.stored, recall.frozen.slot_B
        self._comparable_E = comparable(self._stored, outputs)
        self._scored_E = within_budget(
            self._comparable_E,
            self._slots(self._comparable_E),
            spo.drift.max_prompts,
            seed=(spo.seed, version),
        )
        self._before: dict[str, _Comparison] = {}
        if "acting" in spo.references:
            own = [np.asarray(output.old_log_prob) for output in outputs]
            self._before["acting"] = self._compared("acting", own)

    def after_update(self) -> Divergence:
        """Measure what the updated policy is needed for, and put the step's divergence together."""
        comparisons = dict(self._before)
        if "updated" in self._spo.references:
            comparisons["updated"] = self._compared("updated")
        return Divergence(
            divergence_B=self._filled(comparisons[self._spo.references[0]].measured_B),
            measured_B={reference: one.measured_B for reference, one in comparisons.items()},
            responses=new_responses(
                self._outputs,
                {reference: one.own_log_prob for reference, one in comparisons.items()},
                self._spo.drift.max_tokens,
            ),
            metrics=self._metrics(comparisons),
        )

    def _compared(self, reference: str, own: list[np.ndarray] | None = None) -> _Comparison:
        """Score the stored responses by the policy of now; this batch's own too, unless their log-probs are known."""
        sequences = stored_sequences(self._stored, self._scored_E, self._outputs)
        forwards, tokens = int(bool(sequences)), _tokens(sequences)
        now = self._score(sequences)
        if own is None:
            sequences = [output.sequence(output.response, output.mask) for output in self._outputs]
            forwards, tokens = forwards + bool(sequences), tokens + _tokens(sequences)
            own = self._score(sequences)
        measured_B = stored_divergence(
            self._stored, self._scored_E, reference, now, len(self._slot_B), tokens=self._spo.drift.tokens
        )
        return _Comparison(measured_B, own, forwards, tokens)

    def _filled(self, measured_B: np.ndarray) -> np.ndarray:
        if len(self._scored_E) == len(self._comparable_E):
            return measured_B
        return fill_unmeasured(measured_B, self._stored.row_B[self._comparable_E], self._slot_B, self._spo.forgetting)

    def _slots(self, entry_E: np.ndarray) -> np.ndarray:
        """Prompts of these stored responses."""
        slot_E: np.ndarray = self._slot_B[self._stored.row_B[entry_E]]
        return slot_E

    def _metrics(self, comparisons: dict[str, _Comparison]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for reference, one in comparisons.items():
            metrics |= divergence_metrics(reference, one.measured_B, used=reference == self._spo.references[0])
        unmeasured = np.setdiff1d(self._slots(self._comparable_E), self._slots(self._scored_E))
        return metrics | {
            "drift/forwards_total": float(sum(one.forwards for one in comparisons.values())),
            "drift/tokens_total": float(sum(one.tokens for one in comparisons.values())),
            "drift/incomparable_total": float(len(self._stored) - len(self._comparable_E)),
            "drift/unmeasured_total": float(len(unmeasured)),
        }


def _tokens(sequences: Sequence[dict[str, Any]]) -> int:
    """Tokens of these sequences, prompt and response."""
    return sum(int(fields["input_ids"].size(0)) for fields in sequences)


def comparable(stored: StoredResponses, outputs: Sequence[Output]) -> np.ndarray:
    """Entries of ``stored`` whose prompt still has the same tokens, as indices into its rows."""
    same = [outputs[row].prompt_hash == stored.prompt_hash_B[entry] for entry, row in enumerate(stored.row_B)]
    return np.flatnonzero(np.array(same, dtype=bool))


def within_budget(entry_E: np.ndarray, slot_E: np.ndarray, budget: int | None, *, seed: Sequence[int]) -> np.ndarray:
    """Which of the comparable stored responses are scored: all, or ``budget`` prompts of them, all equally likely.

    The choice depends on ``seed`` and the number of prompts alone, so that a resumed run chooses alike, and not on
    anything that is known of the prompts, so that the mean over the chosen ones has no bias.

    Args:
        entry_E: rows of the stored responses.
        slot_E: their prompts. A prompt that occurs several times in a batch counts once against the budget.
        budget: prompts at most; None: no limit.
        seed: of the choice.
    """
    if budget is None or len(entry_E) <= budget:
        return entry_E
    _, first = np.unique(slot_E, return_index=True)
    first = np.sort(first)
    if len(first) > budget:
        first = np.sort(np.random.default_rng(seed).choice(first, budget, replace=False))
    return entry_E[first]


def fill_unmeasured(
    measured_B: np.ndarray, row_E: np.ndarray, slot_B: np.ndarray, forgetting: ForgettingConfig
) -> np.ndarray:
    """Divergences of a step of which only some were measured.

    A prompt that was measured in another place of the batch has that divergence. The others get the divergence whose
    retention is the mean retention of the measured prompts, ``-half_life * log2(mean rho)``. The mean of D itself would
    follow a few prompts that moved far, because the bounds of the retention do not cut it.

    Args:
        measured_B: divergence of each place in the batch, NaN where it was not measured.
        row_E: places with a comparable stored response, measured or not.
        slot_B: prompt of each place.
        forgetting: half life and bounds of the retention.

    Returns:
        float64 (B,): ``measured_B`` where nothing comparable is stored, or nothing was measured at all.
    """
    known_B = ~np.isnan(measured_B)
    if not known_B.any():
        return measured_B
    rho = retention(
        measured_B[known_B],
        half_life=forgetting.half_life,
        rho_min=forgetting.rho_min,
        rho_max=forgetting.rho_max,
    )
    of_slot = dict(zip(slot_B[known_B].tolist(), measured_B[known_B].tolist(), strict=True))
    otherwise = -forgetting.half_life * math.log2(float(rho.mean()))
    filled_B = measured_B.copy()
    for place in row_E[~known_B[row_E]].tolist():
        filled_B[place] = of_slot.get(int(slot_B[place]), otherwise)
    return filled_B


def stored_sequences(stored: StoredResponses, entries: np.ndarray, outputs: Sequence[Output]) -> list[dict[str, Any]]:
    """Current prompt plus stored response of each entry."""
    sequences = []
    for entry in entries:
        part = slice(stored.offset_B[entry], stored.offset_B[entry + 1])
        response = torch.as_tensor(stored.token_N[part].astype(np.int64))
        mask = torch.as_tensor(stored.mask_N[part].astype(np.int64))
        sequences.append(outputs[stored.row_B[entry]].sequence(response, mask))
    return sequences


def stored_divergence(
    stored: StoredResponses,
    entries: np.ndarray,
    column: str,
    now: Sequence[np.ndarray],
    size: int,
    *,
    tokens: Literal["generated", "all"] = "generated",
) -> np.ndarray:
    """D of each prompt: mean absolute log-prob difference over the tokens of its stored response.

    The present side is rounded to float16 like the stored one, so that a policy that did not move has D = 0.

    Args:
        stored: responses with their mask of generated tokens, and the log-probs of all tokens under ``column``.
        entries: those that were scored.
        column: the reference.
        now: log-probs of the present policy, one array per entry.
        size: prompts of the batch.
        tokens: count those that the policy generated, or all. The published recipe takes the attention mask of the
            response, which covers what tools returned as well and leaves out padding, which is not stored here.

    Returns:
        float64 (``size``,), NaN where nothing comparable is stored.
    """
    divergence_B = np.full(size, np.nan)
    if not len(entries):
        return divergence_B
    width = max(len(row) for row in now)
    then_ET = np.zeros((len(entries), width))
    now_ET = np.zeros((len(entries), width))
    mask_ET = np.zeros((len(entries), width), dtype=bool)
    for line, (entry, present) in enumerate(zip(entries, now, strict=True)):
        part = slice(stored.offset_B[entry], stored.offset_B[entry + 1])
        length = len(present)
        then_ET[line, :length] = stored.log_prob[column][part]
        now_ET[line, :length] = _half(present)
        mask_ET[line, :length] = True if tokens == "all" else stored.mask_N[part]
    divergence_B[stored.row_B[entries]] = np.asarray(divergence(then_ET, now_ET, mask_ET))
    return divergence_B


def _half(log_prob: np.ndarray) -> np.ndarray:
    """Log-probs as they are stored; a token of probability e^-65504 is as unlikely as float16 can say."""
    limits = np.finfo(np.float16)
    return np.clip(log_prob, limits.min, limits.max).astype(np.float16)


def new_responses(
    outputs: Sequence[Output], log_prob: dict[str, list[np.ndarray]], max_tokens: int | None
) -> StoredResponses:
    """Pack this batch's outputs for the response memory, cut to the first ``max_tokens`` tokens.

    A prefix stays exact: a token's log-prob does not depend on what follows it.
    """
    lengths = [min(output.response.size(0), max_tokens or output.response.size(0)) for output in outputs]

    def join(rows: Sequence[Any], dtype: Any) -> np.ndarray:
        parts = [np.asarray(row)[:length] for row, length in zip(rows, lengths, strict=True)]
        joined = np.concatenate(parts) if parts else np.empty(0)
        return _half(joined) if dtype is np.float16 else joined.astype(dtype)

    return StoredResponses(
        row_B=np.arange(len(outputs), dtype=np.int64),
        token_N=join([output.response for output in outputs], np.int32),
        mask_N=join([output.mask for output in outputs], bool),
        log_prob={name: join(rows, np.float16) for name, rows in log_prob.items()},
        offset_B=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_hash_B=np.array([output.prompt_hash for output in outputs], dtype=np.uint64),
    )
