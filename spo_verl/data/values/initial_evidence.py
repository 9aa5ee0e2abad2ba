"""From offline values, or another run's tracker, to the evidence that a tracker starts with."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spo_verl import core
from spo_verl.core.evidence import Prior
from spo_verl.data.values.trackers import from_tracker
from spo_verl.data.values.values_table import OfflineValues
from spo_verl.errors import SpoValuesError
from spo_verl.tracker.table import match_keys

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """How far offline values reach over a dataset.

    Attributes:
        prompts: Distinct prompts of the dataset.
        covered: Those with at least one trial; the others start at (0.5, 0.5).
        entries: Prompts in the offline values.
        unused: Entries whose prompt the dataset does not have.
        untried: Entries without a single trial.
        trials: Trials of the covered prompts.
        value_mean: Mean initial value of the covered prompts.
    """

    prompts: int
    covered: int
    entries: int
    unused: int
    untried: int
    trials: int
    value_mean: float

    @property
    def share(self) -> float:
        """Covered share of the dataset's prompts, in [0, 1]."""
        return self.covered / self.prompts

    def as_json(self) -> dict[str, Any]:
        """All of it and the share, as JSON can hold it."""
        return {**asdict(self), "share": self.share}

    def __str__(self) -> str:
        text = (
            f"offline values cover {self.covered} of {self.prompts} prompts ({self.share:.1%}) with {self.trials} "
            f"trials, mean initial value {self.value_mean:.3f}"
        )
        if self.covered < self.prompts:
            text += f"; the other {self.prompts - self.covered} start at alpha = beta = 0.5"
        if self.unused:
            text += f"; {self.unused} of {self.entries} entries belong to no prompt of the dataset"
        if self.untried:
            text += f"; {self.untried} entries have no trial"
        return text


def initial_evidence_for(
    values: OfflineValues, key_P: np.ndarray, *, rho_min: float = 0.875, prior: Prior = "jeffreys"
) -> tuple[FloatArray, FloatArray, Coverage]:
    """Evidence of every prompt of a dataset before the first step (Algorithm 2, eq. 6; `core.initial_evidence`).

    Args:
        values: Offline values; entries of other prompts are left out and counted.
        key_P: (P,) dtype "V16", the dataset's distinct keys in slot order (`DatasetKeys.key_P`).
        rho_min: Sets the mass N_0 = 1 / (1 - rho_min), whatever the number of trials was.
        prior: "jeffreys" smooths the rate, "none" takes it as it is.

    Returns:
        alpha_P, beta_P (float64; (0.5, 0.5) where there are no values), and what was covered.

    Raises:
        SpoValuesError: Not a single prompt is covered.
        SpoArgumentError: A setting is out of its range.
    """
    row_P = match_keys(values.key_N, key_P)
    known_P = row_P >= 0
    successes_P, trials_P = np.zeros(len(key_P)), np.zeros(len(key_P), dtype=np.int64)
    successes_P[known_P] = values.successes_N[row_P[known_P]]
    trials_P[known_P] = values.trials_N[row_P[known_P]]
    covered_P = trials_P > 0
    if not covered_P.any():
        raise SpoValuesError(
            f"none of the dataset's {len(key_P)} prompts has a value among the {len(values)} offline ones. A prompt is "
            "known by its messages, media, tools, data_source and reward_model, so values belong to the data that they "
            "were made with: import them again for this dataset (docs/offline-values.md), or train without them"
        )
    alpha_P, beta_P = core.initial_evidence(successes_P, trials_P, rho_min=rho_min, prior=prior)
    return (
        alpha_P,
        beta_P,
        Coverage(
            prompts=len(key_P),
            covered=int(covered_P.sum()),
            entries=len(values),
            unused=len(values) - int(known_P.sum()),
            untried=int((values.trials_N == 0).sum()),
            trials=int(trials_P.sum()),
            value_mean=float(core.value(alpha_P, beta_P)[covered_P].mean()),
        ),
    )


def initial_evidence_from_tracker(
    folder: str | Path, key_P: np.ndarray, *, rho_min: float = 0.875
) -> tuple[FloatArray, FloatArray, Coverage]:
    """Start from what another run's tracker knew: its value v of each prompt, with the mass N_0 of a fresh start.

    alpha = N_0 v, beta = N_0 (1 - v): the policy is another one, so the order of difficulty is taken over, not the
    confidence. No prior is added, as v contains it already.

    Args:
        folder: The ``spo`` folder of a checkpoint.
        key_P: As in `initial_evidence_for`.
        rho_min: As in `initial_evidence_for`.

    Returns:
        alpha_P, beta_P, and what was covered; ``trials`` counts the effective sample sizes, rounded.

    Raises:
        SpoValuesError: Not a single prompt of the dataset has evidence in the checkpoint, or its keys are of another
            identity version.
        SpoCheckpointError: The checkpoint cannot be read (or one of its children).
    """
    values, _ = from_tracker(folder)
    return initial_evidence_for(values, key_P, rho_min=rho_min, prior="none")
