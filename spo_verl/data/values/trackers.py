"""The evidence in a tracker's checkpoint as offline values, e.g. for another model on the same prompts."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl import core
from spo_verl.core.evidence import UNTRIED_EVIDENCE
from spo_verl.data.identity import IDENTITY_VERSION, DatasetKeys
from spo_verl.data.values.match_report import MatchReport
from spo_verl.data.values.values_table import OfflineValues, provenance
from spo_verl.errors import SpoValuesError
from spo_verl.tracker import checkpoint
from spo_verl.tracker.table import match_keys

logger = logging.getLogger(__name__)


def from_tracker(
    folder: str | Path,
    *,
    keys: DatasetKeys | None = None,
    policy: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    date: str | None = None,
) -> tuple[OfflineValues, MatchReport]:
    """Read the values of a tracker's checkpoint; prompts that it kept aside are included.

    trials = N_eff rounded, at least 1; successes = v * trials: the value is exact, the weight is that of the evidence
    not yet forgotten. Prompts that were never observed and had no initial value either hold no evidence and are left
    out.

    Args:
        folder: The ``spo`` folder of a checkpoint. It is verified and not changed.
        keys: Of the dataset to report about; default: the checkpoint's own prompts.
        policy, sampling, date: For the provenance, as in `provenance`.

    Returns:
        The values, and what matched; an entry is a prompt with evidence.

    Raises:
        SpoCheckpointError: The checkpoint cannot be read (or one of its children).
        SpoValuesError: Its keys are of another identity version.
    """
    saved = checkpoint.read(folder)
    version = saved.manifest.extra.get("identity_version", IDENTITY_VERSION)
    if version != IDENTITY_VERSION:
        raise SpoValuesError(
            f"{folder} identifies prompts by version {version} of the identity, this version of spo_verl by "
            f"{IDENTITY_VERSION}, so no key could match: convert with the version of spo_verl that wrote it "
            f"({saved.manifest.spo_verl_version})"
        )
    table = saved.table
    initial_P = (table.alpha_P == UNTRIED_EVIDENCE) & (table.beta_P == UNTRIED_EVIDENCE)
    kept_P = (table.visits_P > 0) | ~initial_P
    alpha_N, beta_N = table.alpha_P[kept_P], table.beta_P[kept_P]
    trials_N = np.maximum(1, np.rint(core.effective_sample_size(alpha_N, beta_N))).astype(np.int64)
    details = {"step": saved.manifest.step, "tracker_digest": saved.manifest.digest}
    values = OfflineValues(
        table.key_P[kept_P],
        core.value(alpha_N, beta_N) * trials_N,
        trials_N,
        (provenance("tracker", policy=policy, sampling=sampling, date=date, **details),),
    )
    report = _report(folder, values, keys, int((~kept_P).sum()))
    logger.info("%s", report)
    return values, report


def _report(folder: str | Path, values: OfflineValues, keys: DatasetKeys | None, left_out: int) -> MatchReport:
    source = f"tracker checkpoint, {folder}"
    note = f"{left_out} prompts of the checkpoint were never observed and had no initial value: left out"
    notes = (note,) if left_out else ()
    if keys is None:
        return MatchReport(source, len(values) + left_out, len(values), "prompt key", len(values), notes=notes)
    known_P = match_keys(values.key_N, keys.key_P) >= 0
    strange_N = match_keys(keys.key_P, values.key_N) < 0
    return MatchReport(
        source=source,
        prompts=keys.prompts,
        matched=int(known_P.sum()),
        entry="prompt key",
        entries=len(values),
        unmatched_entries=tuple(key.tobytes().hex() for key in values.key_N[strange_N]),
        unmatched_row_U=keys.row_of_slot_P[~known_P],
        notes=notes,
    )
