"""How a rehearsal's training processes share the work: data, tensor, pipeline and sequence parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omegaconf import DictConfig

    from spo_verl.small.model import ModelShape


@dataclass(frozen=True)
class Split:
    """Numbers of processes; 1 everywhere is one process.

    Attributes:
        ranks: training processes.
        tp, pp: tensor- and pipeline-parallel ones of a Megatron model.
        sp: that share a sequence (FSDP's Ulysses).
    """

    ranks: int = 1
    tp: int = 1
    pp: int = 1
    sp: int = 1

    @property
    def copies(self) -> int:
        """Processes, or groups of them, that have rows of their own: data-parallel ranks."""
        return self.ranks // (self.tp * self.pp * self.sp)

    def text(self) -> str:
        """What is not 1: "4 ranks, tp 2"."""
        sizes = [f"{name} {size}" for name, size in (("tp", self.tp), ("pp", self.pp), ("sp", self.sp)) if size > 1]
        return ", ".join([*([f"{self.ranks} ranks"] if self.ranks > 1 else []), *sizes])


def problems(split: Split, config: DictConfig, *, device: str, rows: int, shape: ModelShape) -> Iterator[str]:
    """Yield each number that this rehearsal cannot have, with the numbers that it can.

    Args:
        config: of the recipe.
        device: "cpu" or "gpu".
        rows: that data-parallel ranks share: trajectories of a mini-batch, or held-out rows.
        shape: of the stand-in.
    """
    megatron = str(config.actor_rollout_ref.actor.strategy) == "megatron"
    if not megatron and (split.tp > 1 or split.pp > 1):
        yield "--tp and --pp are Megatron's: add model_engine=megatron, or use --ranks alone"
    if megatron and split.sp > 1:
        yield "--sp is FSDP's: with model_engine=megatron use --tp"
    if split.sp > 1 and device == "cpu":
        yield "--sp needs flash attention, which a CPU does not have: use --ranks alone"
    parts = split.tp * split.pp * split.sp
    if split.ranks % parts:
        yield f"--ranks {split.ranks} cannot be divided by tp * pp * sp = {parts}: set --ranks to a multiple of {parts}"
    elif rows % split.copies:
        fitting = ", ".join(str(number * parts) for number in range(1, rows + 1) if rows % number == 0)
        yield (
            f"--ranks {split.ranks} leaves {split.copies} data-parallel ranks, which cannot share the {rows} rows that "
            f"they have at a time: set --ranks to one of {fitting}"
        )
    if shape.key_value_heads % split.tp:
        yield f"--tp {split.tp}: the stand-in has {shape.key_value_heads} key-value heads: set --tp to 1 or 2"
    if shape.heads % split.sp:
        yield f"--sp {split.sp}: the stand-in has {shape.heads} heads: set --sp to 1, 2 or 4"
    if shape.layers % split.pp:
        yield f"--pp {split.pp}: the stand-in has {shape.layers} layers: set --pp to 1 or 2"
