"""Random histories against a deliberately naive tracker: dictionaries, loops, one outcome at a time."""

import math

import numpy as np
import pytest

from spo_verl.tracker import Tracker, TrackerSettings

from .helpers import keys


class NaiveTracker:
    """What ``observe`` must do, with no thought of speed."""

    def __init__(self, prompts: int, settings: TrackerSettings):
        self.settings = settings
        self.alpha = dict.fromkeys(range(prompts), 0.5)
        self.beta = dict.fromkeys(range(prompts), 0.5)
        self.version = dict.fromkeys(range(prompts), -1)
        self.visited: set[int] = set()
        self.seen: set[tuple[str, int]] = set()
        self.rollout: dict[str, tuple[int, int]] = {}

    def retention(self, divergence: float) -> float:
        if self.settings.forgetting_mode == "constant":
            return self.settings.rho
        rho = 2 ** (-divergence / self.settings.half_life)
        return min(max(rho, self.settings.rho_min), self.settings.rho_max)

    def observe(self, rows: list[tuple[str, int, float, float]]) -> int:
        news: dict[tuple[int, int], list[float]] = {}
        measured: dict[int, float] = {}
        for uid, session, reward, divergence in rows:
            if (uid, session) not in self.seen:
                self.seen.add((uid, session))
                slot, version = self.rollout[uid]
                news.setdefault((version, slot), []).append(reward)
                known = 0.0 if math.isnan(divergence) or slot not in self.visited else divergence
                measured[slot] = max(measured.get(slot, 0.0), known)
        for (version, slot), rewards in sorted(news.items()):
            # Under kl a measurement is used up by its first discount; a constant retention is due at every version.
            if version > self.version[slot] and slot in measured:
                rho = self.retention(measured[slot])
                self.alpha[slot] *= rho
                self.beta[slot] *= rho
                self.version[slot] = version
                if self.settings.forgetting_mode == "kl":
                    del measured[slot]
            self.version[slot] = max(self.version[slot], version)
            for reward in rewards:
                self.alpha[slot] += reward
                self.beta[slot] += 1 - reward
            self.visited.add(slot)
        return sum(map(len, news.values()))


@pytest.mark.parametrize("mode", ["kl", "constant"])
@pytest.mark.parametrize("seed", range(4))
def test_random_histories(seed, mode):
    rng = np.random.default_rng(seed)
    prompts = 6
    settings = TrackerSettings(forgetting_mode=mode, rho=0.9)
    tracker, naive = Tracker.create(keys(prompts), settings), NaiveTracker(prompts, settings)
    outcomes: list[tuple[str, int, float, float]] = []
    for version in range(60):
        uids = [f"{version}.{number}" for number in range(rng.integers(1, 5))]
        slots = rng.integers(0, prompts, len(uids))
        frozen = tracker.dispatch(uids, slots, version)
        for uid, slot, value in zip(uids, slots.tolist(), frozen.value_B, strict=True):
            naive.rollout[uid] = (slot, version)
            assert value == pytest.approx(naive.alpha[slot] / (naive.alpha[slot] + naive.beta[slot]), rel=1e-12)
            for session in range(rng.integers(1, 4)):
                divergence = rng.choice([np.nan, 0.0, 0.003, 0.02, 0.5])
                outcomes.append((uid, session, float(rng.choice([0.0, 1.0, rng.random()])), divergence))
        rng.shuffle(outcomes)  # rollouts of several versions come back in any order, and some of them twice
        take = int(rng.integers(0, len(outcomes) + 1))
        rows, outcomes = outcomes[:take], outcomes[take:] + outcomes[: take // 4]
        report = tracker.observe(*([row[part] for row in rows] for part in range(4)))
        assert report.new == naive.observe(rows)
        assert report.duplicate == len(rows) - report.new
        alpha_P, beta_P = tracker.evidence()
        np.testing.assert_allclose(alpha_P, list(naive.alpha.values()), rtol=1e-12)
        np.testing.assert_allclose(beta_P, list(naive.beta.values()), rtol=1e-12)
    assert tracker.counters["duplicates"] > 0
    assert tracker.counters["first_visits"] == len(naive.visited)
