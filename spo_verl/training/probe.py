"""The forward over stored responses that measures how far the policy moved since a prompt's last visit.

Sequences are put into a TransferQueue partition of their own, scored by verl's own ``compute_log_prob`` and
cleared again, so that nothing of it is visible to the training batch. Prompt tokens, positions and multimodal
inputs come from the current rollout of the same prompt; only response tokens, their mask and log-probs are stored.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.padding import response_from_nested

from spo_verl.config import ForgettingConfig
from spo_verl.core import divergence, retention
from spo_verl.tracker.responses import StoredResponses
from spo_verl.training.rewards import plain

PARTITION = "spo_probe"
_FIELDS = ("prompts", "responses", "response_mask", "position_ids", "multi_modal_inputs", "old_log_probs")


@dataclass(frozen=True)
class Output:
    """One generated output of the current batch: what a probe of its prompt needs."""

    prompt: torch.Tensor
    response: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    multi_modal: Any
    old_log_prob: torch.Tensor | None

    @property
    def prompt_hash(self) -> np.uint64:
        """Hash of the prompt's token ids: a stored response is only comparable under the same prompt tokens."""
        tokens = np.ascontiguousarray(self.prompt.numpy(), dtype=np.int64)
        return np.uint64(int.from_bytes(hashlib.blake2b(tokens.tobytes(), digest_size=8).digest(), "little"))

    def sequence(self, response: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """The fields that verl's engines read, for this prompt followed by ``response``."""
        prompt_len = self.prompt.size(0)
        # Positions of generated text advance by one in every dimension (rotary sections of multimodal models
        # too), so those of the response at hand tell where any response of this prompt starts.
        start = self.positions[..., prompt_len : prompt_len + 1]
        if start.size(-1) == 0:  # an empty response: text follows its prompt's last token
            start = self.positions[..., prompt_len - 1 : prompt_len] + 1
        generated = start + torch.arange(response.size(0), dtype=self.positions.dtype)
        return {
            "prompts": self.prompt,
            "responses": response,
            "response_mask": mask,
            "loss_mask": mask,
            "input_ids": torch.cat([self.prompt, response]),
            "position_ids": torch.cat([self.positions[..., :prompt_len], generated], dim=-1),
            "multi_modal_inputs": self.multi_modal,
        }


def read_outputs(keys: Sequence[str], partition: str) -> list[Output]:
    """Fetch the given trajectories from TransferQueue."""
    data = tq.kv_batch_get(keys=list(keys), partition_id=partition, select_fields=list(_FIELDS))
    columns = {name: data[name].unbind() for name in _FIELDS if name in data and isinstance(data[name], torch.Tensor)}
    multi_modal = [plain(item) for item in list(data["multi_modal_inputs"])]
    return [
        Output(
            prompt=columns["prompts"][row],
            response=columns["responses"][row],
            mask=columns["response_mask"][row],
            positions=columns["position_ids"][row],
            multi_modal=multi_modal[row],
            old_log_prob=columns["old_log_probs"][row] if "old_log_probs" in columns else None,
        )
        for row in range(len(keys))
    ]


class LogProbScorer:
    """Scores sequences with the actor's training engine: one forward for all of them."""

    def __init__(self, worker_group: Any, *, temperature: float, micro_batch_size: int | None) -> None:
        """
        Args:
            worker_group: verl's ``actor_rollout_wg``.
            temperature: of the rollout; log-probs of both sides of a divergence are tempered alike.
            micro_batch_size: sequences per forward and rank, or None where verl packs by tokens.
        """
        self.worker_group = worker_group
        self.temperature = temperature
        self.micro_batch_size = micro_batch_size

    def __call__(self, sequences: list[dict[str, Any]]) -> list[np.ndarray]:
        """Log-probs of the response tokens, one float32 array per sequence; no forward for no sequence."""
        if not sequences:
            return []
        ranks = self._ranks()
        extra: dict[str, Any] = {
            "calculate_entropy": False,
            "compute_loss": False,
            "temperature": self.temperature,
        }
        multiple = ranks
        if self.micro_batch_size is not None:
            per_rank = min(self.micro_batch_size, math.ceil(len(sequences) / ranks))
            extra["micro_batch_size_per_gpu"] = per_rank
            multiple = ranks * per_rank
        # Engines split evenly over ranks and micro-batches; the shortest sequence is the cheapest filler.
        shortest = min(sequences, key=lambda fields: fields["input_ids"].size(0))
        padded = sequences + [shortest] * (-len(sequences) % multiple)
        keys = [f"spo{row}_0_0" for row in range(len(padded))]
        try:
            tq.kv_batch_put(
                keys=keys,
                partition_id=PARTITION,
                fields=list_of_dict_to_tensordict(padded),
                tags=[{"seq_len": fields["input_ids"].size(0)} for fields in padded],
            )
            meta = KVBatchMeta(
                partition_id=PARTITION,
                keys=[keys[row] for row in _balanced(padded, ranks)],
                tags=[{} for _ in keys],
                extra_info=extra,
            )
            self.worker_group.compute_log_prob(meta)
            data = tq.kv_batch_get(
                keys=keys[: len(sequences)],
                partition_id=PARTITION,
                select_fields=["log_probs", "response_mask"],
            )
            log_probs = response_from_nested(data["log_probs"], data["response_mask"])
            return [row.float().numpy() for row in log_probs.unbind()]
        finally:
            tq.kv_clear(keys=keys, partition_id=PARTITION)

    def _ranks(self) -> int:
        info = self.worker_group._dispatch_info
        if "actor" not in info:
            info["actor"] = self.worker_group._query_dispatch_info("actor")
        return int(max(info["actor"])) + 1


def _balanced(sequences: list[dict[str, Any]], ranks: int) -> list[int]:
    workload = calculate_workload(torch.tensor([fields["input_ids"].size(0) for fields in sequences]))
    parts = get_seqlen_balanced_partitions(workload, k_partitions=ranks, equal_size=True)
    return [row for part in parts for row in part]


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
