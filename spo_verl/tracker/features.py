"""Further features of the prompts for the calibrated read-out (``spo.value.features``), fixed when a run starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl.errors import SpoStateError
from spo_verl.tracker.arguments import as_array, shown

MOST_FEATURES = 100


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """Numbers that say something of a prompt's difficulty, the same for the whole run.

    Attributes:
        names: of the features, distinct; a checkpoint knows coefficients by them.
        feature_PF: (P, F) for each prompt slot, finite; held as float32. Each should have mean 0 and variance 1 over
            the prompts, see :meth:`standardised`: the prior of the fit is alike for all.

    Raises:
        SpoStateError: names repeat, are none or more than ``MOST_FEATURES``, or the numbers are not (P, F) and finite.
    """

    names: tuple[str, ...]
    feature_PF: NDArray[np.float32]

    def __post_init__(self) -> None:
        names, feature_PF = tuple(self.names), as_array("feature_PF", self.feature_PF)
        if not 0 < len(names) <= MOST_FEATURES or len(set(names)) < len(names):
            raise SpoStateError(f"names of features are {shown(names)}; pass one to {MOST_FEATURES}, each different.")
        if not all(isinstance(name, str) for name in names):
            raise SpoStateError(f"names of features are {shown(names)}; pass them as strings.")
        if feature_PF.ndim != 2 or feature_PF.shape[1] != len(names) or feature_PF.dtype.kind not in "fiub":
            raise SpoStateError(
                f"feature_PF has type {feature_PF.dtype} and shape {feature_PF.shape}; it must be numbers (P, "
                f"{len(names)}), a column for each name."
            )
        with np.errstate(over="ignore"):  # infinite then, which is refused
            held_PF = feature_PF.astype(np.float32)
        if not np.isfinite(held_PF).all():
            slot, number = np.argwhere(~np.isfinite(held_PF))[0]
            raise SpoStateError(
                f"feature {names[number]!r} of slot {slot} is {feature_PF[slot, number]}; features must be finite."
            )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "feature_PF", held_PF)

    @classmethod
    def standardised(cls, names: tuple[str, ...], number_PF: ArrayLike) -> PromptFeatures:
        """From numbers of any scale: each with its mean over the prompts taken away, over its standard deviation.

        Raises:
            SpoStateError: as for the class; or a feature is the same for all prompts, so that it would say nothing.
        """
        number_PF = np.asarray(number_PF, dtype=np.float64)
        if number_PF.ndim != 2:
            raise SpoStateError(f"features have the shape {number_PF.shape}; it must be (P, {len(names)}).")
        largest_F = np.abs(number_PF).max(axis=0, initial=0.0)  # squares of large numbers would overflow
        scaled_PF = number_PF / np.where(largest_F > 0, largest_F, 1.0)
        deviation_F = scaled_PF.std(axis=0) if len(scaled_PF) else np.zeros(number_PF.shape[1])
        # The mean of equal numbers is off by rounding, so they are compared.
        same_F = (number_PF == number_PF[:1]).all(axis=0)
        if same_F.any() and len(names) == number_PF.shape[1]:
            raise SpoStateError(f"feature {names[int(np.argmax(same_F))]!r} is the same for all prompts; leave it out.")
        return cls(names, (scaled_PF - scaled_PF.mean(axis=0)) / np.where(deviation_F > 0, deviation_F, 1.0))
