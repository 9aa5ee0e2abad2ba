"""Stored responses: exact round trips, packed masks, half precision, replacement, compaction, snapshots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.errors import SpoStateError
from spo_verl.tracker import StoredResponses, Tracker, TrackerSettings, memory
from spo_verl.tracker.memory import ResponseMemory

from .helpers import keys, observe_one, responses, train_step


def rows_of(stored: StoredResponses) -> dict[int, tuple]:
    """The responses by ``row_B``, as plain values."""
    return {
        int(row): (
            stored.token_N[a:b].tolist(),
            stored.mask_N[a:b].tolist(),
            {name: column[a:b].tolist() for name, column in stored.log_prob.items()},
            int(stored.prompt_hash_B[entry]),
        )
        for entry, (row, a, b) in enumerate(zip(stored.row_B, stored.offset_B, stored.offset_B[1:], strict=False))
    }


def test_round_trip_is_exact():
    store = ResponseMemory(10, ("acting", "updated"))
    given_ = responses([5, 1, 8, 9, 17, 64], references=("acting", "updated"))
    slots = np.array([3, 9, 0, 4, 7, 1])
    store.remember(slots, given_)
    assert rows_of(store.recall(slots)) == rows_of(given_)
    # asked for in another order, with slots that have none (2) and one that is asked for twice (9)
    recalled = rows_of(store.recall(np.array([9, 2, 3, 9])))
    expected = rows_of(given_)
    assert recalled == {0: expected[1], 2: expected[0], 3: expected[1]}
    assert store.recall(np.array([2, 5])).row_B.tolist() == []


def test_types_and_half_precision():
    store = ResponseMemory(1, ("acting",))
    store.remember(
        np.array([0]),
        StoredResponses.from_rows(
            tokens=[np.array([1, 2**31 - 1, 3], dtype=np.int64)],
            masks=[np.array([1, 0, 1])],
            log_prob={"acting": [np.array([-0.1, -np.inf, -11.37], dtype=np.float32)]},
            prompt_hash_B=np.array([2**64 - 1], dtype=np.uint64),
        ),
    )
    stored = store.recall(np.array([0]))
    assert stored.token_N.dtype == np.int32
    assert stored.token_N.tolist() == [1, 2**31 - 1, 3]
    assert stored.mask_N.tolist() == [True, False, True]
    assert stored.log_prob["acting"].dtype == np.float16
    # nearest halves: 0.1 = 1638.4 / 2^14 -> 1638 / 2^14; 11.37 = 1455.36 / 2^7 -> 1455 / 2^7
    assert stored.log_prob["acting"].tolist() == [-1638 / 2**14, -np.inf, -1455 / 2**7]
    assert stored.prompt_hash_B.tolist() == [2**64 - 1]


def test_masks_take_one_bit_per_token():
    store = ResponseMemory(2, ("acting",))
    store.remember(np.array([0, 1]), responses([9, 16]))
    # 9 and 16 tokens take two groups of eight each: 4 bytes of mask, 32 tokens of 4 + 2 bytes,
    # and 20 bytes of columns for each of two slots.
    assert store.nbytes == 4 + 32 * 6 + 2 * 20


def test_prefix_of_max_tokens_is_kept():
    store = ResponseMemory(3, ("acting",), max_tokens=6)
    given_ = responses([10, 4, 6])
    store.remember(np.array([0, 1, 2]), given_)
    recalled, whole = rows_of(store.recall(np.arange(3))), rows_of(given_)
    tokens, mask, log_prob, prompt_hash = whole[0]
    assert recalled[0] == (tokens[:6], mask[:6], {"acting": log_prob["acting"][:6]}, prompt_hash)
    assert (recalled[1], recalled[2]) == (whole[1], whole[2])


def test_last_of_several_stays_and_an_empty_one_forgets():
    store = ResponseMemory(3, ("acting",))
    given_ = responses([4, 5, 6])
    store.remember(np.array([2, 0, 2]), given_)
    assert rows_of(store.recall(np.array([2]))) == {0: rows_of(given_)[2]}
    assert store.entries == 2
    store.remember(np.array([2]), responses([0]))
    assert len(store.recall(np.array([2]))) == 0
    assert store.entries == 1


def test_without_references_nothing_is_stored():
    store = ResponseMemory(3, ())
    store.remember(np.array([0]), responses([4]))
    assert (store.entries, store.nbytes) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_replacements_with_compaction_keep_the_contents(data):
    """The arrays shrink when more than half is garbage; what is stored never changes by it."""
    slots, plain = 6, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "COMPACT_ABOVE_TOKENS", 64)
        patch.setattr(memory, "CHUNK_TOKENS", data.draw(st.integers(1, 60)))
        store = ResponseMemory(slots, ("acting",))
        for step in range(data.draw(st.integers(1, 25))):
            chosen = data.draw(st.lists(st.integers(0, slots - 1), min_size=1, max_size=4))
            lengths = data.draw(st.lists(st.integers(0, 40), min_size=len(chosen), max_size=len(chosen)))
            given_ = responses(lengths, seed=step)
            store.remember(np.array(chosen), given_)
            plain |= {slot: rows_of(given_)[row] for row, slot in enumerate(chosen)}
            live = sum((len(entry[0]) + 7) // 8 * 8 for entry in plain.values())
            stored_tokens = (store.nbytes - 20 * store.entries) * 8 // 49  # 49 bytes per group of eight tokens
            assert stored_tokens <= max(2 * live, 64)
    expected = {slot: entry for slot, entry in plain.items() if entry[0]}
    assert rows_of(store.recall(np.arange(slots))) == expected
    assert store.entries == len(expected)


def test_snapshot_is_not_reached_by_what_follows(monkeypatch):
    monkeypatch.setattr(memory, "COMPACT_ABOVE_TOKENS", 64)
    tracker = Tracker.create(keys(12), TrackerSettings())
    for version in range(10):
        train_step(tracker, version, 5)
    tracker.dispatch(["open"], [0], 10)
    snapshot, digest = tracker.snapshot(), tracker.digest()
    for version in range(11, 60):
        train_step(tracker, version, 5)
    tracker.settle(["open"])
    assert tracker.digest() != digest
    assert snapshot.digest == digest  # worked out only now


def test_digest_does_not_depend_on_where_things_lie(monkeypatch):
    def history(compact_above: int) -> Tracker:
        monkeypatch.setattr(memory, "COMPACT_ABOVE_TOKENS", compact_above)
        tracker = Tracker.create(keys(12), TrackerSettings())
        for version in range(30):
            train_step(tracker, version, 5)
        return tracker

    often, never = history(64), history(1 << 40)
    assert often.metrics()["memory_bytes"] < never.metrics()["memory_bytes"]
    assert often.digest() == never.digest()


@pytest.mark.parametrize("what", ["evidence", "draw", "open", "session", "response", "mask"])
def test_digest_sees_every_part(what):
    def make() -> Tracker:
        tracker = Tracker.create(keys(4), TrackerSettings())
        tracker.dispatch(["a", "b"], [0, 1], 0)
        tracker.observe(["a"], [0], [1.0], [np.nan])
        tracker.remember(["a", "b"], responses([9, 3]))
        return tracker

    tracker, other = make(), make()
    assert tracker.digest() == other.digest()
    stored = other.recall(["a", "b"]).stored
    if what == "evidence":
        observe_one(other, "c", 2, 0, 1.0)
        observe_one(tracker, "c", 2, 0, 0.0)
    elif what == "draw":
        other.draw(1)
    elif what == "open":
        other.settle(["b"])
    elif what == "session":
        other.observe(["a"], [1], [1.0], [np.nan])
        tracker.observe(["a"], [2], [1.0], [np.nan])
    elif what == "response":
        stored.log_prob["acting"][-1] -= np.float16(0.5)
        other.remember(["a", "b"], stored)
    elif what == "mask":
        stored.mask_N[-1] ^= True
        other.remember(["a", "b"], stored)
    assert tracker.digest() != other.digest()


def replaced(**columns: object) -> StoredResponses:
    base = responses([2, 3])
    names = ("row_B", "offset_B", "token_N", "mask_N", "log_prob", "prompt_hash_B")
    return StoredResponses(**({name: getattr(base, name) for name in names} | columns))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"offset_B": [0, 2]}, "2 responses need 3 offsets and 2 prompt hashes, not 2 and 2"),
        ({"offset_B": [0, 6, 5]}, "must rise from 0 to the 5 tokens"),
        ({"offset_B": [1, 2, 5]}, "must rise from 0 to the 5 tokens"),
        ({"mask_N": np.ones(4)}, "mask_N has 4 entries for 5 tokens"),
        ({"log_prob": {"acting": np.zeros(6)}}, "acting has 6 entries for 5 tokens"),
        ({"token_N": np.full(5, 2**31)}, "which token ids .int32. cannot hold"),
        ({"token_N": np.zeros((5, 1))}, r"token_N has shape \(5, 1\)"),
        (
            {"mask_N": np.ones(5), "log_prob": {"acting": np.array([0, 0, 0, np.nan, 0])}},
            r"log_prob\['acting'\] is nan at token 1 of response 1",
        ),
        ({"mask_N": np.ones(5), "log_prob": {"acting": np.array([-1e6, 0, 0, 0, 0])}}, "is -inf at token 0"),
    ],
)
def test_responses_are_checked(columns, words):
    with pytest.raises(SpoStateError, match=words):
        replaced(**columns)


def test_other_log_prob_columns_are_refused():
    tracker = Tracker.create(keys(2), TrackerSettings(references=("updated",)))
    tracker.dispatch(["a"], [0], 0)
    with pytest.raises(SpoStateError, match=r"columns \['acting'\], the tracker was set up with \['updated'\]"):
        tracker.remember(["a"], responses([3]))
    assert tracker.metrics()["stored_responses"] == 0
