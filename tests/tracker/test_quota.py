"""Quotas of data sources: exact counts, successive sampling within a source, mixed order, and restarts."""

import copy
import json
import pickle

import numpy as np
import pytest

from spo_verl import core
from spo_verl.errors import SpoCheckpointVersionError, SpoConfigError, SpoStateError
from spo_verl.tracker import PromptSources, Tracker, TrackerSettings
from spo_verl.tracker.checkpoint.folder import MANIFEST
from spo_verl.tracker.quota import QuotaIndex, quota_problems
from spo_verl.tracker.service import TrackerHost
from tests.core.helpers import inclusion_probabilities

from .helpers import keys, observe_one, rewrite_manifest, train_step

QUOTA = {"math": 5, "code": 3, "logic": 2}


def labels(numbers):
    """Source of the prompt of each number: of four one is code, of ten one is logic, the others are math."""
    return ["logic" if n % 10 == 7 else "code" if n % 4 == 0 else "math" for n in numbers]


def sources(numbers):
    return PromptSources.of(labels(range(numbers) if isinstance(numbers, int) else numbers))


def make(size=60, quota=QUOTA, **settings):
    return Tracker.create(keys(size), TrackerSettings(quota=quota, **settings), sources=sources(size))


def saved(tracker, folder):
    tracker.snapshot().write(folder)
    return folder


# ---------------------------------------------------------------------- without quotas nothing has changed


def test_without_quotas_state_and_draws_are_what_they_were_before_there_were_any():
    tracker = Tracker.create(keys(60), TrackerSettings(seed=11), sources=sources(60))
    drawn = [train_step(tracker, version, 9).tolist() for version in range(5)]
    # As printed by the version before quotas.
    assert drawn[-1] == [34, 22, 10, 40, 37, 13, 24, 46, 11]
    assert tracker.digest() == "47a987f919f10f84928d309a2e5b8fd93c465b6e57fd1a2d29b30d0691c3ce85"
    assert list(tracker.snapshot().random) == ["draw"]
    assert not [name for name in tracker.metrics() if name.startswith("source/")]


def test_the_draws_come_from_the_generator_that_they_always_came_from():
    tracker = Tracker.create(keys(60), TrackerSettings(seed=5))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(5, spawn_key=(0,))))
    index = core.WeightIndex(core.sampling_weights(np.full(60, 0.5), np.full(60, 0.5)))
    for _ in range(5):
        assert tracker.draw(7).slot_B.tolist() == index.draw(7, rng)[0].tolist()
    assert tracker.snapshot().random["draw"] == rng.bit_generator.state


# ---------------------------------------------------------------------- how many of each source


@pytest.mark.parametrize("mode", ["prioritized", "uniform"])
def test_whole_counts_are_kept_in_every_batch(mode):
    tracker = make(sampling_mode=mode)
    source_P = sources(60).source_P
    for version in range(20):
        slot_B = train_step(tracker, version, 10)
        assert len(set(slot_B.tolist())) == 10
        assert np.bincount(source_P[slot_B]).tolist() == [3, 2, 5]  # code, logic, math


def test_counts_that_are_not_whole_come_from_the_generator_of_quotas():
    tracker = make(seed=3)
    twin = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3, spawn_key=(1,))))
    seen = []
    for _ in range(400):
        slot_B = tracker.draw(7).slot_B
        expected = core.quota_counts([3, 2, 5], 7, twin)
        twin.permutation(7)
        seen.append(np.bincount(sources(60).source_P[slot_B], minlength=3))
        assert seen[-1].tolist() == expected.tolist()
    # 2.1, 1.4 and 3.5 on average; the standard deviation of a mean is at most 0.5 / sqrt(400).
    assert np.abs(np.mean(seen, axis=0) - [2.1, 1.4, 3.5]).max() < 3 * 0.5 / 20


def test_the_order_in_which_quotas_are_written_means_nothing():
    one, other = make(quota=QUOTA), make(quota=dict(reversed(QUOTA.items())))
    assert [one.draw(7).slot_B.tolist() for _ in range(9)] == [other.draw(7).slot_B.tolist() for _ in range(9)]


# ---------------------------------------------------------------------- which of a source, and in which order


@pytest.mark.long
def test_within_a_source_inclusion_is_that_of_successive_sampling():
    # Slots 0, 2, 4 are of source a, 1 and 3 of b. Half of 3 is 1.5, so either source gets one or two of a batch,
    # each in half of the batches.
    weight_P = np.array([1.0, 4.0, 2.0, 1.0, 5.0])
    index = QuotaIndex(weight_P, PromptSources.of("ababa"), {"a": 1, "b": 1})
    weights_a, weights_b = weight_P[[0, 2, 4]], weight_P[[1, 3]]
    expected = np.empty(5)
    expected[[0, 2, 4]] = (inclusion_probabilities(weights_a, 1) + inclusion_probabilities(weights_a, 2)) / 2
    expected[[1, 3]] = (inclusion_probabilities(weights_b, 1) + inclusion_probabilities(weights_b, 2)) / 2
    rng, mixing = np.random.default_rng(1), np.random.default_rng(2)
    repeats, count = 10_000, np.zeros(5)
    for _ in range(repeats):
        count[index.draw(3, rng, mixing)[0]] += 1
    z = (count - repeats * expected) / np.sqrt(repeats * expected * (1 - expected))
    assert np.abs(z).max() < 3.0
    # Without quotas the probabilities are others: the test tells them apart.
    assert np.abs(inclusion_probabilities(weight_P, 3) - expected).max() > 0.05


@pytest.mark.long
def test_the_first_draw_has_the_probability_that_is_reported():
    weight_P = np.array([1.0, 4.0, 2.0, 1.0, 5.0])
    index = QuotaIndex(weight_P, PromptSources.of("ababa"), {"a": 3, "b": 1})
    by_hand = np.array([0.75 * 1 / 8, 0.25 * 4 / 5, 0.75 * 2 / 8, 0.25 * 1 / 5, 0.75 * 5 / 8])
    slot_B, share_B = index.draw(2, np.random.default_rng(0), np.random.default_rng(0))
    np.testing.assert_allclose(share_B, by_hand[slot_B], rtol=1e-15)
    rng, mixing = np.random.default_rng(3), np.random.default_rng(4)
    count = np.zeros(5)
    for _ in range(10_000):
        count[index.draw(1, rng, mixing)[0]] += 1
    z = (count - 10_000 * by_hand) / np.sqrt(10_000 * by_hand * (1 - by_hand))
    assert np.abs(z).max() < 3.0
    assert index.effective_number() == pytest.approx(1 / (by_hand**2).sum())


@pytest.mark.long
def test_sources_are_mixed_within_a_batch():
    # One of four rows is of b: each of the four places should have it equally often, and one half of the batch,
    # such as a mini-batch, is not of one source.
    index = QuotaIndex(np.ones(20), PromptSources.of("aaab" * 5), {"a": 3, "b": 1})
    rng, mixing = np.random.default_rng(5), np.random.default_rng(6)
    place = np.zeros(4)
    for _ in range(4000):
        place += index.draw(4, rng, mixing)[0] % 4 == 3
    assert place.sum() == 4000
    assert np.abs(place - 1000).max() < 3 * np.sqrt(4000 * 3 / 16)


@pytest.mark.long
def test_within_a_source_the_order_is_mixed_too():
    # A heavy slot comes first in successive sampling; the batch must not tell, or the first mini-batch would have
    # all heavy ones. Slot 0 is in every batch of 2 and comes first in half of them.
    index = QuotaIndex(np.array([1e9, 1.0, 1.0]), PromptSources.of("aaa"), {"a": 1})
    rng, mixing = np.random.default_rng(7), np.random.default_rng(8)
    first = sum(index.draw(2, rng, mixing)[0][0] == 0 for _ in range(2000))
    assert abs(first - 1000) < 3 * np.sqrt(500)


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_draws_follow_the_evidence_as_it_changes(gamma):
    tracker = make(40, gamma=gamma, epsilon=0.01)
    source_P = sources(40).source_P
    share_Q = np.array([0.3, 0.2, 0.5])
    for version in range(25):
        train_step(tracker, version, 8)
        weight_P = core.sampling_weights(*tracker.evidence(), gamma=gamma, epsilon=0.01)
        by_hand = share_Q[source_P] * weight_P / np.bincount(source_P, weights=weight_P)[source_P]
        drawn = tracker.draw(8)
        np.testing.assert_allclose(drawn.share_B, by_hand[drawn.slot_B], rtol=1e-12)
        assert tracker.metrics()["effective_prompts"] == pytest.approx(1 / (by_hand**2).sum())
    assert by_hand.sum() == pytest.approx(1.0)


def test_uniform_mode_is_uniform_within_each_source():
    tracker = make(sampling_mode="uniform")
    observe_one(tracker, "a", 0, 0, 1.0)
    tracker.settle(["a"])
    drawn = tracker.draw(10)
    code, logic, math = sources(60).prompts_Q
    expected = np.array([0.3 / code, 0.2 / logic, 0.5 / math])[sources(60).source_P[drawn.slot_B]]
    np.testing.assert_allclose(drawn.share_B, expected)


def test_metrics_of_sources_by_hand(monkeypatch):
    monkeypatch.setattr("spo_verl.tracker.prompt_statistics.SCAN_ROWS", 3)
    alpha_P, beta_P = np.array([3.0, 1.0, 0.0, 2.0, 1.0]), np.array([1.0, 1.0, 4.0, 2.0, 3.0])
    settings = TrackerSettings(quota={"org/a.b": 1, "c": 1})
    of = PromptSources.of(["org/a.b", "c", "c", "org/a.b", "c"])
    tracker = Tracker.create(keys(5), settings, alpha_P=alpha_P, beta_P=beta_P, sources=of)
    metrics = tracker.metrics()
    # values 3/4, 1/2, 0, 1/2, 1/4
    assert metrics["source/org/a.b/value_mean"] == 1.25 / 2
    assert metrics["source/c/value_mean"] == 0.75 / 3
    assert all(type(value) is float for value in metrics.values())


# ---------------------------------------------------------------------- restarts


@pytest.mark.parametrize("mode", ["prioritized", "uniform"])
def test_continues_bit_for_bit(tmp_path, mode):
    settings = TrackerSettings(quota=QUOTA, sampling_mode=mode, gamma=0.7, seed=11)
    steady = Tracker.create(keys(60), settings, sources=sources(60))
    for version in range(25):
        train_step(steady, version, 9)
    resumed, report = Tracker.load(saved(steady, tmp_path / "spo"), keys(60), settings, sources=sources(60))
    assert report.digest == resumed.digest() == steady.digest()
    assert report.settings_changed == {}
    for version in range(25, 50):
        assert train_step(steady, version, 9).tolist() == train_step(resumed, version, 9).tolist()
    assert resumed.digest() == steady.digest()
    numbers = [{k: v for k, v in tracker.metrics().items() if k != "memory_bytes"} for tracker in (steady, resumed)]
    assert numbers[0] == numbers[1]


def test_the_quota_stands_in_the_manifest(tmp_path):
    folder = saved(make(), tmp_path / "spo")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["settings"]["quota"] == QUOTA
    assert set(manifest["random"]) == {"draw", "quota"}


def old_format(folder):
    """A checkpoint as the version before quotas wrote it: without the setting and without its generator."""
    settings = json.loads((folder / MANIFEST).read_text())["settings"]
    assert settings.pop("quota") is None
    rewrite_manifest(folder, settings=settings)
    return folder


def test_a_checkpoint_from_before_quotas_goes_on(tmp_path):
    settings = TrackerSettings(seed=11)
    steady = Tracker.create(keys(60), settings)
    for version in range(10):
        train_step(steady, version, 9)
    folder = old_format(saved(steady, tmp_path / "spo"))

    resumed, report = Tracker.load(folder, keys(60), settings)
    assert report.digest == resumed.digest() == steady.digest()
    assert report.settings_changed == {}

    with_quota = TrackerSettings(seed=11, quota=QUOTA)
    quoted, report = Tracker.load(folder, keys(60), with_quota, sources=sources(60))
    again, _ = Tracker.load(folder, keys(60), with_quota, sources=sources(60))
    assert report.settings_changed == {"quota": (None, QUOTA)}
    np.testing.assert_array_equal(quoted.evidence(), steady.evidence())
    assert quoted.snapshot().random["draw"] == steady.snapshot().random["draw"]
    for version in range(10, 20):
        drawn = [train_step(tracker, version, 10).tolist() for tracker in (quoted, again)]
        assert drawn[0] == drawn[1]
        assert np.bincount(sources(60).source_P[drawn[0]]).tolist() == [3, 2, 5]
        assert train_step(resumed, version, 9).tolist() == train_step(steady, version, 9).tolist()


def test_other_missing_or_unknown_names_are_still_refused(tmp_path):
    folder = saved(make(), tmp_path / "spo")
    manifest = json.loads((folder / MANIFEST).read_text())
    for section, without in (("settings", "gamma"), ("random", "draw")):
        rewrite_manifest(folder, **{section: {k: v for k, v in manifest[section].items() if k != without}})
        with pytest.raises(SpoCheckpointVersionError, match=f"differ in {without}"):
            Tracker.load(folder, keys(60), TrackerSettings(quota=QUOTA), sources=sources(60))
        rewrite_manifest(folder, **{section: manifest[section]})
    rewrite_manifest(folder, random=manifest["random"] | {"weather": {}})
    with pytest.raises(SpoCheckpointVersionError, match="differ in weather"):
        Tracker.load(folder, keys(60), TrackerSettings(quota=QUOTA), sources=sources(60))


def test_another_quota_and_none_keep_evidence_and_generators(tmp_path):
    tracker = make()
    for version in range(6):
        train_step(tracker, version, 9)
    folder = saved(tracker, tmp_path / "spo")
    other = {"math": 1, "code": 1, "logic": 1}
    changed, report = Tracker.load(folder, keys(60), TrackerSettings(quota=other), sources=sources(60))
    assert report.settings_changed == {"quota": (QUOTA, other)}
    assert "quota was" in str(report)
    assert changed.digest() == tracker.digest()
    assert np.bincount(sources(60).source_P[changed.draw(9).slot_B]).tolist() == [3, 3, 3]

    # Without quotas and saved again, the generator of quotas waits where it was.
    plain, _ = Tracker.load(folder, keys(60), TrackerSettings())
    train_step(plain, 6, 9)
    back, _ = Tracker.load(
        saved(plain, tmp_path / "plain"), keys(60), TrackerSettings(quota=QUOTA), sources=sources(60)
    )
    assert back.snapshot().random["quota"] == tracker.snapshot().random["quota"]
    assert back.snapshot().random["draw"] == plain.snapshot().random["draw"]

    reseeded, _ = Tracker.load(folder, keys(60), TrackerSettings(quota=QUOTA, seed=5), sources=sources(60))
    assert reseeded.snapshot().random == make(seed=5).snapshot().random


def test_a_reordered_and_extended_dataset(tmp_path):
    before = make(40)
    for version in range(8):
        train_step(before, version, 9)
    prompts = [100, *range(39, -1, -1), 101]
    after, report = Tracker.load(
        saved(before, tmp_path / "spo"), keys(prompts), TrackerSettings(quota=QUOTA), sources=sources(prompts)
    )
    assert (report.matched, report.new) == (40, 2)
    assert after.evidence()[0][1:41].tolist() == before.evidence()[0][::-1].tolist()
    for version in range(8, 12):
        slot_B = train_step(after, version, 10)
        assert np.bincount(sources(prompts).source_P[slot_B]).tolist() == [3, 2, 5]


def test_an_outcome_of_a_prompt_that_the_dataset_lost_reaches_no_source(tmp_path):
    before = make(40)
    before.dispatch(["held"], [39], 0)
    fewer = list(range(30))
    after, _ = Tracker.load(
        saved(before, tmp_path / "spo"), keys(fewer), TrackerSettings(quota=QUOTA), sources=sources(fewer)
    )
    twin = copy.deepcopy(after)
    after.observe(["held"], [0], [1.0], [np.nan])
    assert after.draw(10).slot_B.tolist() == twin.draw(10).slot_B.tolist()


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("quota", "words"),
    [
        ({**QUOTA, "cod": 1}, "names 'cod', but no prompt .* did you mean 'code'"),
        ({"math": 1, "code": 1}, r"says nothing about 'logic' \(6 prompts\)"),
        ({"algebra": 1, **QUOTA}, r"'code' \(15 prompts\), 'logic' \(6 prompts\), 'math' \(39 prompts\)"),
    ],
)
def test_quotas_that_do_not_fit_the_dataset(quota, words):
    with pytest.raises(SpoStateError, match=words):
        make(quota=quota)


def test_more_of_a_source_than_there_is_costs_no_random_numbers():
    # 0.2 of 31 is 6.2, so a batch may need 7 of logic, whatever the random number says; 0.2 of 30 is 6.
    tracker = make()
    before = tracker.digest()
    for _ in range(5):
        with pytest.raises(SpoStateError, match=r"'logic' 2 / 10 x 31 = 6.2 .* up to 7 .* data has 6; lower"):
            tracker.draw(31)
    assert tracker.digest() == before
    assert np.bincount(sources(60).source_P[tracker.draw(30).slot_B]).tolist() == [9, 6, 15]


def test_the_remedies_of_too_many_work():
    of = sources(60)
    [problem] = quota_problems({"math": 1, "code": 1, "logic": 2}, of, 30)
    assert "0.2 or less, or data.train_batch_size to 12 or less" in problem
    assert list(quota_problems({"math": 1, "code": 1, "logic": 2}, of, 12)) == []
    assert list(quota_problems({"math": 0.4, "code": 0.4, "logic": 0.2}, of, 30)) == []
    assert list(quota_problems({"math": 1, "code": 1, "logic": 2}, of, 13)) != []


def test_every_problem_is_told_and_long_lists_are_cut():
    many = PromptSources.of(f"source {number:02d}" for number in range(30))
    problems = list(quota_problems({"a": 1, "b": 1}, many, 4))
    assert len(problems) == 3
    assert "'source 19' (1 prompts) and 10 more" in problems[0]


def test_quotas_need_the_sources_of_all_prompts():
    settings = TrackerSettings(quota=QUOTA)
    with pytest.raises(SpoStateError, match="pass sources"):
        Tracker.create(keys(60), settings)
    with pytest.raises(SpoStateError, match="59 prompts have a data source and there are 60"):
        Tracker.create(keys(60), settings, sources=sources(59))


@pytest.mark.parametrize(
    ("names", "source_P", "words"),
    [
        (("b", "a"), [0, 1], "sorted order"),
        (("a", "a"), [0, 1], "distinct"),
        ((), [], "one or more"),
        (("a", "b"), [0, 2], "from 0 to 1"),
        (("a", "b"), [-1, 0], "from 0 to 1"),
        (("a", "b"), [0.0, 1.0], "type float64"),
        (("a", "b"), [[0, 1]], r"shape \(1, 2\)"),
        (("a", "b"), [1, 1], "'a' has no prompt"),
    ],
)
def test_sources_are_checked(names, source_P, words):
    with pytest.raises(SpoStateError, match=words):
        PromptSources(names, np.array(source_P))


@pytest.mark.parametrize("quota", [{"a": 0.0}, {"a": -1}, {"a": float("nan")}, {"a": float("inf")}, {1: 1.0}])
def test_settings_refuse_parts_that_are_none(quota):
    with pytest.raises(SpoConfigError, match="quota="):
        TrackerSettings(quota=quota)


# ---------------------------------------------------------------------- form


def test_sources_are_small_sorted_and_travel():
    of = PromptSources.of(["b", "a", "b", "c"])
    assert (of.names, of.source_P.tolist(), of.source_P.dtype) == (("a", "b", "c"), [1, 0, 1, 2], np.uint8)
    assert of.prompts_Q.tolist() == [1, 2, 1]
    assert of.counts(np.array([0, 2, 3])).tolist() == [0, 2, 1]
    many = PromptSources.of(str(number) for number in range(300))
    assert many.source_P.dtype == np.uint16
    again = pickle.loads(pickle.dumps(of))
    assert (again.names, again.source_P.tolist()) == (of.names, of.source_P.tolist())


def test_settings_with_quotas_are_values():
    one, other = TrackerSettings(quota={"a": 1}), TrackerSettings(quota={"a": 2})
    assert len({one, other, TrackerSettings()}) == 3
    assert TrackerSettings(quota={}) == TrackerSettings()
    assert TrackerSettings(**one.as_json()) == one


def test_through_the_host_of_the_service(tmp_path):
    host, plain = TrackerHost(), make()
    host.create(keys(60), TrackerSettings(quota=QUOTA), sources=sources(60))
    for _ in range(4):
        assert host.call("draw", 9).slot_B.tolist() == plain.draw(9).slot_B.tolist()
    again = TrackerHost()
    again.load(saved(plain, tmp_path / "spo"), keys(60), TrackerSettings(quota=QUOTA), sources=sources(60))
    assert again.call("draw", 9).slot_B.tolist() == plain.draw(9).slot_B.tolist()


def _naive_updates(rng, size):
    for _ in range(6):
        slots = rng.permutation(size)[: rng.integers(0, size + 1)]
        yield slots, rng.random(slots.size) * 10.0 ** rng.integers(-9, 9, slots.size)


@pytest.mark.parametrize("size", [3, 70, 300])
def test_updated_equals_rebuilt(size):
    rng = np.random.default_rng(size)
    of = PromptSources.of(["abc"[n % 3] if n < 3 else rng.choice(list("abc")) for n in range(size)])
    weight_P = rng.random(size)
    updated = QuotaIndex(weight_P, of, {"a": 1, "b": 1, "c": 1})
    for slot_B, weight_B in _naive_updates(rng, size):
        updated.update(slot_B, weight_B)
        weight_P[slot_B] = weight_B
    rebuilt = QuotaIndex(weight_P, of, {"a": 1, "b": 1, "c": 1})
    for seed in range(5):
        draws = [
            index.draw(3, np.random.default_rng(seed), np.random.default_rng(seed)) for index in (updated, rebuilt)
        ]
        for one, other in zip(*draws, strict=True):
            np.testing.assert_array_equal(one, other)
