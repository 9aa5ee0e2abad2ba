"""Rollouts that end without training: their outcomes are evidence once, and every rollout ends as one thing."""

import json

import numpy as np
import pytest

from spo_verl.errors import SpoCheckpointVersionError, SpoRewardError, SpoStateError
from spo_verl.tracker import Late, Tracker, TrackerSettings
from spo_verl.tracker.checkpoint.folder import MANIFEST
from spo_verl.tracker.settings import COUNTERS, LATER_COUNTERS

from .helpers import CONSTANT, keys, observe_one, responses, rewrite_manifest, train_step

KINDS = ("trained", "stale", "surplus", "rejected", "failed", "aborted")


def evidence_of(tracker, slot):
    alpha, beta = tracker.evidence([slot])
    return float(alpha[0]), float(beta[0])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_counted(kind):
    tracker = Tracker.create(keys(3), CONSTANT)
    tracker.dispatch(["a", "b", "c"], [0, 1, 2], 0)
    tracker.observe(["a"], [0], [1.0], [np.nan])
    before = tracker.evidence()
    tracker.settle(["a", "b"], kind)
    # with an outcome and without; training without an outcome is a failure
    expected = {"trained": 1, "failed": 1} if kind == "trained" else {kind: 2}
    assert {name: tracker.counters[name] for name in KINDS} == {name: expected.get(name, 0) for name in KINDS}
    assert tracker.counters["settled"] == 2
    np.testing.assert_array_equal(tracker.evidence(), before)
    tracker.settle(["a", "b"], "aborted")  # again, as something else: the first kind stays
    assert {name: tracker.counters[name] for name in KINDS} == {name: expected.get(name, 0) for name in KINDS}
    assert tracker.metrics()[kind] == float(expected[kind])


def test_an_unknown_kind_is_refused():
    tracker = Tracker.create(keys(3), CONSTANT)
    tracker.dispatch(["a"], [0], 0)
    before = tracker.digest()
    for action in (
        lambda: tracker.settle(["a"], "lost"),
        lambda: tracker.absorb([Late("lost", ["a"], [0], [1.0])]),
        lambda: tracker.finish_step([], [], [], [], late=[Late("lost", ended=["a"])]),
    ):
        with pytest.raises(
            SpoStateError, match="one of trained, stale, surplus, rejected, failed, aborted, not as 'lost'"
        ):
            action()
    assert tracker.digest() == before


def test_absorbing_is_observing_and_settling():
    whole, parts = (Tracker.create(keys(4), CONSTANT) for _ in range(2))
    for tracker in (whole, parts):
        tracker.dispatch(["a", "b", "c"], [3, 1, 0], 0)
    report = whole.absorb(
        [
            Late("stale", ["a", "a"], [0, 1], [1.0, 0.0]),
            Late("surplus", ["b"], [0], [1.0]),
            Late("aborted", ended=["c"]),
        ]
    )
    parts.observe(["a", "a", "b"], [0, 1, 0], [1.0, 0.0, 1.0], [np.nan] * 3)
    parts.settle(["a"], "stale")
    parts.settle(["b"], "surplus")
    parts.settle(["c"], "aborted")
    assert (report.new, report.slot_B.tolist()) == (3, [1, 3])
    np.testing.assert_array_equal(whole.evidence(), parts.evidence())
    assert whole.counters == parts.counters | {"untrained": 3}
    assert (whole.open_count, whole.absorb([]).new) == (0, 0)
    # what was absorbed comes once more, by whatever way: it is known
    assert whole.absorb([Late("stale", ["a"], [1], [0.0])]).duplicate == 1
    assert whole.counters["untrained"] == 3


def test_outcomes_may_end_nothing_and_endings_may_have_no_outcome():
    tracker = Tracker.create(keys(3), CONSTANT)
    tracker.dispatch(["a", "b"], [0, 1], 0)
    tracker.absorb([Late("stale", ["a"], [0], [1.0], ended=["b"])])
    assert tracker.open_uids() == ["a"]
    assert evidence_of(tracker, 0) == (1.25, 0.25)
    assert evidence_of(tracker, 1) == (0.5, 0.5)


def test_late_outcomes_in_a_finished_step():
    # Constant rho = 1/2. The step trains on version 4; version 3 and 4 of other rollouts come with it.
    tracker = Tracker.create(keys(3), CONSTANT)
    tracker.dispatch(["old", "older"], [0, 1], 3)
    tracker.dispatch(["new", "over"], [0, 2], 4)
    step = tracker.finish_step(
        ["new"],
        [0],
        [1.0],
        [np.nan],
        settle_uids=["new", "old", "older", "over"],
        late=[
            Late("stale", ["old"], [0], [0.0]),
            Late("surplus", ["over", "new"], [0, 0], [1.0, 1.0], divergence_B=[0.3, np.nan], ended=["over"]),
            Late("aborted", ended=["older"]),
        ],
    )
    # slot 0: version 3 first: (0.25, 0.25 + 1), then version 4: (0.125 + 1, 0.625); one repeat
    assert evidence_of(tracker, 0) == (1.125, 0.625)
    assert evidence_of(tracker, 1) == (0.5, 0.5)
    assert evidence_of(tracker, 2) == (1.25, 0.25)
    assert (step.observe.new, step.observe.duplicate, step.untrained) == (3, 1, 2)
    expected = {"trained": 1, "stale": 1, "surplus": 1, "aborted": 1, "failed": 0, "rejected": 0, "untrained": 2}
    assert {name: tracker.counters[name] for name in expected} == expected
    assert step.metrics["untrained"] == 2.0
    assert tracker.open_count == 0


def test_late_outcomes_under_kl_follow_the_rule_of_versions():
    # D is read where it was measured; a late outcome of an older version adds without another discount.
    settings = TrackerSettings(rho_min=0.25, rho_max=0.75)
    tracker = Tracker.create(keys(1), settings)
    observe_one(tracker, "first", 0, 0, 1.0)  # 3/4 of (1/2, 1/2), + 1
    tracker.dispatch(["late"], [0], 1)
    observe_one(tracker, "next", 0, 2, 0.0, divergence=0.06)  # half of it, + 1
    assert evidence_of(tracker, 0) == (0.6875, 1.1875)
    report = tracker.absorb([Late("stale", ["late"], [0], [1.0], divergence_B=[9.0])])
    assert evidence_of(tracker, 0) == (1.6875, 1.1875)
    assert (report.rho_B.tolist(), report.discounted_B.tolist()) == ([1.0], [False])
    # newer than anything seen, and unmeasured: D = 0
    tracker.dispatch(["surplus"], [0], 3)
    assert tracker.absorb([Late("surplus", ["surplus"], [0], [0.0])]).rho_B.tolist() == [0.75]


@pytest.mark.parametrize(
    ("late", "error", "words"),
    [
        ([Late("stale", ["a"], [0], [1.5])], SpoRewardError, r"reward 1.5 of uid 'a'"),
        ([Late("stale", ["ghost"], [0], [1.0])], SpoStateError, "'ghost'"),
        ([Late("stale", ["a"], [0, 1], [1.0])], SpoStateError, "session_B has shape"),
        ([Late("stale", ["a"], [0.5], [1.0])], SpoStateError, "session_B has type"),
        ([Late("stale", ["a"], [0], [1.0], divergence_B=[-1.0])], SpoStateError, "is negative"),
        ([Late("stale", ["a"], [0], [1.0]), Late("aborted", ended=["ghost"])], SpoStateError, "'ghost' was never"),
    ],
)
def test_all_of_a_step_happens_or_nothing(late, error, words):
    tracker = Tracker.create(keys(3), TrackerSettings())
    tracker.dispatch(["a", "b"], [0, 1], 0)
    before = tracker.digest()
    for action in (
        lambda: tracker.absorb(late),
        lambda: tracker.finish_step(
            ["b"], [0], [1.0], [np.nan], remember_uids=["b"], responses=responses([3]), settle_uids=["b"], late=late
        ),
    ):
        with pytest.raises(error, match=words):
            action()
        assert tracker.digest() == before


def test_a_new_session_of_an_ended_rollout_is_refused():
    tracker = Tracker.create(keys(2), CONSTANT)
    observe_one(tracker, "a", 0, 0, 1.0)
    tracker.settle(["a"], "surplus")
    with pytest.raises(SpoStateError, match="came after the rollout was settled"):
        tracker.absorb([Late("stale", ["a"], [1], [1.0])])


# ---------------------------------------------------------------------- any order of events


class NaiveLedger:
    """What was verified, and how every rollout ended, in plain lists."""

    def __init__(self, prompts, rho):
        self.rho = rho
        self.history = [[] for _ in range(prompts)]
        self.event = {}
        self.slot = {}
        self.seen = set()
        self.ended = {}

    def verified(self, uid, session, reward):
        if (uid, session) not in self.seen:
            self.seen.add((uid, session))
            self.history[self.slot[uid]].append((self.event[uid], reward))

    def evidence(self, slot, version):
        alpha = beta = 0.5 * self.rho**version
        for k, reward in self.history[slot]:
            alpha, beta = alpha + self.rho ** (version - k) * reward, beta + self.rho ** (version - k) * (1 - reward)
        return alpha, beta


@pytest.mark.parametrize("rho", [1.0, 0.875])
@pytest.mark.parametrize("seed", range(5))
def test_no_verified_reward_is_lost_or_counted_twice(tmp_path, seed, rho):
    """Rollouts of three sessions finish in any order, are evicted, dropped, retried and repeated, and runs restart."""
    rng = np.random.default_rng(seed)
    prompts, settings = 8, TrackerSettings(forgetting_mode="version", rho=rho, max_in_flight=2, seed=seed)
    tracker, naive = Tracker.create(keys(prompts), settings), NaiveLedger(prompts, rho)
    unfinished, finished, repeats = {}, {}, []  # uid -> sessions still to come; uid -> rewards not yet reported
    for version in range(80):
        room = prompts - len(tracker._taken())
        for n, slot in enumerate(tracker.draw(min(room, 3), version).slot_B.tolist() if room else []):
            uid = f"{version}.{n}"
            tracker.dispatch([uid], [slot], version)
            naive.slot[uid], naive.event[uid] = slot, version
            unfinished[uid] = set(range(int(rng.integers(1, 4))))
        for uid in [uid for uid in unfinished if rng.random() < 0.2 and not finished.get(uid)]:
            if not tracker._ledger.open[uid].sessions:  # nothing of it has been reported: it can be retried
                tracker.redispatch([uid], version)
                naive.event[uid] = version
        for uid in list(unfinished):  # some sessions finish
            for session in [session for session in unfinished[uid] if rng.random() < 0.4]:
                unfinished[uid].remove(session)
                finished.setdefault(uid, []).append((session, float(rng.choice([0.0, 1.0, rng.random()]))))
        groups = {kind: [] for kind in KINDS}
        for uid in tracker.open_uids():
            if rng.random() < 0.5:
                kind = str(rng.choice(KINDS if not unfinished.get(uid) else ("stale", "failed", "aborted")))
                groups[kind].append(uid)
                naive.ended.setdefault(uid, kind)
        rows = {kind: [(uid, *one) for uid in uids for one in finished.pop(uid, [])] for kind, uids in groups.items()}
        for uid in [uid for uid in finished if rng.random() < 0.3]:  # reported, and still open
            rows["trained"] += [(uid, *one) for one in finished.pop(uid)]
        news = [row for part in rows.values() for row in part]
        rows["trained"] += [repeats[i] for i in rng.integers(0, len(repeats), 3)] if repeats else []
        rows["stale"] += [news[i] for i in rng.integers(0, len(news), 2)] if news else []
        for row in news:
            naive.verified(*row)
        repeats += news
        for part in rows.values():
            rng.shuffle(part)
        columns = {
            kind: [list(column) for column in zip(*part, strict=True)] or [[], [], []] for kind, part in rows.items()
        }
        for uids in groups.values():
            for uid in uids:
                unfinished.pop(uid, None)
        uids, sessions, rewards = columns["trained"]
        sessions, rewards = [int(s) for s in sessions], [float(r) for r in rewards]
        step = tracker.finish_step(
            [str(uid) for uid in uids],
            np.array(sessions, dtype=np.int64),
            rewards,
            np.full(len(uids), np.nan),
            settle_uids=groups["trained"],
            late=[
                Late(
                    kind,
                    [str(uid) for uid in columns[kind][0]],
                    np.array([int(s) for s in columns[kind][1]], dtype=np.int64),
                    [float(r) for r in columns[kind][2]],
                    ended=groups[kind],
                )
                for kind in KINDS[1:]
            ],
        )
        assert step.observe.new == len(news)
        if version % 20 == 13:
            tracker.snapshot().write(tmp_path / "spo")
            tracker, _ = Tracker.load(tmp_path / "spo", keys(prompts), settings)
        for slot in range(prompts):
            newest = max((k for k, _ in naive.history[slot]), default=0)
            np.testing.assert_allclose(evidence_of(tracker, slot), naive.evidence(slot, newest), rtol=1e-11)
    counted = tracker.counters
    assert counted["observations"] == len(naive.seen) > 100
    assert counted["settled"] == len(naive.ended) == counted["dispatched"] - tracker.open_count
    assert counted["settled"] == sum(counted[kind] for kind in KINDS)
    with_outcome = {uid for uid, _ in naive.seen}
    for kind in KINDS:
        expected = sum(ended == kind for ended in naive.ended.values())
        silent = sum(ended == "trained" and uid not in with_outcome for uid, ended in naive.ended.items())
        assert counted[kind] == expected + {"trained": -silent, "failed": silent}.get(kind, 0)
        assert counted[kind] > 0
    if rho == 1.0:  # nothing is ever forgotten: the evidence is the number of verified outcomes
        assert sum(map(sum, tracker.evidence())) == pytest.approx(prompts + len(naive.seen))


# ---------------------------------------------------------------------- checkpoints


def test_counters_that_are_zero_leave_no_trace(tmp_path):
    tracker = Tracker.create(keys(10), TrackerSettings())
    train_step(tracker, 0, 4)
    tracker.snapshot().write(tmp_path / "spo")
    assert list(json.loads((tmp_path / "spo" / MANIFEST).read_text())["counters"]) == list(COUNTERS)
    assert set(tracker.counters) == {*COUNTERS, *LATER_COUNTERS, "trained"}
    before = tracker.digest()
    tracker.dispatch(["a"], [0], 1)
    tracker.absorb([Late("stale", ["a"], [0], [1.0])])
    tracker.snapshot().write(tmp_path / "spo")
    saved = json.loads((tmp_path / "spo" / MANIFEST).read_text())["counters"]
    assert (saved["stale"], saved["untrained"], "surplus" in saved) == (1, 1, False)
    resumed, _ = Tracker.load(tmp_path / "spo", keys(10), TrackerSettings())
    assert resumed.counters == tracker.counters
    assert resumed.digest() == tracker.digest() != before
    rewrite_manifest(tmp_path / "spo", counters=saved | {"lost": 1})
    with pytest.raises(SpoCheckpointVersionError, match="differ in lost"):
        Tracker.load(tmp_path / "spo", keys(10), TrackerSettings())
