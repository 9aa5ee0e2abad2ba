"""A calibrated read-out of the evidence: v^ = sigmoid(c . features), c fitted on outcomes that were frozen before.

**Why.** v = alpha / (alpha + beta) remembers 8 to 25 visits. A policy that learns is ahead of it, so v is too low, and
a prompt with little evidence has a v that says little. Both errors are shared by many prompts, so a few coefficients
that are fitted on the outcomes of *all* prompts remove most of them.

**Model.** The reward r of a rollout is Bernoulli with

    logit P(r = 1) = c_0 logit v + c_1 + c_2 logit v / sqrt(N_eff) + c_3 log(1 + age) + sum_q c_q [source = q] + ...

v, N_eff and age are those of the dispatch. c_0 = 1 and all others 0 is the tracker's own value. c_0 < 1 draws values to
the middle, c_1 moves them together, c_2 trusts evidence by its mass, c_3 moves values of prompts that were not visited
for long, c_q those of a data source.

**Fit.** The prior of c is normal around that identity, m = (1, 0, ..., 0), with precision lambda. With features x_n,
rewards r_n and weights w_n, the mode of the posterior maximises

    J(c) = sum_n w_n (r_n x_n.c - log(1 + exp(x_n.c))) - 1/2 sum_f lambda_f (c_f - m_f)^2

Its gradient is sum_n w_n (r_n - p_n) x_n - lambda (c - m), with p_n = sigmoid(x_n.c), and its negative Hessian is
sum_n w_n p_n (1 - p_n) x_n x_n^T + diag(lambda). The second part makes J strictly concave for lambda > 0: there is one
optimum, also for outcomes that are all equal or perfectly separated, for one row (it moves c along its features only),
and for none (c = m). Newton steps, halved until J does not fall, find it. J does not need r in {0, 1}: for fractions it
is the quasi-likelihood, and its optimum estimates E[r] in the same way.

**Independence.** A baseline may depend on anything but the response that it is subtracted from (eq. 8). Features are
frozen at dispatch, and c must come from outcomes that were observed before the dispatch: then
E[(r - v^) grad log pi] = E[r grad log pi].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spo_verl.core._checks import FloatArray, IntArray, as_float64, require, require_number, require_same_shape
from spo_verl.errors import SpoArgumentError, SpoRewardError

VALUE_CLIP = 0.01
"""Values are clipped to [0.01, 0.99] before their logit: the logit of 0 or 1 is infinite."""
OWN_FEATURES = 4
"""logit v, 1, logit v / sqrt(N_eff), log(1 + age): the columns before those of data sources."""
MOST_STEPS = 100
MOST_HALVINGS = 60


def calibration_features(
    value_B: npt.ArrayLike,
    n_eff_B: npt.ArrayLike,
    age_B: npt.ArrayLike,
    source_B: npt.ArrayLike | None = None,
    *,
    sources: int = 0,
    extra_BF: npt.ArrayLike | None = None,
    clip: float = VALUE_CLIP,
) -> FloatArray:
    """The row of features of each prompt, read from its evidence at dispatch.

    Args:
        value_B: (B,) the tracker's v, in [0, 1]; clipped to [clip, 1 - clip].
        n_eff_B: (B,) effective sample size, finite and >= 0; floored at 1, as in the sampling weights.
        age_B: (B,) trainer steps since the prompt's last visit, or since the start of the run; finite and >= 0.
        source_B: (B,) index of the data source, a whole number in [0, sources), or -1 for a prompt without an
            indicator; needed where ``sources`` > 1.
        sources: number of data sources, >= 0. With 0 or 1 there are no indicators: the intercept is theirs.
        extra_BF: (B, F) further columns of the user's, finite.
        clip: in (0, 1/2).

    Returns:
        feature_BF: (B, F) float64: logit v, 1, logit v / sqrt(N_eff), log(1 + age), an indicator per data source, extra
        columns.

    Raises:
        SpoArgumentError: an argument is NaN or out of its range, or shapes differ.
    """
    require_number(sources >= 0, "sources", sources, "it must be at least 0")
    value_B, n_eff_B, age_B = _checked_readings(value_B, n_eff_B, age_B, clip)
    logit_B = _logit(value_B, clip)
    columns = [logit_B, np.ones_like(logit_B), logit_B / np.sqrt(np.maximum(n_eff_B, 1.0)), np.log1p(age_B)]
    parts = [np.stack(columns, axis=1)]
    if sources > 1:
        parts.append(_indicators(source_B, sources, value_B.shape))
    if extra_BF is not None:
        extra_BF = _checked_extra(extra_BF, len(value_B))
        parts.append(extra_BF)
    return np.concatenate(parts, axis=1)


def fit_calibration(
    feature_BF: npt.ArrayLike,
    reward_B: npt.ArrayLike,
    weight_B: npt.ArrayLike | None = None,
    *,
    precision: npt.ArrayLike = 5.0,
) -> FloatArray:
    """The coefficients c with the largest J (see the module): penalised logistic regression by Newton's method.

    Args:
        feature_BF: (B, F) from ``calibration_features``, frozen at the dispatch of each outcome; B may be 0.
        reward_B: (B,) in [0, 1].
        weight_B: (B,) how many outcomes a row counts for, finite and >= 0; 1 without.
        precision: a scalar or (F,), lambda, finite and > 0. A coefficient's prior weighs as much as 4 lambda outcomes
            of probability 1/2 whose feature is 1: 20 outcomes by default.

    Returns:
        coefficient_F: (F,) float64; (1, 0, ..., 0) without outcomes. Equal arguments give equal bits.

    Raises:
        SpoRewardError: a reward is outside [0, 1] or NaN.
        SpoArgumentError: a feature, weight or precision is NaN or out of its range, or shapes differ.
    """
    feature_BF = _checked_features(feature_BF)
    reward_B = as_float64("reward_B", reward_B)
    weight_B = np.ones_like(reward_B) if weight_B is None else as_float64("weight_B", weight_B)
    require_same_shape(reward_B=reward_B, weight_B=weight_B)
    wanted = (len(feature_BF),)
    require_number(reward_B.shape == wanted, "reward_B.shape", reward_B.shape, f"it must be {wanted}, as feature_BF")
    require((reward_B >= 0) & (reward_B <= 1), "reward_B", reward_B, "it must lie in [0, 1]", SpoRewardError)
    require(np.isfinite(weight_B) & (weight_B >= 0), "weight_B", weight_B, "it must be finite and >= 0")
    given = as_float64("precision", precision)
    require_number(given.shape in ((), feature_BF.shape[1:]), "precision.shape", given.shape, "pass a scalar or (F,)")
    require(np.isfinite(given) & (given > 0), "precision", given, "it must be finite and > 0")
    precision_F = np.broadcast_to(given, feature_BF.shape[1:])
    return _newton(feature_BF, reward_B, weight_B, precision_F)


def calibrated_value(feature_BF: npt.ArrayLike, coefficient_F: npt.ArrayLike) -> FloatArray:
    """v^ = sigmoid(features . c), (B,) in [0, 1].

    Args:
        feature_BF: (B, F) from ``calibration_features``.
        coefficient_F: (F,) from ``fit_calibration``, finite.

    Raises:
        SpoArgumentError: a number is not finite, or shapes differ.
    """
    feature_BF, coefficient_F = _checked_features(feature_BF), as_float64("coefficient_F", coefficient_F)
    wanted = feature_BF.shape[1:]
    require_number(
        coefficient_F.shape == wanted, "coefficient_F.shape", coefficient_F.shape, f"it must be {wanted}, as feature_BF"
    )
    require(np.isfinite(coefficient_F), "coefficient_F", coefficient_F, "coefficients must be finite")
    return _sigmoid(feature_BF @ coefficient_F)


def read_calibrated(
    value_B: npt.ArrayLike,
    n_eff_B: npt.ArrayLike,
    age_B: npt.ArrayLike,
    coefficient_F: npt.ArrayLike,
    source_B: npt.ArrayLike | None = None,
    *,
    extra_BF: npt.ArrayLike | None = None,
    clip: float = VALUE_CLIP,
) -> FloatArray:
    """``calibrated_value(calibration_features(...), coefficient_F)`` without the rows of features, (B,) in [0, 1].

    For tables of millions of prompts: some ten operations per prompt, however many data sources there are.

    Args:
        value_B, n_eff_B, age_B, source_B, extra_BF, clip: as for ``calibration_features``.
        coefficient_F: (F,) from ``fit_calibration``: four, one for each data source, one for each extra column.

    Raises:
        SpoArgumentError: as for ``calibration_features`` and ``calibrated_value``.
    """
    value_B, n_eff_B, age_B = _checked_readings(value_B, n_eff_B, age_B, clip)
    coefficient_F = as_float64("coefficient_F", coefficient_F)
    extra_BF = _checked_extra(np.zeros((len(value_B), 0)) if extra_BF is None else extra_BF, len(value_B))
    fewest = OWN_FEATURES + extra_BF.shape[1]
    shaped = coefficient_F.ndim == 1 and len(coefficient_F) >= fewest
    require_number(shaped, "coefficient_F.shape", coefficient_F.shape, f"it must be (F,), F >= {fewest}")
    require(np.isfinite(coefficient_F), "coefficient_F", coefficient_F, "coefficients must be finite")
    slope, intercept, by_mass, by_age = coefficient_F[:OWN_FEATURES]
    read_B = _logit(value_B, clip) * (slope + by_mass / np.sqrt(np.maximum(n_eff_B, 1.0)))
    read_B += intercept
    if by_age:
        read_B += by_age * np.log1p(age_B)
    by_source_Q, by_extra_F = np.split(coefficient_F[OWN_FEATURES:], [len(coefficient_F) - fewest])
    if by_source_Q.size:
        index_B = _checked_sources(source_B, len(by_source_Q), value_B.shape)
        read_B += np.append(by_source_Q, 0.0)[index_B]  # the last one, at -1: without an indicator
    for number, coefficient in enumerate(by_extra_F.tolist()):
        # Not as a product of matrices, whose last bits depend on how many rows there are.
        read_B += coefficient * extra_BF[:, number]
    return _sigmoid(read_B)


def _newton(feature_BF: FloatArray, reward_B: FloatArray, weight_B: FloatArray, precision_F: FloatArray) -> FloatArray:
    prior_F = np.zeros(feature_BF.shape[1])
    prior_F[0] = 1.0

    def objective(coefficient_F: FloatArray) -> float:
        logit_B = feature_BF @ coefficient_F
        fit = weight_B @ (reward_B * logit_B - np.logaddexp(0.0, logit_B))
        return float(fit - 0.5 * (precision_F @ (coefficient_F - prior_F) ** 2))

    coefficient_F, best = prior_F, objective(prior_F)
    for _ in range(MOST_STEPS):
        p_B = _sigmoid(feature_BF @ coefficient_F)
        gradient_F = feature_BF.T @ (weight_B * (reward_B - p_B)) - precision_F * (coefficient_F - prior_F)
        curvature_B = weight_B * p_B * (1.0 - p_B)
        hessian_FF = feature_BF.T @ (curvature_B[:, None] * feature_BF) + np.diag(precision_F)
        step_F = np.linalg.solve(hessian_FF, gradient_F)
        for _ in range(MOST_HALVINGS):
            reached = objective(coefficient_F + step_F)
            if reached >= best:
                break
            step_F = step_F / 2.0
        else:  # no step is seen to improve J: its last digits are reached
            return coefficient_F
        gained, coefficient_F, best = reached - best, coefficient_F + step_F, reached
        if gained <= 1e-14 * (1.0 + abs(best)) and np.abs(step_F).max() <= 1e-9 * (1.0 + np.abs(coefficient_F).max()):
            return coefficient_F
    return coefficient_F


def _sigmoid(logit: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):  # 1 / inf is the 0 that is meant
        return np.asarray(1.0 / (1.0 + np.exp(-logit)))


def _logit(value_B: FloatArray, clip: float) -> FloatArray:
    clipped_B = np.clip(value_B, clip, 1.0 - clip)
    return np.asarray(np.log(clipped_B / (1.0 - clipped_B)))


def _checked_readings(
    value_B: npt.ArrayLike, n_eff_B: npt.ArrayLike, age_B: npt.ArrayLike, clip: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    require_number(0.0 < clip < 0.5, "clip", clip, "it must lie in (0, 1/2)")
    value_B, n_eff_B, age_B = (
        as_float64(name, array) for name, array in (("value_B", value_B), ("n_eff_B", n_eff_B), ("age_B", age_B))
    )
    require_same_shape(value_B=value_B, n_eff_B=n_eff_B, age_B=age_B)
    require_number(value_B.ndim == 1, "value_B.shape", value_B.shape, "it must be (B,), one per prompt")
    require((value_B >= 0) & (value_B <= 1), "value_B", value_B, "it must lie in [0, 1]")
    for name, array in (("n_eff_B", n_eff_B), ("age_B", age_B)):
        require(np.isfinite(array) & (array >= 0), name, array, "it must be finite and >= 0")
    return value_B, n_eff_B, age_B


def _checked_features(feature_BF: npt.ArrayLike) -> FloatArray:
    feature_BF = as_float64("feature_BF", feature_BF)
    shaped = feature_BF.ndim == 2 and feature_BF.shape[1] >= 1
    require_number(shaped, "feature_BF.shape", feature_BF.shape, "it must be (B, F), F >= 1")
    require(np.isfinite(feature_BF), "feature_BF", feature_BF, "features must be finite")
    return feature_BF


def _checked_extra(extra_BF: npt.ArrayLike, prompts: int) -> FloatArray:
    extra_BF = as_float64("extra_BF", extra_BF)
    fits = extra_BF.ndim == 2 and len(extra_BF) == prompts
    require_number(fits, "extra_BF.shape", extra_BF.shape, f"it must be ({prompts}, F), a row per prompt")
    require(np.isfinite(extra_BF), "extra_BF", extra_BF, "features must be finite")
    return extra_BF


def _indicators(source_B: npt.ArrayLike | None, sources: int, shape: tuple[int, ...]) -> FloatArray:
    index_B = _checked_sources(source_B, sources, shape)
    return np.asarray(index_B[:, None] == np.arange(sources), dtype=np.float64)


def _checked_sources(source_B: npt.ArrayLike | None, sources: int, shape: tuple[int, ...]) -> IntArray:
    if source_B is None:
        raise SpoArgumentError(f"source_B is missing, but there are {sources} data sources; pass each prompt's index")
    index_B = as_float64("source_B", source_B)
    require_number(index_B.shape == shape, "source_B.shape", index_B.shape, f"it must be {shape}, as value_B")
    rule = f"it must be a whole number in [-1, {sources})"
    require((index_B >= -1) & (index_B < sources) & (index_B == np.floor(index_B)), "source_B", index_B, rule)
    return index_B.astype(np.int64)
