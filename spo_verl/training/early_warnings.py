"""Early warnings: what goes wrong in a run, in plain words, each said once.

:func:`early_warnings` is a pure function of the metrics of the last steps; :class:`EarlyWarnings` keeps those steps and
remembers what was said. A resumed run says a warning again. docs/metrics.md lists them.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spo_verl.config import SpoConfig
from spo_verl.training.metrics import PREFIX

logger = logging.getLogger(__name__)

Steps = Sequence[Mapping[str, float]]
"""Metrics of consecutive steps, the newest last, by their names in ``METRICS``."""

FEW, MANY = 10, 100
"""Steps that most warnings look at, so that one odd batch does not cause one; steps that are kept."""
OUTCOMES = 200
"""Rewards that say something about all: 200 equal ones have a chance of 4e-5 where one in twenty differs."""
EXPECTED = 100
"""Never-drawn prompts that uniform draws would have met. With the default exploration bonus a prompt has at least 1/11
of the largest weight, so the sampler itself would have drawn 9 of them."""
AT_ENDS = 0.9
"""Share of values below 0.1 or from 0.9 on, where a reward's variance is 0.09 at most, about a third of the largest."""
PINNED = 0.95
BIAS = 0.1
"""Standard error of one prompt's value at an effective sample size of 25, the most under the default ``rho_max``."""
LONGER = 1.5


@dataclass(frozen=True)
class RunFacts:
    """What the warnings have to know of a run.

    Attributes:
        batch: prompts per step.
        bounds: ``rho_min`` and ``rho_max``, None where the retention does not vary between two bounds.
        known_values: whether prompts start with values of ``spo.initial``.
        values_learn: whether the baseline is the tracker's value of now.
    """

    batch: int
    bounds: tuple[float, float] | None = None
    known_values: bool = False
    values_learn: bool = True

    @classmethod
    def of(cls, spo: SpoConfig, batch: int) -> RunFacts:
        forgetting = spo.forgetting
        vary = forgetting.mode in ("kl", "drift") and forgetting.rho_min < forgetting.rho_max
        return cls(
            batch,
            (forgetting.rho_min, forgetting.rho_max) if vary else None,
            spo.initial.values is not None or spo.initial.tracker is not None,
            spo.advantage.baseline != "initial",
        )


@dataclass(frozen=True)
class EarlyWarning:
    """One warning.

    Attributes:
        name: short.
        condition: when it is given, in the last ``FEW`` steps or more; for docs/metrics.md.
        fix: what to do.
        seen: what was seen, as a sentence with its numbers; None where the steps are healthy.
    """

    name: str
    condition: str
    fix: str
    seen: Callable[[Steps, RunFacts], str | None]


def _never_drawn(steps: Steps, run: RunFacts) -> str | None:
    coverage = steps[-1]["coverage"]
    still = 0
    for step in reversed(steps[:-1]):
        if step["coverage"] < coverage:
            break
        still += 1
    if still < FEW or (1.0 - coverage) * still * run.batch < EXPECTED:
        return None
    return f"In {still} steps no prompt was drawn for the first time, and {1 - coverage:.0%} of the prompts never were."


def _values_at_ends(steps: Steps, run: RunFacts) -> str | None:
    if len(steps) < FEW or any(step["value/bin_0"] + step["value/bin_9"] < AT_ENDS for step in steps[-FEW:]):
        return None
    low, high = steps[-1]["value/bin_0"], steps[-1]["value/bin_9"]
    return f"{low:.0%} of the prompts have a value below 0.1 and {high:.0%} one of 0.9 or more."


def _retention_pinned(steps: Steps, run: RunFacts) -> str | None:
    last = steps[-FEW:]
    if run.bounds is None or len(last) < FEW:
        return None
    again = [1.0 - step.get("first_visit_share", 1.0) for step in last]
    if min(again) < 0.5 or any("rho/min" not in step for step in last):
        return None
    rho_min, rho_max = run.bounds
    if all(step["rho/at_floor_share"] >= PINNED * share for step, share in zip(last, again, strict=True)):
        return (
            f"For {FEW} steps nearly every prompt that was drawn again kept spo.forgetting.rho_min={rho_min:g} of its "
            "evidence: the policy moves more between two visits than spo.forgetting.half_life tells apart."
        )
    if all(step["rho/min"] >= rho_max - 1e-9 for step in last):
        return (
            f"For {FEW} steps every prompt kept spo.forgetting.rho_max={rho_max:g} of its evidence: the policy moves "
            "less between two visits than spo.forgetting.half_life tells apart."
        )
    return None


def _calibration_off(steps: Steps, run: RunFacts) -> str | None:
    last = steps[-FEW:]
    if len(last) < FEW or not run.values_learn:
        return None
    if not run.known_values and any(step.get("first_visit_share", 1.0) > 0.1 for step in last):
        return None
    bias = sum(step["advantage/raw_mean"] for step in last) / FEW
    variance = sum(step["advantage/raw_variance"] for step in last) / FEW
    if abs(bias) <= max(BIAS, 4.0 * math.sqrt(variance / (FEW * run.batch))):
        return None
    return f"Over {FEW} steps rewards were {abs(bias):.2f} {'above' if bias > 0 else 'below'} the values on average."


def _rewards_between(steps: Steps, run: RunFacts) -> tuple[float, float] | None:
    """The smallest and largest of the last rewards; None where they are too few."""
    last = steps[-max(FEW, math.ceil(OUTCOMES / run.batch)) :]
    if len(last) < FEW or len(last) * run.batch < OUTCOMES:
        return None
    return min(step["reward/min"] for step in last), max(step["reward/max"] for step in last)


def _rewards_constant(steps: Steps, run: RunFacts) -> str | None:
    between = _rewards_between(steps, run)
    if between is None or between[0] < between[1]:
        return None
    return (
        f"The last rewards were all the same, {between[0]:g} of the range from 0 to 1: there is nothing to learn from."
    )


def _reward_range(steps: Steps, run: RunFacts) -> str | None:
    between = _rewards_between(steps, run)
    if between is None or not 0.0 < between[1] - between[0] <= 0.5:
        return None
    return (
        f"Mapped from spo.reward.low and high to the range from 0 to 1, all of the last rewards were between "
        f"{between[0]:.3g} and {between[1]:.3g}: values and weights then do not measure uncertainty."
    )


def _evidence_fades(steps: Steps, run: RunFacts) -> str | None:
    last = steps[-FEW:]
    if len(last) < FEW or any(step.get("n_eff/revisit_mean", 1.0) >= 1.0 for step in last):
        return None
    return (
        f"Prompts that are drawn again have {last[-1]['n_eff/revisit_mean']:.2g} outcomes' worth of evidence left on "
        "average: their values say little."
    )


def _length_bias(steps: Steps, run: RunFacts) -> str | None:
    last = steps[-FEW:]
    if len(last) < FEW:
        return None
    aborted = sum(step.get("rollouts/aborted_total", 0.0) for step in last)
    if aborted > len(last) * run.batch:
        return (
            f"In {FEW} steps more rollouts were stopped than trained on: only the shortest responses are learnt from."
        )
    evicted = sum(step.get("evidence/stale_total", 0.0) + step.get("evidence/surplus_total", 0.0) for step in last)
    observed = sum(step["evidence/observed_total"] for step in last)
    lengths = [step["late/evicted_tokens_mean"] for step in last if "late/evicted_tokens_mean" in step]
    if not lengths or evicted < 0.05 * observed:
        return None
    trained = sum(map(_trained_tokens, last)) / FEW
    lost = sum(lengths) / len(lengths)
    if lost < LONGER * trained:
        return None
    return (
        f"Responses that were not trained on had {lost:.0f} tokens on average, the others {trained:.0f}: long "
        "responses are not learnt from."
    )


def _trained_tokens(step: Mapping[str, float]) -> float:
    """Mean response tokens of the rollouts of a batch."""
    carried = step["late/carried_share"]
    fresh = step.get("late/fresh_tokens_mean", 0.0)
    return carried * step.get("late/carried_tokens_mean", 0.0) + (1.0 - carried) * fresh


WARNINGS: tuple[EarlyWarning, ...] = (
    EarlyWarning(
        "prompts never drawn",
        f"`coverage` below 1 did not grow, where uniform draws would have met {EXPECTED} such prompts",
        "Raise spo.sampling.epsilon: with 0, prompts whose value is exactly 0 or 1 are never drawn.",
        _never_drawn,
    ),
    EarlyWarning(
        "values near 0 or 1",
        f"`value/bin_0` and `value/bin_9` together at least {AT_ENDS}",
        "Look at some rewards. If they are right, exchange solved and hopeless prompts for others.",
        _values_at_ends,
    ),
    EarlyWarning(
        "retention pinned",
        f"{PINNED:.0%} of the prompts drawn again at `rho_min`, or all at `rho_max`, with at most half new prompts",
        "Set spo.forgetting.half_life so that spo/divergence/mean is 0.06 to 0.19 of it: larger at the floor, smaller "
        "at the ceiling.",
        _retention_pinned,
    ),
    EarlyWarning(
        "calibration off",
        f"mean `advantage/raw_mean` more than {BIAS} and 4 standard errors from 0, with at most a tenth new prompts or "
        "with `spo.initial`",
        "Rewards above the values: the policy improves faster than evidence is forgotten; set "
        "spo.value.readout=calibrated, or lower spo.forgetting.rho_min and rho_max. From the first step: spo.initial "
        "has values of another policy or reward.",
        _calibration_off,
    ),
    EarlyWarning(
        "reward range",
        f"{OUTCOMES} or more rewards differ, but fill at most half of the declared range",
        "Set spo.reward.low and spo.reward.high to your function's lowest and highest reward.",
        _reward_range,
    ),
    EarlyWarning(
        "evidence fades",
        "`n_eff/revisit_mean` below 1",
        "Raise spo.forgetting.rho, set spo.forgetting.floor, or train on fewer prompts.",
        _evidence_fades,
    ),
    EarlyWarning(
        "rewards constant",
        f"{OUTCOMES} or more rewards are equal",
        "Look at some samples. All wrong: check the reward function and the answer's format, or take easier prompts. "
        "All right: take harder ones.",
        _rewards_constant,
    ),
    EarlyWarning(
        "length bias",
        f"evicted responses (at least 5 % of the outcomes) are {LONGER} times as long as trained ones, or more "
        "rollouts were stopped than trained on",
        "Choose spo.late.policy=carry, lower spo.oversample, or set spo.late.length_bound.",
        _length_bias,
    ),
)


def early_warnings(steps: Steps, run: RunFacts) -> Iterator[tuple[EarlyWarning, str]]:
    """Yield what is wrong in these steps, with a sentence that says what was seen.

    Args:
        steps: metrics of consecutive steps, the newest last, without the prefix ``spo/``; at least one.
        run: what else matters.
    """
    for warning in WARNINGS:
        seen = warning.seen(steps, run)
        if seen is not None:
            yield warning, seen


class EarlyWarnings:
    """The early warnings of a run: each is logged once."""

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._steps: deque[Mapping[str, float]] = deque(maxlen=MANY)
        self._said: set[str] = set()

    def read(self, metrics: Mapping[str, float]) -> None:
        """Look at the metrics of one more step, verl's among them, and log what is new.

        A step that the tracker has not finished has no coverage; nothing is to be seen in it.
        """
        own = {key.removeprefix(PREFIX): value for key, value in metrics.items() if key.startswith(PREFIX)}
        if "coverage" not in own:
            return
        self._steps.append(own)
        for warning, seen in early_warnings(tuple(self._steps), self._run):
            if warning.name not in self._said:
                self._said.add(warning.name)
                logger.warning("spo: early warning, %s. %s %s", warning.name, seen, warning.fix)
