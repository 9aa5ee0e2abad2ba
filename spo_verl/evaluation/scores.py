"""avg@k, pass@k and maj@k of each benchmark of each run, with intervals; differences; what is incomplete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from spo_verl.core.evaluation import (
    Interval,
    average_at_k,
    bootstrap_difference,
    bootstrap_interval,
    majority_at_k,
    pass_at_k,
)
from spo_verl.evaluation.benchmarks import AVERAGE, in_order, paper_table, title
from spo_verl.evaluation.generations import ANSWERS_MISSING, EvaluationError, Generations, Prompt

METRICS = ("avg", "pass", "maj")


@dataclass(frozen=True)
class EvaluationSettings:
    """How metrics are computed: see `spo_verl.core.evaluation`.

    Attributes:
        k: Responses that metrics look at; None takes all that every prompt of a benchmark has.
        level, resamples: Of the bootstrap intervals.
        seed: Of resamples and of the subsets of maj@k.
        subsets: Random subsets per prompt for maj@k where a prompt has more than k responses.
    """

    k: int | None = None
    level: float = 0.95
    resamples: int = 10_000
    seed: int = 0
    subsets: int = 1000


@dataclass
class Benchmark:
    """One benchmark of one run.

    Attributes:
        source: Data source.
        prompts: Number of prompts.
        responses: (fewest, most) responses of a prompt.
        k: Responses that the metrics look at.
        values: Metric -> key of the prompt -> value in [0, 1]. ``maj`` is absent where answers are.
        intervals: Metric -> mean over prompts and interval.
        pass_curve: k -> pass@k, mean over prompts and interval, k = 1, 2, 4, ... and ``k``.
        missing_answers: Share of the responses without an answer; None where the file has none at all.
    """

    source: str
    prompts: int
    responses: tuple[int, int]
    k: int
    values: dict[str, dict[str, float]] = field(repr=False)
    intervals: dict[str, Interval]
    pass_curve: dict[int, Interval]
    missing_answers: float | None


@dataclass
class EvaluatedRun:
    """One run: its benchmarks in the paper's order, their average where all five are there, problems and notes.

    ``rows``, ``used``, ``set_aside`` and ``account`` say what became of every row, as in `Generations`.
    """

    name: str
    step: int | None
    benchmarks: dict[str, Benchmark]
    average: dict[str, Interval]
    problems: list[str]
    notes: list[str]
    regraded: tuple[int, int, int] | None
    rows: int
    used: int
    set_aside: dict[str, int]
    account: str


@dataclass(frozen=True)
class Difference:
    """``first - second`` on the prompts that both have.

    Attributes:
        first, second: Names of runs.
        source: Data source, or ``average``.
        metric: One of `METRICS`.
        k: Responses that the metric looks at, in both.
        interval: Mean difference and its paired interval.
    """

    first: str
    second: str
    source: str
    metric: str
    k: int
    interval: Interval


@dataclass
class Evaluation:
    """Everything: the runs, their differences, and the settings."""

    runs: list[EvaluatedRun]
    differences: list[Difference]
    settings: EvaluationSettings
    problems: list[str]

    def as_json(self) -> dict[str, Any]:
        """Plain data; metrics are shares in [0, 1], those of the paper percent."""
        paper = paper_table()
        return {
            "settings": asdict(self.settings),
            "problems": self.problems,
            "runs": [_run_as_json(run) for run in self.runs],
            "differences": [{**asdict(one), "interval": asdict(one.interval)} for one in self.differences],
            "paper": {"source": paper.source, "unit": "percent", "k": paper.k, "rows": paper.rows},
        }


def evaluate(runs: Sequence[Generations], settings: EvaluationSettings) -> Evaluation:
    """Compute all metrics.

    Raises:
        EvaluationError: Two runs have one name, or k is not at least 1.
    """
    names = Counter(run.name for run in runs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise EvaluationError(f"two runs are called {', '.join(twice)}: name them, as in spo=FOLDER grpo=FOLDER")
    found = [_run(run, settings) for run in runs]
    problems = [f"{run.name}: {problem}" for run in found for problem in run.problems]
    differences: list[Difference] = []
    for second, generations in zip(found[1:], runs[1:], strict=True):
        differences += _differences(found[0], second, runs[0], generations, settings, problems)
    return Evaluation(found, differences, settings, problems)


def powers_up_to(k: int) -> list[int]:
    """1, 2, 4, ... below k, and k."""
    return [2**power for power in range(k.bit_length()) if 2**power < k] + [k]


def _run(run: Generations, settings: EvaluationSettings) -> EvaluatedRun:
    problems, notes = list(run.problems), list(run.notes)
    benchmarks = {}
    for source in in_order(set(run.prompts)):
        prompts = run.prompts[source]
        problems += _incomplete(source, prompts, run.expected, settings)
        benchmarks[source] = benchmark = _benchmark(source, prompts, settings)
        if "maj" not in benchmark.values:
            notes.append(f"{title(source)}: {ANSWERS_MISSING}")
    problems += [f"{title(name)}: no generation at all" for name in run.expected if name not in benchmarks]
    average = {}
    for metric in METRICS:
        members = _averaged(benchmarks, metric)
        if members:
            values = [value for one in members for value in one.values[metric].values()]
            strata = [one.source for one in members for _ in one.values[metric]]
            average[metric] = _interval(values, strata, settings)
    if missing := [title(name) for name in paper_table().title_of if name not in benchmarks]:
        notes.append(f"no average of the five benchmarks, as there is no {', '.join(missing)}")
    return EvaluatedRun(
        run.name, run.step, benchmarks, average, problems, notes, run.regraded, run.rows, run.used, run.set_aside,
        run.account(),
    )  # fmt: skip


def _averaged(benchmarks: dict[str, Benchmark], metric: str) -> list[Benchmark]:
    """The five benchmarks of the paper, if all of them have the metric; else none."""
    five = [benchmarks[name] for name in paper_table().title_of if name in benchmarks]
    return five if len(five) == len(paper_table().title_of) and all(metric in one.values for one in five) else []


def _benchmark(source: str, prompts: dict[str, Prompt], settings: EvaluationSettings) -> Benchmark:
    n_P = np.array([len(one.correct) for one in prompts.values()])
    fewest, most = int(n_P.min()), int(n_P.max())
    k = fewest if settings.k is None else min(settings.k, fewest)
    has_answers = all(answer is not None for one in prompts.values() for answer in one.answers)
    values = {"avg": _each(prompts, k, settings, "avg"), "pass": _each(prompts, k, settings, "pass")}
    missing = None
    if has_answers:
        values["maj"] = _each(prompts, k, settings, "maj")
        missing = sum(not answer for one in prompts.values() for answer in one.answers) / int(n_P.sum())
    intervals = {metric: _interval(list(found.values()), None, settings) for metric, found in values.items()}
    right_P = _right(prompts)
    curve = {one: _interval(pass_at_k(n_P, right_P, one).tolist(), None, settings) for one in powers_up_to(k)}
    return Benchmark(source, len(prompts), (fewest, most), k, values, intervals, curve, missing)


def _each(prompts: dict[str, Prompt], k: int, settings: EvaluationSettings, metric: str) -> dict[str, float]:
    """A metric of each prompt; prompts with the same number of responses are computed together."""
    found: dict[str, float] = {}
    for n in sorted({len(one.correct) for one in prompts.values()}):
        alike = {key: one for key, one in prompts.items() if len(one.correct) == n}
        correct_PG = [one.correct for one in alike.values()]
        if metric == "avg":
            value_P = average_at_k(correct_PG)
        elif metric == "pass":
            value_P = pass_at_k(np.full(len(alike), n), _right(alike), k)
        else:
            answers_PG = [[answer or "" for answer in one.answers] for one in alike.values()]
            value_P = majority_at_k(answers_PG, correct_PG, k, subsets=settings.subsets, seed=settings.seed)
        found |= dict(zip(alike, value_P.tolist(), strict=True))
    return {key: found[key] for key in prompts}


def _right(prompts: dict[str, Prompt]) -> np.ndarray[Any, Any]:
    """Right responses of each prompt; partial credit counts as right for pass@k from 1 on only."""
    return np.array([sum(grade >= 1.0 for grade in one.correct) for one in prompts.values()])


def _interval(values: list[float], strata: list[str] | None, settings: EvaluationSettings) -> Interval:
    return bootstrap_interval(values, strata, level=settings.level, resamples=settings.resamples, seed=settings.seed)


def _incomplete(
    source: str, prompts: dict[str, Prompt], expected: dict[str, int], settings: EvaluationSettings
) -> Iterator[str]:
    """What of a benchmark is missing or too much."""
    name = title(source)
    wanted = expected.get(source, paper_table().prompts_of.get(source))
    if wanted is not None and wanted != len(prompts):
        yield f"{name}: {len(prompts)} prompts, and the benchmark has {wanted}"
    counts = Counter(len(one.correct) for one in prompts.values())
    most = max(counts)
    if len(counts) > 1:
        listed = ", ".join(f"{count} with {n}" for n, count in sorted(counts.items()))
        used = _used(counts, settings)
        yield f"{name}: prompts differ in their number of responses ({listed}); metrics look at {used}"
    if settings.k is not None and min(counts) < settings.k:
        short = sum(count for n, count in counts.items() if n < settings.k)
        yield (
            f"{name}: {short} of {len(prompts)} prompts have fewer than k = {settings.k} responses (at most {most}); "
            f"metrics look at {_used(counts, settings)}"
        )


def _used(counts: Counter[int], settings: EvaluationSettings) -> int:
    return min(counts) if settings.k is None else min(settings.k, *counts)


def _differences(
    first: EvaluatedRun,
    second: EvaluatedRun,
    mine: Generations,
    other: Generations,
    settings: EvaluationSettings,
    problems: list[str],
) -> Iterator[Difference]:
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {metric: {} for metric in METRICS}
    k_of: dict[str, int] = {}
    for source in [name for name in first.benchmarks if name in second.benchmarks]:
        ours, theirs = mine.prompts[source], other.prompts[source]
        common = [key for key in ours if key in theirs]
        if len(common) < max(len(ours), len(theirs)):
            problems.append(
                f"{first.name} - {second.name}, {title(source)}: {len(common)} prompts in common, of {len(ours)} and "
                f"{len(theirs)}; the difference is over those (prompts are the same if the rendered text is)"
            )
        if not common:
            continue
        k = k_of[source] = min(first.benchmarks[source].k, second.benchmarks[source].k)
        for metric in METRICS:
            if metric in first.benchmarks[source].values and metric in second.benchmarks[source].values:
                left = _each({key: ours[key] for key in common}, k, settings, metric)
                right = _each({key: theirs[key] for key in common}, k, settings, metric)
                pairs[metric][source] = [(left[key], right[key]) for key in common]
    for source in k_of:
        for metric in METRICS:
            if source in pairs[metric]:
                yield _difference(
                    first, second, source, metric, k_of[source], {source: pairs[metric][source]}, settings
                )
    for metric in METRICS:
        five = {name: pairs[metric][name] for name in paper_table().title_of if name in pairs[metric]}
        if len(five) == len(paper_table().title_of):
            yield _difference(first, second, AVERAGE, metric, min(k_of[name] for name in five), five, settings)


def _difference(
    first: EvaluatedRun,
    second: EvaluatedRun,
    source: str,
    metric: str,
    k: int,
    pairs: dict[str, list[tuple[float, float]]],
    settings: EvaluationSettings,
) -> Difference:
    value_P, other_P = np.array([pair for found in pairs.values() for pair in found]).T
    strata = [name for name, found in pairs.items() for _ in found]
    interval = bootstrap_difference(
        value_P, other_P, strata, level=settings.level, resamples=settings.resamples, seed=settings.seed
    )
    return Difference(first.name, second.name, source, metric, k, interval)


def _run_as_json(run: EvaluatedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "step": run.step,
        "problems": run.problems,
        "notes": run.notes,
        "rows": {"read": run.rows, "used": run.used, "set_aside": run.set_aside},
        "regraded": None
        if run.regraded is None
        else dict(zip(("responses", "changed", "given_up"), run.regraded, strict=True)),
        "average": {metric: asdict(interval) for metric, interval in run.average.items()},
        "benchmarks": {
            source: {
                "prompts": one.prompts,
                "responses": {"fewest": one.responses[0], "most": one.responses[1]},
                "k": one.k,
                **{metric: asdict(interval) for metric, interval in one.intervals.items()},
                "pass_curve": {str(k): interval.mean for k, interval in one.pass_curve.items()},
                "pass_curve_intervals": {
                    str(k): [interval.low, interval.high] for k, interval in one.pass_curve.items()
                },
                "missing_answers": one.missing_answers,
            }
            for source, one in run.benchmarks.items()
        },
    }
