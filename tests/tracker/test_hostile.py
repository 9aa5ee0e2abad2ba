"""Arguments of any kind: a verb does all of what it was asked, or raises an SpoError and has changed nothing."""

import contextlib
import json
import random
from types import FunctionType

import numpy as np
import pytest

from spo_verl.errors import SpoConfigError, SpoError, SpoStateError
from spo_verl.tracker import Late, PromptSources, StoredResponses, Tracker, TrackerSettings
from spo_verl.tracker.ledger import Ledger, Rollout
from spo_verl.tracker.quota import QuotaIndex
from spo_verl.tracker.service import TrackerHost

from .helpers import keys, responses

MODES = ("kl", "constant", "version", "drift")
PROMPTS = 12


def made(value):
    """The value itself, or what a function makes anew: an iterator serves once."""
    return value() if isinstance(value, FunctionType) else value


NUMBERS = [
    *(None, True, False, -1, 0, 1, 2, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**400, 10**5000),
    *(0.0, -0.0, 0.5, 1.0, 1.5, 1e308, -1e-300, float("nan"), float("inf"), -float("inf"), 1 + 1j),
    *("", "x", "0", "\ud800", b"x", [], [0], (), {}, {0: 0}, {"a"}, object(), Ellipsis, slice(2)),
    *(np.int8(1), np.int64(3), np.uint64(2**64 - 1), np.float32(1), np.float64("nan"), np.bool_(True), np.str_("u0")),
    *(np.array(1), np.array([1]), np.array(["trained"]), np.datetime64("2026-01-01"), "trained", "failed", "none"),
]
COLUMNS = [
    *([], [0], [0, 0], [0, 1], [1, 0], [3, 4], [0, 1, 2], [-1, 0], [11, 12], [2**62, 0], [2**63, 0], [2**64 - 1, 0]),
    *([10**400, 0], [0.5, 1.5], [1.0, 0.0], [1e-300, 1.0], [1e308, 1e308], [float("nan")] * 2, [float("inf")] * 2),
    *([-0.0, -1e-300], [None, None], [None, 0], ["0", "1"], ["a", "b"], [b"a", b"b"], [True, False], [[0, 1]]),
    *([[0], [1]], [[0], [1, 2]], [object(), 0], [1 + 1j, 0], {0, 1}, {0: 1}, range(2), (0, 1), lambda: iter([0, 1])),
    *(np.array([0, 1], np.uint8), np.array([2**64 - 1, 0], np.uint64), np.array([0, 1], np.float16)),
    *(np.array([0, 1], object), np.array(["a", "b"]), np.array([[0, 1]]), np.array(0), np.array([1, 2], "M8[s]")),
    *(np.array([1e400, 0], np.longdouble), np.ma.masked_array([0, 1], [True, False])),
]
UIDS = [
    *([], ["never"], ["open0"], ["open0", "open0"], ["open1", "open0"], ["open0", "never"], ["open0", "ended"]),
    *(["open0", ""], ["n", "m"], ["n", "n"], ["ü", "日"], ["\x00", "a\nb"], ["\ud800", "n"], ["\ud83d", "\ude00"]),
    *([1, 2], [None, None], [b"open0", b"open1"], ["open0", 1], [["open0"], ["open1"]], [("open0",), "open1"]),
    *([float("nan")] * 2, [True, "open0"], "open0", "ab", b"ab", None, 3, {"open0": 1, "open1": 2}, {"open0", "open1"}),
    *(
        ("open0", "open1"),
        lambda: iter(["open0", "open1"]),
        lambda: (uid for uid in ["n", "m"]),
        np.array(["open0", "open1"]),
    ),
    *(np.array("open0"), np.array(["open0", "open1"], object), [np.str_("open0"), "open1"], object(), range(2)),
]
LATE = [
    *(
        [],
        (),
        None,
        1,
        "x",
        [None],
        ["stale"],
        [{}],
        lambda: iter([]),
        [Late("nonsense")],
        [Late(None)],
        [Late(["stale"])],
    ),
    *([Late(np.array(["stale"]))], [Late("stale", ["open0"], [0], [1.0]), None]),
    *([Late("stale", ended=made(uids))] for uids in UIDS),
    *([Late("surplus", made(uids), [0, 0], [1.0, 0.0])] for uids in UIDS),
    *([Late("surplus", ["open0", "open1"], made(column), [1.0, 0.0])] for column in COLUMNS),
    *([Late("surplus", ["open0", "open1"], [0, 0], made(column))] for column in COLUMNS),
    *([Late("surplus", ["open0", "open1"], [0, 0], [1.0, 1.0], made(column))] for column in COLUMNS),
]
RESPONSES = [
    *(None, 0, [], {}, "x", responses([]), responses([0, 0]), responses([3]), responses([3, 4])),
    *(responses([3, 4], rows=rows) for rows in ([0, 0], [1, 5], [-1, 0], [2**62, 0])),
    *(responses([3, 4], references=("other",)), responses([3, 4], references=("acting", "updated"))),
]
CALLS = {
    "draw": (NUMBERS, NUMBERS),
    "dispatch": (UIDS, COLUMNS, NUMBERS),
    "redispatch": (UIDS, NUMBERS),
    "recall": (UIDS,),
    "observe": (UIDS, COLUMNS, COLUMNS, COLUMNS),
    "remember": (UIDS, RESPONSES),
    "settle": (UIDS, NUMBERS),
    "absorb": (LATE,),
    "advance": (NUMBERS,),
    "finish_step": (UIDS, COLUMNS, COLUMNS, COLUMNS, UIDS[:12], RESPONSES, UIDS[:12], LATE[:40], NUMBERS),
    "evidence": (COLUMNS,),
    "value_histogram": (NUMBERS,),
}


def good(verb, mode):
    """Arguments that a tracker with the open rollouts of :func:`prepared` takes."""
    both, zeros, movement = ["open0", "open1"], [0, 0], 0.25 if mode == "drift" else None
    return {
        "draw": [3, 5],
        "dispatch": [["n", "m"], [0, 1], 5],
        "redispatch": [both, 5],
        "recall": [both],
        "observe": [both, zeros, [1.0, 0.0], [0.1, np.nan]],
        "remember": [both, responses([3, 4])],
        "settle": [both, "stale"],
        "absorb": [[Late("stale", both, zeros, [1.0, 0.0])]],
        "advance": [0.25],
        "finish_step": [both, zeros, [1.0, 0.0], [0.1, np.nan], both, responses([3, 4]), both, (), movement],
        "evidence": [[0, 1]],
        "value_histogram": [5],
    }[verb]


def prepared(mode):
    tracker = Tracker.create(keys(PROMPTS), TrackerSettings(forgetting_mode=mode, gamma=0.5, max_in_flight=None))
    tracker.dispatch(["ended", "open0", "open1"], [2, 3, 3], 4)
    tracker.finish_step(["ended"], [0], [1.0], [np.nan], settle_uids=["ended"])
    return tracker


def call(tracker, verb, arguments):
    if verb == "finish_step":
        names = ("remember_uids", "responses", "settle_uids", "late", "movement")
        return tracker.finish_step(*arguments[:4], **dict(zip(names, arguments[4:], strict=True)))
    return getattr(tracker, verb)(*arguments)


def attempt(tracker, verb, arguments, before):
    """Whether it was done; where it was refused, nothing may have changed, and no other error may come."""
    try:
        call(tracker, verb, arguments)
    except SpoError:
        assert tracker.digest() == before, (verb, arguments)
        return False
    return True


def require_usable(tracker, folder):
    """What was accepted can be computed with, saved, and read again."""
    alpha_P, beta_P = tracker.evidence()
    assert np.isfinite(alpha_P + beta_P).all()
    assert (np.minimum(alpha_P, beta_P) >= 0).all()
    assert np.isfinite(list(tracker.metrics().values())).all()
    written = tracker.snapshot().write(folder / "spo")
    again, _ = Tracker.load(folder / "spo", keys(PROMPTS), tracker.settings)
    assert again.digest() == written.digest == tracker.digest()
    open_uids = tracker.open_uids()
    tracker.observe(open_uids, [7] * len(open_uids), [0.0] * len(open_uids), [np.inf] * len(open_uids))
    tracker.settle(open_uids)
    tracker.draw(PROMPTS)


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("mode", ["kl", "version"])
def test_one_strange_argument_at_a_time(tmp_path, verb, mode):
    mode = "drift" if verb == "advance" else mode
    call(prepared(mode), verb, good(verb, mode))
    tracker, done = prepared(mode), 0
    before = tracker.digest()
    for position, values in enumerate(CALLS[verb]):
        for value in values:
            arguments = good(verb, mode)
            arguments[position] = made(value)
            if attempt(tracker, verb, arguments, before):
                done += 1
                if tracker.digest() != before:
                    tracker = prepared(mode)
    assert done > 0
    require_usable(tracker, tmp_path)


@pytest.mark.parametrize("mode", MODES)
def test_several_strange_arguments_on_a_state_that_goes_on(tmp_path, mode):
    rng, tracker = random.Random(mode), prepared(mode)
    for turn in range(250):
        verb = rng.choice(list(CALLS))
        arguments = [
            made(rng.choice(values)) if rng.random() < 0.25 else usual
            for values, usual in zip(CALLS[verb], good(verb, mode), strict=True)
        ]
        attempt(tracker, verb, arguments, tracker.digest())
        missing = [uid for uid in ("open0", "open1") if uid not in tracker.open_uids()]
        if missing:
            tracker = prepared(mode) if turn % 2 else tracker
    require_usable(tracker, tmp_path)


@pytest.mark.parametrize("version", [1.5, 3.0, np.float32(2), float("nan"), 1e308, float("inf"), True, "3", 2**63, -1])
def test_a_version_is_a_whole_number_of_64_bits(version):
    tracker = Tracker.create(keys(3), TrackerSettings(forgetting_mode="version"))
    tracker.dispatch(["held"], [0], 0)
    before = tracker.digest()
    for verb in (
        lambda: tracker.draw(1, version),
        lambda: tracker.dispatch(["a"], [1], version),
        lambda: tracker.redispatch(["held"], version),
        lambda: Tracker.create(keys(3), TrackerSettings(), version=version),
    ):
        with pytest.raises(SpoStateError, match=r"policy version .* is (not a whole number from 0 to|negative)"):
            verb()
    assert tracker.digest() == before
    assert tracker.dispatch(["a"], [1], 2**63 - 1).version_B.tolist() == [2**63 - 1]
    assert tracker.observe(["held", "a"], [0, 0], [1.0, 1.0], [np.nan] * 2).new == 2


def test_movements_that_add_up_to_infinity_are_refused():
    tracker = Tracker.create(keys(3), TrackerSettings(forgetting_mode="drift"))
    tracker.advance(1e308)
    before = tracker.digest()
    with pytest.raises(SpoStateError, match="beyond all floats"):
        tracker.advance(1e308)
    assert tracker.digest() == before


def test_settings_of_any_kind():
    for name in sorted(TrackerSettings.names()):
        for value in map(made, [*NUMBERS, *COLUMNS]):
            with contextlib.suppress(SpoConfigError):
                settings = TrackerSettings(**{name: value})
                json.dumps(settings.as_json(), allow_nan=False)
                Tracker.create(keys(6), settings).draw(2)


def test_creating_and_loading_refuse_what_they_cannot_use(tmp_path):
    fine = TrackerSettings()
    for value in map(made, [*NUMBERS, *COLUMNS]):
        with pytest.raises(SpoError):
            Tracker.create(value, fine)
        with pytest.raises(SpoError):
            Tracker.create(keys(3), value)
        with pytest.raises(SpoError):
            Tracker.create(keys(5), fine, alpha_P=value, beta_P=np.ones(5))
        with pytest.raises(SpoError):
            Tracker.create(keys(3), TrackerSettings(quota={"a": 1}), sources=value)
    with pytest.raises(SpoStateError, match="one positive"):
        Tracker.create(keys(1), fine, alpha_P=np.array([1e308]), beta_P=np.array([1e308]))
    for place in (None, 3, b"x", "a\0b", "\ud800", tmp_path / "nothing"):
        with pytest.raises(SpoError):
            Tracker.load(place, keys(3), fine)


def test_responses_of_any_kind():
    whole = responses([3, 4])
    for name in ("row_B", "offset_B", "token_N", "mask_N", "log_prob", "prompt_hash_B"):
        for value in [
            *map(made, [*NUMBERS, *COLUMNS]),
            {"acting": [None] * 7},
            {"acting": ["1"] * 7},
            {"acting": [1e9] * 7},
        ]:
            with contextlib.suppress(SpoError):
                taken = StoredResponses(**{**vars(whole), name: value})
                assert (taken.token_N.dtype, taken.mask_N.dtype, len(taken)) == (np.int32, np.bool_, 2)
                assert taken.offset_B.tolist() == [0, 3, 7]
        with pytest.raises(SpoError):
            StoredResponses(**{**vars(whole), name: ["a", None]})


def test_ledger_and_quotas_change_wholly_or_not_at_all():
    ledger = Ledger()
    ledger.dispatch(["a", "b"], [Rollout(slot, 0.5, 1.0, 0) for slot in (0, 1)])
    for uids in (["a", "ghost"], ["a", "a"]):
        with pytest.raises(SpoStateError):
            ledger.settle(uids)
        assert (list(ledger.open), ledger.recent, dict(ledger.in_flight)) == (["a", "b"], {}, {0: 1, 1: 1})
    with pytest.raises(SpoStateError):
        ledger.add_session("ghost", 0)
    index = QuotaIndex(np.ones(6), PromptSources.of("aabbcc"), {"a": 1, "b": 1, "c": 1})
    before = index.effective_number()
    for slots, weights in (([0, 5], [9.0, np.nan]), ([0, 6], [9.0, 9.0]), ([0, 0], [9.0, 1.0]), ([0, 5], [9.0])):
        with pytest.raises(SpoError):
            index.update(slots, np.array(weights))
        assert index.effective_number() == before
    for weights in (np.ones(5), np.array([1.0, 1, 1, 1, 1, -1])):
        with pytest.raises(SpoError):
            index.replace(weights)
        assert index.effective_number() == before


def test_the_service_refuses_what_the_tracker_has_not(tmp_path):
    host = TrackerHost()
    host.create(keys(3), TrackerSettings())
    before = host.call("digest")
    for verb in ("_commit", "nothing", "", 3, None):
        with pytest.raises(SpoStateError, match="has no verb"):
            host.call(verb)
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for step in (1.5, -1, None, "3", True, float("nan"), 2**63):
        with pytest.raises(SpoStateError, match="step"):
            host.begin_save(tmp_path / "spo", step)
    for extra in ([1], "x", {"deep": deep}, {"x": {1}}):
        with pytest.raises(SpoStateError, match="extra"):
            host.begin_save(tmp_path / "spo", 1, extra)
    with pytest.raises(SpoError, match="zero byte"):
        host.begin_save("a\0b", 1)
    assert (host.call("digest"), list(tmp_path.iterdir())) == (before, [])
    host.begin_save(tmp_path / "spo", 1)
    assert host.end_save().digest == before


def test_keys_of_prompts_by_their_slots():
    tracker = Tracker.create(keys(5), TrackerSettings())
    assert tracker.keys([3, 0]).tolist() == keys(5)[[3, 0]].tolist()
    assert tracker.keys([]).tolist() == []
    for wrong in ([5], [-1], [0, 7]):
        with pytest.raises(SpoStateError, match="of 5; pass slots from 0"):
            tracker.keys(wrong)
