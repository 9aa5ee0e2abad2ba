"""What the files of a record hold: their names, columns and version.

A record is the folder ``record/`` in the folder of a run::

    run.json                                  the run, see RecordWriter.describe
    prompts.parquet                           PROMPTS
    rollouts-<first step>-<last step>.parquet ROLLOUTS, parts
    steps-<first step>-<last step>.parquet    STEPS, parts
    aside/                                    parts of steps that a restart went back before

A part whose steps lie within those of another part of its kind is covered by it: it is about to be removed, and holds
nothing that the other does not. Units are in the comments; a column that may be null says when.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning or type, or is removed; a column may be added without."""

FOLDER = "record"
"""Name of the folder, in ``trainer.default_local_dir``."""
ASIDE = "aside"
RUN = "run.json"
PROMPTS_FILE = "prompts.parquet"
VERSION_KEY = b"spo_record_schema"
"""Key of the schema's version in the metadata of every Parquet file."""

Kind = Literal["rollouts", "steps"]

_NAME = pa.dictionary(pa.int32(), pa.string())

ROLLOUTS = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),  # the dispatch of a prompt
        pa.field("session", pa.int32()),  # 0 .. rollout.n - 1; null: the dispatch ended without any outcome
        pa.field("key", pa.string(), nullable=False),  # identity of the prompt, 32 hex digits
        pa.field("slot", pa.int64(), nullable=False),  # number of the prompt in the process that wrote the row
        pa.field("row", pa.int64()),  # row of the dataset; null: the prompt is no longer in it
        pa.field("data_source", _NAME),  # null: the dataset does not say
        pa.field("step", pa.int32(), nullable=False),  # trainer step that observed the end
        pa.field("version_dispatch", pa.int32(), nullable=False),  # policy version that value and n_eff are of
        pa.field("version_first", pa.int32()),  # oldest weights that generated it; null: unknown
        pa.field("version_last", pa.int32()),  # newest weights that generated it; null: unknown
        pa.field("value", pa.float64(), nullable=False),  # in [0, 1], frozen at dispatch
        pa.field("n_eff", pa.float64(), nullable=False),  # effective sample size, frozen at dispatch
        pa.field("reward", pa.float64()),  # in [0, 1]; null: ended without one
        pa.field("raw_advantage", pa.float64()),  # reward minus baseline; null: not trained
        pa.field("advantage", pa.float64()),  # normalised over the batch; null: not trained
        pa.field("divergence", pa.float64()),  # nats per token; null: none measured
        pa.field("rho", pa.float64()),  # retention of the prompt's evidence in this step; null: nothing observed
        pa.field("ending", _NAME, nullable=False),  # ENDINGS
        pa.field("tokens", pa.int32()),  # response tokens, all outputs together; null: unknown
        pa.field("seconds", pa.float32()),  # dispatch until its end was seen; null: unknown
    ]
)
"""One row per session that ended, in the order in which the tracker observed them."""

STEPS = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # as in verl's log
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""The numbers of every step, one row each."""

PROMPTS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("slot", pa.int64()),  # null: in an earlier dataset of this run, and not in the present one
        pa.field("row", pa.int64()),  # the same
        pa.field("data_source", _NAME),
        pa.field("value", pa.float64(), nullable=False),  # when the run first saw the prompt
        pa.field("n_eff", pa.float64(), nullable=False),  # the same
        pa.field("text", pa.string()),  # last user message, TEXT_LENGTH characters at most; null: left out for space
    ]
)
"""One row per prompt of the dataset."""

TEXT_LENGTH = 2000

ENDINGS = ("trained", "stale", "surplus", "rejected", "failed", "aborted")
"""Why a rollout ended, see ``Tracker.settle``."""

SCHEMAS: dict[Kind, pa.Schema] = {"rollouts": ROLLOUTS, "steps": STEPS}

_PART = re.compile(r"(rollouts|steps)-(\d{8,})-(\d{8,})\.parquet")


@dataclass(frozen=True, order=True)
class Part:
    """A file of rows of the steps ``first`` to ``last``, both included."""

    first: int
    last: int
    kind: Kind

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.first:08d}-{self.last:08d}.parquet"

    def covers(self, other: Part) -> bool:
        """Whether every row of another part is in this one."""
        return self != other and self.kind == other.kind and self.first <= other.first and other.last <= self.last


def parts_in(folder: Path, kind: Kind) -> list[Part]:
    """The parts of a kind in a folder by their steps, those that another one covers included.

    Raises:
        OSError: the folder cannot be looked at.
    """
    found = (_PART.fullmatch(path.name) for path in folder.iterdir())
    return sorted(Part(int(one[2]), int(one[3]), kind) for one in found if one and one[1] == kind)


def uncovered(parts: Iterable[Part]) -> list[Part]:
    """Those that no other one covers, by their steps."""
    parts = list(parts)
    left: list[Part] = []
    for part in sorted(parts, key=lambda one: (one.first, -one.last)):
        if not (left and left[-1].covers(part)):
            left.append(part)
    return left
