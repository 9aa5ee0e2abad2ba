"""A checkpoint meets a dataset that was reordered, extended, shrunk, or has its prompts back."""

import numpy as np
import pytest

from spo_verl.errors import SpoDatasetMismatchError
from spo_verl.tracker import Tracker, TrackerSettings
from spo_verl.tracker.table import as_keys, match_keys

from .helpers import folder_bytes, keys, train_step

SETTINGS = TrackerSettings()


@pytest.fixture
def saved(tmp_path):
    """A trained tracker of prompts 0 to 19, with an open rollout of prompt 4, and its folder."""
    tracker = Tracker.create(keys(20), SETTINGS)
    for version in range(12):
        train_step(tracker, version, 6)
    tracker.dispatch(["held"], [4], 12)
    tracker.snapshot().write(tmp_path / "spo", step=12)
    return tracker, tmp_path / "spo"


def known_about(tracker: Tracker, slot: int) -> tuple:
    """All that is known of a prompt."""
    table, uid = tracker._table, f"look-{slot}"
    stored = tracker._memory.recall(np.array([slot]))
    columns = tuple(column[slot].item() for _, column in table.columns())
    response = (stored.token_N.tolist(), stored.mask_N.tolist(), stored.log_prob["acting"].tolist())
    return uid, columns, response, stored.prompt_hash_B.tolist()


def assert_kept(before: Tracker, after: Tracker, prompts_before: list[int], prompts_after: list[int]) -> None:
    """Every prompt in both datasets is known as before, and draws go by it."""
    for slot, prompt in enumerate(prompts_after):
        if prompt in prompts_before:
            assert known_about(before, prompts_before.index(prompt))[1:] == known_about(after, slot)[1:], prompt
    parts = (after._table, after._memory, after._ledger, after.counters, after._drawing.generators)
    fresh = Tracker(after.settings, *parts)
    np.testing.assert_array_equal(after._drawing.index(0).weight_P, fresh._drawing.index(0).weight_P)


def load(folder, prompts: list[int], **evidence) -> tuple[Tracker, tuple[int, ...]]:
    tracker, report = Tracker.load(folder, keys(prompts), SETTINGS, **evidence)
    return tracker, (report.matched, report.new, report.vanished, report.returned, report.aside)


def test_reordered(saved):
    before, folder = saved
    prompts = np.random.default_rng(0).permutation(20).tolist()
    after, counts = load(folder, prompts)
    assert counts == (20, 0, 0, 0, 0)
    assert_kept(before, after, list(range(20)), prompts)
    assert after.recall(["held"]).frozen.slot_B.tolist() == [prompts.index(4)]
    assert after.counters == before.counters
    assert after.metrics()["coverage"] == before.metrics()["coverage"]


def test_extended_prompts_start_with_the_evidence_given(saved):
    before, folder = saved
    prompts = [100, *range(20), 101]
    after, counts = load(folder, prompts, alpha_P=np.full(22, 3.0), beta_P=np.full(22, 5.0))
    assert counts == (20, 2, 0, 0, 0)
    assert_kept(before, after, list(range(20)), prompts)
    assert after.evidence([0, 21])[0].tolist() == [3.0, 3.0]
    assert after.evidence([0, 21])[1].tolist() == [5.0, 5.0]
    assert after._table.draws_P[[0, 21]].tolist() == [0, 0]
    assert after.size == 22
    after.settle(["held"])  # until then its prompt is in flight and cannot be drawn
    assert sorted(after.draw(22).slot_B.tolist()) == list(range(22))


def test_extended_without_evidence_is_jeffreys(saved):
    after, _ = load(saved[1], [*range(20), 100])
    assert (after.evidence([20])[0][0], after.evidence([20])[1][0]) == (0.5, 0.5)


def test_shrunk_keeps_aside_and_gives_back(saved, tmp_path):
    before, folder = saved
    some = [7, 3, 15]
    shrunk, counts = load(folder, some)
    assert counts == (3, 0, 17, 0, 17)
    assert_kept(before, shrunk, list(range(20)), some)
    assert shrunk.size == 3
    assert sorted(shrunk.draw(3).slot_B.tolist()) == [0, 1, 2]
    assert shrunk.metrics()["prompts_aside"] == 17
    assert len(shrunk.values()) == 3

    # The rollout of prompt 4, which is kept aside, still ends well: its outcome counts for prompt 4.
    alpha_before = before._table.alpha_P[4]
    report = shrunk.observe(["held"], [0], [1.0], [np.nan])
    shrunk.settle(["held"])
    for version in range(20, 25):
        train_step(shrunk, version, 3)

    # Saved again, kept aside again: nothing vanishes twice.
    shrunk.snapshot().write(tmp_path / "again", step=25)
    same, counts = load(tmp_path / "again", some)
    assert counts == (3, 0, 0, 0, 17)
    assert same.digest() == shrunk.digest()

    # And back, in another order and with one prompt more: 16 of the 17 return, prompt 19 stays aside.
    prompts = [200, *range(18, -1, -1)]
    grown, counts = load(tmp_path / "again", prompts)
    assert counts == (19, 1, 0, 16, 1)
    for slot, prompt in enumerate(prompts[1:], 1):
        source, at = (shrunk, some.index(prompt)) if prompt in some else (before, prompt)
        if prompt != 4:
            assert known_about(source, at)[1:] == known_about(grown, slot)[1:], prompt
    assert grown._table.alpha_P[prompts.index(4)] == report.rho_B[0] * alpha_before + 1.0


def test_no_prompt_in_common_is_an_error_that_touches_nothing(saved):
    _, folder = saved
    before = folder_bytes(folder)
    with pytest.raises(SpoDatasetMismatchError, match=r"none of its 20 prompts is among the 5.*data\.train_files"):
        load(folder, list(range(50, 55)))
    assert folder_bytes(folder) == before


def test_only_prompts_kept_aside_in_common_is_no_mismatch(saved, tmp_path):
    shrunk, _ = load(saved[1], [0, 1])
    shrunk.snapshot().write(tmp_path / "again")
    _, counts = load(tmp_path / "again", [5, 60])
    assert counts == (1, 1, 2, 1, 19)


def test_matching_of_keys_against_a_dictionary():
    rng = np.random.default_rng(1)
    for _ in range(30):
        # Keys of few distinct bytes, so that first halves collide and order is not insertion order.
        pool = np.unique(rng.integers(0, 2, (60, 16)).astype(np.uint8), axis=0)
        rng.shuffle(pool)
        saved, wanted = pool[: rng.integers(1, 40)], pool[rng.permutation(len(pool))[:25]]
        row_of = {row.tobytes(): number for number, row in enumerate(saved)}
        expected = [row_of.get(row.tobytes(), -1) for row in wanted]
        assert match_keys(as_keys(saved), as_keys(wanted)).tolist() == expected
    assert match_keys(keys(5), keys(3)).tolist() == [0, 1, 2]
