"""Further features of the prompts for the calibrated read-out (``spo.value.features``), fixed when a run starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl.errors import SpoStateError
from spo_verl.tracker.arguments import as_array, shown

MOST_FEATURES = 100

Scale = tuple[float, float]
"""Mean and standard deviation that a feature was standardised with."""


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """Numbers that say something of a prompt's difficulty, the same for the whole run; made by :meth:`standardised`.

    Attributes:
        names: of the features, distinct; a checkpoint knows coefficients by them.
        feature_PF: (P, F) for each prompt slot, finite, standardised; held as float32.
        scales: of each feature.

    Raises:
        SpoStateError: names repeat, are none or more than ``MOST_FEATURES``; the numbers are not (P, F) and finite; or
            a scale is not two finite numbers, the second above 0.
    """

    names: tuple[str, ...]
    feature_PF: NDArray[np.float32]
    scales: tuple[Scale, ...]

    def __post_init__(self) -> None:
        names, feature_PF = _checked_names(self.names), as_array("feature_PF", self.feature_PF)
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
                f"feature {names[number]!r} of slot {slot} is {feature_PF[slot, number]}; features must be finite "
                "numbers of 32 bits."
            )
        if len(self.scales) != len(names) or not all(is_scale(one) for one in self.scales):
            raise SpoStateError(
                f"scales are {shown(self.scales)}; pass (mean, standard deviation > 0) of each feature."
            )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "feature_PF", held_PF)
        object.__setattr__(self, "scales", tuple((float(mean), float(sd)) for mean, sd in self.scales))

    @classmethod
    def standardised(cls, names: tuple[str, ...], number_PF: ArrayLike) -> PromptFeatures:
        """From numbers of any scale: each with its mean over the prompts taken away, over its standard deviation.

        Raises:
            SpoStateError: as for the class; or a feature is the same for all prompts, so that it would say nothing.
        """
        names = _checked_names(names)
        number_PF = numbers("number_PF", number_PF)
        if number_PF.ndim != 2 or number_PF.shape[1] != len(names):
            raise SpoStateError(
                f"features have the shape {number_PF.shape}; it must be (P, {len(names)}), a column for each name."
            )
        if not np.isfinite(number_PF).all():
            slot, number = np.argwhere(~np.isfinite(number_PF))[0]
            raise SpoStateError(
                f"feature {names[number]!r} of slot {slot} is {number_PF[slot, number]}; it must be finite."
            )
        # The mean of equal numbers is off by rounding, so they are compared.
        same_F = (number_PF == number_PF[:1]).all(axis=0)
        if same_F.any():
            raise SpoStateError(f"feature {names[int(np.argmax(same_F))]!r} is the same for all prompts; leave it out.")
        largest_F = np.abs(number_PF).max(axis=0)  # squares of large numbers would overflow
        scaled_PF = number_PF / largest_F
        mean_F, deviation_F = scaled_PF.mean(axis=0), scaled_PF.std(axis=0)
        scales = zip((mean_F * largest_F).tolist(), (deviation_F * largest_F).tolist(), strict=True)
        return cls(names, (scaled_PF - mean_F) / deviation_F, tuple(scales))

    def on(self, scales: Mapping[str, Scale]) -> PromptFeatures:
        """The same numbers, standardised with these scales where a feature has one: those that a fit was made with."""
        wanted = tuple(scales.get(name, own) for name, own in zip(self.names, self.scales, strict=True))
        if wanted == self.scales:
            return self
        feature_PF = self.feature_PF.astype(np.float64)
        for number, ((mean, sd), (other_mean, other_sd)) in enumerate(zip(self.scales, wanted, strict=True)):
            if (mean, sd) != (other_mean, other_sd):
                feature_PF[:, number] = feature_PF[:, number] * (sd / other_sd) + (mean - other_mean) / other_sd
        return replace(self, feature_PF=feature_PF.astype(np.float32), scales=wanted)


def numbers(name: str, given: object) -> NDArray[np.float64]:
    """Numbers or truth values as float64; raises :class:`SpoStateError` for anything else, also text and dates."""
    try:
        array = given if isinstance(given, np.ma.MaskedArray) else np.asarray(given)
    except Exception as error:
        raise SpoStateError(f"{name} cannot be read as an array of numbers ({error}).") from error
    if np.ma.is_masked(array):
        raise SpoStateError(f"{name} has masked entries; every prompt needs a number.")
    if array.dtype.kind not in "fiub":
        raise SpoStateError(f"{name} has the type {array.dtype}; it must be numbers.")
    return np.asarray(array, dtype=np.float64)


def is_scale(given: object) -> bool:
    """Whether this is a mean and a standard deviation."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        return False
    mean, sd = given
    return isinstance(mean, float) and isinstance(sd, float) and bool(np.isfinite([mean, sd]).all()) and sd > 0


def _checked_names(names: object) -> tuple[str, ...]:
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise SpoStateError(f"names of features are {shown(names)}; pass a tuple of strings.")
    if not 0 < len(names) <= MOST_FEATURES or len(set(names)) < len(names):
        raise SpoStateError(f"names of features are {shown(names)}; pass one to {MOST_FEATURES}, each different.")
    return tuple(names)
