"""What the files of a tracker checkpoint are called and hold: Arrow IPC files and a manifest, no pickle.

| file | one row per | columns |
|---|---|---|
| ``prompts.arrow`` | prompt slot | key, alpha, beta, draws, visits, version; moved under ``forgetting_mode=drift`` |
| ``responses.arrow`` | stored response, by slot | slot, prompt_hash, token, mask, log_prob_<name>... |
| ``rollouts.arrow`` | rollout | uid, open, slot, value, n_eff, version, sessions; calibrated: raw, age |
| ``outcomes.arrow`` | outcome of the fit, oldest first | calibrated: value, n_eff, age, source, reward, feature_0... |

Prompts of the dataset come before those kept aside. ``mask`` holds eight tokens per byte. Open rollouts come by uid
before the ended ones by age, which have only uid and sessions. What is marked "calibrated", a whole file among it, is
there with the calibrated read-out only.

How the folder is made and verified is in :mod:`spo_verl.tracker.checkpoint.folder`, what writes it in
:mod:`spo_verl.tracker.checkpoint.snapshot`, what reads it in :mod:`spo_verl.tracker.checkpoint.reading`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spo_verl.errors import SpoCheckpointError
from spo_verl.tracker.arguments import shown
from spo_verl.tracker.readout import OUTCOMES as OUTCOME_COLUMNS
from spo_verl.tracker.table import COLUMNS, KEY_BYTES, MOVED

PROMPTS, RESPONSES, ROLLOUTS = "prompts.arrow", "responses.arrow", "rollouts.arrow"
OUTCOMES = "outcomes.arrow"

OUTCOMES_SCHEMA = pa.schema(
    [(name.removesuffix("_N"), pa.from_numpy_dtype(dtype)) for name, dtype in OUTCOME_COLUMNS.items()]
)


def outcomes_schema(features: int) -> Any:
    """Arrow schema of ``outcomes.arrow`` with so many features of the user's."""
    return pa.schema([*OUTCOMES_SCHEMA, *(pa.field(name, pa.float64()) for name in feature_columns(features))])


def feature_columns(features: int) -> list[str]:
    """Names of the columns of the user's features."""
    return [f"feature_{number}" for number in range(features)]


def files_of(*, calibrated: bool) -> set[str]:
    """The data files; ``calibrated``: with the state of the calibrated read-out."""
    return {PROMPTS, RESPONSES, ROLLOUTS, *((OUTCOMES,) if calibrated else ())}


def rollouts_schema(*, calibrated: bool) -> Any:
    """Arrow schema of ``rollouts.arrow``; ``calibrated``: with what the fit needs of each open rollout."""
    columns = [
        ("uid", pa.string()),
        ("open", pa.bool_()),
        ("slot", pa.int64()),
        ("value", pa.float64()),
        ("n_eff", pa.float64()),
        ("version", pa.int64()),
        ("sessions", pa.list_(pa.int64())),
    ]
    return pa.schema(columns + ([("raw", pa.float64()), ("age", pa.int64())] if calibrated else []))


def prompt_columns(*, moved: bool) -> Mapping[str, np.dtype]:
    """Columns of the prompts' table and their types; ``moved``: with the policy's movement, as drift stores it."""
    return {**COLUMNS, **MOVED} if moved else COLUMNS


def prompts_schema(columns: Mapping[str, np.dtype]) -> Any:
    """Arrow schema of ``prompts.arrow``; ``columns`` as from :func:`prompt_columns`."""
    return pa.schema(
        [("key", pa.binary(KEY_BYTES))]
        + [(name.removesuffix("_P"), pa.from_numpy_dtype(dtype)) for name, dtype in columns.items()]
    )


def responses_schema(references: list[str]) -> Any:
    """Arrow schema of ``responses.arrow``; ``references``: sorted names of the stored log-probs."""
    tokens = [("token", pa.list_(pa.int32())), ("mask", pa.list_(pa.uint8()))]
    log_probs = [(f"log_prob_{name}", pa.list_(pa.float16())) for name in references]
    return pa.schema([("slot", pa.int64()), ("prompt_hash", pa.uint64()), *tokens, *log_probs])


def target_of(folder: str | Path) -> Path:
    """An absolute path; raises :class:`SpoCheckpointError` for what is no path."""
    try:
        path = Path(folder).absolute()
        os.fsencode(path)
    except (TypeError, ValueError, OSError) as error:
        raise SpoCheckpointError(
            f"{shown(folder)} is no place for a tracker checkpoint ({error}); pass a path."
        ) from error
    if "\0" in str(path):
        raise SpoCheckpointError(f"{shown(folder)} is no place for a tracker checkpoint (it holds a zero byte).")
    return path
