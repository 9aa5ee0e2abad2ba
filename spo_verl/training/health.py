"""What is healthy for each metric, and what to do where it is not; `pages` writes it into docs/metrics.md.

Numbers are those of the paper (https://arxiv.org/abs/2509.13232) or follow from the settings. Where there is no such
number, the entry says what to compare the metric with.
"""

from __future__ import annotations

from typing import NamedTuple


class Health(NamedTuple):
    """``healthy``: a range or a comparison. ``otherwise``: what to do; empty where another metric says it."""

    healthy: str
    otherwise: str


HEALTH: dict[str, Health] = {
    # the batch
    "reward/mean": Health(
        "Between 0 and 1.",
        "Near 0: look at samples, or take easier prompts. Near 1: take harder ones.",
    ),
    "reward/min": Health("0, sooner or later.", "Set `spo.reward.low` to your function's lowest reward."),
    "reward/max": Health("1, sooner or later.", "Set `spo.reward.high` to its highest reward."),
    "value/batch_mean": Health("Close to `spo/reward/mean`.", "See `spo/advantage/raw_mean`."),
    "advantage/raw_mean": Health(
        "Within 0.1 of 0, once `spo/first_visit_share` is below 0.1. Above 0 while the policy improves.",
        "Set `spo.value.readout=calibrated`, or lower `spo.forgetting.rho_min` and `rho_max`. From the first step: "
        "`spo.initial` has values of another policy or reward.",
    ),
    "advantage/raw_variance": Health(
        "Below the variance of the reward.",
        "See `spo/advantage/variance_removed`.",
    ),
    "advantage/variance_removed": Health(
        "About 0.5 in the paper. Near 0 while most prompts are new.",
        "Below 0 for long: values are worse than none. See `spo/advantage/raw_mean`.",
    ),
    "advantage/near_zero_0_0001_share": Health(
        "Rare in the paper.", "Values are exactly 0 or 1: set `spo.initial.prior=jeffreys`."
    ),
    "advantage/near_zero_0_02_share": Health(
        "Rises slowly in the paper; far below `spo/advantage/grpo_degenerate_share`.",
        "Drawn prompts are solved or hopeless: add others, or lower `spo.sampling.epsilon`.",
    ),
    "advantage/grpo_degenerate_share": Health("Compare with `spo/advantage/near_zero_0_02_share`.", "See there."),
    "first_visit_share": Health(
        "Falls from 1 towards 0.",
        "High late in the run: use fewer prompts, or offline values.",
    ),
    "n_eff/revisit_mean": Health(
        "Above 1; settles at 1 / (1 - rho), 8 to 25 for the default bounds.",
        "Raise `spo.forgetting.rho`, set `spo.forgetting.floor`, or use fewer prompts.",
    ),
    "staleness/mean": Health(
        "0 in sync. Else about the surplus in flight, in batches.",
        "Lower `spo.oversample` or `num_warmup_batches`.",
    ),
    "staleness/max": Health(
        "Bounded by `trainer.v1.sampler.max_off_policy_threshold`, if set.",
        "Set it, or choose `spo.late.policy=abort`.",
    ),
    # forgetting
    "rho/mean": Health(
        "Between `rho_min` and `rho_max` (mode kl, drift); `rho` in mode constant.",
        "At `rho_min`: raise `spo.forgetting.half_life`. At `rho_max` on revisits: lower it.",
    ),
    "rho/min": Health("`rho_min` for some prompts.", "Equal to `rho_max` for long: lower `spo.forgetting.half_life`."),
    "rho/max": Health("`rho_max` while there are first visits.", "See `spo/rho/mean`."),
    "rho/at_floor_share": Health(
        "Well below 1.", "Near 1 for long: raise `spo.forgetting.half_life`, or lower the learning rate."
    ),
    "divergence/mean": Health(
        "0.06 to 0.19 of `spo.forgetting.half_life` (0.0035 to 0.0116 by default), for a retention between its bounds.",
        "Change `half_life`.",
    ),
    "divergence/max": Health(
        "Compare with the mean.", "Far above it: look at the responses that have become impossible."
    ),
    "divergence_acting/mean": Health("Compare with `spo/divergence_updated/mean`, which leaves one update out.", ""),
    "divergence_updated/mean": Health("Compare with `spo/divergence_acting/mean`.", ""),
    "drift/forwards_total": Health("1 per update, 2 with `spo.forgetting.reference=updated`.", ""),
    "drift/tokens_total": Health(
        "Compare with `perf/total_num_tokens`.", "Set `spo.drift.max_prompts` or `max_tokens`, or mode drift."
    ),
    "drift/incomparable_total": Health("0.", "Tokenizer or chat template has changed since the checkpoint."),
    "drift/unmeasured_total": Health("0 without `spo.drift.max_prompts`.", "Raise `spo.drift.max_prompts`."),
    "drift/movement_total": Health(
        "0.06 to 0.19 of `half_life`, summed over the steps between two visits.", "Change `spo.forgetting.drift_scale`."
    ),
    # evidence
    "evidence/observed_total": Health("In sync: prompts times rollouts per prompt.", "See the failed rollouts."),
    "evidence/untrained_total": Health("0.", "Look for empty responses, and what rejects tokens from the loss."),
    "evidence/duplicate_total": Health("0.", "Nothing is lost, but report it."),
    "rollouts/failed_total": Health("0.", "Read the errors of the agent loop in the log."),
    # rollouts that were not trained on
    "evidence/failed_total": Health("0.", "Read the errors of the agent loop in the log."),
    "evidence/stale_total": Health(
        "Small against `spo/evidence/observed_total`.",
        "Raise `max_off_policy_threshold`, or lower `spo.oversample`.",
    ),
    "evidence/surplus_total": Health("0 with `carry`; with `drop` about the surplus.", "Lower `spo.oversample`."),
    "evidence/aborted_total": Health("Compare with `spo/rollouts/aborted_total`.", ""),
    "rollouts/aborted_total": Health(
        "With `abort` the surplus.",
        "More than the batch: lower `spo.oversample`.",
    ),
    "rollouts/stale_total": Health("Small against the batch.", "As for `spo/evidence/stale_total`."),
    "rollouts/surplus_total": Health("As `spo/evidence/surplus_total`.", ""),
    "late/carried_share": Health("0 in sync. With `carry` compare with `spo.oversample`.", "Lower `spo.oversample`."),
    "late/carried_tokens_mean": Health("Above `spo/late/fresh_tokens_mean`.", ""),
    "late/fresh_tokens_mean": Health(
        "Compare with `response_length/mean` of a synchronous run.",
        "Falls for long: set `spo.late.length_bound`.",
    ),
    "late/evicted_tokens_mean": Health(
        "Close to the rollouts that were trained on.",
        "Above 1.5 times those: choose `spo.late.policy=carry`.",
    ),
    # the whole tracker
    "value/mean": Health("Compare with the accuracy on the training prompts.", "See `spo/advantage/raw_mean`."),
    "value/bin_<k>": Health(
        "Less than 0.9 in `bin_0` and `bin_9` together.",
        "Exchange solved and hopeless prompts; look at the rewards.",
    ),
    "n_eff/mean": Health("Compare with `spo/n_eff/revisit_mean`.", "See there."),
    "readout/slope": Health(
        "1 before the first outcomes, then above 0.",
        "Near 0: evidence does not predict rewards. Look at samples.",
    ),
    "readout/intercept": Health("0 before the first outcomes. Above 0 while the policy improves.", ""),
    "coverage": Health("Grows until 1.", "Stops below 1: raise `spo.sampling.epsilon`."),
    "effective_prompts": Health(
        "Between the batch and the number of prompts.",
        "Near the batch: raise `spo.sampling.epsilon`.",
    ),
    "open_rollouts": Health("0 in sync. Else the surplus in flight.", "Grows: read the log."),
    "bytes/tracker": Health("What `spo-verl plan` says.", ""),
    "bytes/memory": Health("At most what `spo-verl plan` says.", "Set `spo.drift.max_tokens`, or mode drift."),
    # data sources, with quotas
    "source/<name>/drawn_share": Health("The share of `spo.sampling.quota`, on average.", ""),
    "source/<name>/value_mean": Health(
        "Compare the sources with each other.", "Near 0 or 1: a smaller part, or other prompts."
    ),
    # time of the step spent here, seconds
    "seconds_total/draw": Health("Far below `timing_s/step`.", "Shorten what the dataset does for each row."),
    "seconds_total/dispatch": Health("Far below `timing_s/step`.", "Give the driver's node a free core."),
    "seconds_total/recall": Health("Far below `timing_s/step`.", "Set `spo.drift.max_tokens`."),
    "seconds_total/probe": Health("About `timing_s/old_log_prob`.", "Set `spo.drift.max_prompts`, or mode drift."),
    "seconds_total/observe": Health("Far below `timing_s/step`.", "Give the driver's node a free core."),
    "seconds_total/save": Health("Compare with `timing_s/save_checkpoint`.", "Save to a faster disk, or less often."),
}
