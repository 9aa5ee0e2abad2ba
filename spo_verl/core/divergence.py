"""How far the policy has moved on a stored response: the D(x) that forgetting turns into a retention."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from spo_verl.core._checks import ArrayOrTensor, FloatArray, is_tensor
from spo_verl.errors import SpoArgumentError


def divergence(
    log_prob_then_BT: ArrayOrTensor, log_prob_now_BT: ArrayOrTensor, mask_BT: ArrayOrTensor
) -> ArrayOrTensor:
    """D = mean over the masked tokens of |log pi_then(y_t) - log pi_now(y_t)| (arXiv 2509.13232, forgetting).

    Each row is one prompt's stored response y; "then" and "now" are the two policies to compare. Both sides
    must come from the training engine: the noise of a rollout engine's log-probabilities alone gives a D of
    about a fifth of the default half-life.

    Args:
        log_prob_then_BT, log_prob_now_BT: (B, T) natural log-probabilities of the response's tokens.
        mask_BT: (B, T) bool or 0/1; only masked-in tokens count, and what is elsewhere is never read into
            the result (padding may be NaN).
        All three are numpy arrays, or all three are torch tensors on one device.

    Returns:
        divergence_B: (B,) >= 0 in nats per token, 0 for rows without a masked-in token. Numpy gives float64.
        Torch gives a detached tensor on the same device in the inputs' precision, but at least float32.

    Raises:
        SpoArgumentError: shapes differ or are not (B, T), libraries are mixed, the mask holds something else
            than 0 and 1, or a masked-in log-probability is NaN or infinite.
    """
    tensors = [is_tensor(array) for array in (log_prob_then_BT, log_prob_now_BT, mask_BT)]
    if any(tensors) and not all(tensors):
        raise SpoArgumentError("numpy arrays and torch tensors are mixed; pass all three from one library")
    compute: Any = _divergence_torch if all(tensors) else _divergence_numpy
    divergence_B: ArrayOrTensor = compute(log_prob_then_BT, log_prob_now_BT, mask_BT)
    return divergence_B


def _divergence_numpy(then_BT: Any, now_BT: Any, mask_BT: Any) -> FloatArray:
    then_BT, now_BT = np.asarray(then_BT, dtype=np.float64), np.asarray(now_BT, dtype=np.float64)
    mask_BT = np.asarray(mask_BT)
    _check_shapes(then_BT.shape, now_BT.shape, mask_BT.shape)
    kept_BT = mask_BT != 0
    _check_mask(bool(((mask_BT == 1) | ~kept_BT).all()))
    # Selecting before subtracting keeps padding of any content (NaN, -inf) out of the arithmetic.
    then_BT, now_BT = np.where(kept_BT, then_BT, 0.0), np.where(kept_BT, now_BT, 0.0)
    _check_finite((np.isfinite(then_BT) & np.isfinite(now_BT)).all(axis=1))
    token_count_B = kept_BT.sum(axis=1)
    return np.asarray(np.abs(then_BT - now_BT).sum(axis=1) / np.maximum(token_count_B, 1))


def _divergence_torch(then_BT: Any, now_BT: Any, mask_BT: Any) -> Any:
    torch = sys.modules["torch"]
    _check_shapes(tuple(then_BT.shape), tuple(now_BT.shape), tuple(mask_BT.shape))
    # Half precision is too coarse for sums over thousands of tokens, and float64 is missing on some devices.
    dtype = torch.promote_types(torch.promote_types(then_BT.dtype, now_BT.dtype), torch.float32)
    kept_BT = mask_BT != 0
    _check_mask(bool(((mask_BT == 1) | ~kept_BT).all()))
    then_BT = then_BT.detach().to(dtype).masked_fill(~kept_BT, 0.0)
    now_BT = now_BT.detach().to(dtype).masked_fill(~kept_BT, 0.0)
    _check_finite((torch.isfinite(then_BT) & torch.isfinite(now_BT)).all(dim=1).cpu().numpy())
    token_count_B = kept_BT.sum(dim=1)
    return (then_BT - now_BT).abs().sum(dim=1) / token_count_B.clamp(min=1)


def _check_shapes(then: tuple[int, ...], now: tuple[int, ...], mask: tuple[int, ...]) -> None:
    if not (len(then) == 2 and then == now == mask):
        raise SpoArgumentError(
            f"log_prob_then_BT {then}, log_prob_now_BT {now} and mask_BT {mask} must share one shape (B, T)"
        )


def _check_mask(binary: bool) -> None:
    if not binary:
        raise SpoArgumentError("mask_BT holds something else than 0 and 1; pass the response mask, not weights")


def _check_finite(finite_B: Any) -> None:
    if not finite_B.all():
        raise SpoArgumentError(
            f"row {int(np.argmin(finite_B))} has a masked-in log-probability that is NaN or infinite; "
            "check the mask and the forward pass that produced it"
        )
