"""The methods: what they draw, what they subtract, how they normalise, and which loss they use.

Everything that SPO knows comes from ``spo_verl.tracker.Tracker`` and ``spo_verl.core``. A method says which of their
parts it uses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from spo_verl import core
from spo_verl.config import ValueConfig
from spo_verl.tracker import StoredResponses, Tracker, TrackerSettings

GROUP = 8
OFFLINE = 8
WINDOW = 8
"""Batches of outcomes that the calibrated read-out is fitted on, where a method does not name a number of outcomes."""
MAXRL_FLOOR = 0.1
DYNAMIC_ROUNDS = 10
"""Most rounds of generation per step with dynamic sampling, as in DAPO's recipe."""


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        group: responses per prompt.
        draw: uniform, or by the weight of eq. 11 of the tracker's value, the calibrated one, or a Thompson draw of it.
        baseline: what is subtracted from the reward.
        whiten: normalisation over the batch by trajectory or token, within each group, or none.
        offline: responses per prompt before the training.
        forgetting: the tracker's mode.
        rho: retention of ``constant`` and ``version``.
        loss: ``clip``: PPO with 0.2 / 0.28; ``double_sided``: ratio within (0.3, 5), else 0 (arXiv 2607.07508);
            ``negative_tokens``: of failures only the least likely tenth of the tokens (arXiv 2606.17250).
        dual: PPO's dual clip for negative advantages.
        scale: ``maxrl`` divides by max(v, 0.1) (arXiv 2602.02710).
        neyman: half as many prompts, rollouts in proportion to sqrt(v (1 - v)).
        outcomes: outcomes that the calibrated read-out is fitted on; without a number eight batches.
        dynamic: groups of equal rewards are replaced (DAPO, arXiv 2503.14476).
    """

    name: str
    group: int = 1
    draw: Literal["uniform", "value", "calibrated", "thompson"] = "value"
    baseline: Literal["none", "value", "calibrated", "oracle", "group", "others"] = "value"
    whiten: Literal["trajectory", "token", "group", "none"] = "trajectory"
    offline: int = 0
    forgetting: Literal["kl", "constant", "version"] = "kl"
    rho: float = 0.875
    loss: Literal["clip", "double_sided", "negative_tokens"] = "clip"
    dual: float = 10.0
    scale: Literal["none", "maxrl"] = "none"
    neyman: bool = False
    dynamic: bool = False
    outcomes: int | None = None

    @property
    def tracks(self) -> bool:
        return self.draw != "uniform" or self.baseline in ("value", "calibrated")


SPO = Method("spo")
NO_BASELINE = Method("no_baseline", draw="uniform", baseline="none")
GRPO = Method("grpo", group=GROUP, draw="uniform", baseline="group", whiten="group")
METHODS = {
    method.name: method
    for method in (
        GRPO,
        NO_BASELINE,
        SPO,
        replace(SPO, name="spo_offline", offline=OFFLINE),
        replace(SPO, name="spo_offline_4", offline=4),
        replace(SPO, name="spo_calibrated", baseline="calibrated"),
        replace(SPO, name="lean", draw="calibrated", baseline="calibrated", outcomes=ValueConfig().window),
        replace(
            SPO,
            name="lean_negative_tokens",
            draw="calibrated",
            baseline="calibrated",
            outcomes=ValueConfig().window,
            loss="negative_tokens",
        ),
        replace(SPO, name="oracle", baseline="oracle"),
        replace(GRPO, name="rloo", baseline="others", whiten="none"),
        replace(GRPO, name="batch_whitened", whiten="trajectory"),
        replace(GRPO, name="dapo", dynamic=True),
        replace(GRPO, name="grpo_prioritized", draw="value"),
        replace(NO_BASELINE, name="reinforce_pp", whiten="token"),
        replace(NO_BASELINE, name="no_baseline_prioritized", draw="value"),
        replace(SPO, name="spo_uniform", draw="uniform"),
        replace(SPO, name="spo_no_forgetting", forgetting="constant", rho=1.0),
        replace(SPO, name="spo_calibrated_draws", draw="calibrated", baseline="calibrated"),
        replace(SPO, name="oracle_uniform", draw="uniform", baseline="oracle"),
        replace(SPO, name="plus_plus", forgetting="version", whiten="token", dual=2.0),
        replace(SPO, name="bspo", group=4),
        replace(SPO, name="spo_double_sided", loss="double_sided"),
        replace(SPO, name="spo_negative_tokens", loss="negative_tokens"),
        replace(SPO, name="spo_maxrl", scale="maxrl"),
        replace(SPO, name="spo_neyman", draw="uniform", neyman=True),
        replace(SPO, name="spo_thompson", draw="thompson"),
        replace(NO_BASELINE, name="no_baseline_double_sided", loss="double_sided"),
        replace(NO_BASELINE, name="no_baseline_negative_tokens", loss="negative_tokens"),
    )
}


@dataclass
class Batch:
    """Prompts of a step, with repeats, and what was frozen for them."""

    slot_B: np.ndarray
    value_B: np.ndarray
    calibrated_B: np.ndarray
    n_eff_B: np.ndarray
    feature_BF: np.ndarray | None
    uids: list[str]
    stored: StoredResponses | None


def raw_advantages(method: Method, reward_B: np.ndarray, batch: Batch, oracle_B: np.ndarray | None) -> np.ndarray:
    """Reward minus baseline, scaled where the method does, before any normalisation over the batch."""
    if method.baseline in ("group", "others"):
        group = reward_B.reshape(-1, method.group)
        if method.baseline == "others":
            return (group - (group.sum(1, keepdims=True) - group) / (method.group - 1)).ravel()
        return (group - group.mean(1, keepdims=True)).ravel()
    zero_B = np.zeros_like(reward_B)
    known = {"none": zero_B, "value": batch.value_B, "calibrated": batch.calibrated_B, "oracle": oracle_B}
    baseline_B = known[method.baseline]
    if baseline_B is None:
        raise ValueError(f"{method.name} needs exact success probabilities, which this task has not")
    raw_B = reward_B - baseline_B
    return raw_B / np.maximum(batch.value_B, MAXRL_FLOOR) if method.scale == "maxrl" else raw_B


def advantages(
    method: Method, reward_B: np.ndarray, token_count_B: np.ndarray, batch: Batch, oracle_B: np.ndarray | None = None
) -> np.ndarray:
    """(B,) normalised advantages."""
    raw_B = raw_advantages(method, reward_B, batch, oracle_B)
    if method.whiten == "none":
        return raw_B
    if method.whiten == "group":
        group = reward_B.reshape(-1, method.group)
        return (raw_B.reshape(group.shape) / (group.std(1, ddof=1, keepdims=True) + 1e-6)).ravel()
    measure: Any = method.whiten
    return np.asarray(core.normalize_advantages(raw_B, token_count_B, measure=measure))


class Knowledge:
    """What one training knows of its prompts: its tracker, its calibration, and the randomness of its draws."""

    def __init__(self, method: Method, level_P: np.ndarray, batch: int, seed: int) -> None:
        self.method, self.level_P, self.batch, self.step = method, level_P, batch, 0
        self.prompts = len(level_P)
        self.rng = np.random.default_rng(np.random.SeedSequence((seed, 0x0D4A3)))
        self.visited_P = np.full(self.prompts, -1)
        self.outcomes: list[tuple[np.ndarray, np.ndarray]] = []
        self.coefficient_F: np.ndarray | None = None
        self.tracker = self._tracker(None) if method.tracks else None

    def _tracker(self, evidence: tuple[np.ndarray, np.ndarray] | None) -> Tracker:
        method = self.method
        key_P = np.zeros((self.prompts, 16), dtype=np.uint8)
        key_P[:, :4] = np.arange(1, self.prompts + 1, dtype=np.uint32).view(np.uint8).reshape(-1, 4)
        settings = TrackerSettings(
            sampling_mode="uniform" if method.draw == "uniform" else "prioritized",
            forgetting_mode=method.forgetting,
            rho=method.rho,
            references=("acting",) if method.forgetting == "kl" else (),
            max_in_flight=None,
            seed=int(self.rng.integers(2**31)),
        )
        alpha_P, beta_P = evidence if evidence is not None else (None, None)
        return Tracker.create(key_P, settings, alpha_P=alpha_P, beta_P=beta_P)

    def start(self, successes_P: np.ndarray) -> None:
        """Begin with the values of the offline pass."""
        trials_P = np.full(self.prompts, self.method.offline)
        self.tracker = self._tracker(core.initial_evidence(successes_P, trials_P))

    def _features(self, slot_B: np.ndarray, value_B: np.ndarray, n_eff_B: np.ndarray) -> np.ndarray:
        age_B = self.step - np.maximum(self.visited_P[slot_B], 0)
        level_B = self.level_P[slot_B] - 1
        return core.calibration_features(value_B, n_eff_B, age_B, level_B, sources=int(self.level_P.max()))

    def _calibrated(self, feature_BF: np.ndarray, value_B: np.ndarray) -> np.ndarray:
        return value_B if self.coefficient_F is None else core.calibrated_value(feature_BF, self.coefficient_F)

    def _weights(self) -> np.ndarray:
        """Sampling weights of all prompts that are not the tracker's own."""
        assert self.tracker is not None
        alpha_P, beta_P = self.tracker.evidence()
        mass_P = alpha_P + beta_P
        if self.method.draw == "thompson":
            value_P = self.rng.beta(np.maximum(alpha_P, 1e-3), np.maximum(beta_P, 1e-3))
        else:
            value_P = core.value(alpha_P, beta_P)
            value_P = self._calibrated(self._features(np.arange(self.prompts), value_P, mass_P), value_P)
        return core.value_weights(value_P, mass_P)

    def _prompts(self, count: int) -> np.ndarray:
        if self.tracker is None:
            return self.rng.choice(self.prompts, count, replace=False)
        if self.method.draw in ("calibrated", "thompson"):
            return core.draw(self._weights(), count, self.rng)[0]
        return self.tracker.draw(count, self.step).slot_B

    def draw(self) -> Batch:
        """The prompts of the next step, with their frozen values."""
        method = self.method
        if method.neyman:
            assert self.tracker is not None
            slot_B = self._prompts(self.batch // 2)
            alpha_B, beta_B = self.tracker.evidence(slot_B)
            value_B = core.value(alpha_B, beta_B)
            spread_B = np.sqrt(value_B * (1 - value_B)) + 1e-3
            more_B = core.quota_counts(spread_B, self.batch - len(slot_B), self.rng)
            slot_B = np.repeat(slot_B, 1 + more_B)
        else:
            slot_B = np.repeat(self._prompts(self.batch // method.group), method.group)
        uids = [f"{self.step}-{row}" for row in range(len(slot_B))]
        if self.tracker is None:
            half_B = np.full(len(slot_B), 0.5)
            return Batch(slot_B, half_B, half_B, np.zeros(len(slot_B)), None, uids, None)
        frozen = self.tracker.dispatch(uids, slot_B, self.step)
        feature_BF = self._features(slot_B, frozen.value_B, frozen.n_eff_B)
        stored = self.tracker.recall(uids).stored if method.forgetting == "kl" else None
        calibrated_B = self._calibrated(feature_BF, frozen.value_B)
        return Batch(slot_B, frozen.value_B, calibrated_B, frozen.n_eff_B, feature_BF, uids, stored)

    def learn(
        self,
        batch: Batch,
        reward_B: np.ndarray,
        divergence_B: np.ndarray,
        token_BT: np.ndarray,
        log_prob_BT: np.ndarray,
        length_B: np.ndarray,
    ) -> None:
        """Evidence, stored responses and calibration after the update of a step."""
        if self.tracker is not None:
            tracker, every = self.tracker, np.zeros(len(reward_B), dtype=np.int64)
            tracker.observe(batch.uids, every, reward_B, divergence_B if self.method.forgetting == "kl" else None)
            if self.method.forgetting == "kl":
                inside = np.arange(token_BT.shape[1]) < length_B[:, None]
                tracker.remember(
                    batch.uids,
                    StoredResponses(
                        row_B=np.arange(len(reward_B)),
                        offset_B=np.concatenate([[0], np.cumsum(length_B)]),
                        token_N=token_BT[inside],
                        mask_N=np.ones(int(length_B.sum()), dtype=bool),
                        log_prob={"acting": log_prob_BT[inside]},
                        prompt_hash_B=np.zeros(len(reward_B), dtype=np.uint64),
                    ),
                )
            tracker.settle(batch.uids)
            assert batch.feature_BF is not None
            steps = -(-self.method.outcomes // self.batch) if self.method.outcomes else WINDOW
            self.outcomes = [*self.outcomes, (batch.feature_BF, reward_B)][-steps:]
            features, rewards = (np.concatenate(parts) for parts in zip(*self.outcomes, strict=True))
            self.coefficient_F = core.fit_calibration(features, rewards)
        self.visited_P[batch.slot_B] = self.step
        self.step += 1
