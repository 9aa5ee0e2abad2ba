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
    "reward/mean": Health("Not near 0 or 1.", "Look at samples; take easier or harder prompts."),
    "reward/min": Health("0 at times.", "Check `spo.reward.low`."),
    "reward/max": Health("1 at times.", "Check `spo.reward.high`."),
    "value/batch_mean": Health("Close to `spo/reward/mean`.", "See `spo/advantage/raw_mean`."),
    "advantage/raw_mean": Health(
        "Within 0.1 of 0, once `spo/first_visit_share` is below 0.1; above 0 while the policy improves.",
        "Set `spo.value.readout=calibrated`, or lower `spo.forgetting.rho_min` and `rho_max`. From the first step: "
        "`spo.initial` fits another policy or reward.",
    ),
    "advantage/raw_variance": Health("Below the reward's.", ""),
    "advantage/variance_removed": Health(
        "About 0.5 in the paper; near 0 while most prompts are new.",
        "Below 0: values are worse than none; see `spo/advantage/raw_mean`.",
    ),
    "advantage/near_zero_0_0001_share": Health(
        "Rare in the paper.", "Values are exactly 0 or 1: set `spo.initial.prior=jeffreys`."
    ),
    "advantage/near_zero_0_02_share": Health(
        "Rises slowly in the paper.", "Add prompts neither solved nor hopeless, or lower `spo.sampling.epsilon`."
    ),
    "advantage/grpo_degenerate_share": Health("Far above `spo/advantage/near_zero_0_02_share`.", ""),
    "first_visit_share": Health("Falls to 0.", "Use fewer prompts, or offline values."),
    "n_eff/revisit_mean": Health(
        "Above 1; settles at 1/(1-rho), by default 8 to 25.",
        "Raise `spo.forgetting.rho`, set `spo.forgetting.floor`, or use fewer prompts.",
    ),
    "staleness/mean": Health(
        "0 in sync, else about the surplus batches in flight.", "Lower `spo.oversample` or `num_warmup_batches`."
    ),
    "staleness/max": Health(
        "At most `trainer.v1.sampler.max_off_policy_threshold`, if set.", "Set it, or `spo.late.policy=abort`."
    ),
    # forgetting
    "rho/mean": Health(
        "Between `rho_min` and `rho_max`; in mode constant `rho`.",
        "At `rho_min`: raise `spo.forgetting.half_life`. At `rho_max` on revisits: lower it.",
    ),
    "rho/min": Health("`rho_min` for some prompts.", "Lower `spo.forgetting.half_life`."),
    "rho/max": Health("`rho_max` while there are first visits.", ""),
    "rho/at_floor_share": Health("Well below 1.", "Raise `spo.forgetting.half_life`, or lower the learning rate."),
    "divergence/mean": Health(
        "0.06 to 0.19 of `spo.forgetting.half_life` (by default 0.0035 to 0.0116).", "Change `half_life`."
    ),
    "divergence/max": Health("Not far above the mean.", "Look for impossible responses."),
    "divergence_acting/mean": Health("Compare with `spo/divergence_updated/mean`.", ""),
    "divergence_updated/mean": Health("Compare with `spo/divergence_acting/mean`.", ""),
    "drift/forwards_total": Health("1 per update, 2 with `spo.forgetting.reference=updated`.", ""),
    "drift/tokens_total": Health(
        "Compare with `perf/total_num_tokens`.", "Set `spo.drift.max_prompts` or `max_tokens`, or mode drift."
    ),
    "drift/incomparable_total": Health("0.", "Tokenizer or chat template has changed."),
    "drift/unmeasured_total": Health("0 where it is not set.", "Raise it."),
    "drift/movement_total": Health(
        "0.06 to 0.19 of `half_life`, summed between two visits.", "Change `spo.forgetting.drift_scale`."
    ),
    # evidence
    "evidence/observed_total": Health(
        "In sync: prompts times rollouts per prompt.", "See `spo/rollouts/failed_total`."
    ),
    "evidence/untrained_total": Health("0.", "Look for empty responses and rejected tokens."),
    "evidence/duplicate_total": Health("0.", "Report it."),
    "rollouts/failed_total": Health("0.", "Read the agent loop's errors in the log."),
    # rollouts that were not trained on
    "evidence/failed_total": Health("0.", "See `spo/rollouts/failed_total`."),
    "evidence/stale_total": Health(
        "Small against `spo/evidence/observed_total`.", "Raise `max_off_policy_threshold`, or lower `spo.oversample`."
    ),
    "evidence/surplus_total": Health("0 with `carry`; with `drop` about the surplus.", "Lower `spo.oversample`."),
    "evidence/aborted_total": Health("Compare with `spo/rollouts/aborted_total`.", ""),
    "rollouts/aborted_total": Health("With `abort` the surplus, at most a batch.", "Lower `spo.oversample`."),
    "rollouts/stale_total": Health("Small against the batch.", "See `spo/evidence/stale_total`."),
    "rollouts/surplus_total": Health("As `spo/evidence/surplus_total`.", ""),
    "late/carried_share": Health("0 in sync; with `carry` compare with `spo.oversample`.", "Lower `spo.oversample`."),
    "late/carried_tokens_mean": Health("Above `spo/late/fresh_tokens_mean`.", ""),
    "late/fresh_tokens_mean": Health(
        "Compare with a synchronous run's `response_length/mean`.", "Falls: set `spo.late.length_bound`."
    ),
    "late/evicted_tokens_mean": Health(
        "Close to the trained rollouts'.", "From 1.5 times on set `spo.late.policy=carry`."
    ),
    # the whole tracker
    "value/mean": Health("Compare with training accuracy.", "See `spo/advantage/raw_mean`."),
    "value/bin_<k>": Health(
        "`bin_0` and `bin_9` together below 0.9.", "Exchange solved and hopeless prompts; look at the rewards."
    ),
    "n_eff/mean": Health("Compare with `spo/n_eff/revisit_mean`.", ""),
    "readout/slope": Health(
        "1 before the first outcomes, then well above 0.", "Evidence does not predict rewards: look at samples."
    ),
    "readout/intercept": Health("0 before the first outcomes; above 0 while the policy improves.", ""),
    "coverage": Health("Grows to 1.", "Raise `spo.sampling.epsilon`."),
    "effective_prompts": Health(
        "Between batch and number of prompts, not near the batch.", "Raise `spo.sampling.epsilon`."
    ),
    "open_rollouts": Health("0 in sync, else the surplus in flight.", "Read the log."),
    "bytes/tracker": Health("What `spo-verl plan` says.", ""),
    "bytes/memory": Health("At most what `spo-verl plan` says.", "Set `spo.drift.max_tokens`, or mode drift."),
    # data sources, with quotas
    "source/<name>/drawn_share": Health("On average that of `spo.sampling.quota`.", ""),
    "source/<name>/value_mean": Health("Compare sources.", "Near 0 or 1: smaller part, or other prompts."),
    # time of the step spent here, seconds
    "seconds_total/draw": Health("Far below `timing_s/step`.", "Shorten the dataset's work per row."),
    "seconds_total/dispatch": Health("Far below `timing_s/step`.", "Give the driver's node a free core."),
    "seconds_total/recall": Health("Far below `timing_s/step`.", "Set `spo.drift.max_tokens`."),
    "seconds_total/probe": Health("About `timing_s/old_log_prob`.", "Set `spo.drift.max_prompts`, or mode drift."),
    "seconds_total/observe": Health("Far below `timing_s/step`.", "Give the driver's node a free core."),
    "seconds_total/save": Health("Compare with `timing_s/save_checkpoint`.", "Save to a faster disk, or less often."),
}
