"""How many rollouts each prompt gets, chosen when it is dispatched (``spo.rollout_n``)."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from spo_verl.errors import SpoConfigError

Chooser = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``(value_B, n_eff_B) -> n_B``, whole numbers from 1 on."""


def more_where_uncertain(value_B: np.ndarray, n_eff_B: np.ndarray) -> np.ndarray:
    """An example: four rollouts where the value is between 0.2 and 0.8, one elsewhere.

    A prompt that is nearly always right or wrong shows little more in its second rollout than in its first.
    """
    return np.where((value_B >= 0.2) & (value_B <= 0.8), 4, 1)


def load_chooser(name: str) -> Chooser:
    """The function that ``module:function`` names.

    Raises:
        SpoConfigError: there is no such module or function, or it cannot be called.
    """
    module, _, function = name.partition(":")
    try:
        chooser: Chooser = getattr(importlib.import_module(module), function)
        if not callable(chooser):
            raise ValueError("it is no function")
    except (ImportError, AttributeError, ValueError) as error:
        raise SpoConfigError(
            f"spo.rollout_n={name!r} cannot be loaded ({error}): name a function as module:function, of a module that "
            "can be imported where verl's task runner runs, e.g. spo_verl.training.rollout_n:more_where_uncertain."
        ) from error
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
