"""Event time in the tracker: outcomes weigh by the version that generated them, whenever they arrive."""

import json

import numpy as np
import pytest

from spo_verl import core
from spo_verl.errors import SpoConfigError, SpoStateError
from spo_verl.tracker import PromptSources, Tracker, TrackerSettings
from spo_verl.tracker.checkpoint.folder import MANIFEST

from .helpers import keys, observe_one, rewrite_manifest, train_step

VERSION = TrackerSettings(forgetting_mode="version", rho=0.5, references=())


def state_of(tracker, slot):
    alpha, beta = tracker.evidence([slot])
    return float(alpha[0]), float(beta[0]), int(tracker._table.version_P[slot])


def test_history_of_one_prompt_by_hand():
    alpha_P, beta_P = np.array([4.0, 1.0]), np.array([4.0, 1.0])
    tracker = Tracker.create(keys(2), VERSION, alpha_P=alpha_P, beta_P=beta_P)
    # Dispatched at versions 1, 2 and 4; each baseline is read at its version: N_eff 8/2, 8/4, 8/16.
    for version, n_eff in ((1, 4.0), (2, 2.0), (4, 0.5)):
        frozen = tracker.dispatch([f"v{version}"], [0], version)
        assert (frozen.value_B.tolist(), frozen.n_eff_B.tolist(), frozen.version_B.tolist()) == (
            [0.5],
            [n_eff],
            [version],
        )
    # v2 returns first: (4/4 + 1, 4/4) at 2
    report = tracker.observe(["v2"], [0], [1.0], [np.nan])
    assert state_of(tracker, 0) == (2.0, 1.0, 2)
    assert (report.rho_B.tolist(), report.discounted_B.tolist()) == ([0.25], [True])
    assert (report.n_eff_B.tolist(), report.first_visit_B.tolist()) == ([2.0], [True])
    # v4: (2/4, 1/4 + 1) at 4
    report = tracker.observe(["v4"], [0], [0.0], [np.nan])
    assert state_of(tracker, 0) == (0.5, 1.25, 4)
    assert (report.rho_B.tolist(), report.n_eff_B.tolist(), report.divergence_B.tolist()) == ([0.25], [0.75], [0.0])
    # v1, late, weighs (1/2)^3: (0.625, 1.25)
    report = tracker.observe(["v1"], [0], [1.0], [np.nan])
    assert state_of(tracker, 0) == (0.625, 1.25, 4)
    assert (report.rho_B.tolist(), report.discounted_B.tolist()) == ([1.0], [False])
    # the frozen baselines stay; a new one is read two versions later
    assert tracker.recall(["v1"]).frozen.value_B.tolist() == [0.5]
    frozen = tracker.dispatch(["v6"], [0], 6)
    assert (frozen.value_B.tolist(), frozen.n_eff_B.tolist()) == ([1 / 3], [1.875 / 4])
    assert state_of(tracker, 1) == (1.0, 1.0, -1)


def test_a_divergence_plays_no_part():
    one, other = (Tracker.create(keys(1), VERSION) for _ in range(2))
    observe_one(one, "a", 0, 3, 1.0, divergence=5.0)
    observe_one(other, "a", 0, 3, 1.0)
    assert one.digest() == other.digest()


class NaiveTracker:
    """A list of outcomes per prompt; equation (3) is worked out whenever it is asked for."""

    def __init__(self, alpha_P, beta_P, settings):
        self.initial = list(zip(alpha_P, beta_P, strict=True))
        self.settings = settings
        self.history = [[] for _ in self.initial]

    def evidence(self, slot, version):
        rho, half = self.settings.rho, self.settings.floor / 2
        # outcomes of versions that the reader has not reached yet are read at their own: nothing is weighed up
        at = max([version, *(k for k, _ in self.history[slot])])
        alpha, beta = (mass * rho**at for mass in self.initial[slot])
        for k, reward in self.history[slot]:
            alpha, beta = alpha + rho ** (at - k) * reward, beta + rho ** (at - k) * (1 - reward)
        return alpha + half, beta + half

    def value(self, slot, version):
        alpha, beta = self.evidence(slot, version)
        return alpha / (alpha + beta)


@pytest.mark.parametrize("floor", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_random_histories_with_late_outcomes(seed, floor):
    rng, prompts = np.random.default_rng(seed), 5
    settings = TrackerSettings(forgetting_mode="version", rho=0.875, floor=floor, gamma=0.5, max_in_flight=None)
    alpha_P, beta_P = rng.random(prompts) + 0.1, rng.random(prompts) + 0.1
    tracker, naive = Tracker.create(keys(prompts), settings, alpha_P=alpha_P, beta_P=beta_P), None
    naive = NaiveTracker(alpha_P, beta_P, settings)
    pending, version = [], 0
    for step in range(50):
        version += int(rng.integers(0, 4))
        slots = rng.integers(0, prompts, 4)
        uids = [f"{step}.{n}" for n in range(4)]
        frozen = tracker.dispatch(uids, slots, version)
        for uid, slot, value, n_eff in zip(uids, slots.tolist(), frozen.value_B, frozen.n_eff_B, strict=True):
            assert value == pytest.approx(naive.value(slot, version), rel=1e-12)
            assert n_eff == pytest.approx(sum(naive.evidence(slot, version)), rel=1e-12)
            pending.append((uid, slot, version, float(rng.choice([0.0, 1.0, rng.random()]))))
        rng.shuffle(pending)
        take = int(rng.integers(0, len(pending) + 1))
        rows, pending = [tuple(row) for row in pending[:take]], pending[take:]
        tracker.observe([row[0] for row in rows], [0] * take, [float(row[3]) for row in rows], [np.nan] * take)
        for _, slot, k, reward in rows:
            naive.history[int(slot)].append((int(k), float(reward)))
        read = [naive.evidence(slot, version) for slot in range(prompts)]
        np.testing.assert_allclose(tracker.values(), [a / (a + b) for a, b in read], rtol=1e-11)
        assert tracker.metrics()["n_eff_mean"] == pytest.approx(np.mean([a + b for a, b in read]), rel=1e-11)


def test_the_order_of_receipt_does_not_matter():
    values = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        tracker = Tracker.create(keys(1), TrackerSettings(forgetting_mode="version", max_in_flight=None))
        for number in range(4):
            tracker.dispatch([f"u{number}"], [0], 3 * number)
        for number in order:
            tracker.observe([f"u{number}"], [0], [float(number % 2)], [np.nan])
        values.append(tracker.values()[0])
    np.testing.assert_allclose(values, values[0], rtol=1e-14)


# ---------------------------------------------------------------------- weights that age


def weights_by_hand(tracker, version):
    settings, table = tracker.settings, tracker._table
    state = (table.alpha_P, table.beta_P, np.maximum(table.version_P, 0), version)
    alpha_P, beta_P = core.evidence_at(*state, rho=settings.rho, floor=settings.floor)
    v_P = core.value_at(*state, rho=settings.rho, floor=settings.floor)
    n_eff_P = np.maximum(alpha_P + beta_P, 1.0)
    return np.sqrt(v_P * (1 - v_P)) / n_eff_P**settings.gamma + settings.epsilon


@pytest.mark.parametrize(("gamma", "floor"), [(0.0, 0.0), (0.7, 0.0), (0.0, 2.0), (0.7, 2.0)])
@pytest.mark.parametrize("quota", [None, {"a": 1, "b": 1}])
def test_draws_are_weighed_at_the_version_that_will_generate(gamma, floor, quota):
    rng = np.random.default_rng(1)
    settings = TrackerSettings(forgetting_mode="version", gamma=gamma, floor=floor, epsilon=0.01, quota=quota)
    of = PromptSources.of("ab" * 20)
    tracker = Tracker.create(keys(40), settings, alpha_P=rng.random(40) * 20, beta_P=rng.random(40) * 20, sources=of)
    for version in range(1, 25):
        drawn = tracker.draw(8, version)
        weight_P = weights_by_hand(tracker, version)
        total_P = np.full(40, weight_P.sum())
        if quota:
            total_P = 2 * np.bincount(of.source_P, weights=weight_P)[of.source_P]
        np.testing.assert_allclose(drawn.share_B, (weight_P / total_P)[drawn.slot_B], rtol=1e-12)
        uids = [f"{version}.{n}" for n in range(8)]
        tracker.dispatch(uids, drawn.slot_B, version)
        tracker.finish_step(uids, [0] * 8, rng.integers(0, 2, 8), [np.nan] * 8, settle_uids=uids)


def test_without_a_version_the_newest_that_was_told_holds():
    tracker = Tracker.create(keys(3), TrackerSettings(forgetting_mode="version", floor=1.0, max_in_flight=None))
    assert tracker.version == 0
    tracker.dispatch(["a"], [0], 7)
    observe_one(tracker, "b", 1, 3, 1.0)  # a late dispatch of an older version does not turn it back
    assert tracker.version == 7
    np.testing.assert_allclose(tracker.draw(3).share_B.sum(), 1.0)
    weight_P = weights_by_hand(tracker, 7)
    drawn = tracker.draw(3)
    np.testing.assert_allclose(drawn.share_B, (weight_P / weight_P.sum())[drawn.slot_B], rtol=1e-12)
    tracker.draw(1, 9)
    assert tracker.version == 9
    with pytest.raises(SpoStateError, match="policy version -1 is negative"):
        tracker.draw(1, -1)
    assert Tracker.create(keys(3), TrackerSettings()).version is None


@pytest.mark.parametrize(
    ("settings", "rebuilds"),
    [({"gamma": 0.5}, True), ({"floor": 1.0}, True), ({}, False), ({"gamma": 0.5, "sampling_mode": "uniform"}, False)],
)
def test_weights_are_worked_out_again_once_per_version_and_only_where_they_age(monkeypatch, settings, rebuilds):
    tracker = Tracker.create(keys(30), TrackerSettings(forgetting_mode="version", **settings))
    full = []
    value_weights = core.value_weights

    def counting(value_P, n_eff_P, **settings):
        full.append(tracker.version) if len(value_P) == 30 else None
        return value_weights(value_P, n_eff_P, **settings)

    monkeypatch.setattr(core, "value_weights", counting)
    for version in range(5):
        train_step(tracker, version, 4)
        tracker.metrics()
        tracker.draw(2)
    assert full == ([1, 2, 3, 4] if rebuilds else [])


def test_an_index_that_went_along_equals_one_that_was_built_anew(tmp_path):
    settings = TrackerSettings(forgetting_mode="version", gamma=0.6, floor=0.5, seed=3)
    steady = Tracker.create(keys(50), settings)
    for version in range(0, 60, 3):
        train_step(steady, version, 7)
    steady.snapshot().write(tmp_path / "spo")
    resumed, _ = Tracker.load(tmp_path / "spo", keys(50), settings)
    assert resumed.version == steady.version == 57
    assert resumed.metrics()["effective_prompts"] == steady.metrics()["effective_prompts"]
    np.testing.assert_array_equal(resumed._drawing.index(57).weight_P, steady._drawing.index(57).weight_P)


def test_a_refused_draw_does_not_turn_the_clock():
    tracker = Tracker.create(keys(3), VERSION)
    tracker.dispatch(["a"], [0], 2)
    before = tracker.digest()
    for size in (0, 3, 4):
        with pytest.raises(SpoStateError):
            tracker.draw(size, 9)
    assert (tracker.digest(), tracker.version) == (before, 2)


# ---------------------------------------------------------------------- re-issued rollouts


def test_a_rollout_that_is_issued_again_is_an_event_of_its_new_version():
    tracker = Tracker.create(keys(2), VERSION, alpha_P=np.array([6.0, 1.0]), beta_P=np.array([2.0, 1.0]))
    tracker.dispatch(["held"], [0], 1)
    tracker.dispatch(["other"], [0], 2)
    tracker.observe(["other"], [0], [1.0], [np.nan])  # (6/4 + 1, 2/4) at 2
    again = tracker.redispatch(["held"], 5)
    assert (again.value_B.tolist(), again.n_eff_B.tolist(), again.version_B.tolist()) == ([2.5 / 3], [3 / 8], [5])
    assert tracker.recall(["held"]).frozen.value_B.tolist() == [2.5 / 3]
    assert tracker.version == 5
    tracker.observe(["held"], [0], [0.0], [np.nan])  # an event of version 5 and not of version 1
    assert state_of(tracker, 0) == (2.5 / 8, 0.5 / 8 + 1, 5)
    # the retry of a prompt that stood still keeps one place among those in flight
    tracker.settle(["held", "other"])
    assert sorted(tracker.draw(2).slot_B.tolist()) == [0, 1]


def test_a_rollout_that_is_issued_again_after_a_restart(tmp_path):
    tracker = Tracker.create(keys(3), VERSION)
    tracker.dispatch(["held"], [0], 1)
    observe_one(tracker, "other", 0, 4, 1.0)
    tracker.snapshot().write(tmp_path / "spo")
    resumed, _ = Tracker.load(tmp_path / "spo", keys(3), VERSION)
    assert resumed.recall(["held"]).frozen.n_eff_B.tolist() == [0.5]
    again = resumed.redispatch(["held"], 6)
    # (1/2 / 16 + 1, 1/2 / 16) at 4, two versions ago
    assert again.value_B.tolist() == [(1 + 1 / 32) / (1 + 1 / 16)]
    assert again.n_eff_B.tolist() == [(1 + 1 / 16) / 4]


# ---------------------------------------------------------------------- where evidence enters


def test_given_evidence_is_of_the_version_at_which_the_tracker_begins():
    alpha_P, beta_P = np.array([6.0, 1.0]), np.array([2.0, 1.0])
    tracker = Tracker.create(keys(2), VERSION, alpha_P=alpha_P, beta_P=beta_P, version=200)
    assert tracker.version == 200
    first = tracker.dispatch(["a"], [0], 200)
    assert (first.value_B.tolist(), first.n_eff_B.tolist()) == ([0.75], [8.0])
    assert tracker.dispatch(["b"], [0], 202).n_eff_B.tolist() == [2.0]
    # (6 + 1, 2) at 200: the outcome is of the version of the evidence
    assert tracker.observe(["a"], [0], [1.0], [np.nan]).rho_B.tolist() == [1.0]
    assert state_of(tracker, 0) == (7.0, 2.0, 200)
    # an outcome from before the prompt entered weighs less: (1 + 1/8, 1) at 200
    observe_one(tracker, "old", 1, 197, 1.0)
    assert state_of(tracker, 1) == (1.125, 1.0, 200)


@pytest.mark.parametrize("mode", ["kl", "constant", "drift"])
def test_in_the_other_modes_nothing_depends_on_where_it_begins(mode):
    settings = TrackerSettings(forgetting_mode=mode, gamma=0.5)
    trackers = [Tracker.create(keys(9), settings, version=version) for version in (0, 200)]
    for version in range(200, 206):
        drawn = [train_step(tracker, version, 4).tolist() for tracker in trackers]
        assert drawn[0] == drawn[1]
    assert trackers[0].digest() == trackers[1].digest()


@pytest.mark.parametrize("entry", [0, 37])
def test_histories_equal_equation_3_with_each_prompts_own_entry(tmp_path, entry):
    """Prompts that come with later datasets, over several restarts: z_0 is the version of each one's entry."""
    rng, rho = np.random.default_rng(entry), 0.875
    settings = TrackerSettings(forgetting_mode="version", rho=rho, gamma=0.5, max_in_flight=None, references=())
    alpha_P, beta_P = rng.uniform(0.1, 8, 16), rng.uniform(0.1, 8, 16)
    size, version, pending, history = 4, entry, [], []
    entered = dict.fromkeys(range(size), entry)
    tracker = Tracker.create(keys(size), settings, alpha_P=alpha_P[:size], beta_P=beta_P[:size], version=entry)
    for turn in range(60):
        if turn % 20 == 19:
            tracker.snapshot().write(tmp_path / "spo", step=version)
            size += 4
            entered |= dict.fromkeys(range(size - 4, size), version)
            given = {"alpha_P": alpha_P[:size], "beta_P": beta_P[:size]}
            tracker, report = Tracker.load(tmp_path / "spo", keys(size), settings, **given)
            assert report.new == 4
        slot = int(rng.integers(0, size))
        frozen = tracker.dispatch([f"u{turn}"], [slot], version)
        seen = [(k, r) for x, k, r in history if x == slot]
        at = max([version, entered[slot], *(k for k, _ in seen)])
        read_alpha = rho ** (at - entered[slot]) * alpha_P[slot] + sum(rho ** (at - k) * r for k, r in seen)
        read_beta = rho ** (at - entered[slot]) * beta_P[slot] + sum(rho ** (at - k) * (1 - r) for k, r in seen)
        assert frozen.value_B[0] == pytest.approx(read_alpha / (read_alpha + read_beta), rel=1e-12)
        assert frozen.n_eff_B[0] == pytest.approx(read_alpha + read_beta, rel=1e-12)
        pending.append((f"u{turn}", slot, version, float(rng.random())))
        rng.shuffle(pending)
        for uid, x, k, reward in [pending.pop() for _ in range(int(rng.integers(0, len(pending) + 1)))]:
            tracker.observe([str(uid)], [0], [float(reward)], [np.nan])
            history.append((int(x), int(k), float(reward)))
        version += int(rng.integers(0, 3))


@pytest.mark.parametrize("mode", ["kl", "constant", "drift"])
def test_a_change_to_event_time_changes_nothing_that_is_read_at_that_moment(tmp_path, mode):
    rng, before = np.random.default_rng(0), TrackerSettings(forgetting_mode=mode, gamma=0.5, references=())
    alpha_P, beta_P = rng.uniform(0.1, 8, 30), rng.uniform(0.1, 8, 30)
    run = Tracker.create(keys(30), before, alpha_P=alpha_P, beta_P=beta_P)
    for version in range(0, 200, 40):
        train_step(run, version, 5, references=())
    run.dispatch(["held"], [7], 198)
    run.snapshot().write(tmp_path / "spo", step=200)
    now = TrackerSettings(forgetting_mode="version", gamma=0.5, references=(), rho=0.5)
    # the dataset lost a prompt and has a new one
    order = [*range(29), 99]
    new = {"alpha_P": np.full(30, 6.0), "beta_P": np.full(30, 2.0)}
    switched, report = Tracker.load(tmp_path / "spo", keys(order), now, **new)
    assert (report.new, report.vanished, switched.version) == (1, 1, 200)
    expected = core.value(*run.evidence()), core.effective_sample_size(*run.evidence())
    read = switched.dispatch([f"u{slot}" for slot in range(30)], range(30), 200)
    np.testing.assert_array_equal(read.value_B[:29], expected[0][:29])
    np.testing.assert_array_equal(read.n_eff_B, [*expected[1][:29], 8.0])
    np.testing.assert_array_equal(switched.values()[:29], expected[0][:29])
    # three versions later an eighth of it is left; an outcome of version 198 counts a quarter
    assert switched.dispatch(["later"], [3], 203).n_eff_B[0] == expected[1][3] / 8
    alpha = float(switched.evidence([7])[0][0])
    switched.observe(["held"], [0], [1.0], [np.nan])
    assert float(switched.evidence([7])[0][0]) == alpha + 0.25
    # the prompt that was lost comes back with the evidence of the switch
    switched.settle(switched.open_uids())
    switched.snapshot().write(tmp_path / "again", step=201)
    again, _ = Tracker.load(tmp_path / "again", keys(30), now)
    assert again.dispatch(["back"], [29], 201).n_eff_B[0] == expected[1][29] / 2
    # once it runs in event time, a restart anchors nothing anew
    resumed, _ = Tracker.load(tmp_path / "again", keys(order), now)
    assert resumed.digest() == switched.digest()


@pytest.mark.parametrize("mode", ["kl", "constant", "drift"])
def test_a_change_back_from_event_time(tmp_path, mode):
    run = Tracker.create(keys(3), TrackerSettings(forgetting_mode="version", references=()), version=50)
    observe_one(run, "a", 0, 60, 1.0)
    run.settle(["a"])
    run.snapshot().write(tmp_path / "spo", step=70)
    settings = TrackerSettings(forgetting_mode=mode, references=(), rho=0.5, rho_max=0.75, rho_min=0.5)
    back, _ = Tracker.load(tmp_path / "spo", keys(4), settings)
    # evidence as it stands at each prompt's newest event; a prompt without outcomes has no version again
    np.testing.assert_array_equal(np.stack(back.evidence())[:, :3], np.stack(run.evidence()))
    assert back._table.version_P.tolist() == [60, -1, -1, -1]
    expected = 0.5 if mode == "constant" else 0.75
    # so that its first visit discounts, also one of a rollout that is older than its entry into event time
    for uid, slot, version in (("b", 1, 40), ("c", 2, 70), ("d", 3, 70), ("e", 0, 70)):
        assert observe_one(back, uid, slot, version, 1.0).rho_B.tolist() == [expected], uid


def test_the_version_at_which_a_run_goes_on_can_be_told(tmp_path):
    run = Tracker.create(keys(2), TrackerSettings(references=()))
    observe_one(run, "a", 0, 8, 1.0)
    run.dispatch(["open"], [1], 12)
    run.snapshot().write(tmp_path / "spo", step=3)
    for version, expected in ((None, 12), (20, 20), (9, 9), (0, 0)):
        loaded, _ = Tracker.load(tmp_path / "spo", keys(3), VERSION, version=version)
        assert loaded._table.version_P.tolist() == [expected or -1] * 3


def test_a_checkpoint_from_before_entries_were_kept_reads_as_it_did(tmp_path):
    """Version -1 under event time was, and is, evidence of version 0."""
    run = Tracker.create(keys(3), VERSION)
    observe_one(run, "a", 0, 5, 1.0)
    run.settle(["a"])
    run.snapshot().write(tmp_path / "spo", step=6)
    assert run._table.version_P.tolist() == [5, -1, -1]
    again, _ = Tracker.load(tmp_path / "spo", keys(3), VERSION)
    assert again.digest() == run.digest()
    assert again.dispatch(["b"], [1], 6).n_eff_B.tolist() == [0.5**6]


# ---------------------------------------------------------------------- checkpoints and settings


def test_the_clock_stands_in_the_manifest_only_in_event_time(tmp_path):
    for settings, expected in ((VERSION, {"version": 4}), (TrackerSettings(), None)):
        tracker = Tracker.create(keys(3), settings)
        tracker.dispatch(["a"], [0], 4)
        tracker.snapshot().write(tmp_path / "spo")
        assert json.loads((tmp_path / "spo" / MANIFEST).read_text()).get("clock") == expected


def test_evidence_of_another_mode_goes_on_from_the_newest_version(tmp_path):
    before = Tracker.create(keys(4), TrackerSettings(references=()))
    observe_one(before, "a", 0, 8, 1.0)
    before.settle(["a"])
    before.snapshot().write(tmp_path / "spo")
    after, report = Tracker.load(tmp_path / "spo", keys(4), VERSION)
    assert report.settings_changed["forgetting_mode"] == ("kl", "version")
    assert after.version == 8
    alpha, beta = (float(column[0]) for column in before.evidence([0]))
    frozen = after.dispatch(["b", "c"], [0, 1], 9)
    assert frozen.value_B.tolist() == [alpha / (alpha + beta), 0.5]
    assert frozen.n_eff_B.tolist() == [(alpha + beta) / 2, 0.5]
    # and back
    after.snapshot().write(tmp_path / "back")
    back, _ = Tracker.load(tmp_path / "back", keys(4), TrackerSettings(references=()))
    assert back.version is None
    assert back.evidence([0])[0][0] == alpha


def test_a_checkpoint_without_the_newer_settings_has_their_defaults(tmp_path):
    settings = TrackerSettings()
    tracker = Tracker.create(keys(10), settings)
    train_step(tracker, 0, 4)
    tracker.snapshot().write(tmp_path / "spo")
    saved = json.loads((tmp_path / "spo" / MANIFEST).read_text())
    later = ("floor", "drift_scale", "max_in_flight")
    rewrite_manifest(tmp_path / "spo", settings={k: v for k, v in saved["settings"].items() if k not in later})
    resumed, report = Tracker.load(tmp_path / "spo", keys(10), settings)
    assert report.settings_changed == {}
    assert resumed.digest() == tracker.digest()


def test_impossible_settings():
    with pytest.raises(SpoConfigError, match=r"forgetting_mode='kind'"):
        TrackerSettings(forgetting_mode="kind")
    with pytest.raises(SpoConfigError, match=r"floor=-1, drift_scale=0, max_in_flight=0"):
        TrackerSettings(floor=-1, drift_scale=0, max_in_flight=0)
