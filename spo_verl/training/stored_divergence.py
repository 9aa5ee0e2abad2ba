"""The divergence that forgetting goes by: how far the policy has moved since a prompt's last visit.

Prompt tokens, positions and multimodal inputs come from the current rollout of the same prompt; only response tokens,
their mask and log-probs are stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from spo_verl.config import ForgettingConfig
from spo_verl.core import divergence, retention
from spo_verl.tracker.responses import StoredResponses
from spo_verl.training.log_probs import Output


def comparable(stored: StoredResponses, outputs: Sequence[Output]) -> np.ndarray:
    """Entries of ``stored`` whose prompt still has the same tokens, as indices into its rows."""
    same = [outputs[row].prompt_hash == stored.prompt_hash_B[entry] for entry, row in enumerate(stored.row_B)]
    return np.flatnonzero(np.array(same, dtype=bool))


def within_budget(entry_E: np.ndarray, slot_E: np.ndarray, budget: int | None, *, seed: Sequence[int]) -> np.ndarray:
    """Which of the comparable stored responses are scored: all, or ``budget`` prompts of them, each as likely.

    The choice depends on ``seed`` and the number of prompts alone, so that a resumed run chooses alike, and not on
    anything that is known of the prompts, so that the mean over the chosen ones has no bias.

    Args:
        entry_E: rows of the stored responses.
        slot_E: their prompts. A prompt that occurs several times in a batch has one stored response, scored once.
        budget: prompts at most; None: no limit.
        seed: of the choice.
    """
    if budget is None or len(entry_E) <= budget:
        return entry_E
    _, first_S = np.unique(slot_E, return_index=True)
    first_S = np.sort(first_S)
    if len(first_S) > budget:
        first_S = np.sort(np.random.default_rng(seed).choice(first_S, budget, replace=False))
    return entry_E[first_S]


def fill_unmeasured(
    measured_B: np.ndarray, row_E: np.ndarray, slot_B: np.ndarray, forgetting: ForgettingConfig
) -> np.ndarray:
    """Divergences of a step of which only some were measured.

    A prompt that was measured in another row of the batch has that divergence. The others get the one whose retention
    is the mean retention of the measured prompts, ``-half_life * log2(mean rho)``: with the mean of D itself, which
    the bounds of the retention do not cut, a few prompts that moved far would decide for all.

    Args:
        measured_B: divergence of each row, NaN where it was not measured.
        row_E: rows with a comparable stored response, measured or not.
        slot_B: prompt of each row.
        forgetting: half life and bounds of the retention.

    Returns:
        float64 (B,): ``measured_B`` where nothing comparable is stored, or nothing was measured at all.
    """
    known_B = ~np.isnan(measured_B)
    if not known_B.any():
        return measured_B
    rho_B = retention(
        measured_B[known_B],
        half_life=forgetting.half_life,
        rho_min=forgetting.rho_min,
        rho_max=forgetting.rho_max,
    )
    of_slot = dict(zip(slot_B[known_B].tolist(), measured_B[known_B].tolist(), strict=True))
    otherwise = -forgetting.half_life * math.log2(float(rho_B.mean()))
    filled_B = measured_B.copy()
    for row in row_E[~known_B[row_E]].tolist():
        filled_B[row] = of_slot.get(int(slot_B[row]), otherwise)
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
    drift_B = np.full(size, np.nan)
    if not len(entries):
        return drift_B
    width = max(len(row) for row in now)
    then_BT = np.zeros((len(entries), width))
    now_BT = np.zeros((len(entries), width))
    mask_BT = np.zeros((len(entries), width), dtype=bool)
    for line, (entry, present) in enumerate(zip(entries, now, strict=True)):
        part = slice(stored.offset_B[entry], stored.offset_B[entry + 1])
        length = len(present)
        then_BT[line, :length] = stored.log_prob[column][part]
        now_BT[line, :length] = _half(present)
        mask_BT[line, :length] = True if tokens == "all" else stored.mask_N[part]
    drift_B[stored.row_B[entries]] = np.asarray(divergence(then_BT, now_BT, mask_BT))
    return drift_B


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
