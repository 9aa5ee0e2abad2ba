"""What the tracker starts from: offline values, another run's tracker, or nothing."""

from __future__ import annotations

import logging

import numpy as np

from spo_verl.config import SpoConfig, still_to_estimate
from spo_verl.core import value
from spo_verl.data.values import OfflineValues, initial_evidence_for, initial_evidence_from_tracker

logger = logging.getLogger(__name__)


def initial_evidence(spo: SpoConfig, key_P: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Evidence of every prompt before the first step, equation (6), and a log line with its coverage.

    Args:
        spo: settings; ``spo.initial`` says where values come from, ``spo.forgetting.rho_min`` their mass.
        key_P: identities of the dataset's prompts in slot order.

    Returns:
        ``(alpha_P, beta_P)``, or None where nothing is known (yet) and every prompt starts at (1/2, 1/2).

    Raises:
        SpoValuesError: the values cannot be read, or belong to no prompt of the dataset.
        SpoCheckpointError: the tracker folder cannot be read.
    """
    rho_min = spo.forgetting.rho_min
    if still_to_estimate(spo.estimate.output, spo.initial.values):
        return None
    if spo.initial.values is not None:
        values = OfflineValues.read(spo.initial.values)
        alpha_P, beta_P, coverage = initial_evidence_for(values, key_P, rho_min=rho_min, prior=spo.initial.prior)
    elif spo.initial.tracker is not None:
        alpha_P, beta_P, coverage = initial_evidence_from_tracker(spo.initial.tracker, key_P, rho_min=rho_min)
    else:
        return None
    logger.info("spo: %s", coverage)
    return alpha_P, beta_P


def static_values(spo: SpoConfig, evidence: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray | None:
    """Baseline of every prompt under ``spo.advantage.baseline=initial``: its value before training, float64 (P,).

    It is no state: the file that ``spo.initial`` names is read at every start, so a resumed run has the same baseline
    as long as it names the same file. None where the baseline is another one.
    """
    if spo.advantage.baseline != "initial" or evidence is None:
        return None
    return value(*evidence)
