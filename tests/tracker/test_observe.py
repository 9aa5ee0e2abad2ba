"""Evidence: histories worked by hand, one discount per policy version, and outcomes that count once."""

import numpy as np
import pytest

from spo_verl.errors import SpoRewardError, SpoStateError
from spo_verl.tracker import Tracker, TrackerSettings, ledger

from .helpers import CONSTANT, keys, observe_one, responses

# Half-life and bounds that make every number below an exact binary fraction:
# D = 0.06 -> 2^-1, D = 0.12 -> 2^-2, anything beyond -> 1/4, D = 0 -> 3/4.
DYADIC = TrackerSettings(half_life=0.06, rho_min=0.25, rho_max=0.75)


def evidence_of(tracker: Tracker, slot: int) -> tuple[float, float]:
    alpha, beta = tracker.evidence([slot])
    return float(alpha[0]), float(beta[0])


def test_history_of_one_prompt_by_hand():
    tracker = Tracker.create(keys(3), DYADIC)
    assert evidence_of(tracker, 1) == (0.5, 0.5)

    # First visit: D = 0 whatever is passed, rho = 3/4. alpha = 3/8 + 1, beta = 3/8.
    report = observe_one(tracker, "a", 1, 0, 1.0, divergence=0.06)
    assert evidence_of(tracker, 1) == (1.375, 0.375)
    assert (report.rho_B.tolist(), report.divergence_B.tolist()) == ([0.75], [0.0])
    assert (report.n_eff_B.tolist(), report.first_visit_B.tolist()) == ([1.0], [True])

    # The baseline of the next rollout is 1.375 / 1.75 and N_eff 1.75, whatever is observed later.
    frozen = tracker.dispatch(["b"], [1], 1)
    assert frozen.value_B.tolist() == [1.375 / 1.75]
    # D = 0.06: rho = 1/2. alpha = 0.6875, beta = 0.1875 + 1.
    report = tracker.observe(["b"], [0], [0.0], [0.06])
    assert evidence_of(tracker, 1) == (0.6875, 1.1875)
    assert (report.n_eff_B.tolist(), report.rho_B.tolist()) == ([1.75], [0.5])
    assert tracker.recall(["b"]).frozen.value_B.tolist() == [1.375 / 1.75]
    assert tracker.recall(["b"]).frozen.n_eff_B.tolist() == [1.75]

    # Two sessions under one version, D = 0.12: one discount by 1/4, then + 1 and + 0.5.
    # alpha = 0.171875 + 1.5, beta = 0.296875 + 0.5.
    observe_one(tracker, "c", 1, 2, 1.0, 0.5, divergence=0.12)
    assert evidence_of(tracker, 1) == (1.671875, 0.796875)

    # D = 0.3 would be 2^-5 and is clipped to 1/4. alpha = 0.41796875 + 1, beta = 0.19921875.
    observe_one(tracker, "d", 1, 3, 1.0, divergence=0.3)
    assert evidence_of(tracker, 1) == (1.41796875, 0.19921875)

    # No stored response (NaN): D = 0, rho = 3/4. alpha = 1.0634765625, beta = 0.1494140625 + 1.
    report = observe_one(tracker, "e", 1, 4, 0.0)
    assert evidence_of(tracker, 1) == (1.0634765625, 1.1494140625)
    assert report.divergence_B.tolist() == [0.0]

    assert evidence_of(tracker, 0) == evidence_of(tracker, 2) == (0.5, 0.5)
    assert tracker.counters["first_visits"] == 1
    assert tracker.counters["observations"] == 6


def test_initial_evidence_is_used_and_copied():
    alpha_P, beta_P = np.array([7.0, 1.0]), np.array([1.0, 7.0])
    tracker = Tracker.create(keys(2), CONSTANT, alpha_P=alpha_P, beta_P=beta_P)
    alpha_P[:] = 0
    assert tracker.values().tolist() == [0.875, 0.125]
    # rho = 1/2: alpha = 3.5, beta = 0.5 + 1
    observe_one(tracker, "a", 0, 0, 0.0)
    assert evidence_of(tracker, 0) == (3.5, 1.5)


@pytest.mark.parametrize("calls", ["together", "apart"])
def test_outcomes_of_one_version_are_discounted_once(calls):
    # Constant rho = 1/2 on (0.5, 0.5) and rewards 1, 0, 1 under one version, from two rollouts:
    # alpha = 0.25 + 2, beta = 0.25 + 1. Three discounts would give alpha = 1.3125.
    tracker = Tracker.create(keys(4), CONSTANT)
    tracker.dispatch(["x", "y"], [2, 2], 5)
    rows = [("x", 0, 1.0), ("x", 1, 0.0), ("y", 0, 1.0)]
    parts = [rows] if calls == "together" else [[row] for row in rows]
    reports = [
        tracker.observe([uid for uid, *_ in part], [s for _, s, _ in part], [r for *_, r in part], [np.nan] * len(part))
        for part in parts
    ]
    assert evidence_of(tracker, 2) == (2.25, 1.25)
    discounted = [bool(flag) for report in reports for flag in report.discounted_B]
    assert discounted == ([True] if calls == "together" else [True, False, False])
    if calls == "apart":
        assert [report.rho_B[0] for report in reports] == [0.5, 1.0, 1.0]
    # The next version discounts again: alpha = 1.125 + 1, beta = 0.625.
    observe_one(tracker, "z", 2, 6, 1.0)
    assert evidence_of(tracker, 2) == (2.125, 0.625)


def test_late_outcome_of_an_older_version_adds_without_another_discount():
    tracker = Tracker.create(keys(1), CONSTANT)
    tracker.dispatch(["old"], [0], 3)
    observe_one(tracker, "new", 0, 4, 1.0)  # alpha = 1.25, beta = 0.25
    report = tracker.observe(["old"], [0], [0.0], [np.nan])  # beta = 1.25
    assert evidence_of(tracker, 0) == (1.25, 1.25)
    assert report.rho_B.tolist() == [1.0]
    # Version 4 stays discounted: one more of its outcomes only adds.
    observe_one(tracker, "more", 0, 4, 1.0)
    assert evidence_of(tracker, 0) == (2.25, 1.25)


def test_versions_in_one_call_are_folded_oldest_first():
    tracker = Tracker.create(keys(1), CONSTANT)
    tracker.dispatch(["v2"], [0], 2)
    tracker.dispatch(["v1"], [0], 1)
    # v1: (0.25 + 1, 0.25), then v2: (0.625, 0.125 + 1)
    report = tracker.observe(["v2", "v1"], [0, 0], [0.0, 1.0], [np.nan, np.nan])
    assert evidence_of(tracker, 0) == (0.625, 1.125)
    assert report.version_B.tolist() == [1, 2]
    assert report.first_visit_B.tolist() == [True, False]
    assert report.n_eff_B.tolist() == [1.0, 1.5]


def test_largest_divergence_of_a_prompt_counts_in_any_order():
    for order in ([0.06, np.nan, 0.12], [0.12, 0.06, np.nan]):
        tracker = Tracker.create(keys(1), DYADIC)
        observe_one(tracker, "first", 0, 0, 1.0)
        tracker.dispatch(["a"], [0], 1)
        report = tracker.observe(["a"] * 3, [0, 1, 2], [1.0, 1.0, 1.0], order)
        assert report.divergence_B.tolist() == [0.12]
        assert report.rho_B.tolist() == [0.25]


def test_infinite_divergence_keeps_the_least():
    tracker = Tracker.create(keys(1), DYADIC)
    observe_one(tracker, "a", 0, 0, 1.0)
    assert observe_one(tracker, "b", 0, 1, 1.0, divergence=np.inf).rho_B.tolist() == [0.25]


def test_same_session_counts_once_in_one_call_later_and_after_settling():
    tracker = Tracker.create(keys(2), CONSTANT)
    tracker.dispatch(["a"], [0], 0)
    report = tracker.observe(["a", "a", "a"], [0, 1, 0], [1.0, 0.0, 1.0], [np.nan] * 3)
    assert (report.new, report.duplicate) == (2, 1)
    after = evidence_of(tracker, 0)
    assert after == (1.25, 1.25)
    assert tracker.observe(["a", "a"], [1, 0], [0.0, 1.0], [np.nan] * 2).duplicate == 2
    tracker.settle(["a"])
    report = tracker.observe(["a"], [1], [0.0], [np.nan])
    assert (report.new, report.duplicate, len(report.slot_B)) == (0, 1, 0)
    assert evidence_of(tracker, 0) == after
    assert tracker.counters["duplicates"] == 4


def test_session_after_settling_is_refused():
    tracker = Tracker.create(keys(2), CONSTANT)
    observe_one(tracker, "a", 0, 0, 1.0)
    tracker.settle(["a"])
    with pytest.raises(SpoStateError, match="session 3 of uid 'a' came after the rollout was settled"):
        tracker.observe(["a"], [3], [1.0], [np.nan])


def test_ended_rollouts_are_remembered_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(ledger, "RECENT_LIMIT", 3)
    tracker = Tracker.create(keys(2), CONSTANT)
    for number in range(5):
        observe_one(tracker, f"u{number}", 0, number, 1.0)
        tracker.settle([f"u{number}"])
    assert tracker.observe(["u2"], [0], [1.0], [np.nan]).duplicate == 1
    with pytest.raises(SpoStateError, match="'u1' is unknown"):
        tracker.observe(["u1"], [0], [1.0], [np.nan])


def test_settling_counts_rollouts_without_outcome_as_failed():
    tracker = Tracker.create(keys(4), CONSTANT)
    tracker.dispatch(["a", "b", "c", "d"], [0, 1, 2, 3], 0)
    tracker.observe(["b"], [0], [0.0], [np.nan])
    tracker.settle(["a", "b", "d"])
    assert (tracker.counters["failed"], tracker.counters["settled"], tracker.open_count) == (2, 3, 1)
    tracker.settle(["a", "b"])  # again: nothing changes
    assert (tracker.counters["failed"], tracker.counters["settled"]) == (2, 3)
    assert tracker.open_uids() == ["c"]
    with pytest.raises(SpoStateError, match="settle: uid 'ghost' was never dispatched"):
        tracker.settle(["c", "ghost"])
    assert tracker.open_uids() == ["c"]


def test_redispatch_reads_the_value_again():
    tracker = Tracker.create(keys(2), CONSTANT)
    tracker.dispatch(["held"], [0], 0)
    observe_one(tracker, "other", 0, 0, 1.0)  # (1.25, 0.25)
    assert tracker.recall(["held"]).frozen.value_B.tolist() == [0.5]
    again = tracker.redispatch(["held"], 3)
    assert (again.value_B.tolist(), again.version_B.tolist()) == ([1.25 / 1.5], [3])
    assert tracker.recall(["held"]).frozen.value_B.tolist() == [1.25 / 1.5]
    tracker.observe(["held"], [0], [1.0], [np.nan])
    with pytest.raises(SpoStateError, match="'held' has outcomes already"):
        tracker.redispatch(["held"], 4)


@pytest.mark.parametrize(
    ("reward", "divergence", "uid", "error", "words"),
    [
        (1.0001, 0.0, "a", SpoRewardError, r"reward 1\.0001 of uid 'a', session 1"),
        (-0.0001, 0.0, "a", SpoRewardError, "is not in"),
        (np.nan, 0.0, "a", SpoRewardError, "reward nan"),
        (1.0, -0.1, "a", SpoStateError, r"divergence -0\.1 of uid 'a' is negative"),
        (1.0, 0.0, "ghost", SpoStateError, "'ghost' is unknown"),
    ],
)
def test_an_error_leaves_everything_as_it_was(reward, divergence, uid, error, words):
    tracker = Tracker.create(keys(3), CONSTANT)
    tracker.dispatch(["a", "b"], [0, 1], 0)
    before, metrics = tracker.digest(), tracker.metrics()
    with pytest.raises(error, match=words):
        tracker.observe(["b", uid], [0, 1], [1.0, reward], [0.0, divergence])
    assert (tracker.digest(), tracker.metrics()) == (before, metrics)


def test_shapes_and_types_of_a_request_are_checked():
    tracker = Tracker.create(keys(3), CONSTANT)
    tracker.dispatch(["a"], [0], 0)
    for request in (([0, 1], [1.0], [0.0]), ([0], [1.0, 1.0], [0.0]), ([0], [1.0], 0.0), ([0.5], [1.0], [0.0])):
        with pytest.raises(SpoStateError, match=r"observe: (session|reward|divergence)_B has"):
            tracker.observe(["a"], *request)
    assert tracker.observe([], [], [], []).new == 0


@pytest.mark.parametrize("broken", ["settle", "remember", "row", "observe"])
def test_finish_step_happens_wholly_or_not_at_all(broken):
    tracker = Tracker.create(keys(4), TrackerSettings())
    tracker.dispatch(["a", "b"], [0, 1], 0)
    before = tracker.digest()
    request = {
        "remember_uids": ["ghost", "b"] if broken == "remember" else ["a", "b"],
        "responses": responses([3, 4], rows=[0, 2] if broken == "row" else None),
        "settle_uids": ["a", "ghost"] if broken == "settle" else ["a", "b"],
    }
    rewards = [1.0, 2.0] if broken == "observe" else [1.0, 0.0]
    with pytest.raises((SpoStateError, SpoRewardError)):
        tracker.finish_step(["a", "b"], [0, 0], rewards, [np.nan] * 2, **request)
    assert tracker.digest() == before


def test_finish_step_equals_its_parts():
    whole, parts = (Tracker.create(keys(4), TrackerSettings()) for _ in range(2))
    for tracker in (whole, parts):
        tracker.dispatch(["a", "b"], [3, 1], 0)
    outcome = (["a", "b"], [0, 0], [1.0, 0.0], [np.nan, np.nan])
    step = whole.finish_step(*outcome, remember_uids=["a", "b"], responses=responses([5, 9]), settle_uids=["a", "b"])
    report = parts.observe(*outcome)
    parts.remember(["a", "b"], responses([5, 9]))
    parts.settle(["a", "b"])
    assert step.observe.slot_B.tolist() == report.slot_B.tolist() == [1, 3]
    assert step.metrics == parts.metrics()
    assert whole.digest() == parts.digest()


@pytest.mark.parametrize(
    ("uids", "slots", "version", "words"),
    [
        (["a", "a"], [0, 1], 0, "'a' occurs more than once"),
        (["open"], [0], 0, "'open' is already open"),
        (["done"], [0], 0, "'done' has already ended"),
        (["n"], [3], 0, "slot 3 does not exist; the 3 prompts are 0 to 2"),
        (["n"], [-1], 0, "slot -1 does not exist"),
        (["n"], [0.0], 0, "slots have type float64"),
        (["n"], [0, 1], 0, "1 uids came with 2 slots"),
        (["n"], [0], -1, "policy version -1 is negative"),
    ],
)
def test_dispatch_refuses(uids, slots, version, words):
    tracker = Tracker.create(keys(3), CONSTANT)
    tracker.dispatch(["open", "done"], [0, 1], 0)
    tracker.settle(["done"])
    before = tracker.digest()
    with pytest.raises(SpoStateError, match=words):
        tracker.dispatch(uids, slots, version)
    assert tracker.digest() == before


def test_recall_and_remember_need_open_rollouts():
    tracker = Tracker.create(keys(3), TrackerSettings())
    with pytest.raises(SpoStateError, match=r"recall: uid 'x' is not open \(0 are\)"):
        tracker.recall(["x"])
    with pytest.raises(SpoStateError, match="remember: uid 'x' is not open"):
        tracker.remember(["x"], responses([2]))


# ---------------------------------------------------------------------- one measurement, one discount


def test_versions_of_one_request_share_the_one_measured_divergence():
    # D = 0.06 (rho = 1/2) was measured once, on the one stored response; versions 3 and 5 come back together.
    tracker = Tracker.create(keys(1), DYADIC)
    observe_one(tracker, "first", 0, 0, 1.0)  # (1.375, 0.375)
    tracker.dispatch(["b"], [0], 5)
    tracker.dispatch(["a"], [0], 3)
    report = tracker.observe(["b", "a"], [0, 0], [0.0, 1.0], [0.06, 0.06])
    assert evidence_of(tracker, 0) == (1.6875, 1.1875)
    assert report.version_B.tolist() == [3, 5]
    assert report.rho_B.tolist() == [0.5, 1.0]
    assert report.divergence_B.tolist() == [0.06, 0.0]
    assert report.discounted_B.tolist() == [True, False]
    # the next request brings a new measurement
    assert observe_one(tracker, "c", 0, 6, 1.0, divergence=0.12).rho_B.tolist() == [0.25]


@pytest.mark.parametrize("measured", [(0.12, np.nan), (np.nan, 0.12), (0.06, 0.12), (0.12, 0.0)])
def test_the_measured_divergence_counts_whichever_version_brings_it(measured):
    # An evicted rollout comes without a divergence, the trained one of another version with it.
    tracker = Tracker.create(keys(2), DYADIC)
    observe_one(tracker, "first", 0, 0, 1.0)  # (1.375, 0.375)
    tracker.dispatch(["a"], [0], 3)
    tracker.dispatch(["b"], [0], 5)
    tracker.dispatch(["other"], [1], 5)
    report = tracker.observe(["a", "b", "other"], [0] * 3, [1.0, 1.0, 1.0], [*measured, 9.0])
    assert report.rho_B.tolist() == [0.25, 1.0, 0.75]
    assert evidence_of(tracker, 0) == (0.34375 + 2, 0.09375)
    assert evidence_of(tracker, 1) == (1.375, 0.375)  # its first visit: nothing to move away from


def test_a_late_version_beside_a_newer_one():
    # version 4 has been discounted; 3 only adds, then 5 discounts what is there, once
    tracker = Tracker.create(keys(1), DYADIC)
    observe_one(tracker, "first", 0, 4, 1.0)  # (1.375, 0.375)
    tracker.dispatch(["late", "later"], [0, 0], 3)
    tracker.dispatch(["new"], [0], 5)
    tracker.dispatch(["newer"], [0], 6)
    report = tracker.observe(["new", "late", "newer"], [0] * 3, [0.0, 1.0, 1.0], [0.06, np.nan, 0.06])
    assert report.rho_B.tolist() == [1.0, 0.5, 1.0]
    assert evidence_of(tracker, 0) == (2.375 / 2 + 1, 0.375 / 2 + 1)
    # on its own it adds, whatever was measured with it
    assert tracker.observe(["later"], [0], [1.0], [9.0]).rho_B.tolist() == [1.0]


@pytest.mark.parametrize("mode", ["kl", "constant", "drift"])
@pytest.mark.parametrize("seed", range(3))
def test_random_requests_equal_a_loop_over_prompts(seed, mode):
    """Several rollouts per prompt in flight, any versions in one request: the rules written out, prompt by prompt."""
    rng = np.random.default_rng(seed)
    settings = TrackerSettings(forgetting_mode=mode, rho=0.9, max_in_flight=None, references=())
    tracker = Tracker.create(keys(4), settings)
    alpha, beta, last, moved, visited = ([x] * 4 for x in (0.5, 0.5, -1, 0.0, False))
    pending, total = [], 0.0
    for step in range(40):
        uids = [f"{step}.{number}" for number in range(3)]
        slots = rng.integers(0, 4, 3).tolist()
        tracker.dispatch(uids, slots, step)
        pending += [(uid, slot, step) for uid, slot in zip(uids, slots, strict=True)]
        taken = [pending.pop(int(rng.integers(len(pending)))) for _ in range(min(len(pending), int(rng.integers(6))))]
        divergences = [float(rng.choice([np.nan, rng.exponential(0.05)])) for _ in taken]
        rewards = rng.random(len(taken)).tolist()
        movement = float(rng.exponential(0.01)) if mode == "drift" else None
        tracker.finish_step([uid for uid, *_ in taken], [0] * len(taken), rewards, divergences, movement=movement)
        for slot in range(4):
            mine = [row for row, (_, x, _) in enumerate(taken) if x == slot]
            measured = max([0.0, *(divergences[row] for row in mine if divergences[row] == divergences[row])])
            divergence = 0.0 if not visited[slot] else measured if mode == "kl" else total - moved[slot]
            rho = 0.9 if mode == "constant" else min(max(2 ** (-divergence / 0.06), 0.875), 0.96)
            free = True
            for version in sorted({taken[row][2] for row in mine}):
                if version > last[slot] and (free or mode == "constant"):
                    alpha[slot], beta[slot], free, moved[slot] = rho * alpha[slot], rho * beta[slot], False, total
                last[slot] = max(last[slot], version)
                rewarded = [rewards[row] for row in mine if taken[row][2] == version]
                alpha[slot] += sum(rewarded)
                beta[slot] += len(rewarded) - sum(rewarded)
                visited[slot] = True
        total += movement or 0.0
        np.testing.assert_allclose(tracker.evidence(), [alpha, beta], rtol=1e-12)
