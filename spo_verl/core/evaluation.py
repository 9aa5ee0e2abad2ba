r"""Metrics of several graded responses per prompt: avg@k, pass@k, maj@k, and how sure they are.

| symbol | name here | meaning |
|---|---|---|
| P | suffix ``_P`` | prompt |
| n | ``responses_P`` or the second axis of ``correct_PG`` | responses of a prompt, >= 1 |
| c | ``correct_P`` | right ones among them, 0 <= c <= n |
| k | ``k`` | responses that a metric looks at, 1 <= k <= n |

Every metric is one number per prompt in [0, 1], the *expectation over the subsets of k responses*, so that n > k
responses lower its noise and never change what it estimates. The metric of a benchmark is the mean over its
prompts. All prompts of one array have n responses; prompts with other n come in another call. Nothing here holds state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spo_verl.core._checks import FloatArray, as_float64, require, require_number, require_same_shape
from spo_verl.errors import SpoArgumentError

MISSING = ""
"""The answer of a response without an answer."""


@dataclass(frozen=True)
class Interval:
    """A mean over prompts with its bootstrap percentile interval.

    Attributes:
        mean: the estimate.
        low, high: bounds; equal to the mean for a single prompt, which says nothing about others.
        level: confidence, in (0, 1).
        prompts: how many prompts there are.
    """

    mean: float
    low: float
    high: float
    level: float
    prompts: int


def average_at_k(correct_PG: npt.ArrayLike) -> FloatArray:
    """avg@k: share of right responses of each prompt.

    Its expectation is the same for every k, so all n responses are used whatever k is.

    Args:
        correct_PG: 1 for a right response, 0 for a wrong one; or partial credit in [0, 1].

    Returns:
        One number per prompt, in [0, 1].

    Raises:
        SpoArgumentError: Not two axes, no response, or a value outside [0, 1].
    """
    return np.asarray(_graded(correct_PG).mean(axis=1))


def pass_at_k(responses_P: npt.ArrayLike, correct_P: npt.ArrayLike, k: int) -> FloatArray:
    """pass@k: probability that at least one of k responses is right, without bias.

    ``1 - C(n - c, k) / C(n, k)``, the share of the subsets of k responses that hold a right one (Chen et al. 2021,
    https://arxiv.org/abs/2107.03374). It is computed as ``1 - prod_{i<k} (n - c - i) / (n - i)``: no binomial
    coefficient is formed, so nothing overflows, and c = 0 gives exactly 0.

    Args:
        responses_P: n of each prompt, whole numbers >= k.
        correct_P: c of each prompt, whole numbers, 0 <= c <= n.
        k: Responses looked at, >= 1.

    Returns:
        One number per prompt, in [0, 1].

    Raises:
        SpoArgumentError: Shapes differ, or a number is outside its range.
    """
    n_P, c_P = as_float64("responses_P", responses_P), as_float64("correct_P", correct_P)
    require_same_shape(responses_P=n_P, correct_P=c_P)
    require_number(_whole(k) and k >= 1, "k", k, "it must be a whole number >= 1")
    require((n_P == np.floor(n_P)) & (n_P >= k), "responses_P", n_P, f"pass@{k} needs a whole number of at least {k}")
    require((c_P == np.floor(c_P)) & (c_P >= 0) & (c_P <= n_P), "correct_P", c_P, "it counts right ones among n")
    taken = np.arange(k, dtype=np.float64)
    # Where the wrong responses run out one factor is exactly 0, and with it the product.
    wrong_Pk = n_P[..., None] - c_P[..., None] - taken
    return np.asarray(1.0 - np.prod(wrong_Pk / (n_P[..., None] - taken), axis=-1))


def majority_at_k(
    answers_PG: Sequence[Sequence[str]],
    correct_PG: npt.ArrayLike,
    k: int,
    *,
    subsets: int = 1000,
    seed: int = 0,
) -> FloatArray:
    """maj@k: correctness of the answer that most of k responses give.

    Ties share the credit equally: the result is the expected correctness of an answer drawn uniformly from the modal
    ones, so neither the order of responses nor that of the answers has a say. Responses without an answer (``""``)
    never win: the mode is taken over those that have one, and without any the result is 0. An answer's correctness is
    the mean of its responses', which is 0 or 1 when equal answers are graded alike.

    With k = n this is exact. With k < n it is the mean over ``subsets`` random subsets of k responses without
    replacement, one generator for each prompt from (seed, position of the prompt).

    Args:
        answers_PG: Answers in canonical form; equal strings vote together.
        correct_PG: As in `average_at_k`.
        k: Responses looked at, 1 <= k <= n.
        subsets: Random subsets per prompt where k < n, >= 1.
        seed: >= 0.

    Returns:
        One number per prompt, in [0, 1].

    Raises:
        SpoArgumentError: Shapes differ, or a number is outside its range.
    """
    graded_PG = _graded(correct_PG)
    prompts, n = graded_PG.shape
    lengths = {len(answers) for answers in answers_PG}
    require_number(len(answers_PG) == prompts and lengths <= {n}, "answers_PG", (len(answers_PG), sorted(lengths)),
                   f"it must have the shape of correct_PG, ({prompts}, {n})")  # fmt: skip
    require_number(_whole(k) and 1 <= k <= n, "k", k, f"it must be a whole number from 1 to n = {n}")
    require_number(_whole(subsets) and subsets >= 1, "subsets", subsets, "it must be a whole number >= 1")
    require_number(_whole(seed) and seed >= 0, "seed", seed, "it must be a whole number >= 0")
    result_P = np.empty(prompts)
    for position, answers in enumerate(answers_PG):
        vote_AG, right_A = _votes(answers, graded_PG[position])
        if k == n:
            chosen_ZG = np.ones((1, n))
        else:
            rng = np.random.default_rng([seed, position])
            order_ZG = np.argsort(rng.random((subsets, n)), axis=1)
            chosen_ZG = (order_ZG < k).astype(np.float64)
        result_P[position] = _modal_credit(chosen_ZG @ vote_AG.T, right_A).mean()
    return result_P


def bootstrap_interval(
    value_P: npt.ArrayLike,
    stratum_P: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean over prompts with a percentile interval from resampling *prompts* with replacement.

    It says how much the mean would differ on other prompts of the same kind. The noise of the responses of each prompt
    is part of the spread between prompts. Responses are not resampled.

    Args:
        value_P: One metric per prompt, finite.
        stratum_P: The benchmark of each prompt. The mean is then that of the benchmarks' means, each with the same
            weight, and prompts are resampled within their benchmark.
        level: Confidence, in (0, 1).
        resamples: >= 1.
        seed: >= 0; the same seed and number of prompts give the same resamples.

    Raises:
        SpoArgumentError: No prompt, values that are not finite, or a number outside its range.
    """
    value_P = as_float64("value_P", value_P)
    require_number(value_P.ndim == 1 and value_P.size > 0, "value_P", value_P.shape, "it needs one axis and a prompt")
    require(np.isfinite(value_P), "value_P", value_P, "it must be finite")
    require_number(0 < level < 1, "level", level, "it must be in (0, 1)")
    require_number(_whole(resamples) and resamples >= 1, "resamples", resamples, "it must be a whole number >= 1")
    require_number(_whole(seed) and seed >= 0, "seed", seed, "it must be a whole number >= 0")
    strata = _strata(value_P, stratum_P)
    rng = np.random.default_rng(seed)
    mean_Z = np.mean([_resampled_means(stratum, resamples, rng) for stratum in strata], axis=0)
    low, high = np.quantile(mean_Z, [(1 - level) / 2, (1 + level) / 2])
    mean = np.mean([stratum.mean() for stratum in strata])
    return Interval(float(mean), float(low), float(high), float(level), int(value_P.size))


def bootstrap_difference(
    value_P: npt.ArrayLike,
    other_P: npt.ArrayLike,
    stratum_P: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of ``value_P - other_P``, paired: both runs are resampled on the same prompts.

    What makes prompts easy or hard is common to both and drops out, so the interval is narrower than two separate ones.

    Args:
        value_P, other_P: The metric of two runs on the same prompts in the same order.
        stratum_P, level, resamples, seed: As in `bootstrap_interval`.

    Raises:
        SpoArgumentError: Shapes differ; else as `bootstrap_interval`.
    """
    value_P, other_P = as_float64("value_P", value_P), as_float64("other_P", other_P)
    require_same_shape(value_P=value_P, other_P=other_P)
    return bootstrap_interval(value_P - other_P, stratum_P, level=level, resamples=resamples, seed=seed)


def _strata(value_P: FloatArray, stratum_P: Sequence[str] | None) -> list[FloatArray]:
    if stratum_P is None:
        return [value_P]
    names_P = np.asarray(stratum_P)
    require_number(names_P.shape == value_P.shape, "stratum_P", names_P.shape, f"it must be {value_P.shape}")
    return [value_P[names_P == name] for name in np.unique(names_P)]


def _resampled_means(value_P: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    # How often each prompt is drawn is multinomial, which needs no index array.
    count_ZP = rng.multinomial(value_P.size, np.full(value_P.size, 1.0 / value_P.size), size=resamples)
    return np.asarray(count_ZP @ value_P / value_P.size)


def _graded(correct_PG: npt.ArrayLike) -> FloatArray:
    graded_PG = as_float64("correct_PG", correct_PG)
    if graded_PG.ndim != 2 or graded_PG.shape[1] == 0:
        raise SpoArgumentError(
            f"correct_PG has shape {graded_PG.shape}; pass a row per prompt and a column per response"
        )
    require((graded_PG >= 0) & (graded_PG <= 1), "correct_PG", graded_PG, "it must be in [0, 1]")
    return graded_PG


def _votes(answers: Sequence[str], graded_G: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Who gave which answer, ``vote_AG``, and each answer's correctness, ``right_A``; missing answers have no row."""
    different = [answer for answer in Counter(answers) if answer != MISSING]
    vote_AG = np.array([[answer == one for answer in answers] for one in different], dtype=np.float64)
    vote_AG = vote_AG.reshape(len(different), len(answers))
    return vote_AG, vote_AG @ graded_G / np.maximum(vote_AG.sum(axis=1), 1.0)


def _modal_credit(count_ZA: FloatArray, right_A: FloatArray) -> FloatArray:
    """Mean correctness of the answers with the most votes in each subset; 0 where nobody answered."""
    most_Z = count_ZA.max(axis=1, initial=0.0)
    modal_ZA = (count_ZA == most_Z[:, None]) & (count_ZA > 0)
    return np.asarray(modal_ZA @ right_A / np.maximum(modal_ZA.sum(axis=1), 1))


def _whole(number: object) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)
