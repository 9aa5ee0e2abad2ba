"""Which rows of a batch share a mini-batch: a permutation by seed and step, whatever finished first.

verl's replay buffer hands over rows in the order in which they finished, and the actor cuts its batch into mini-batches
in that order: without this module the last update of a step would see the stragglers alone. :class:`SeededMiniBatches`
is mixed in before a trainer class of any mode:

1. The buffer's rows are sorted by dispatch, session and output (:class:`DispatchOrder`).
2. They are permuted by (seed, step, update), each row on its own: neither the rollouts of a prompt nor the outputs of a
   session stay together. verl's padding rows are dealt out evenly.
3. Each mini-batch is shared out among the data-parallel ranks by length, as verl shares out the whole batch.

The same rollouts therefore meet in the same mini-batches with any number of ranks, and after a resume.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from verl.utils.seqlen_balancing import (
    calculate_workload,
    get_seqlen_balanced_partitions,
    log_seqlen_unbalance,
)

from spo_verl.errors import SpoConfigError
from spo_verl.training.in_flight import TRAIN
from spo_verl.training.sessions import split_key

SEED_KEY = "mini_batch_seed"
"""Top-level key of verl's configuration: this order for runs with another estimator, a seed of its own for SPO."""
_STREAM = 1
"""Keeps these random numbers apart from other choices of (seed, step)."""


def mini_batch_seed(config: Any) -> int | None:
    """The seed under :data:`SEED_KEY`, None where the run does not ask for this order.

    Raises:
        SpoConfigError: the value is no whole number from 0 on.
    """
    seed = config.get(SEED_KEY)
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise SpoConfigError(f"{SEED_KEY}={seed!r}: it must be a whole number from 0 on; set +{SEED_KEY}=0.")
    return int(seed)


def deal(
    rows: Sequence[int],
    padding: Sequence[int],
    length_R: Sequence[int],
    *,
    mini_batch: int,
    ranks: int,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Deal the rows of a batch out to mini-batches at random, and those of each mini-batch to ranks by length.

    Args:
        rows: indices of the rollouts' rows, in an order that depends on the rollouts alone.
        padding: indices of verl's padding rows.
        length_R: tokens of each row, prompt and response.
        mini_batch: rows per mini-batch, over all ranks. Where it does not divide the batch, or the ranks do not divide
            it (a step without an update of the actor), the batch is dealt out as one.
        ranks: data-parallel ranks; they divide the number of rows.
        rng: decides who shares a mini-batch.

    Returns:
        The rows of each rank: those of its first mini-batch, then those of the second, and so on.
    """
    total = len(rows) + len(padding)
    if total % mini_batch or mini_batch % ranks:
        mini_batch = total
    spare = iter(padding)
    shares_of_rank: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for part in np.array_split(rng.permutation(np.asarray(rows, dtype=np.int64)), total // mini_batch):
        filled = [*part.tolist(), *islice(spare, mini_batch - len(part))]
        workload = calculate_workload(torch.tensor([length_R[row] for row in filled])).tolist()
        shares = get_seqlen_balanced_partitions(workload, k_partitions=ranks, equal_size=True)
        weighed = sorted(((sum(workload[place] for place in share), share) for share in shares), reverse=True)
        # The heaviest share goes to the rank that has had the least work so far.
        for rank, (weight, share) in zip(sorted(range(ranks), key=load.__getitem__), weighed, strict=True):
            shares_of_rank[rank] += [filled[place] for place in share]
            load[rank] += weight
    return shares_of_rank


class SeededMiniBatches:
    """Mixed in before a trainer class of verl; see the module."""

    # Provided by the trainer class that this is mixed into.
    config: Any
    global_steps: int
    local_trigger_step: int
    actor_rollout_wg: Any

    mini_batch_seed: int
    """Set before verl's constructor runs."""

    def _build_replay_buffer(self) -> Any:
        return in_dispatch_order(super()._build_replay_buffer())  # type: ignore[misc]

    def _balance_batch(
        self, batch: Any, metrics: dict, logging_prefix: str = "global_seqlen", keep_minibatch: bool = False
    ) -> Any:
        place = {key: number for number, key in enumerate(batch.keys)}
        batch = super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)  # type: ignore[misc]
        # verl has added padding rows and put the others into an order of its own.
        row_of = {key: row for row, key in enumerate(batch.keys)}
        lengths = [int(tag["seq_len"]) for tag in batch.tags]
        actor = self.config.actor_rollout_ref
        shares = deal(
            [row_of[key] for key in place],
            [row for key, row in row_of.items() if key not in place],
            lengths,
            mini_batch=int(actor.actor.ppo_mini_batch_size) * int(actor.rollout.n),
            ranks=int(max(self.actor_rollout_wg._dispatch_info["actor"])) + 1,
            rng=np.random.default_rng((self.mini_batch_seed, self.global_steps, self.local_trigger_step, _STREAM)),
        )
        metrics.update(log_seqlen_unbalance(seqlen_list=lengths, partitions=shares, prefix=logging_prefix))
        batch.reorder([row for share in shares for row in share])
        return batch


class DispatchOrder:
    """Mixed in before a replay buffer's own class by :func:`in_dispatch_order`."""

    # Provided by the class that this is mixed into.
    prompt_global_steps: dict[str, dict[str, int]]

    def _materialize_batch(
        self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: dict[str, dict]
    ) -> Any:
        if partition_id == TRAIN:
            # verl's queue lists prompts in the order of their dispatch, after a restart too.
            place = {uid: number for number, uid in enumerate(self.prompt_global_steps[TRAIN])}
            selected = set(selected_prompt_uids)
            split = {key: split_key(key) for key in partition_snapshot}
            chosen = [key for key, (uid, _, _) in split.items() if uid in selected]
            chosen.sort(key=lambda key: (place.get(split[key][0], len(place)), *split[key][1:]))
            partition_snapshot = {key: partition_snapshot[key] for key in chosen}
        return super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)  # type: ignore[misc]


@functools.cache
def _ordered_class(buffer_class: type) -> type:
    return type(f"Ordered{buffer_class.__name__}", (DispatchOrder, buffer_class), {"__module__": __name__})


def in_dispatch_order(buffer: Any) -> Any:
    """Let a replay buffer, however it was built, hand over training rows in the order of their dispatch; returns it."""
    buffer_class: type = type(buffer)
    buffer.__class__ = _ordered_class(buffer_class)
    return buffer


@functools.cache
def seeded_trainer_class(mode_class: type) -> type:
    """The trainer class for a run with another estimator and :data:`SEED_KEY`; such a class is returned as it is."""
    if issubclass(mode_class, SeededMiniBatches):
        return mode_class
    return type(f"Seeded{mode_class.__name__}", (_OtherEstimator, mode_class), {"__module__": __name__})


class _OtherEstimator(SeededMiniBatches):
    """Any trainer of verl with this order, and nothing else of the plugin."""

    def __init__(self, config: Any) -> None:
        from spo_verl.training import seams

        seams.require()
        seed = mini_batch_seed(config)
        assert seed is not None  # the plugin builds this class for such a run only
        self.mini_batch_seed = seed
        super().__init__(config)  # type: ignore[call-arg]
