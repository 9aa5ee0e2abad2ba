"""The record of a run: against what the world of a simulated run knows, and against a calculation by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.config import AdvantageConfig, ForgettingConfig, LateConfig, SamplingConfig, SpoConfig, ValueConfig
from spo_verl.core import fold_events, normalize_advantages, update_evidence
from spo_verl.data.identity import DatasetKeys, dataset_keys
from spo_verl.record import Record, RecordWriter
from spo_verl.tracker import Frozen, StoredResponses, Tracker, TrackerSettings
from spo_verl.tracker.reports import Late
from spo_verl.training.in_flight import Evictions, Generated
from spo_verl.training.recording import Prompts, Recorder, description
from spo_verl.training.sessions import read_sessions, version_spans
from spo_verl.training.step import Recalled, Rewarded
from spo_verl.training.stored_divergence import Divergence
from tests.training.simulated_run import Setting, keys, run, somehow

ASYNC = ("colocate_async", "separate_async")


# ---------------------------------------------------------------------- any run


@st.composite
def any_run(draw):
    mode = draw(st.sampled_from(["sync", *ASYNC]))
    sync_step = draw(st.sampled_from([1, 2])) if mode == "separate_async" else 1
    batch = sync_step * draw(st.integers(1, 4))
    spo = SpoConfig(
        late=LateConfig(policy=draw(st.sampled_from(["carry", "drop", "abort"]))),
        forgetting=ForgettingConfig(mode=draw(st.sampled_from(["constant", "version", "drift"])), rho=0.75),
        sampling=SamplingConfig(max_in_flight=draw(st.sampled_from([1, None]))),
        value=ValueConfig(readout=draw(st.sampled_from(["raw", "calibrated"]))),
    )
    setting = Setting(
        mode,
        prompts=6 * batch + draw(st.integers(0, 9)),
        batch=batch,
        spo=spo,
        warmup=draw(st.floats(0, 2)),
        sync_step=sync_step,
        steps=draw(st.integers(1, 4)),
        threshold=draw(st.sampled_from([None, 1, 2])),
        sessions=draw(st.sampled_from([1, 3])),
        refill_failed=mode == "sync",
        resumed=draw(st.sampled_from([0, 7])),
    )
    if mode != "sync" and setting.resumed:
        setting = replace(setting, restored=draw(st.integers(0, 2 * batch)))
    return setting, draw(st.sampled_from([0.0, 0.3])), draw(st.integers(0, 2**32))


@given(any_run())
@settings(max_examples=15, deadline=None)
def test_the_record_of_any_run_is_what_happened(tmp_path_factory, case):
    setting, failing, seed = case
    setting = replace(setting, record=tmp_path_factory.mktemp("run") / "record")
    world, made = run(setting, somehow(failing), seed)
    record, tracker = Record.open(setting.record), made.tracker
    rows = record.rollouts().to_pylist()

    # Every outcome that the tracker has observed, once, with what the world knows of it.
    outcomes = {(row["uid"], row["session"]): row for row in rows if row["reward"] is not None}
    assert set(outcomes) == set(tracker.observed)
    assert len(rows) == len({(row["uid"], row["session"]) for row in rows})
    for (uid, session), row in outcomes.items():
        assert row["reward"] == world.outcomes[uid, session]
        assert row["tokens"] == 3
        assert world.began[uid] == row["version_first"] <= row["version_last"] < row["step"]
    for row in rows:
        uid = row["uid"]
        if not uid.startswith("restored"):
            assert (row["slot"], row["version_dispatch"]) == (world.slot[uid], world.recorded[uid])
            assert (row["value"], row["n_eff"]) == tracker.frozen[uid]
            assert row["ending"] == "failed" or row["seconds"] >= 0
        assert row["row"] == row["slot"]
        assert row["key"] == bytes(keys(setting.prompts)[row["slot"]]).hex()

    # Every rollout that has ended, in one way.
    endings = {row["uid"]: row["ending"] for row in rows}
    assert len(endings) == len({(row["uid"], row["ending"]) for row in rows})
    counted = Counter(endings.values())
    assert {kind: tracker.counters[kind] for kind in tracker.counters if kind in counted} == dict(counted)
    assert tracker.counters["settled"] == len(endings)

    # The batches, their advantages, and the steps.
    trained = [row for row in rows if row["ending"] == "trained"]
    batch_of = {uid: number for number, step in enumerate(world.steps) for uid in step.uids}
    for number, step in enumerate(world.steps):
        mine = [row for row in trained if batch_of[row["uid"]] == number]
        assert {row["uid"] for row in mine} == set(step.uids)
        raw = np.array([row["reward"] - row["value"] for row in mine])
        assert np.allclose([row["raw_advantage"] for row in mine], raw, rtol=1e-12)
        assert np.allclose([row["advantage"] for row in mine], normalize_advantages(raw, np.ones(len(raw))), rtol=1e-9)
        assert {row["step"] for row in mine} == {setting.resumed + 1 + number // setting.sync_step}
    others = [row for row in rows if row["ending"] != "trained"]
    assert all(row["advantage"] is row["raw_advantage"] is None for row in others)

    # The evidence of every prompt follows from its rows.
    assert np.allclose(evidence_of(rows, setting), tracker.evidence(), rtol=1e-9)

    # The numbers of every step.
    numbers = {}
    for row in record.steps().to_pylist():
        assert numbers.setdefault(row["step"], {}).setdefault(row["name"], row["value"]) == row["value"]
    assert list(numbers) == [setting.resumed + 1 + number for number in range(setting.steps)]
    for logged, found in zip(made.logged, numbers.values(), strict=True):
        assert found.items() >= {name: value for name, value in logged.items() if isinstance(value, float)}.items()
    assert record.run["made"]
    assert record.run["ended"]


def evidence_of(rows, setting):
    """Alpha and beta of every prompt after these rows, from (1/2, 1/2)."""
    alpha_P, beta_P = np.full(setting.prompts, 0.5), np.full(setting.prompts, 0.5)
    seen = [row for row in rows if row["reward"] is not None]
    if setting.spo.forgetting.mode == "version":
        slot_N, event_N = [row["slot"] for row in seen], [row["version_dispatch"] for row in seen]
        start_P = np.zeros(setting.prompts, dtype=np.int64)
        columns = np.array(slot_N, int), np.array(event_N, int), np.array([row["reward"] for row in seen], float)
        return fold_events(alpha_P, beta_P, start_P, *columns, rho=setting.spo.forgetting.rho)[:2]
    newest_P = np.full(setting.prompts, -1)
    for row in seen:
        slot, version = row["slot"], row["version_dispatch"]
        rho = row["rho"] if version > newest_P[slot] else 1.0
        newest_P[slot] = max(newest_P[slot], version)
        alpha_P[slot], beta_P[slot] = update_evidence(alpha_P[slot], beta_P[slot], row["reward"], rho)
    return alpha_P, beta_P


# ---------------------------------------------------------------------- by hand


def batch_of_three():
    """Prompt 7: two sessions, the first in two outputs; prompt 3: one session without a token in the loss."""
    names = ["a_0_0", "b_0_0", "a_0_1", "a_1_0", "pad"]
    spans = [(4, 8), (None, None), (3, 6), (5, 5), (0, 9)]
    tags = [
        {"response_len": length, "min_global_steps": first, "max_global_steps": last}
        for length, (first, last) in zip((10, 20, 5, 7, 1), spans, strict=True)
    ]
    tags[-1]["is_padding"] = True
    return SimpleNamespace(keys=names, tags=tags, partition_id="train")


def test_a_step_by_hand(tmp_path):
    """Every column of a step with a trained batch, an outcome that came late, and one that never came."""
    batch = batch_of_three()
    sessions = read_sessions(batch.keys, batch.tags)
    tracker = Tracker.create(keys(8), TrackerSettings(forgetting_mode="kl", half_life=0.06, rho_min=0.5, rho_max=0.9))
    for uid, slot in (("a", 7), ("b", 3), ("late", 5), ("lost", 0)):
        tracker.dispatch([uid], [slot], 4)
    frozen = tracker.recall(["a", "b"]).frozen
    recalled = Recalled.of(batch, sessions, frozen, None, advantage=AdvantageConfig(), version=5)
    rewarded = Rewarded(recalled, np.array([1.0, 0.0, 0.5]), np.array([0.75, 9.0, -0.75]), np.array([15, 0, 7]))
    divergence = Divergence(np.array([0.06, np.nan]), {}, StoredResponses.empty(()), {})
    before = Late("stale", ["late"], [2], [1.0], ended=["late"])
    absorbed = ([before], tracker.absorb([before]))
    evicted = Evictions(
        [Late("aborted", ended=["lost"])], [absorbed], {("late", 2): Generated(33, 1, 2)}, {"late": 103.0}
    )
    report = tracker.finish_step(
        sessions.uid_S,
        sessions.session_S,
        rewarded.reward_S,
        [0.06, np.nan, 0.06],
        settle_uids=["a", "b"],
        late=evicted.late,
    ).observe

    recorder = Recorder(
        RecordWriter(tmp_path, 2**30),
        Prompts(DatasetKeys(keys(8), np.arange(8), np.arange(8) * 10), []),
        mode="kl",
        run={},
    )
    recorder._writer.resume(5)
    recorder._writer.describe({})
    slots = np.array([7, 3, 5, 0])
    half, one = np.full(4, 0.5), np.ones(4)
    recorder._opened(["a", "b", "late", "lost"], Frozen(slots, half, one, np.full(4, 4)), 100.0)
    recorder.observed(6, rewarded, divergence, evicted, report, {"a", "b"}, {"a": 101.5, "b": 102.0})
    recorder.close()

    found = Record.open(tmp_path).rollouts().to_pylist()
    assert [(row["uid"], row["session"]) for row in found] == [
        ("late", 2),
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("lost", None),
    ]
    late, first, other, second, lost = found
    everywhere = {"step": 6, "version_dispatch": 4, "value": 0.5, "n_eff": 1.0, "data_source": None}
    untrained = {"raw_advantage": None, "advantage": None, "divergence": None}
    key_P = [bytes(key).hex() for key in keys(8)]
    # A first visit has D = 0, and keeps rho_max = 0.9.
    assert late == everywhere | untrained | {
        "uid": "late", "session": 2, "key": key_P[5], "slot": 5, "row": 50, "version_first": 1, "version_last": 2,
        "reward": 1.0, "rho": pytest.approx(0.9), "ending": "stale", "tokens": 33, "seconds": 3.0,
    }  # fmt: skip
    prompt = {
        "key": key_P[7],
        "slot": 7,
        "row": 70,
        "ending": "trained",
        "seconds": 1.5,
        "divergence": 0.06,
        "uid": "a",
    }
    assert first == everywhere | prompt | {
        "session": 0, "version_first": 3, "version_last": 8, "reward": 1.0, "raw_advantage": 0.5, "advantage": 0.75,
        "rho": pytest.approx(0.9), "tokens": 15,
    }  # fmt: skip
    assert second == everywhere | prompt | {
        "session": 1, "version_first": 5, "version_last": 5, "reward": 0.5, "raw_advantage": 0.0, "advantage": -0.75,
        "rho": pytest.approx(0.9), "tokens": 7,
    }  # fmt: skip
    # Without a token in the loss it has no advantage; the reward became evidence.
    assert other == everywhere | {
        "uid": "b", "session": 0, "key": key_P[3], "slot": 3, "row": 30, "version_first": None, "version_last": None,
        "reward": 0.0, "raw_advantage": -0.5, "advantage": None, "divergence": None, "rho": pytest.approx(0.9),
        "ending": "trained", "tokens": 20, "seconds": 2.0,
    }  # fmt: skip
    assert lost == everywhere | untrained | {
        "uid": "lost", "session": None, "key": key_P[0], "slot": 0, "row": 0, "version_first": None,
        "version_last": None, "reward": None, "rho": None, "ending": "aborted", "tokens": None, "seconds": None,
    }  # fmt: skip


def test_versions_of_a_session_are_those_of_all_its_outputs():
    batch = batch_of_three()
    spans = version_spans(read_sessions(batch.keys, batch.tags), batch.tags)
    assert spans.tolist() == [[3, 8], [-1, -1], [5, 5]]


def test_outcomes_of_one_request_are_in_the_order_of_their_versions(tmp_path):
    """Two dispatches of a prompt end together: the older one is folded first, whatever order they came in."""
    tracker = Tracker.create(keys(1), TrackerSettings(forgetting_mode="constant", rho=0.5, max_in_flight=None))
    prompts = Prompts(DatasetKeys(keys(1), np.arange(1), np.arange(1)), [])
    recorder = Recorder(RecordWriter(tmp_path, 2**30), prompts, mode="constant", run={})
    recorder._writer.describe({})
    for uid, version in (("old", 0), ("new", 3)):
        recorder.dispatched([uid], tracker.dispatch([uid], [0], version))
    batch = SimpleNamespace(keys=["new_0_0", "old_0_0"], tags=[{"response_len": 1}] * 2)
    sessions, frozen = read_sessions(batch.keys, batch.tags), tracker.recall(["new", "old"]).frozen
    recalled = Recalled.of(batch, sessions, frozen, None, advantage=AdvantageConfig(), version=3)
    rewarded = Rewarded(recalled, np.array([0.0, 1.0]), np.zeros(2), np.ones(2))
    report = tracker.finish_step(["new", "old"], [0, 0], [0.0, 1.0], settle_uids=["new", "old"]).observe
    recorder.observed(4, rewarded, None, Evictions([], [], {}, {}), report, {"new", "old"}, {})
    recorder.close()
    rows = Record.open(tmp_path).rollouts().to_pylist()
    assert [(row["uid"], row["rho"]) for row in rows] == [("old", 0.5), ("new", 0.5)]
    # (1/2, 1/2) halved, a success, halved, a failure.
    assert np.concatenate(tracker.evidence()).tolist() == [0.625, 1.125]


def test_the_movement_is_the_divergence_under_drift(tmp_path):
    settings = TrackerSettings(forgetting_mode="drift", drift_scale=2.0, half_life=0.06, rho_min=0.1, rho_max=0.9)
    tracker, recorder = (
        Tracker.create(keys(2), settings),
        Recorder(
            RecordWriter(tmp_path, 2**30),
            Prompts(DatasetKeys(keys(2), np.arange(2), np.arange(2)), []),
            mode="drift",
            run={},
        ),
    )
    recorder._writer.describe({})
    for step in (1, 2):
        uid = f"u{step}"
        batch = SimpleNamespace(keys=[f"{uid}_0_0"], tags=[{"response_len": 1}])
        sessions = read_sessions(batch.keys, batch.tags)
        frozen = tracker.dispatch([uid], [0], step - 1)
        recorder.dispatched([uid], frozen)
        recalled = Recalled.of(batch, sessions, frozen, None, advantage=AdvantageConfig(), version=step - 1)
        rewarded = Rewarded(recalled, np.array([1.0]), np.array([0.0]), np.array([1]))
        report = tracker.finish_step([uid], [0], [1.0], settle_uids=[uid], movement=0.03).observe
        recorder.observed(step, rewarded, None, Evictions([], [], {}, {}), report, {uid}, {})
    recorder.close()
    first, second = Record.open(tmp_path).rollouts(["divergence", "rho"]).to_pylist()
    assert first == {"divergence": 0.0, "rho": pytest.approx(0.9)}
    assert second == {"divergence": pytest.approx(0.06), "rho": pytest.approx(0.5)}  # half after one half-life


# ---------------------------------------------------------------------- prompts, and the run


ROWS = [
    {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "first"}], "data_source": "a"},
    {"prompt": [{"role": "user", "content": "x" * 5000}], "data_source": "b"},
    {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "first"}], "data_source": "a"},
    {"prompt": [{"role": "user", "content": "old"}, {"role": "user", "content": "last"}], "data_source": "a"},
]


def test_prompts_of_a_dataset_with_rows_of_equal_content():
    table = datasets.Dataset.from_list(ROWS)
    found = dataset_keys(table)
    prompts = Prompts(found, table)
    rows = prompts.table(np.full(3, 0.25), np.full(3, 2.0)).to_pylist()
    assert [row["text"] for row in rows] == ["first", "x" * 2000, "last"]
    assert [row["data_source"] for row in rows] == ["a", "b", "a"]
    assert [row["row"] for row in rows] == [0, 1, 3]
    columns = prompts.columns(np.array([2, 1]))
    assert columns["data_source"].to_pylist() == ["a", "b"]
    assert columns["key"] == [rows[2]["key"], rows[1]["key"]]
    assert columns["row"].to_pylist() == [3, 1]


def test_a_dataset_with_code_of_its_own_is_not_read():
    class Random:
        def __len__(self):
            return 2

        def __getitem__(self, row):
            raise AssertionError("this would change what training reads")

    prompts = Prompts(DatasetKeys(keys(2), np.arange(2), np.arange(2)), Random())
    assert prompts.table(np.ones(2), np.ones(2))["text"].to_pylist() == [None, None]


def test_a_prompt_that_the_dataset_lost_keeps_its_key():
    prompts = Prompts(DatasetKeys(keys(2), np.arange(2), np.arange(2)), [])
    prompts.note_aside([4], keys(6)[4:5])
    columns = prompts.columns(np.array([1, 4]))
    assert columns["key"] == [bytes(keys(6)[1]).hex(), bytes(keys(6)[4]).hex()]
    assert columns["row"].to_pylist() == [1, None]
    assert columns["data_source"].to_pylist() == [None, None]


def test_the_description_is_json():
    from omegaconf import OmegaConf

    config = OmegaConf.create(
        {
            "data": {"train_files": ["a.parquet"]},
            "trainer": {"default_local_dir": "out", "v1": {"trainer_mode": "sync"}},
        }
    )
    found = json.loads(json.dumps(description(config, SpoConfig(), {"name": "n", "namespace": "s"})))
    assert found["config"]["data.train_files"] == ["a.parquet"]
    assert found["config"]["trainer.v1.trainer_mode"] == "sync"
    assert found["config"]["spo"]["forgetting"]["mode"] == "kl"
    assert found["config"]["data.prompt_key"] is None
    assert found["tracker"] == {"name": "n", "namespace": "s"}
    assert math.isclose(found["config"]["spo"]["record"], 1.0)
