"""The calibrated read-out: what is read, what it may depend on, and that a restart continues it bit for bit."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from spo_verl.errors import SpoStateError
from spo_verl.tracker import Late, PromptSources, Tracker, TrackerSettings, readout
from spo_verl.tracker.arguments import LARGEST
from spo_verl.tracker.checkpoint.folder import MANIFEST
from spo_verl.tracker.checkpoint.schema import OUTCOMES

from .helpers import folder_bytes, keys, rewrite_manifest

MODES = {
    "constant": {"forgetting_mode": "constant", "rho": 0.9},
    "kl": {"forgetting_mode": "kl", "references": ()},
    "version": {"forgetting_mode": "version", "rho": 0.9, "gamma": 0.5},
    "drift": {"forgetting_mode": "drift", "references": ()},
}
LABELS = ["code", "math", "math", "logic"]


def made(mode="constant", prompts=12, labels=LABELS, **changes):
    """A tracker with the calibrated read-out; the data sources of its prompts take turns."""
    given = {"readout": "calibrated", **MODES[mode], **changes}
    sources = PromptSources.of([labels[slot % len(labels)] for slot in range(prompts)]) if labels else None
    return Tracker.create(keys(prompts), TrackerSettings(**given), sources=sources)


def coefficients(tracker):
    return tracker.snapshot().calibration.coefficient_F.tolist()


def finish(tracker, uids, rewards, sessions=None, late=()):
    sessions = [0] * len(uids) if sessions is None else sessions
    divergence = np.full(len(uids), 0.01) if tracker.settings.forgetting_mode == "kl" else None
    movement = 0.01 if tracker.settings.forgetting_mode == "drift" else None
    return tracker.finish_step(
        uids, sessions, rewards, divergence, settle_uids=sorted(set(uids)), late=late, movement=movement
    )


# ---------------------------------------------------------------------- against a naive one


class NaiveReadOut:
    """The formulas of docs/algorithm.md with dictionaries and a general optimiser."""

    def __init__(self, sources, window):
        self.sources, self.window = sorted(set(sources)), window
        self.newest, self.outcomes, self.now = {}, [], 0
        self.c = np.array([1.0] + [0.0] * (3 + len(self.sources)))

    def features(self, value, n_eff, age, source):
        value = min(max(value, 0.01), 0.99)
        logit = math.log(value) - math.log(1 - value)
        own = [logit, 1.0, logit / math.sqrt(max(n_eff, 1.0)), math.log(1 + age)]
        return np.array(own + [float(source == name) for name in self.sources])

    def read(self, x):
        return 1 / (1 + math.exp(-float(x @ self.c)))

    def fit(self):
        rows = self.outcomes[-self.window :]
        x = np.array([row for row, _ in rows])
        r = np.array([reward for _, reward in rows])
        prior = np.eye(x.shape[1])[0]

        def loss(c):
            z = x @ c
            p = 1 / (1 + np.exp(-z))
            fit = r * np.log(p) + (1 - r) * np.log(1 - p)
            gradient = x.T @ (r - p) - 5.0 * (c - prior)
            return 2.5 * ((c - prior) ** 2).sum() - fit.sum(), -gradient

        self.c = optimize.minimize(loss, self.c, jac=True, options={"gtol": 1e-10, "maxiter": 1000}).x


@pytest.mark.parametrize("mode", ["constant", "version", "drift"])
def test_against_a_naive_read_out(mode):
    """Two sessions per rollout, fractions, rollouts that return late or in an absorb, data sources."""
    rng = np.random.default_rng(5)
    tracker = made(mode, window=40)
    raw = made(mode, readout="raw")  # evidence, forgetting and frozen raw values are those without the read-out
    names = [LABELS[slot % 4] for slot in range(12)]
    naive, held = NaiveReadOut(names, 40), {}
    for version in range(14):
        slots = rng.choice(12, 4, replace=False)
        uids = [f"{version}.{slot}" for slot in slots]
        frozen, plain = tracker.dispatch(uids, slots, version), raw.dispatch(uids, slots, version)
        for uid, slot, value, before, n_eff in zip(
            uids, slots.tolist(), frozen.value_B, plain.value_B, plain.n_eff_B, strict=True
        ):
            age = version - naive.newest.get(slot, 0)
            held[uid] = slot, version, naive.features(before, n_eff, age, names[slot])
            assert value == pytest.approx(naive.read(held[uid][2]), abs=2e-6)
        assert frozen.n_eff_B.tolist() == plain.n_eff_B.tolist()

        chosen = [uid for uid in held if rng.random() < 0.7]
        split = int(rng.integers(0, len(chosen) + 1))
        groups = []
        for part in (chosen[:split], chosen[split:]):
            uids = [uid for uid in part for _ in range(2)]
            rewards = rng.choice([0.0, 1.0, 0.25, rng.random()], len(uids))
            groups.append(Late("stale", uids, [0, 1] * len(part), rewards, ended=part))
        before = coefficients(tracker)
        for each in (tracker, raw):
            each.absorb([groups[0]])
        assert coefficients(tracker) == before  # evicted rollouts wait for the end of the update
        for each in (tracker, raw):
            finish(each, groups[1].uids, groups[1].reward_B, groups[1].session_B)
        for group in groups:
            for uid, reward in zip(group.uids, group.reward_B.tolist(), strict=True):
                naive.outcomes.append((held[uid][2], reward))
        for uid in chosen:
            slot, generated, _ = held.pop(uid)
            naive.newest[slot] = max(naive.newest.get(slot, 0), generated)
        naive.now = max([naive.now, *(int(uid.split(".")[0]) + 1 for uid in groups[1].ended)])
        naive.fit()
        if mode != "version":  # elsewhere evidence does not fade
            for slot, (alpha, beta) in enumerate(np.transpose(tracker.evidence()).tolist()):
                age = max(naive.now - naive.newest.get(slot, 0), 0)
                x = naive.features(alpha / (alpha + beta), alpha + beta, age, names[slot])
                assert tracker.values()[slot] == pytest.approx(naive.read(x), abs=2e-6)
        np.testing.assert_allclose(coefficients(tracker), naive.c, atol=2e-5)
        assert [part.tolist() for part in tracker.evidence()] == [part.tolist() for part in raw.evidence()]
    metrics = tracker.metrics()
    assert (metrics["readout_slope"], metrics["readout_intercept"]) == tuple(coefficients(tracker)[:2])
    assert "readout_slope" not in raw.metrics()


def test_without_outcomes_the_value_is_that_of_the_evidence():
    value_P = np.array([0.0, 0.3, 1.0])
    tracker = Tracker.create(
        keys(3), TrackerSettings(readout="calibrated"), alpha_P=8 * value_P, beta_P=8 * (1 - value_P)
    )
    frozen = tracker.dispatch(["a", "b", "c"], [0, 1, 2], 7)
    np.testing.assert_allclose(frozen.value_B, [0.01, 0.3, 0.99], rtol=1e-12)
    np.testing.assert_allclose(tracker.values(), [0.01, 0.3, 0.99], rtol=1e-12)


# ---------------------------------------------------------------------- independence


@st.composite
def histories(draw):
    """Requests: dispatch of some prompts, or outcomes of rollouts in any order, absorbed or with an update."""
    requests, flying, number = [], [], 0
    for version in range(draw(st.integers(2, 6))):
        slots = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
        uids = [f"u{number + at}" for at in range(len(slots))]
        number += len(slots)
        requests.append(("dispatch", uids, slots, version))
        flying += uids
        flying = draw(st.permutations(flying))
        done = draw(st.integers(0, len(flying)))
        rewards = draw(st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=done, max_size=done))
        requests.append((draw(st.sampled_from(["absorb", "finish"])), flying[:done], rewards, version))
        flying = flying[done:]
    return requests


def replay(tracker, requests, changed=None):
    """uid -> what was frozen, and the coefficients of that moment; ``changed``: a rollout with another reward."""
    frozen = {}
    for verb, uids, given_, version in requests:
        if verb == "dispatch":
            values = tracker.dispatch(uids, given_, version).value_B.tolist()
            frozen |= {uid: (value, coefficients(tracker)) for uid, value in zip(uids, values, strict=True)}
            continue
        rewards = [1.0 - reward if uid == changed else reward for uid, reward in zip(uids, given_, strict=True)]
        if changed in uids and rewards[uids.index(changed)] == 0.5:
            rewards[uids.index(changed)] = 0.9
        if verb == "absorb":
            tracker.absorb([Late("stale", uids, [0] * len(uids), rewards)])
        else:
            finish(tracker, uids, rewards)
    return frozen


@given(histories(), st.sampled_from(sorted(MODES)), st.data())
@settings(max_examples=40, deadline=None)
def test_a_frozen_value_does_not_depend_on_its_own_reward(requests, mode, data):
    def tracker():
        return made(mode, prompts=6, max_in_flight=None)

    order = [uid for verb, uids, *_ in requests if verb != "dispatch" for uid in uids]
    if not order:
        return
    changed = data.draw(st.sampled_from(order))
    one, other = replay(tracker(), requests), replay(tracker(), requests, changed)
    # Whatever was dispatched before that outcome came in has the same value and coefficients.
    came = next(at for at, (verb, uids, *_) in enumerate(requests) if verb != "dispatch" and changed in uids)
    before = {uid for verb, uids, *_ in requests[:came] if verb == "dispatch" for uid in uids}
    assert changed in before
    assert {uid: one[uid] for uid in before} == {uid: other[uid] for uid in before}
    # What is dispatched after an update with it is not.
    if requests[came][0] == "finish":
        after = [uid for verb, uids, *_ in requests[came:] if verb == "dispatch" for uid in uids]
        assert all(one[uid] != other[uid] for uid in after)


def test_sessions_of_a_rollout_share_one_value_and_are_two_outcomes():
    tracker = made()
    tracker.dispatch(["a", "b"], [0, 1], 0)
    finish(tracker, ["a", "a", "b", "b"], [1.0, 0.0, 1.0, 1.0], [0, 1, 0, 1])
    kept = tracker.snapshot().calibration
    assert kept.reward_N.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert kept.value_N.tolist() == [0.5] * 4
    assert [kept.sources[source] for source in kept.source_N] == ["code", "code", "math", "math"]
    # Also where they come one after the other.
    tracker.dispatch(["c"], [5], 4)
    tracker.observe(["c"], [0], [1.0])
    finish(tracker, ["c", "c"], [1.0, 0.25], [0, 1])
    assert tracker.snapshot().calibration.reward_N.tolist() == [1.0, 0.0, 1.0, 1.0, 1.0, 0.25]
    assert tracker.snapshot().calibration.age_N.tolist() == [0, 0, 0, 0, 4, 4]


def test_the_window_holds_the_last_outcomes():
    tracker = made(window=3)
    for version, reward in enumerate([0.0, 0.25, 0.5, 0.75, 1.0]):
        tracker.dispatch([f"u{version}"], [version], version)
        finish(tracker, [f"u{version}"], [reward])
    assert tracker.snapshot().calibration.reward_N.tolist() == [0.5, 0.75, 1.0]


def test_a_redispatched_rollout_is_read_again_with_the_coefficients_of_now():
    tracker = made()
    tracker.dispatch(["a", "b"], [0, 4], 0)
    finish(tracker, ["a"], [1.0])
    again = tracker.redispatch(["b"], 3)
    assert again.value_B[0] > 0.5
    assert tracker.recall(["b"]).frozen.value_B.tolist() == again.value_B.tolist()
    finish(tracker, ["b"], [1.0])
    assert tracker.snapshot().calibration.age_N.tolist() == [0, 3]


# ---------------------------------------------------------------------- weights


def weights(tracker):
    index = tracker._drawing.index(tracker._version)
    if tracker.settings.quota is None:
        return index.weight_P
    found = np.empty(tracker.size)
    for slots, part in zip(index._slots_Q, index._index_Q, strict=True):
        found[slots] = part.weight_P
    return found


@pytest.mark.parametrize("quota", [None, {"code": 1, "math": 2, "logic": 1}])
@pytest.mark.parametrize("mode", ["constant", "version"])
def test_weights_are_those_of_the_values_that_are_read(mode, quota, monkeypatch):
    monkeypatch.setattr("spo_verl.tracker.prompt_statistics.SCAN_ROWS", 7)
    tracker = made(mode, prompts=40, gamma=0.0, quota=quota)
    rng = np.random.default_rng(0)
    for version in range(6):
        drawn = tracker.draw(8, version)
        uids = [f"{version}.{number}" for number in range(8)]
        tracker.dispatch(uids, drawn.slot_B, version)
        tracker.absorb([Late("stale", uids[:3], [0] * 3, (rng.random(3) < 0.8).astype(float))])
        for each in ("absorbed", "finished"):
            value_P = tracker.values()
            np.testing.assert_allclose(weights(tracker), np.sqrt(value_P * (1 - value_P)) + 0.05, rtol=1e-12)
            if each == "absorbed":
                finish(tracker, uids[3:], (rng.random(5) < 0.8).astype(float))
    alpha_P, beta_P = tracker.evidence()
    assert abs(tracker.values() - alpha_P / (alpha_P + beta_P)).max() > 0.1


def test_only_sources_with_many_prompts_have_a_coefficient(monkeypatch):
    monkeypatch.setattr(readout, "MOST_SOURCES", 2)
    tracker = made(labels=["rare", "math", "math", "code", "code"], prompts=10)
    tracker.dispatch(["a", "b"], [0, 1], 0)
    finish(tracker, ["a", "b"], [1.0, 1.0])
    kept = tracker.snapshot().calibration
    assert (kept.sources, kept.source_N.tolist(), len(kept.coefficient_F)) == (("code", "math"), [-1, 1], 6)
    assert kept.coefficient_F[4:].tolist() == [0.0, kept.coefficient_F[5]]


def test_sources_must_be_those_of_the_prompts():
    with pytest.raises(SpoStateError, match="there are 12 prompts; pass PromptSources of every slot"):
        Tracker.create(keys(12), TrackerSettings(readout="calibrated"), sources=PromptSources.of(["a"] * 5))
    with pytest.raises(SpoStateError, match="sources are 'math'"):
        Tracker.create(keys(12), TrackerSettings(readout="calibrated"), sources="math")


# ---------------------------------------------------------------------- errors against known truth


def climbing(prompts, *, seed, climb):
    """Prompts of four sources whose success rates (the logits of) climb with each step; nothing is known of them."""
    rng = np.random.default_rng(seed)
    source_P = rng.integers(0, 4, prompts)
    start_P = np.array([2.0, 0.5, -1.0, -2.5])[source_P] + rng.normal(0, 0.8, prompts)
    return start_P, climb, [f"level {source}" for source in source_P], {}


def simulated(problem, batch, steps, *, seed, rho=0.9, kinds=("raw", "calibrated"), **changes):
    """(squared error, bias) of raw and calibrated frozen values."""
    start_P, climb, labels, evidence = problem
    found = {}
    for kind in kinds:
        of_kind = changes if kind == "calibrated" else {}
        given_ = TrackerSettings(forgetting_mode="constant", rho=rho, readout=kind, seed=seed, **of_kind)
        tracker = Tracker.create(keys(len(start_P)), given_, sources=PromptSources.of(labels), **evidence)
        draws, errors = np.random.default_rng(seed + 1), []
        for step in range(steps):
            rate_P = 1 / (1 + np.exp(-(start_P + climb * step)))
            slot_B = tracker.draw(batch, step).slot_B
            uids = [f"{step}.{number}" for number in range(batch)]
            frozen = tracker.dispatch(uids, slot_B, step)
            errors.append(frozen.value_B - rate_P[slot_B])
            finish(tracker, uids, (draws.random(batch) < rate_P[slot_B]).astype(float))
        error = np.concatenate(errors[5:])
        found[kind] = float((error**2).mean()), float(error.mean())
    return found


@pytest.mark.parametrize("climb", [0.005, 0.02])
def test_error_and_bias_on_a_policy_that_improves(climb):
    found = simulated(climbing(400, seed=0, climb=climb), 64, 60, seed=0)
    assert found["calibrated"][0] < 0.65 * found["raw"][0]
    assert abs(found["calibrated"][1]) <= (0.02 if climb == 0.005 else abs(found["raw"][1]))


def test_a_shorter_window_follows_a_policy_that_improves_fast():
    problem = climbing(400, seed=1, climb=0.03)
    long, short = (
        simulated(problem, 64, 60, seed=1, kinds=["calibrated"], window=window)["calibrated"][1]
        for window in (2048, 512)
    )
    assert long < short < -0.01
    assert abs(short) < 0.6 * abs(long)


def test_better_than_raw_with_many_prompts_and_few_steps():
    found = simulated(climbing(14_000, seed=3, climb=0.01), 256, 14, seed=3)
    assert found["calibrated"][0] < 0.5 * found["raw"][0]
    assert abs(found["calibrated"][1]) <= 0.02


def test_no_worse_than_the_noise_of_the_fit_where_raw_values_are_the_best_there_are():
    """Rates of the prior, offline values of eight trials, sources that mean nothing, and a policy that stands still."""
    rng = np.random.default_rng(0)
    rate_P = rng.beta(0.5, 0.5, 14_000).clip(1e-6, 1 - 1e-6)
    alpha_P = rng.binomial(8, rate_P) + 0.5
    problem = (
        np.log(rate_P / (1 - rate_P)),
        0.0,
        [f"source {slot % 4}" for slot in range(14_000)],
        {"alpha_P": alpha_P, "beta_P": 9 - alpha_P},
    )
    found = simulated(problem, 256, 14, seed=0, rho=1.0)
    # Eight coefficients on a mean of some 1,200 outcomes of variance 0.12: 8 * 0.12 / 1200.
    assert found["calibrated"][0] - found["raw"][0] < 2 * 8 * 0.12 / 1200


# ---------------------------------------------------------------------- checkpoints


def trained(mode="constant", steps=8, **changes):
    """With outcomes after the last fit, and rollouts that are open."""
    tracker = made(mode, prompts=30, **changes)
    for version in range(steps):
        step(tracker, version)
    tracker.dispatch(["late", "open", "half"], [0, 5, 6], steps)
    if mode == "kl":
        tracker.absorb([Late("stale", ["late"], [0], [1.0], [0.02])])
    else:
        tracker.absorb([Late("stale", ["late"], [0], [1.0])])
    return tracker


def step(tracker, version):
    drawn = tracker.draw(7, version).slot_B
    uids = [f"{version}.{number}" for number in range(7)]
    frozen = tracker.dispatch(uids, drawn, version)
    rng = np.random.default_rng([version, *drawn.tolist()])
    finish(tracker, uids, rng.choice([0.0, 1.0, 0.3], 7, p=[0.3, 0.5, 0.2]))
    return drawn.tolist(), frozen.value_B.tolist()


def sources_of(prompts, labels=LABELS):
    return PromptSources.of([labels[number % len(labels)] for number in prompts])


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("sampling", ["prioritized", "uniform"])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, mode, sampling):
    steady = trained(mode, sampling_mode=sampling)
    written = steady.snapshot().write(tmp_path / "spo", step=8)
    before = folder_bytes(tmp_path)
    resumed, report = Tracker.load(
        tmp_path / "spo", keys(30), steady.settings, sources=sources_of(range(30)), version=8
    )
    assert report.digest == written.digest == steady.digest() == resumed.digest()
    assert resumed.values().tobytes() == steady.values().tobytes()
    for version in range(9, 16):
        assert step(steady, version) == step(resumed, version)
    for tracker in (steady, resumed):
        finish(tracker, ["open", "half"], [1.0, 0.0])
    assert resumed.digest() == steady.digest()
    assert coefficients(resumed) == coefficients(steady) != [1.0] + [0.0] * 6
    assert folder_bytes(tmp_path) == before
    # All of it is in the digest.
    kept = steady.snapshot()
    for name in (*readout.OUTCOMES, "coefficient_F"):
        changed = getattr(kept.calibration, name).copy()
        changed[3] += 1
        altered = readout.replace(kept.calibration, **{name: changed})
        assert readout.replace(kept, calibration=altered).digest != kept.digest, name


def test_a_checkpoint_without_it_begins_with_the_evidence_s_own_values(tmp_path):
    raw = trained(readout="raw")
    raw.snapshot().write(tmp_path / "spo", step=8)
    content = json.loads((tmp_path / "spo" / MANIFEST).read_text())
    assert "readout" not in content
    assert OUTCOMES not in content["files"]
    older = {name: value for name, value in content["settings"].items() if name not in ("readout", "window")}
    rewrite_manifest(tmp_path / "spo", settings=older)  # as it was before there were these settings
    held = raw.recall(["open"]).frozen.value_B.tolist()

    same, report = Tracker.load(tmp_path / "spo", keys(30), raw.settings)
    assert (same.digest(), report.settings_changed) == (raw.digest(), {})
    now = made(prompts=30).settings
    resumed, report = Tracker.load(tmp_path / "spo", keys(30), now, sources=sources_of(range(30)))
    assert report.settings_changed == {"readout": ("raw", "calibrated")}
    assert coefficients(resumed) == [1.0] + [0.0] * 6
    np.testing.assert_allclose(resumed.values(), raw.values().clip(0.01, 0.99), rtol=1e-12)
    assert resumed.recall(["open"]).frozen.value_B.tolist() == held
    # What was dispatched without features is evidence, and no part of the fit; it survives another save.
    resumed.snapshot().write(tmp_path / "again")
    again, _ = Tracker.load(tmp_path / "again", keys(30), now, sources=sources_of(range(30)))
    assert again.digest() == resumed.digest()
    finish(again, ["open", "half"], [1.0, 1.0])
    assert len(again.snapshot().calibration.reward_N) == 0
    assert coefficients(again) == [1.0] + [0.0] * 6


def test_a_checkpoint_with_it_continues_without(tmp_path):
    calibrated, raw = trained(), trained(readout="raw")
    calibrated.snapshot().write(tmp_path / "spo", step=8)
    held = calibrated.recall(["open"]).frozen.value_B.tolist()
    resumed, report = Tracker.load(tmp_path / "spo", keys(30), raw.settings)
    assert report.settings_changed == {"readout": ("calibrated", "raw")}
    alpha_P, beta_P = resumed.evidence()
    np.testing.assert_array_equal(resumed.values(), alpha_P / (alpha_P + beta_P))
    assert resumed.recall(["open"]).frozen.value_B.tolist() == held
    resumed.snapshot().write(tmp_path / "spo")
    assert OUTCOMES not in folder_bytes(tmp_path / "spo")
    assert Tracker.load(tmp_path / "spo", keys(30), raw.settings)[0].digest() == resumed.digest()


def test_another_dataset_keeps_coefficients_by_the_name_of_the_source(tmp_path):
    tracker = trained()
    tracker.snapshot().write(tmp_path / "spo", step=8)
    before = tracker.snapshot().calibration
    own = dict(zip(before.sources, before.coefficient_F[4:].tolist(), strict=True))
    # Reversed, without the prompts of logic and without prompt 5 (whose rollout is open), and with a new source.
    numbers = [number for number in reversed(range(30)) if LABELS[number % 4] != "logic" and number != 5] + [100, 101]
    labels = ["art" if number >= 100 else LABELS[number % 4] for number in numbers]
    resumed, report = Tracker.load(
        tmp_path / "spo", keys(numbers), tracker.settings, sources=PromptSources.of(labels), version=8
    )
    assert report.new == 2
    after = resumed.snapshot().calibration
    assert after.sources == ("art", "code", "math")
    assert after.coefficient_F.tolist() == [*before.coefficient_F[:4].tolist(), 0.0, own["code"], own["math"]]
    names = [before.sources[source] for source in before.source_N]
    expected = [after.sources.index(name) if name != "logic" else -1 for name in names]
    assert after.source_N.tolist() == expected
    known = np.array([number < 100 for number in numbers])
    order = [number for number in numbers if number < 100]
    assert resumed.values()[known].tobytes() == tracker.values()[order].tobytes()
    # Of the prompt that is kept aside the source is not known: its outcome is evidence only.
    finish(resumed, ["half", "open"], [1.0, 1.0])
    assert len(resumed.snapshot().calibration.reward_N) == len(before.reward_N) + 1
    assert resumed.redispatch([], 9).value_B.tolist() == []


def test_an_open_rollout_of_a_prompt_that_is_kept_aside_can_be_issued_again(tmp_path):
    tracker = trained()
    tracker.snapshot().write(tmp_path / "spo", step=8)
    numbers = [number for number in range(30) if number != 5]
    resumed, _ = Tracker.load(tmp_path / "spo", keys(numbers), tracker.settings, sources=sources_of(numbers), version=8)
    assert 0 < resumed.redispatch(["open"], 9).value_B[0] < 1


def test_the_largest_version_can_be_saved(tmp_path):
    tracker = made()
    tracker.dispatch(["a", "b"], [0, 1], LARGEST)
    finish(tracker, ["a"], [1.0])
    tracker.snapshot().write(tmp_path / "spo")
    resumed, _ = Tracker.load(tmp_path / "spo", keys(12), tracker.settings, sources=sources_of(range(12)))
    assert resumed.digest() == tracker.digest()
    assert resumed.values().tobytes() == tracker.values().tobytes()
    finish(resumed, ["b"], [1.0])
    assert resumed.snapshot().calibration.age_N.tolist() == [LARGEST, LARGEST]


def test_one_source_becomes_two(tmp_path):
    tracker = trained(labels=["math"])
    assert len(coefficients(tracker)) == 4
    tracker.snapshot().write(tmp_path / "spo", step=8)
    labels = ["math" if number < 20 else "code" for number in range(30)]
    resumed, _ = Tracker.load(tmp_path / "spo", keys(30), tracker.settings, sources=PromptSources.of(labels))
    after = resumed.snapshot().calibration
    assert after.coefficient_F.tolist() == [*coefficients(tracker), 0.0, 0.0]
    assert set(after.source_N.tolist()) == {1}


def test_a_smaller_window_keeps_the_last_outcomes(tmp_path):
    tracker = trained()
    tracker.snapshot().write(tmp_path / "spo")
    now = TrackerSettings(**{**tracker.settings.__dict__, "window": 5})
    resumed, _ = Tracker.load(tmp_path / "spo", keys(30), now, sources=sources_of(range(30)))
    kept = resumed.snapshot().calibration
    assert kept.reward_N.tolist() == tracker.snapshot().calibration.reward_N[-5:].tolist()
    assert kept.coefficient_F.tolist() == coefficients(tracker)
