"""Input checks shared by the maths: refuse first, with the value and the place, and compute afterwards."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from spo_verl.errors import SpoArgumentError, SpoError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ArrayOrTensor = TypeVar("ArrayOrTensor")


def is_tensor(array: Any) -> bool:
    """Whether ``array`` is a torch tensor; torch is not imported, as without it there is no tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def as_float64(name: str, array: Any) -> FloatArray:
    """``array`` as a float64 numpy array; a tensor of any device and precision is brought over."""
    if is_tensor(array):
        array = array.detach().cpu().double().numpy()
    try:
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SpoArgumentError(f"{name} cannot be read as numbers ({error}); pass an array of floats") from error


def like_input(result: FloatArray, given: Any) -> Any:
    """``result`` in the library, device and floating precision of ``given``; float64 for integers."""
    if is_tensor(given):
        torch = sys.modules["torch"]
        return torch.as_tensor(
            result, dtype=given.dtype if given.is_floating_point() else torch.float64, device=given.device
        )
    dtype = np.asarray(given).dtype
    return result.astype(dtype if np.issubdtype(dtype, np.floating) else np.float64, copy=False)


def require(
    holds: BoolArray | np.bool_,
    name: str,
    array: npt.NDArray[Any],
    rule: str,
    error: type[SpoError] = SpoArgumentError,
) -> None:
    """Raise ``error`` with the first element of ``array`` that is NaN or for which ``holds`` is False."""
    if np.all(holds):
        return
    bad = np.argwhere(~np.broadcast_to(holds, array.shape))
    place = "".join(f"[{index}]" for index in bad[0])
    raise error(f"{name}{place} = {array[tuple(bad[0])]}, but {rule} ({len(bad)} of {array.size} are wrong)")


def require_number(holds: bool, name: str, given: object, rule: str) -> None:
    """Raise SpoArgumentError if a scalar setting breaks its rule."""
    if not holds:
        raise SpoArgumentError(f"{name} = {given!r}, but {rule}")


def require_same_shape(**named: npt.NDArray[Any]) -> None:
    """Raise SpoArgumentError unless all have one shape: broadcasting would hide a mixed-up argument."""
    if len({array.shape for array in named.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in named.items())
        raise SpoArgumentError(f"shapes differ: {shapes}; pass one element per row in each")
