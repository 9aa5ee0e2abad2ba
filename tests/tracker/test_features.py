"""Features of the user's in the calibrated read-out: what they are, what they change, and that a restart has them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from spo_verl import core
from spo_verl.errors import SpoCheckpointDamagedError, SpoCheckpointVersionError, SpoStateError
from spo_verl.tracker import PromptFeatures, PromptSources, Tracker, TrackerSettings
from spo_verl.tracker.checkpoint.folder import MANIFEST
from spo_verl.tracker.checkpoint.schema import OUTCOMES

from .helpers import keys, rewrite_manifest

SETTINGS = {
    mode: TrackerSettings(readout="calibrated", forgetting_mode=mode, rho=0.9, references=(), gamma=0.5)
    for mode in ("constant", "version")
}
PROMPTS = 40


def features_of(numbers, names=("length", "level")):
    """Two features of prompts with these numbers; both columns are standardised over the first forty."""
    number_PF = np.array([[number % 7, number % 3] for number in range(PROMPTS)], dtype=float)
    whole = PromptFeatures.standardised(("length", "level"), number_PF)
    chosen = [whole.names.index(name) for name in names]
    feature_PF = whole.feature_PF[[number % PROMPTS for number in numbers]][:, chosen]
    return PromptFeatures(names, feature_PF, tuple(whole.scales[number] for number in chosen))


def sources_of(numbers):
    return PromptSources.of(["math" if number % 2 else "code" for number in numbers])


def made(mode="constant", features=None):
    given = features_of(range(PROMPTS)) if features is None else features
    return Tracker.create(keys(PROMPTS), SETTINGS[mode], sources=sources_of(range(PROMPTS)), features=given)


def step(tracker, version, size=8):
    """Prompts succeed where their level is high: of what the tracker knows only the feature says so at once."""
    drawn = tracker.draw(size, version).slot_B
    uids = [f"{version}.{number}" for number in range(size)]
    frozen = tracker.dispatch(uids, drawn, version)
    rewards = (drawn % 3 == 2).astype(float)
    tracker.finish_step(uids, [0] * size, rewards, None, settle_uids=uids)
    return drawn.tolist(), frozen.value_B.tolist(), rewards


def trained(mode="constant", features=None, steps=12):
    tracker = made(mode, features)
    for version in range(steps):
        step(tracker, version)
    tracker.dispatch(["open"], [5], 12)
    return tracker


def test_coefficients_are_those_of_the_fit_and_the_value_is_read_with_them():
    tracker = made()
    rows, rewards, shown = [], [], features_of(range(PROMPTS)).feature_PF.astype(np.float64)
    coefficient_F = np.array([1.0, 0, 0, 0, 0, 0, 0, 0])
    newest = np.zeros(PROMPTS)
    for version in range(12):
        alpha_P, beta_P = tracker.evidence()
        before = alpha_P / (alpha_P + beta_P), alpha_P + beta_P, version - newest
        drawn, frozen, reward_B = step(tracker, version)
        source_B = np.array([slot % 2 for slot in drawn])
        row = core.calibration_features(
            *(column[drawn] for column in before), source_B, sources=2, extra_BF=shown[drawn]
        )
        np.testing.assert_allclose(frozen, core.calibrated_value(row, coefficient_F), rtol=1e-12)
        newest[drawn] = version
        rows.append(row)
        rewards.append(reward_B)
        coefficient_F = core.fit_calibration(np.concatenate(rows), np.concatenate(rewards))
        np.testing.assert_allclose(tracker.snapshot().calibration.coefficient_F, coefficient_F, rtol=1e-9)
    assert coefficient_F[-1] > 1.0  # the level says most
    assert abs(coefficient_F[-2]) < coefficient_F[-1] / 2


def test_prompts_that_were_never_visited_are_told_apart():
    found = trained(steps=3)
    unseen = [slot for slot in range(PROMPTS) if found.evidence()[0][slot] == found.evidence()[1][slot] == 0.5]
    level_P = np.arange(PROMPTS) % 3
    high, low = (found.values()[[slot for slot in unseen if (level_P[slot] == 2) == of]] for of in (True, False))
    assert high.size
    assert low.size
    assert high.min() > low.max() + 0.2


@pytest.mark.parametrize("mode", sorted(SETTINGS))
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, mode):
    steady = trained(mode)
    written = steady.snapshot().write(tmp_path / "spo", step=12)
    given = {"sources": sources_of(range(PROMPTS)), "features": features_of(range(PROMPTS))}
    resumed, report = Tracker.load(tmp_path / "spo", keys(PROMPTS), steady.settings, **given, version=12)
    assert report.digest == written.digest == steady.digest() == resumed.digest()
    assert resumed.values().tobytes() == steady.values().tobytes()
    for version in range(13, 20):
        (*ours, _), (*theirs, _) = step(steady, version), step(resumed, version)
        assert ours == theirs
    assert resumed.digest() == steady.digest()


def test_features_are_in_the_digest():
    one = trained().snapshot().calibration
    whole = features_of(range(PROMPTS))
    other = trained(features=PromptFeatures(("length", "depth"), whole.feature_PF, whole.scales))
    assert one.coefficient_F.tolist() == other.snapshot().calibration.coefficient_F.tolist()
    assert other.digest() != trained().digest()
    snapshot = trained().snapshot()
    changed = snapshot.calibration.extra_NF.copy()
    changed[3, 1] += 1
    altered = replace(snapshot, calibration=replace(snapshot.calibration, extra_NF=changed))
    assert altered.digest != snapshot.digest
    without = Tracker.create(keys(PROMPTS), SETTINGS["constant"], sources=sources_of(range(PROMPTS)))
    assert "features" not in without.snapshot().calibration.as_json()


def test_another_dataset_and_other_features_keep_coefficients_by_name(tmp_path):
    tracker = trained()
    before = tracker.snapshot().calibration
    tracker.snapshot().write(tmp_path / "spo", step=12)
    # Without prompt 5, whose rollout is open; "level" stays, "length" goes, "width" is new.
    numbers = [number for number in reversed(range(PROMPTS)) if number != 5]
    kept = features_of(numbers, ("level",))
    width = np.resize([1.0, -1.0], (len(numbers), 1))
    both = np.concatenate([width, kept.feature_PF], axis=1)
    features = PromptFeatures(("width", "level"), both, ((0.0, 1.0), *kept.scales))
    resumed, report = Tracker.load(
        tmp_path / "spo", keys(numbers), tracker.settings, sources=sources_of(numbers), features=features, version=12
    )
    assert report.settings_changed == {"features": (("length", "level"), ("width", "level"))}
    after = resumed.snapshot().calibration
    assert after.features == ("width", "level")
    assert after.coefficient_F.tolist() == [*before.coefficient_F[:6].tolist(), 0.0, before.coefficient_F[7]]
    np.testing.assert_array_equal(after.extra_NF, np.stack([0 * before.reward_N, before.extra_NF[:, 1]], axis=1))
    # The prompt that is kept aside is read with the means of all, 0, and without an indicator of its source.
    alpha_P, beta_P = tracker.evidence([5])
    age = 13 - max(int(tracker.snapshot().table.version_P[5]), 0)
    row = core.calibration_features(
        alpha_P / (alpha_P + beta_P), alpha_P + beta_P, [age], [-1], sources=2, extra_BF=np.zeros((1, 2))
    )
    expected = core.calibrated_value(row, after.coefficient_F)
    np.testing.assert_allclose(resumed.redispatch(["open"], 13).value_B, expected, rtol=1e-9)
    resumed.snapshot().write(tmp_path / "again")
    given = {"sources": sources_of(numbers), "features": features}
    assert Tracker.load(tmp_path / "again", keys(numbers), tracker.settings, **given)[0].digest() == resumed.digest()

    without, _ = Tracker.load(
        tmp_path / "spo", keys(PROMPTS), tracker.settings, sources=sources_of(range(PROMPTS)), version=12
    )
    assert without.snapshot().calibration.coefficient_F.tolist() == before.coefficient_F[:6].tolist()


def test_a_checkpoint_s_features_are_verified(tmp_path):
    tracker = trained()
    tracker.snapshot().write(tmp_path / "spo")
    saved = json.loads((tmp_path / "spo" / MANIFEST).read_text())["readout"]
    assert [one[0] for one in saved["features"]] == ["length", "level"]
    length, level = saved["features"]
    given = {"sources": sources_of(range(PROMPTS)), "features": features_of(range(PROMPTS))}
    flat, no_name = ["level", 1.0, 0.0], [1, 1.0, 1.0]
    doubled = [*level[:2], level[2] * 2]
    wrong_second = [[length, other] for other in (length, flat, no_name, level[:2], doubled)]
    for wrong in ([], [length], *wrong_second, [level, length], "length", None):
        rewrite_manifest(tmp_path / "spo", readout=saved | {"features": wrong})
        with pytest.raises(SpoCheckpointDamagedError):
            Tracker.load(tmp_path / "spo", keys(PROMPTS), tracker.settings, **given)
    rewrite_manifest(tmp_path / "spo", readout=saved | {"feature": ["length"]})
    with pytest.raises(SpoCheckpointVersionError, match="feature"):
        Tracker.load(tmp_path / "spo", keys(PROMPTS), tracker.settings, **given)
    rewrite_manifest(tmp_path / "spo", readout=saved)
    (tmp_path / "spo" / OUTCOMES).write_bytes(b"")
    with pytest.raises(SpoCheckpointDamagedError, match=OUTCOMES):
        Tracker.load(tmp_path / "spo", keys(PROMPTS), tracker.settings, **given)


# ---------------------------------------------------------------------- the numbers


def test_each_is_standardised_over_the_prompts():
    number_PF = np.array([[3.0, -1e300], [5.0, 1e300], [10.0, 0.0]])
    found = PromptFeatures.standardised(("a", "b"), number_PF)
    assert found.feature_PF.dtype == np.float32
    np.testing.assert_allclose(found.feature_PF.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.feature_PF.std(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(found.feature_PF[:, 0], np.array([-3.0, -1.0, 4.0]) / np.sqrt(26 / 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "numbers", "words"),
    [
        (("a",), [[0.1], [0.1], [0.1]], "'a' is the same for all prompts"),
        (("a",), [[0.0], [0.0]], "'a' is the same for all prompts"),
        (("a",), [[1.0], [np.nan]], "'a' of slot"),
        (("a",), [[1.0], [np.inf]], "'a' of slot"),
        (("a", "a"), [[1.0, 2.0], [2.0, 3.0]], "each different"),
        ((), np.zeros((2, 0)), "pass one to 100"),
        (tuple(map(str, range(101))), np.random.default_rng(0).normal(size=(2, 101)), "pass one to 100"),
        (("a", "b"), [[1.0], [2.0]], "a column for each name"),
        (("a",), [1.0, 2.0], "must be"),
        (("a",), [], "must be"),
        ((1,), [[1.0], [2.0]], "pass a tuple of strings"),
        (([],), [[1.0], [2.0]], "pass a tuple of strings"),
        ("ab", [[1.0, 2.0], [2.0, 3.0]], "pass a tuple of strings"),
        (None, [[1.0], [2.0]], "pass a tuple of strings"),
        (("a",), [["1"], ["2"]], "it must be numbers"),
        (("a",), [[1j], [2j]], "it must be numbers"),
        (("a",), {"a": 1}, "it must be numbers"),
        (("a",), [[1.0], [2.0, 3.0]], "cannot be read as an array of numbers"),
        (("a",), [[10**400], [1]], "it must be numbers"),
        (("a",), np.ma.masked_array([[1.0], [2.0]], [[True], [False]]), "masked"),
        (("a",), np.array([["2020"], ["2021"]], dtype="datetime64[Y]"), "it must be numbers"),
    ],
)
def test_what_is_no_feature_is_refused(names, numbers, words):
    with np.errstate(invalid="ignore"), pytest.raises(SpoStateError, match=words):
        PromptFeatures.standardised(names, numbers)


def test_features_must_be_those_of_the_prompts():
    for features, words in (
        (features_of(range(5)), "of 5 slots"),
        ("length", "'length'"),
        (np.zeros((40, 1)), "array"),
    ):
        with pytest.raises(
            SpoStateError, match=f"(?s)features are .*{words}.*40 prompts; pass PromptFeatures of every"
        ):
            made(features=features)
    with pytest.raises(SpoStateError, match="column for each name"):
        PromptFeatures(("a",), np.array([["x"], ["y"]]), ((0.0, 1.0),))
    with pytest.raises(SpoStateError, match="finite numbers of 32 bits"):
        PromptFeatures(("a",), np.array([[1e300], [0.0]]), ((0.0, 1.0),))
    for scales in ((), ((0.0, 0.0),), ((0.0, float("nan")),), ((0.0,),)):
        with pytest.raises(SpoStateError, match="scales are"):
            PromptFeatures(("a",), np.array([[1.0], [0.0]]), scales)


def test_a_larger_dataset_does_not_move_what_is_known(tmp_path):
    """A resume standardises with the mean and deviation that the coefficients and outcomes were made with."""
    tracker = trained()
    tracker.snapshot().write(tmp_path / "spo", step=12)
    numbers = [*range(PROMPTS), *range(100, 140)]
    more = np.array([[number % 7, 30.0 if number >= 100 else number % 3] for number in numbers])
    features = PromptFeatures.standardised(("length", "level"), more)
    assert abs(features.scales[1][0] - tracker.snapshot().calibration.scales[1][0]) > 10
    resumed, report = Tracker.load(
        tmp_path / "spo", keys(numbers), tracker.settings, sources=sources_of(numbers), features=features, version=12
    )
    assert report.settings_changed == {}
    np.testing.assert_allclose(resumed.values()[:PROMPTS], tracker.values(), atol=1e-5)
    assert resumed.snapshot().calibration.scales == tracker.snapshot().calibration.scales
    resumed.snapshot().write(tmp_path / "again", step=12)
    given = {"sources": sources_of(numbers), "features": features}
    again, _ = Tracker.load(tmp_path / "again", keys(numbers), tracker.settings, **given, version=12)
    assert again.values().tobytes() == resumed.values().tobytes()
    assert again.digest() == resumed.digest()
