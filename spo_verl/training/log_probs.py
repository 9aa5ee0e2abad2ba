"""Log-probs of given responses under the policy that the actor's training engine holds.

Sequences are put into a TransferQueue partition of their own, scored by verl's own ``compute_log_prob`` and
cleared again, so that nothing of it is visible to the training batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.padding import response_from_nested

from spo_verl.training.outputs import Output
from spo_verl.training.rewards import plain

PARTITION = "spo_probe"
_FIELDS = ("prompts", "responses", "response_mask", "position_ids", "old_log_probs")
_MEDIA = "multi_modal_inputs"


def read_outputs(keys: Sequence[str], partition: str) -> list[Output]:
    """Fetch the given trajectories from TransferQueue."""
    data = tq.kv_batch_get(keys=list(keys), partition_id=partition, select_fields=list(_FIELDS))
    columns = {name: data[name].unbind() for name in _FIELDS if name in data and isinstance(data[name], torch.Tensor)}
    return [
        Output(
            key=key,
            prompt=columns["prompts"][row],
            response=columns["responses"][row],
            mask=columns["response_mask"][row],
            positions=columns["position_ids"][row],
            old_log_prob=columns["old_log_probs"][row] if "old_log_probs" in columns else None,
        )
        for row, key in enumerate(keys)
    ]


def read_texts(keys: Sequence[str], partition: str, tokenizer: Any) -> list[tuple[str, str]]:
    """Prompt and response of the given trajectories as text, without special tokens."""
    data = tq.kv_batch_get(keys=list(keys), partition_id=partition, select_fields=["prompts", "responses"])
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    return [
        (decode(prompt), decode(response))
        for prompt, response in zip(data["prompts"].unbind(), data["responses"].unbind(), strict=True)
    ]


class LogProbScorer:
    """Scores sequences with the actor's training engine: one forward for all of them."""

    def __init__(self, worker_group: Any, *, partition: str, temperature: float, micro_batch_size: int | None) -> None:
        """
        Args:
            worker_group: verl's ``actor_rollout_wg``.
            partition: of the batch whose prompts are scored.
            temperature: of the rollout; log-probs of both sides of a divergence are tempered alike.
            micro_batch_size: sequences per forward and rank, or None where verl packs by tokens.
        """
        self.worker_group = worker_group
        self.partition = partition
        self.temperature = temperature
        self.micro_batch_size = micro_batch_size

    @classmethod
    def of(cls, worker_group: Any, rollout: Any, partition: str) -> LogProbScorer:
        """The scorer of a run, from verl's section ``actor_rollout_ref.rollout``."""
        dynamic = bool(rollout.get("log_prob_use_dynamic_bsz", False))
        return cls(
            worker_group,
            partition=partition,
            temperature=rollout.temperature,
            micro_batch_size=None if dynamic else rollout.get("log_prob_micro_batch_size_per_gpu"),
        )

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
        sequences = self._with_media(sequences)
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

    def _with_media(self, sequences: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The sequences with what their prompts show besides text, an empty dictionary where that is nothing."""
        keys = list(dict.fromkeys(fields["key"] for fields in sequences))
        data = tq.kv_batch_get(keys=keys, partition_id=self.partition, select_fields=[_MEDIA])
        media = dict(zip(keys, map(plain, list(data[_MEDIA])), strict=True))
        return [
            {_MEDIA: media[fields["key"]], **{name: field for name, field in fields.items() if name != "key"}}
            for fields in sequences
        ]

    def _ranks(self) -> int:
        info = self.worker_group._dispatch_info
        if "actor" not in info:
            info["actor"] = self.worker_group._query_dispatch_info("actor")
        return int(max(info["actor"])) + 1


def _balanced(sequences: list[dict[str, Any]], ranks: int) -> list[int]:
    workload = calculate_workload(torch.tensor([fields["input_ids"].size(0) for fields in sequences]))
    parts = get_seqlen_balanced_partitions(workload, k_partitions=ranks, equal_size=True)
    return [row for part in parts for row in part]
