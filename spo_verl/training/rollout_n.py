"""How many rollouts each prompt gets, chosen when it is dispatched (``spo.rollout_n``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spo_verl.errors import SpoConfigError
from spo_verl.training.functions import load_function

Chooser = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``(value_B, n_eff_B) -> n_B``, whole numbers from 1 on."""


def more_where_uncertain(value_B: np.ndarray, n_eff_B: np.ndarray) -> np.ndarray:
    """An example: four rollouts where the value is between 0.2 and 0.8, one elsewhere.

    A prompt that is nearly always right or wrong shows little more in its second rollout than in its first.
    """
    return np.where((value_B >= 0.2) & (value_B <= 0.8), 4, 1)


def load_chooser(name: str) -> Chooser:
    """The function that ``module:function`` names; raises SpoConfigError as :func:`load_function`."""
    chooser: Chooser = load_function("spo.rollout_n", name, f"{__name__}:{more_where_uncertain.__name__}")
    return chooser


def choose(chooser: Chooser, value_B: np.ndarray, n_eff_B: np.ndarray) -> np.ndarray:
    """Ask the function and check its answer.

    Returns:
        int64 (B,), each at least 1.

    Raises:
        SpoConfigError: the answer has another shape, or something else than whole numbers from 1 on.
    """
    n_B = np.asarray(chooser(value_B, n_eff_B))
    if n_B.shape != value_B.shape or n_B.dtype.kind not in "iu" or (n_B < 1).any():
        raise SpoConfigError(
            f"the function of spo.rollout_n returned {n_B!r} for {len(value_B)} prompts: it must return one whole "
            "number from 1 on per prompt"
        )
    return n_B.astype(np.int64)
