"""Every metric under ``spo/``: computed here, explained in :data:`METRICS`, which `pages` writes into docs/metrics.md.

verl's aggregator keeps scalars only and chooses how to combine the parts of a step by substrings of the key
(``max``, ``min``, ``sum``/``total``, else a weighted mean); the names are chosen with that in mind and tested. With "_"
for "/", as verl's RL-Insight logger writes it, every name is one that Prometheus accepts.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from time import perf_counter

import numpy as np

from spo_verl.config import ForgettingConfig
from spo_verl.core import degenerate_probability
from spo_verl.tracker.reports import Late, ObserveReport

PREFIX = "spo/"
VALUE_BINS = 10
GRPO_GROUP = 8
"""Group size of the paper's GRPO baseline, for the share of samples that it would have called degenerate."""

METRICS: dict[str, str] = {
    # the batch
    "reward/mean": "Mean, in [0, 1]. The sampler moves it: compare runs on held-out prompts.",
    "reward/min": "Smallest.",
    "reward/max": "Largest.",
    "value/batch_mean": "Mean baseline.",
    "advantage/raw_mean": "Mean of reward minus baseline.",
    "advantage/raw_variance": "Unbiased variance of the raw advantage; figure 3b.",
    "advantage/variance_removed": "1 - that variance / variance of the reward.",
    "advantage/near_zero_0_0001_share": "Share of rollouts with |raw advantage| <= 1e-4; figure 3a.",
    "advantage/near_zero_0_02_share": "The same with 0.02.",
    "advantage/grpo_degenerate_share": "Share without signal in groups of 8: mean of p^8 + (1-p)^8.",
    "first_visit_share": "Share of prompts never observed before.",
    "n_eff/revisit_mean": "Mean effective sample size of revisited prompts, before this step.",
    "staleness/mean": "Mean policy versions from dispatch to use.",
    "staleness/max": "Largest.",
    # forgetting
    "rho/mean": "Mean retention.",
    "rho/min": "Smallest.",
    "rho/max": "Largest.",
    "rho/at_floor_share": "Share of prompts at `rho_min`.",
    "divergence/mean": "Mean divergence D that forgetting uses.",
    "divergence/max": "Largest.",
    "divergence_acting/mean": "Mean between acting policies.",
    "divergence_updated/mean": "Mean between updated policies.",
    "drift/forwards_total": "Extra forwards over stored responses.",
    "drift/tokens_total": "Their tokens, with the prompts'.",
    "drift/incomparable_total": "Stored responses whose prompt has other tokens now.",
    "drift/unmeasured_total": "Prompts beyond `spo.drift.max_prompts`.",
    "drift/movement_total": "Movement: mean |log-prob difference| (mode drift).",
    # evidence
    "evidence/observed_total": "Outcomes that became evidence.",
    "evidence/untrained_total": "Of these, without a token in the loss.",
    "evidence/duplicate_total": "Outcomes offered twice; ignored.",
    "rollouts/failed_total": "Rollouts that returned nothing.",
    # rollouts that were not trained on
    "evidence/failed_total": "Outcomes of prompts evicted as other sessions failed.",
    "evidence/stale_total": "Outcomes evicted as too old.",
    "evidence/surplus_total": "Outcomes too late for their batch.",
    "evidence/aborted_total": "Outcomes of prompts whose other sessions were stopped.",
    "rollouts/aborted_total": "Prompts whose rollouts were stopped.",
    "rollouts/stale_total": "Rollouts evicted as too old.",
    "rollouts/surplus_total": "Rollouts dropped as surplus.",
    "late/carried_share": "Share of the batch from earlier dispatches.",
    "late/carried_tokens_mean": "Mean response tokens of carried ones.",
    "late/fresh_tokens_mean": "Of the others.",
    "late/evicted_tokens_mean": "Of stale and surplus rollouts.",
    # the whole tracker
    "value/mean": "Mean value.",
    "value/bin_<k>": "Share of values in [k/10, (k+1)/10); 1 is in `bin_9`.",
    "n_eff/mean": "Mean effective sample size.",
    "readout/slope": "Coefficient of logit v (`spo.value.readout=calibrated`).",
    "readout/intercept": "Intercept, without the data source's coefficient.",
    "coverage": "Share of prompts ever drawn.",
    "effective_prompts": "(sum of weights)^2 / sum of squared weights.",
    "open_rollouts": "Dispatched rollouts without an outcome.",
    "bytes/tracker": "Bytes of the tracker's table.",
    "bytes/memory": "Bytes of stored responses.",
    # data sources, with quotas
    "source/<name>/drawn_share": "Share of the step's prompts.",
    "source/<name>/value_mean": "Mean value of its prompts.",
    # time of the step spent here, seconds
    "seconds_total/draw": "Drawing prompts, reading rows.",
    "seconds_total/dispatch": "Freezing values.",
    "seconds_total/recall": "Fetching values, responses and outputs.",
    "seconds_total/probe": "Extra forwards.",
    "seconds_total/observe": "Folding in outcomes, storing responses.",
    "seconds_total/save": "Saving the tracker.",
}


class Stopwatch:
    """Seconds spent per activity since the last :meth:`drain`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        begin = perf_counter()
        try:
            yield
        finally:
            self._seconds[activity] = self._seconds.get(activity, 0.0) + perf_counter() - begin

    def drain(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return {f"seconds_total/{activity}": spent for activity, spent in seconds.items()}


def batch_metrics(reward_S: np.ndarray, value_S: np.ndarray, lag_B: np.ndarray) -> dict[str, float]:
    """What is known of a batch before its outcomes are folded in.

    Args:
        reward_S: rewards in [0, 1].
        value_S: frozen value of each session's prompt.
        lag_B: policy versions between dispatch and use of each prompt.
    """
    raw_S = reward_S - value_S
    reward_variance = float(np.var(reward_S, ddof=1)) if len(reward_S) > 1 else 0.0
    raw_variance = float(np.var(raw_S, ddof=1)) if len(raw_S) > 1 else 0.0
    return {
        "reward/mean": float(reward_S.mean()),
        "reward/min": float(reward_S.min()),
        "reward/max": float(reward_S.max()),
        "value/batch_mean": float(value_S.mean()),
        "advantage/raw_mean": float(raw_S.mean()),
        "advantage/raw_variance": raw_variance,
        "advantage/variance_removed": 1.0 - raw_variance / reward_variance if reward_variance > 0 else 0.0,
        "advantage/near_zero_0_0001_share": float((np.abs(raw_S) <= 1e-4).mean()),
        "advantage/near_zero_0_02_share": float((np.abs(raw_S) <= 0.02).mean()),
        "advantage/grpo_degenerate_share": float(np.mean(degenerate_probability(value_S, GRPO_GROUP))),
        "staleness/mean": float(lag_B.mean()),
        "staleness/max": float(lag_B.max()),
    }


def divergence_metrics(name: str, divergence_B: np.ndarray, *, used: bool) -> dict[str, float]:
    """Mean (and, for the one that forgetting uses, largest) divergence over prompts with a stored response."""
    measured = divergence_B[~np.isnan(divergence_B)]
    if not len(measured):
        return {}
    metrics = {f"divergence_{name}/mean": float(measured.mean())}
    if used:
        metrics |= {"divergence/mean": float(measured.mean()), "divergence/max": float(measured.max())}
    return metrics


def observation_metrics(report: ObserveReport, forgetting: ForgettingConfig) -> dict[str, float]:
    """What folding in the step's outcomes did: retention, first visits, counts."""
    metrics = {
        "evidence/observed_total": float(report.new),
        "evidence/duplicate_total": float(report.duplicate),
    }
    rho_B = report.rho_B[report.discounted_B]
    if len(rho_B):
        metrics |= {
            "rho/mean": float(rho_B.mean()),
            "rho/min": float(rho_B.min()),
            "rho/max": float(rho_B.max()),
        }
        if forgetting.mode in ("kl", "drift"):  # the other modes know no bounds
            metrics["rho/at_floor_share"] = float((rho_B <= forgetting.rho_min + 1e-12).mean())
    if len(report.slot_B):
        metrics["first_visit_share"] = float(report.first_visit_B.mean())
    revisit_B = ~report.first_visit_B
    if revisit_B.any():
        metrics["n_eff/revisit_mean"] = float(report.n_eff_B[revisit_B].mean())
    return metrics


def joined_reports(reports: Sequence[ObserveReport]) -> ObserveReport:
    """Several observations of one step as one report, their rows after each other."""
    columns = {entry.name: [getattr(report, entry.name) for report in reports] for entry in fields(ObserveReport)}
    return ObserveReport(
        **{name: sum(parts) if isinstance(parts[0], int) else np.concatenate(parts) for name, parts in columns.items()}
    )


def eviction_metrics(late: Sequence[Late], tokens: Sequence[int], failed: int) -> dict[str, float]:
    """Rollouts that were not trained on: how many, how long, and why.

    Args:
        late: what was evicted.
        tokens: response tokens of each evicted session with an outcome.
        failed: rollouts of the step that returned nothing.
    """
    rollouts, outcomes = Counter[str](), Counter[str]()
    for entry in late:
        rollouts[entry.kind] += len(entry.over)
        outcomes[entry.kind] += len(entry.uids)
    metrics = {
        "rollouts/failed_total": float(failed + rollouts["failed"]),
        "evidence/failed_total": float(outcomes["failed"]),
    }
    for kind in ("stale", "surplus", "aborted"):
        metrics[f"rollouts/{kind}_total"] = float(rollouts[kind])
        metrics[f"evidence/{kind}_total"] = float(outcomes[kind])
    if tokens:
        metrics["late/evicted_tokens_mean"] = float(np.mean(tokens))
    return metrics


def length_metrics(tokens_S: np.ndarray, carried_S: np.ndarray) -> dict[str, float]:
    """Lengths of the responses in a batch of the first rollouts to finish.

    Args:
        tokens_S: response tokens of each session of the batch.
        carried_S: whether it was dispatched for an earlier batch.
    """
    metrics = {"late/carried_share": float(carried_S.mean())}
    for name, of_S in (("carried", carried_S), ("fresh", ~carried_S)):
        if of_S.any():
            metrics[f"late/{name}_tokens_mean"] = float(tokens_S[of_S].mean())
    return metrics


def table_metrics(metrics: Mapping[str, float], value_bins: np.ndarray) -> dict[str, float]:
    """The tracker's own numbers, and its histogram of values as shares, under the names of :data:`METRICS`."""
    return {
        "value/mean": metrics["value_mean"],
        **{f"value/bin_{k}": float(count) for k, count in enumerate(value_bins / value_bins.sum())},
        "n_eff/mean": metrics["n_eff_mean"],
        "coverage": metrics["coverage"],
        "effective_prompts": metrics["effective_prompts"],
        "open_rollouts": metrics["open"],
        "bytes/tracker": metrics["table_bytes"],
        "bytes/memory": metrics["memory_bytes"],
        **{f"readout/{name}": metrics[key] for name in ("slope", "intercept") if (key := f"readout_{name}") in metrics},
    }


def prometheus_name(key: str) -> str:
    """What verl's RL-Insight logger makes of a key (``RLInsightLogger.log``); RL-Insight adds its prefix."""
    return key.replace("/", "_")


def source_labels(names: Sequence[str]) -> dict[str, str]:
    """How each data source is written in the key of a metric.

    What Prometheus does not accept in a name becomes "_". Names that are no longer distinct in Prometheus get "_" and
    eight hex digits of a hash of their own.

    Args:
        names: the data sources, distinct.
    """
    written = {name: re.sub(r"[^a-zA-Z0-9_/]", "_", name) for name in names}
    taken = Counter(map(prometheus_name, written.values()))
    return {
        name: label if taken[prometheus_name(label)] == 1 else f"{label}_{_digest(name)}"
        for name, label in written.items()
    }


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def pattern_of(key: str) -> str:
    """The entry of :data:`METRICS` that explains a key.

    There ``<name>`` is a data source, slashes and all, and ``<k>`` the number of a bin.
    """
    first, _, rest = key.partition("/")
    if first == "source":
        return f"source/<name>/{rest.rpartition('/')[2]}"
    return re.sub(r"^value/bin_\d$", "value/bin_<k>", key)


def prefixed(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics under ``spo/``.

    Raises:
        KeyError: a key has no explanation in :data:`METRICS`; every metric must have one.
    """
    unknown = {key for key in metrics if pattern_of(key) not in METRICS}
    if unknown:
        raise KeyError(f"metrics without an explanation in spo_verl.training.metrics.METRICS: {sorted(unknown)}")
    return {PREFIX + key: value for key, value in metrics.items()}
