"""What waiting for stragglers costs a group baseline, and what single streams save.

    python benchmarks/stragglers.py simulate
    python benchmarks/stragglers.py late
    python benchmarks/stragglers.py simulate --seeds 1000 --json stragglers.json --plot docs/figures

Needs numpy only (``--plot``: ``pip install 'spo-verl[plots]'``). The simulated clock counts the interaction times of
rollouts and nothing else: as many rollouts run at once as are started, they do not slow each other down, and training
takes no time.

The case of the paper (arXiv 2509.13232, section 5.4, figures 4 and 5): 48 rollouts start at once and 24 are wanted. In
groups of 8 the batch is there when the third of six groups is complete, 486 s; as single streams when the 24th rollout
is, 112 s. The paper prints one draw and names no distribution. Each family below is therefore our choice; its two free
parameters are set so that the *expected* times are 486 s and 112 s, by integration and without a look at any draw.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

PAPER_GROUP, PAPER_STREAM = 486.0, 112.0
PAPER_SIZE, PAPER_BATCH, PAPER_STARTED = 8, 24, 48
PAPER_RATIO = 4.35
# The seconds that figures 4b and 5 print.
PRINTED_SAMPLES = (74.0, 87.0, 409.0, 90.0, 508.0, 444.0, 114.0, 117.0)
PRINTED_GROUPS = (553.0, 519.0, 495.0, 486.0, 130.0, 133.0)
GRID = 20_001
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


# -- distributions of interaction times --------------------------------------------------------------------------------


class Durations(ABC):
    """A distribution of interaction times T in seconds."""

    name = ""

    @abstractmethod
    def density(self, t: np.ndarray) -> np.ndarray:
        """Probability per second at ``t`` seconds."""

    @abstractmethod
    def cdf(self, t: np.ndarray) -> np.ndarray:
        """P(T <= t); exact where it is small."""

    @abstractmethod
    def survival(self, t: np.ndarray) -> np.ndarray:
        """P(T > t); exact where it is small."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """``count`` independent interaction times, seconds."""

    @abstractmethod
    def span(self) -> tuple[float, float]:
        """Natural logarithms of the shortest and longest seconds that integrals have to see."""

    @abstractmethod
    def scaled(self, factor: float) -> Durations:
        """The distribution of ``factor`` T."""

    @abstractmethod
    def mean(self) -> float:
        """Expected seconds; infinite where the tail is that heavy."""

    @abstractmethod
    def parameters(self) -> str:
        """The parameters in words."""

    @cached_property
    def grid(self) -> tuple[np.ndarray, float, np.ndarray, np.ndarray, np.ndarray]:
        """Seconds at even steps of their logarithm, that step, and log density, log cdf and log survival there."""
        low, high = self.span()
        t = np.exp(np.linspace(low, high, GRID))
        with np.errstate(divide="ignore"):
            below, above = self.cdf(t), self.survival(t)
            log_cdf = np.where(below < 0.5, np.log(below), np.log1p(-above))
            return t, (high - low) / (GRID - 1), np.log(self.density(t)), log_cdf, np.log(above)

    def quantile(self, log_p: float) -> float:
        """The seconds that T keeps to with the probability exp(``log_p``); interpolated between grid points."""
        t, _, _, log_cdf, _ = self.grid
        return float(np.exp(np.interp(log_p, log_cdf, np.log(t))))


@dataclass(frozen=True)
class LogNormal(Durations):
    """``median`` seconds times the exponential of a normal with standard deviation ``sigma``."""

    sigma: float
    median: float = 1.0
    name = "log-normal"

    def _z(self, t: np.ndarray) -> np.ndarray:
        return np.log(np.asarray(t) / self.median) / self.sigma

    def density(self, t: np.ndarray) -> np.ndarray:
        return np.exp(-(self._z(t) ** 2) / 2) / (np.asarray(t) * self.sigma * math.sqrt(2 * math.pi))

    def cdf(self, t: np.ndarray) -> np.ndarray:
        return _erfc(-self._z(t) / math.sqrt(2)) / 2

    def survival(self, t: np.ndarray) -> np.ndarray:
        return _erfc(self._z(t) / math.sqrt(2)) / 2

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.median * np.exp(self.sigma * rng.standard_normal(count))

    def span(self) -> tuple[float, float]:
        middle = math.log(self.median)
        return middle - 12 * self.sigma, middle + 12 * self.sigma + self.sigma**2

    def scaled(self, factor: float) -> LogNormal:
        return replace(self, median=self.median * factor)

    def mean(self) -> float:
        return self.median * math.exp(self.sigma**2 / 2)

    def parameters(self) -> str:
        return f"median {self.median:.1f} s, sigma {self.sigma:.3f}"


@dataclass(frozen=True)
class Weibull(Durations):
    """P(T > t) = exp(-(t / scale)^shape); shape 1 is the exponential, a smaller one has a longer tail."""

    shape: float
    scale: float = 1.0
    name = "Weibull"

    def _hazard(self, t: np.ndarray) -> np.ndarray:
        return (np.asarray(t) / self.scale) ** self.shape

    def density(self, t: np.ndarray) -> np.ndarray:
        return self.shape / np.asarray(t) * self._hazard(t) * np.exp(-self._hazard(t))

    def cdf(self, t: np.ndarray) -> np.ndarray:
        return -np.expm1(-self._hazard(t))

    def survival(self, t: np.ndarray) -> np.ndarray:
        return np.exp(-self._hazard(t))

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.scale * rng.standard_exponential(count) ** (1 / self.shape)

    def span(self) -> tuple[float, float]:
        middle = math.log(self.scale)
        return middle - 34 / self.shape, middle + math.log(600) / self.shape

    def scaled(self, factor: float) -> Weibull:
        return replace(self, scale=self.scale * factor)

    def mean(self) -> float:
        return self.scale * math.gamma(1 + 1 / self.shape)

    def parameters(self) -> str:
        return f"scale {self.scale:.1f} s, shape {self.shape:.3f}"


@dataclass(frozen=True)
class Pareto(Durations):
    """P(T > t) = (least / t)^shape from ``least`` seconds on; a smaller shape has a longer tail."""

    shape: float
    least: float = 1.0
    name = "Pareto"

    def density(self, t: np.ndarray) -> np.ndarray:
        return self.shape / np.asarray(t) * self.survival(t) * (np.asarray(t) >= self.least * (1 - 1e-12))

    def cdf(self, t: np.ndarray) -> np.ndarray:
        return -np.expm1(-self.shape * np.log(np.maximum(np.asarray(t) / self.least, 1.0)))

    def survival(self, t: np.ndarray) -> np.ndarray:
        return np.maximum(np.asarray(t) / self.least, 1.0) ** -self.shape

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.least * np.exp(rng.standard_exponential(count) / self.shape)

    def span(self) -> tuple[float, float]:
        return math.log(self.least), math.log(self.least) + 32 / max(self.shape - 1, 0.25)

    def scaled(self, factor: float) -> Pareto:
        return replace(self, least=self.least * factor)

    def mean(self) -> float:
        return self.least * self.shape / (self.shape - 1) if self.shape > 1 else math.inf

    def parameters(self) -> str:
        return f"least {self.least:.1f} s, shape {self.shape:.3f}"


@dataclass(frozen=True)
class TwoSpeeds(Durations):
    """A share ``slow`` of the rollouts meets something slow; both speeds are log-normal.

    Attributes:
        slow: Share of slow rollouts.
        median: Median seconds of a fast rollout.
        factor: Median of a slow rollout over that of a fast one.
        fast_sigma: Standard deviation of the logarithm of a fast rollout's seconds.
        slow_sigma: The same of a slow one.

    The last three default to what makes the printed seconds of the paper's figures most probable, as in LIKELIEST.
    """

    slow: float
    median: float = 1.0
    factor: float = 4.575
    fast_sigma: float = 0.1713
    slow_sigma: float = 0.0895
    name = "two speeds"

    @property
    def parts(self) -> tuple[tuple[float, LogNormal], tuple[float, LogNormal]]:
        """Share and distribution of the fast and of the slow rollouts."""
        slow = LogNormal(self.slow_sigma, self.median * self.factor)
        return (1 - self.slow, LogNormal(self.fast_sigma, self.median)), (self.slow, slow)

    def density(self, t: np.ndarray) -> np.ndarray:
        return sum((share * part.density(t) for share, part in self.parts), np.zeros(()))

    def cdf(self, t: np.ndarray) -> np.ndarray:
        return sum((share * part.cdf(t) for share, part in self.parts), np.zeros(()))

    def survival(self, t: np.ndarray) -> np.ndarray:
        return sum((share * part.survival(t) for share, part in self.parts), np.zeros(()))

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        slow = rng.random(count) < self.slow
        sigma = np.where(slow, self.slow_sigma, self.fast_sigma)
        return self.median * np.where(slow, self.factor, 1.0) * np.exp(sigma * rng.standard_normal(count))

    def span(self) -> tuple[float, float]:
        spans = [part.span() for _, part in self.parts]
        return min(low for low, _ in spans), max(high for _, high in spans)

    def scaled(self, factor: float) -> TwoSpeeds:
        return replace(self, median=self.median * factor)

    def mean(self) -> float:
        return sum(share * part.mean() for share, part in self.parts)

    def parameters(self) -> str:
        return f"{self.slow:.1%} slow, medians {self.median:.0f} and {self.median * self.factor:.0f} s"


LIKELIEST = TwoSpeeds(slow=0.2246, median=103.73)


# -- the clock of one batch --------------------------------------------------------------------------------------------


def stream_time(duration_XN: np.ndarray, batch: int) -> np.ndarray:
    """Seconds until ``batch`` of the N rollouts that start together are finished; leading axes are separate draws."""
    return np.partition(duration_XN, batch - 1, axis=-1)[..., batch - 1]


def group_time(duration_XN: np.ndarray, batch: int, size: int) -> np.ndarray:
    """Seconds until ``batch / size`` groups are complete; each ``size`` neighbours of the last axis are one group."""
    *leading, count = np.shape(duration_XN)
    if count % size or batch % size:
        raise ValueError(f"{count} rollouts started and {batch} wanted: both must be whole groups of {size}")
    complete_XM = np.reshape(duration_XN, (*leading, count // size, size)).max(axis=-1)
    return stream_time(complete_XM, batch // size)


def ratio(duration_XN: np.ndarray, batch: int, size: int) -> np.ndarray:
    """Time in groups over time as single streams, of the same rollouts; 1 at the least."""
    return group_time(duration_XN, batch, size) / stream_time(duration_XN, batch)


def draws(family: Durations, count: int, seeds: int, first: int = 0) -> np.ndarray:
    """``count`` interaction times for each seed from ``first`` on; a seed's draw does not depend on the other seeds."""
    return np.stack([family.sample(np.random.default_rng(seed), count) for seed in range(first, first + seeds)])


# -- expectations, by integration --------------------------------------------------------------------------------------


def expected_time(family: Durations, taken: int, started: int, size: int = 1) -> float:
    """Expected seconds until ``taken`` of ``started`` groups of ``size`` are complete: an order statistic of maxima.

    Integrates t times the density of the k-th of n over the logarithm of t. A group's time has the cdf F^size.
    """
    if not 1 <= taken <= started:
        raise ValueError(f"{taken} of {started} can never be complete")
    t, step, log_density, log_cdf, log_survival = family.grid
    if isinstance(family, Pareto) and family.shape * (started - taken + 1) <= 1:
        raise ValueError(f"the expected time is infinite for {family.parameters()}")
    with np.errstate(divide="ignore"):
        above = np.log(-np.expm1(size * log_cdf)) if size > 1 else log_survival
    log_weight = math.lgamma(started + 1) - math.lgamma(taken) - math.lgamma(started - taken + 1) + math.log(size)
    exponent = log_weight + log_density + 2 * np.log(t)
    # A power of zero is 1, also where the logarithm is -inf.
    if size * taken > 1:
        exponent = exponent + (size * taken - 1) * log_cdf
    if started > taken:
        exponent = exponent + (started - taken) * above
    value = np.exp(exponent)
    return float((value.sum() - (value[0] + value[-1]) / 2) * step)


def expected_ratio(family: Durations, batch: int, groups: int, size: int) -> float:
    """Expected time in groups over expected time as single streams, ``groups * size`` rollouts started in both."""
    return expected_time(family, batch // size, groups, size) / expected_time(family, batch, groups * size)


def limit_ratio(family: Durations, surplus: float, size: int) -> float:
    """The ratio of a very large batch: quantile of p^(1/size) over quantile of p, with p = 1 / (1 + surplus)."""
    log_p = -math.log1p(surplus)
    return family.quantile(log_p / size) / family.quantile(log_p)


def fit(
    make: Callable[[float], Durations],
    low: float,
    high: float,
    group: float = PAPER_GROUP,
    stream: float = PAPER_STREAM,
) -> Durations:
    """The member of a family with these expected seconds in the paper's case.

    The ratio depends on the shape alone and is bisected between ``low`` and ``high``; the scale then follows.
    """

    def excess(shape: float) -> float:
        return expected_ratio(make(shape), PAPER_BATCH, PAPER_STARTED // PAPER_SIZE, PAPER_SIZE) - group / stream

    below = excess(low) < 0
    if below == (excess(high) < 0):
        raise ValueError(f"no shape between {low} and {high} gives the ratio {group / stream:.3f}")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (excess(middle) < 0) == below else (low, middle)
    family = make((low + high) / 2)
    return family.scaled(stream / expected_time(family, PAPER_BATCH, PAPER_STARTED))


def log_likelihood(family: Durations) -> float:
    """Log density of what the paper's figures print: a group's eight times, six group times and the 24th of 48.

    The three are treated as separate draws; the paper does not say whether figure 5b has the rollouts of figure 5a.
    """
    sample, group, stream = np.array(PRINTED_SAMPLES), np.array(PRINTED_GROUPS), np.array([PAPER_STREAM])
    after = PAPER_STARTED - PAPER_BATCH
    terms = [
        np.log(family.density(sample)),
        math.log(PAPER_SIZE) + np.log(family.density(group)) + (PAPER_SIZE - 1) * np.log(family.cdf(group)),
        math.lgamma(PAPER_STARTED + 1) - math.lgamma(PAPER_BATCH) - math.lgamma(after + 1)
        + np.log(family.density(stream))
        + (PAPER_BATCH - 1) * np.log(family.cdf(stream))
        + after * np.log(family.survival(stream)),
    ]  # fmt: skip
    return float(sum(term.sum() for term in terms))


# -- the steady state --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flow:
    """What a run of batches took, one row per batch.

    Attributes:
        formed_K: Seconds at which each batch was complete.
        duration_KB: Interaction seconds of its rollouts.
        start_KB: Seconds at which they were started.
    """

    formed_K: np.ndarray
    duration_KB: np.ndarray
    start_KB: np.ndarray

    def after(self, skipped: int) -> dict[str, float]:
        """Figures over the batches after the first ``skipped`` ones.

        Returns:
            ``rate``: samples per second. ``age``: mean seconds from the start of a rollout to its batch. ``versions``:
            mean number of batches formed in between, ``versions_95`` its 95 % quantile. ``duration``: mean interaction
            seconds.
        """
        version_KB = np.searchsorted(self.formed_K, self.start_KB, side="right")
        stale_KB = (np.arange(len(self.formed_K))[:, None] - version_KB)[skipped:]
        rows, size = self.duration_KB[skipped:].shape
        return {
            "rate": rows * size / (self.formed_K[-1] - (self.formed_K[skipped - 1] if skipped else 0.0)),
            "age": float((self.formed_K[:, None] - self.start_KB)[skipped:].mean()),
            "versions": float(stale_KB.mean()),
            "versions_95": float(np.quantile(stale_KB, 0.95)),
            "duration": float(self.duration_KB[skipped:].mean()),
        }


def _fill(sample: Callable[[int], np.ndarray], slots: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tasks of ``slots`` that are refilled at once, in order of starting, until ``wanted`` of them are finished.

    Returns:
        Start seconds and finish seconds of all tasks that start until then, and where ``sample`` returned them: each
        call fills further columns of a table with a row per slot.
    """
    rounds = int(1.3 * wanted / slots) + 20
    duration_SR = np.empty((slots, 0))
    horizon, finished = 0.0, 0
    while finished < wanted:
        duration_SR = np.hstack([duration_SR, sample(slots * rounds).reshape(slots, rounds)])
        finish_SR = duration_SR.cumsum(axis=1)
        # Up to here every slot has tasks.
        horizon = finish_SR[:, -1].min()
        finished = int((finish_SR <= horizon).sum())
    start_SR = finish_SR - duration_SR
    place = np.flatnonzero(start_SR < horizon)
    place = place[np.argsort(start_SR.ravel()[place], kind="stable")]
    return start_SR.ravel()[place], finish_SR.ravel()[place], place


def refilled_streams(family: Durations, slots: int, batch: int, batches: int, rng: np.random.Generator) -> Flow:
    """A finished rollout's slot starts the next at once; each ``batch`` finishes, in their order, are a batch."""
    count = batch * batches
    start, finish, _ = _fill(lambda n: family.sample(rng, n), slots, count)
    taken_KB = np.argsort(finish, kind="stable")[:count].reshape(batches, batch)
    return Flow(finish[taken_KB[:, -1]], (finish - start)[taken_KB], start[taken_KB])


def refilled_groups(
    family: Durations, slots: int, batch: int, batches: int, size: int, rng: np.random.Generator
) -> Flow:
    """As above, each ``size`` rollouts started after one another being a group, which is taken when it is complete."""
    need = batch // size
    state = rng.bit_generator.state
    margin = slots
    while True:
        rng.bit_generator.state = state
        start, finish, _ = _fill(lambda n: family.sample(rng, n), slots, batch * batches + margin)
        whole = len(start) // size
        ready_M = finish[: whole * size].reshape(whole, size).max(axis=1)
        order = np.argsort(ready_M, kind="stable")[: need * batches]
        if len(order) == need * batches and ready_M[order[-1]] <= start[whole * size - 1]:
            break
        margin *= 2  # a group that starts later might be complete before the last of these
    group_KM = order.reshape(batches, need)
    task_KB = (group_KM[..., None] * size + np.arange(size)).reshape(batches, batch)
    return Flow(ready_M[group_KM[:, -1]], (finish - start)[task_KB], start[task_KB])


def held_groups(family: Durations, slots: int, batch: int, batches: int, size: int, rng: np.random.Generator) -> Flow:
    """A group keeps its ``size`` slots until it is complete, then the next group starts in them."""
    members: list[np.ndarray] = []

    def sample(count: int) -> np.ndarray:
        members.append(family.sample(rng, count * size).reshape(slots // size, -1, size))
        return members[-1].max(axis=-1).ravel()

    need = batch // size
    start, finish, place = _fill(sample, slots // size, need * batches)
    duration_GS = np.concatenate(members, axis=1).reshape(-1, size)[place]
    taken_KM = np.argsort(finish, kind="stable")[: need * batches].reshape(batches, need)
    start_KB = np.repeat(start[taken_KM], size, axis=1)
    return Flow(finish[taken_KM[:, -1]], duration_GS[taken_KM].reshape(batches, batch), start_KB)


def dropped(family: Durations, slots: int, batch: int, batches: int, size: int, rng: np.random.Generator) -> Flow:
    """All slots start together; when the batch is complete, the rest is dropped. ``size`` 1: single streams."""
    duration_KMS = family.sample(rng, slots * batches).reshape(batches, slots // size, size)
    complete_KM = duration_KMS.max(axis=2)
    first_KM = np.argsort(complete_KM, axis=1, kind="stable")[:, : batch // size]
    taken_KB = np.take_along_axis(duration_KMS, first_KM[..., None], axis=1).reshape(batches, batch)
    formed_K = np.take_along_axis(complete_KM, first_KM[:, -1:], axis=1)[:, 0].cumsum()
    begin_K = np.concatenate([[0.0], formed_K[:-1]])
    return Flow(formed_K, taken_KB, np.broadcast_to(begin_K[:, None], taken_KB.shape))


# -- what a batch did not wait for ----------------------------------------------------------------------------------


@dataclass
class Late:
    """What a policy for late rollouts did in each step, one entry per step.

    Attributes:
        formed: Seconds at which the batch was complete.
        trained: (B, 2) of its rollouts: interaction seconds, and steps between the start and the batch.
        evidence: Interaction seconds of every rollout whose outcome became known.
        stopped: Seconds spent on rollouts that were stopped.
    """

    formed: list[float] = field(default_factory=list)
    trained: list[np.ndarray] = field(default_factory=list)
    evidence: list[np.ndarray] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)

    def figures(self, skipped: int, places: int, mean: float) -> dict[str, float]:
        """Figures over the steps after the first ``skipped`` ones.

        Returns:
            ``updates per hour``. ``old``: share of the trained rollouts that were started for an earlier batch;
            ``versions``: mean number of batches in between. ``bias``: mean interaction time of trained rollouts over
            that of all; ``evidence bias``: the same of all outcomes that became known. ``outcomes``: those per trained
            rollout. ``idle``: share of the places' time without a rollout. ``untrained``: share of the spent time that
            went into rollouts that were not trained on.
        """
        seconds = self.formed[-1] - (self.formed[skipped - 1] if skipped else 0.0)
        trained_RN, known = np.concatenate(self.trained[skipped:]), np.concatenate(self.evidence[skipped:])
        spent = float(known.sum() + sum(self.stopped[skipped:]))
        return {
            "updates per hour": 3600 * len(self.formed[skipped:]) / seconds,
            "old": float((trained_RN[:, 1] > 0).mean()),
            "versions": float(trained_RN[:, 1].mean()),
            "bias": float(trained_RN[:, 0].mean() / mean),
            "evidence bias": float(known.mean() / mean),
            "outcomes": len(known) / len(trained_RN),
            "idle": 1 - spent / (places * seconds),
            "untrained": 1 - float(trained_RN[:, 0].sum()) / spent,
        }


def late_run(
    sample: Callable[[int], np.ndarray], policy: str, batch: int, surplus: int, steps: int, mean: float
) -> dict[str, float]:
    """verl's dispatch: a batch per step and a surplus that stays in flight; a fifth of the steps is not counted.

    ``carry``: whatever finishes first is the batch, the rest continues. ``drop``: only what was started in the step can
    be in its batch; older rollouts finish, and each is replaced when it does. ``abort``: a step starts all of them, and
    stops those that its batch did not wait for.
    """
    now, late = 0.0, Late()
    # Of each rollout in flight: finish, seconds, step of the start.
    flight: list[tuple[float, float, int]] = []
    for step in range(steps):
        missing = batch + surplus - len(flight)
        flight += [(now + seconds, seconds, step) for seconds in sample(missing).tolist()]
        heapq.heapify(flight)
        taken: list[tuple[float, float, int]] = []
        known: list[float] = []
        while len(taken) < batch:
            one = heapq.heappop(flight)
            now = max(now, one[0])
            known.append(one[1])
            if policy == "drop" and one[2] < step:
                (seconds,) = sample(1).tolist()
                heapq.heappush(flight, (now + seconds, seconds, step))
            else:
                taken.append(one)
        late.formed.append(now)
        late.trained.append(np.array([(seconds, step - start) for _, seconds, start in taken]))
        late.evidence.append(np.array(known))
        if policy == "abort":
            begun = late.formed[-2] if step else 0.0
            late.stopped.append((now - begun) * len(flight))
            flight = []
    return late.figures(steps // 5, batch + surplus, mean)


LATE_POLICIES = ("carry", "drop", "abort")


def late_table(
    families: Mapping[str, Durations], batch: int, surpluses: Iterable[float], steps: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of each policy, for each family and surplus; all of them meet the same interaction times."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, family in families.items():
        for surplus in surpluses:
            rows = {}
            for policy in LATE_POLICIES:
                rng = np.random.default_rng(seed)
                sample = functools.partial(family.sample, rng)
                rows[policy] = late_run(sample, policy, batch, int(batch * surplus), steps, family.mean())
            found[f"{name}, surplus {surplus:g}"] = rows
    return found


# -- the tables --------------------------------------------------------------------------------------------------------

TAILS: dict[str, tuple[Callable[[float], Durations], tuple[float, ...]]] = {
    "log-normal, sigma": (LogNormal, (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)),
    "Pareto, shape": (Pareto, (5.0, 3.0, 2.0, 1.5, 1.25)),
    "Weibull, shape": (Weibull, (2.0, 1.0, 0.75, 0.5)),
    "two speeds, slow": (TwoSpeeds, (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)),
}
SIZES = (2, 4, 8, 16)
SURPLUSES = (0.0, 0.125, 0.25, 0.5, 1.0)
BATCHES = (24, 96, 512, 2048)


def paper_families() -> dict[str, Durations]:
    """The families with the paper's expected times, the likeliest, and the exponential, which has no shape to set."""
    exponential = Weibull(1.0)
    exponential = exponential.scaled(PAPER_STREAM / expected_time(exponential, PAPER_BATCH, PAPER_STARTED))
    return {
        "log-normal": fit(LogNormal, 0.1, 3.0),
        "Weibull": fit(Weibull, 0.3, 3.0),
        "Pareto": fit(Pareto, 0.5, 20.0),
        "two speeds": fit(lambda factor: TwoSpeeds(LIKELIEST.slow, factor=factor), 1.5, 20.0),
        "two speeds, likeliest": LIKELIEST,
        "exponential": exponential,
    }


def paper_case(family: Durations, seeds: int, first: int = 0) -> dict[str, Any]:
    """Expected and simulated times of the paper's case, seconds; intervals hold 95 %."""
    duration_XN = draws(family, PAPER_STARTED, seeds, first)
    group, stream = group_time(duration_XN, PAPER_BATCH, PAPER_SIZE), stream_time(duration_XN, PAPER_BATCH)
    of_draw = ratio(duration_XN, PAPER_BATCH, PAPER_SIZE)
    of_means = group.mean() / stream.mean()
    error = float((group - of_means * stream).std(ddof=1) / stream.mean() / math.sqrt(seeds))
    return {
        "parameters": family.parameters(),
        "expected group": expected_time(family, PAPER_BATCH // PAPER_SIZE, PAPER_STARTED // PAPER_SIZE, PAPER_SIZE),
        "expected stream": expected_time(family, PAPER_BATCH, PAPER_STARTED),
        "expected ratio": expected_ratio(family, PAPER_BATCH, PAPER_STARTED // PAPER_SIZE, PAPER_SIZE),
        "mean group": float(group.mean()),
        "mean stream": float(stream.mean()),
        "ratio of means": float(of_means),
        "ratio of means, interval": [of_means - 1.96 * error, of_means + 1.96 * error],
        "ratio of a draw, median": float(np.median(of_draw)),
        "ratio of a draw, interval": [float(edge) for edge in np.quantile(of_draw, [0.025, 0.975])],
        "share of draws below 2": float((of_draw < 2).mean()),
        "log likelihood": log_likelihood(family),
    }


def pool(batch: int, surplus: float, size: int) -> int:
    """Groups to start for a batch with a share of ``surplus`` more; single streams start as many rollouts."""
    return math.ceil(batch * (1 + surplus) / size - 1e-9)


def grid_of(families: Mapping[str, Durations], batches: Iterable[int] = BATCHES) -> list[dict[str, Any]]:
    """The expected ratio for each family, group size, surplus and batch size that is a whole number of groups."""
    rows = []
    for name, family in families.items():
        for size in SIZES:
            for surplus in SURPLUSES:
                whole = [batch for batch in batches if batch % size == 0]
                of_batch = {batch: expected_ratio(family, batch, pool(batch, surplus, size), size) for batch in whole}
                limit = limit_ratio(family, surplus, size) if surplus else None
                rows.append(
                    {"family": name, "size": size, "surplus": surplus, "limit": limit, "ratio of batch": of_batch}
                )
    return rows


def first_finishers(family: Durations, surplus: float, size: int, batch: int, seeds: int) -> float:
    """Mean interaction time of the rollouts that a batch takes over that of all, when late ones are dropped."""
    slots = pool(batch, surplus, size) * size
    flow = dropped(family, slots, batch, seeds, size, np.random.default_rng(0))
    return float(flow.duration_KB.mean() / family.mean())


def steady(
    family: Durations, slots: int, batch: int, batches: int, size: int, first: int = 0
) -> dict[str, dict[str, float]]:
    """Figures of each way to run ``slots`` rollouts at once; a fifth of the batches warms up and is not counted."""
    shape = (family, slots, batch, batches)
    flows = {
        "streams, refilled": refilled_streams(*shape, np.random.default_rng(first)),
        "groups, refilled": refilled_groups(*shape, size, np.random.default_rng(first)),
        "groups, slots held": held_groups(*shape, size, np.random.default_rng(first)),
        "streams, late dropped": dropped(*shape, 1, np.random.default_rng(first)),
        "groups, late dropped": dropped(*shape, size, np.random.default_rng(first)),
    }
    found = {name: flow.after(batches // 5) for name, flow in flows.items()}
    for row in found.values():
        row["rate over streams"] = row["rate"] * family.mean() / slots
        row["bias"] = row["duration"] / family.mean()
    return found


def start_up(family: Durations, slots: int, batch: int, batches: int, seeds: int) -> list[float]:
    """Mean interaction time in each of the first batches of refilled single streams, over that of all rollouts."""
    flows = (refilled_streams(family, slots, batch, batches, np.random.default_rng(seed)) for seed in range(seeds))
    mean_K = np.mean([flow.duration_KB.mean(axis=1) for flow in flows], axis=0)
    return [float(value) for value in mean_K / family.mean()]


def simulate(args: argparse.Namespace) -> dict[str, Any]:
    """All tables, as data."""
    paper = paper_families()
    tails = {f"{name} {value:g}": make(value) for name, (make, values) in TAILS.items() for value in values}
    chosen = {name: paper[name] for name in ("two speeds, likeliest", "log-normal", "exponential")}
    asked = ("seeds", "first_seed", "slots", "batch", "size", "batches")
    return {
        "settings": {name: getattr(args, name) for name in asked},
        "paper": {name: paper_case(family, args.seeds, args.first_seed) for name, family in paper.items()},
        "tails": grid_of(tails),
        "chosen": grid_of(chosen),
        "first finishers": {
            name: {
                label: {f"{surplus:g}": first_finishers(family, surplus, size, 256, 400) for surplus in SURPLUSES}
                for label, size in (("streams", 1), (f"groups of {args.size}", args.size))
            }
            for name, family in chosen.items()
        },
        "steady": {
            name: steady(family, args.slots, args.batch, args.batches, args.size, args.first_seed)
            for name, family in chosen.items()
        },
        "start-up": {name: start_up(family, args.slots, args.batch, 20, 20) for name, family in chosen.items()},
    }


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column to the left, the others to the right."""
    cells = [list(head), *(list(row) for row in rows)]
    width = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n{title}\n")
    for row in cells:
        print("  ".join([row[0].ljust(width[0]), *(cell.rjust(w) for cell, w in zip(row[1:], width[1:], strict=True))]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _between(edges: Sequence[float]) -> str:
    return f"{edges[0]:.2f} to {edges[1]:.2f}"


def report(result: Mapping[str, Any]) -> None:
    """Print all tables."""
    settings = result["settings"]
    table(
        f"The paper's case: 3 of 6 groups of 8 against 24 of 48 streams (paper: 486 s, 112 s, {PAPER_RATIO}); expected "
        f"seconds by integration, 95 % intervals over {settings['seeds']} seeds",
        ["family", "parameters", "groups", "streams", "ratio", "its interval", "one draw", "below 2", "log likelihood"],
        (
            [
                name,
                row["parameters"],
                f"{row['expected group']:.1f} s",
                f"{row['expected stream']:.1f} s",
                _number(row["expected ratio"]),
                _between(row["ratio of means, interval"]),
                _between(row["ratio of a draw, interval"]),
                f"{row['share of draws below 2']:.1%}",
                f"{row['log likelihood']:.1f}",
            ]
            for name, row in result["paper"].items()
        ),
    )
    by_tail = {(row["family"], row["size"], row["surplus"]): row for row in result["tails"]}
    names = list(dict.fromkeys(row["family"] for row in result["tails"]))
    table(
        "Expected ratio by tail, batch of 512; surplus of 1: twice as many started as wanted",
        ["family", *(f"G {size}, surplus {surplus:g}" for surplus in (0.25, 1.0) for size in SIZES)],
        (
            [
                name,
                *(
                    _number(by_tail[name, size, surplus]["ratio of batch"][512])
                    for surplus in (0.25, 1.0)
                    for size in SIZES
                ),
            ]
            for name in names
        ),
    )
    for name in dict.fromkeys(row["family"] for row in result["chosen"]):
        table(
            f"Expected ratio by group size, surplus and batch: {name}",
            ["G, surplus", *(f"batch {batch}" for batch in BATCHES), "very large"],
            (
                [
                    f"{row['size']}, {row['surplus']:g}",
                    *(_number(row["ratio of batch"].get(batch)) for batch in BATCHES),
                    _number(row["limit"]),
                ]
                for row in result["chosen"]
                if row["family"] == name
            ),
        )
    table(
        "Length bias, late ones dropped, batch of 256: mean interaction time of what is taken over that of all",
        ["family", *(f"surplus {surplus:g}" for surplus in SURPLUSES)],
        (
            [f"{name}: {label}", *(_number(value) for value in row.values())]
            for name, of_label in result["first finishers"].items()
            for label, row in of_label.items()
        ),
    )
    for name, rows in result["steady"].items():
        table(
            f"Steady state: {name}; {settings['slots']} slots, batch {settings['batch']}, groups of {settings['size']}",
            ["", "rate", "age", "versions", "95 %", "taken / all"],
            (
                [
                    label,
                    _number(row["rate over streams"]),
                    f"{row['age']:.0f} s",
                    _number(row["versions"]),
                    f"{row['versions_95']:.0f}",
                    _number(row["bias"]),
                ]
                for label, row in rows.items()
            ),
        )
    print("\nrate: samples per second over slots / mean interaction time. age: start of a rollout to its batch.")
    print("versions: batches formed in between. taken / all: mean interaction time of samples taken over that of all.")
    shown = (1, 2, 3, 5, 10, 20)
    table(
        "Start-up of refilled streams: mean interaction time in a batch over that of all",
        ["family", *(f"batch {number}" for number in shown)],
        ([name, *(_number(row[number - 1]) for number in shown)] for name, row in result["start-up"].items()),
    )


# -- figures -----------------------------------------------------------------------------------------------------------


def new_panels(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its axes, in the style of the package's figures: drawn without a display."""
    from spo_verl.drawing import new_figure
    from spo_verl.errors import SpoPlottingError

    try:
        figure, axes = new_figure(rows, columns, inches)
    except SpoPlottingError as error:
        raise SystemExit(f"--plot: {error}") from error
    for axis in axes.flat:
        axis.tick_params(labelsize=9)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, axes


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the two figures as PNG files; returns their paths."""
    from spo_verl.drawing import SAVED

    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "stragglers_ratio.png": draw_ratio(result["settings"]),
        "stragglers_steady.png": draw_steady(result["steady"]),
    }
    for name, figure in found.items():
        figure.savefig(folder / name, **SAVED)
    return [folder / name for name in found]


def draw_ratio(settings: Mapping[str, Any]) -> Any:
    """The ratio of one draw of the paper's case, and that of a very large batch over the surplus."""
    from spo_verl.drawing import COLOURS
    from spo_verl.evaluation.figures import INCHES

    figure, [[left, right]] = new_panels(1, 2, (INCHES, 4.3))
    families = paper_families()
    edges = np.arange(1, 10.1, 0.2)
    for name, colour, hatch in (("log-normal", COLOURS[0], ""), ("two speeds, likeliest", COLOURS[1], "////")):
        duration_XN = draws(families[name], PAPER_STARTED, settings["seeds"], settings["first_seed"])
        of_draw = ratio(duration_XN, PAPER_BATCH, PAPER_SIZE)
        share = np.full(len(of_draw), 100 / len(of_draw))
        style = {"color": colour, "alpha": 0.55, "hatch": hatch, "edgecolor": colour, "linewidth": 0.5}
        left.hist(of_draw, bins=edges, weights=share, label=name, **style)
    left.axvline(PAPER_RATIO, color="black", linewidth=1.2, label=f"the paper's draw: {PAPER_RATIO}")
    left.set_xlabel("time in groups / time as single streams", fontsize=9)
    left.set_ylabel("draws per bin of 0.2, percent", fontsize=9)
    left.set_title("3 of 6 groups of 8, 24 of 48 streams", fontsize=10)
    surplus = np.linspace(0.02, 1, 50)
    for number, size in enumerate(SIZES):
        for name, style in (("two speeds, likeliest", "-"), ("log-normal", "--")):
            limit = [limit_ratio(families[name], float(share), size) for share in surplus]
            label = f"groups of {size}" if style == "-" else None
            right.plot(100 * surplus, limit, style, color=COLOURS[number], linewidth=1.5, label=label)
    right.plot([], [], "-", color="black", label="two speeds")
    right.plot([], [], "--", color="black", label="log-normal")
    right.set_ylim(bottom=1)
    right.set_xlabel("surplus, percent of the batch", fontsize=9)
    right.set_ylabel("time in groups / as single streams", fontsize=9)
    right.set_title("a very large batch", fontsize=10)
    for axis in (left, right):
        axis.legend(
            frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=1 if axis is left else 2
        )
    return figure


def draw_steady(steady: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """Rate and length bias of the five ways to form batches."""
    from spo_verl.drawing import COLOURS
    from spo_verl.evaluation.figures import INCHES

    figure, [[left, right]] = new_panels(1, 2, (INCHES, 4.0))
    labels = list(next(iter(steady.values())))
    for axis, key, title, what in (
        (left, "rate over streams", "rate", "samples per second,\nas a share of slots / mean time"),
        (right, "bias", "length of what is trained on", "mean interaction time,\nas a share of that of all"),
    ):
        for index, (name, found) in enumerate(steady.items()):
            place = np.arange(len(labels)) + 0.26 * (index - 1)
            style = {
                "color": COLOURS[index],
                "hatch": ("", "////", "....")[index],
                "edgecolor": "white",
                "linewidth": 0,
            }
            axis.barh(place, [found[label][key] for label in labels], 0.24, label=name, **style)
        axis.set_yticks(range(len(labels)), labels if axis is left else [])
        axis.invert_yaxis()
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(what, fontsize=9)
    handles, names = left.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        title="interaction times",
        title_fontsize=9,
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return figure


# -- the command -------------------------------------------------------------------------------------------------------


def run_simulate(args: argparse.Namespace) -> None:
    """The ``simulate`` command."""
    result = simulate(args)
    report(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot:
        for path in draw(result, args.plot):
            print(f"\n{path}")


def run_late(args: argparse.Namespace) -> None:
    """The ``late`` command."""
    paper = paper_families()
    families = {name: paper[name] for name in ("two speeds, likeliest", "log-normal")}
    found = late_table(families, args.batch, args.surplus, args.steps, args.seed)
    for name, rows in found.items():
        table(
            f"{name}; batch {args.batch}, {args.steps} steps of which a fifth is not counted",
            ["", *next(iter(rows.values()))],
            ([policy, *(_number(value) for value in row.values())] for policy, row in rows.items()),
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line; each command names its function as ``run``."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    simulate_ = commands.add_parser("simulate", help="simulated clocks only: no model, no trainer")
    simulate_.add_argument("--seeds", type=int, default=10_000, help="draws of the paper's case")
    simulate_.add_argument("--first-seed", type=int, default=0)
    simulate_.add_argument("--slots", type=int, default=512, help="rollouts that run at once in the steady state")
    simulate_.add_argument("--batch", type=int, default=256, help="samples of a batch in the steady state")
    simulate_.add_argument("--size", type=int, default=8, help="rollouts per group in the steady state")
    simulate_.add_argument("--batches", type=int, default=500, help="batches in the steady state; a fifth warms up")
    simulate_.add_argument("--plot", type=Path, metavar="FOLDER", help="write two PNG figures")
    simulate_.add_argument("--json", type=Path, metavar="FILE", help="write all figures, also those not printed")
    simulate_.set_defaults(run=run_simulate)
    late = commands.add_parser("late", help="simulated clock: carry, drop or abort what a batch did not wait for")
    late.add_argument("--batch", type=int, default=256)
    late.add_argument("--surplus", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="as a share of a batch")
    late.add_argument("--steps", type=int, default=250)
    late.add_argument("--seed", type=int, default=0)
    late.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    late.set_defaults(run=run_late)
    try:
        import stragglers_real
    except ImportError:
        return top  # without verl there are the simulated clocks only
    stragglers_real.add_command(commands)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and run."""
    args = parser().parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
