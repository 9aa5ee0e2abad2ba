"""What the asynchronous modes allow, and what is put right after a restart."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from spo_verl.config import LateConfig, SamplingConfig, SpoConfig
from spo_verl.errors import SpoConfigError
from spo_verl.training import trainer as trainer_module
from spo_verl.training.checks import apply_oversampling, contradictions
from spo_verl.training.trainer import SpoTrainer, _require_enough_in_flight


def config(mode: str = "colocate_async", warmup: float = 1, batch: int = 16):
    return OmegaConf.create(
        {
            "trainer": {"v1": {"trainer_mode": mode, "sync": {}, mode: {"num_warmup_batches": warmup}}},
            "data": {"train_batch_size": batch},
        }
    )


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_all_three_modes_are_accepted(mode):
    assert list(contradictions(config(mode), SpoConfig())) == []


@pytest.mark.parametrize(
    ("given", "spo", "words"),
    [
        (config("sync"), SpoConfig(oversample=0.5), "spo.oversample=0.5: the synchronous trainer waits"),
        (config("sync"), SpoConfig(late=LateConfig(policy="drop")), "no rollout is late in the synchronous trainer"),
        (config(warmup=2), SpoConfig(oversample=0.5), "num_warmup_batches=2 both say"),
        (
            OmegaConf.merge(
                config(), {"actor_rollout_ref": {"rollout": {"agent": {"agent_loop_manager_class": "a.B"}}}}
            ),
            SpoConfig(late=LateConfig(policy="abort")),
            "agent_loop_manager_class=a.B with spo.late.policy=abort",
        ),
        (config("someday_async"), SpoConfig(), "trainer_mode=someday_async: SPO knows sync, colocate_async"),
    ],
)
def test_what_cannot_be_is_refused_with_its_fix(given, spo, words):
    [problem] = contradictions(given, spo)
    assert words in problem
    assert "set" in problem


def test_oversampling_becomes_verls_warm_up():
    for mode in ("colocate_async", "separate_async"):
        given = config(mode)
        apply_oversampling(given, SpoConfig(oversample=0.25))
        assert given.trainer.v1[mode].num_warmup_batches == 0.25
        untouched = config(mode)
        apply_oversampling(untouched, SpoConfig())
        assert untouched == config(mode)


def test_more_in_flight_than_there_are_prompts_is_refused_with_the_arithmetic():
    keys = SimpleNamespace(key_P=np.zeros(40))
    _require_enough_in_flight(keys, config(warmup=1.5), SpoConfig())  # 16 * 2.5 = 40
    with pytest.raises(
        SpoConfigError, match=r"16 \* \(1 \+ 1.6\) = 41 rollouts in flight, and the 40 different prompts"
    ):
        _require_enough_in_flight(keys, config(warmup=1.6), SpoConfig())
    _require_enough_in_flight(keys, config(warmup=1.6), SpoConfig(sampling=SamplingConfig(max_in_flight=2)))
    _require_enough_in_flight(keys, config(warmup=9), SpoConfig(sampling=SamplingConfig(max_in_flight=None)))
    _require_enough_in_flight(keys, config("sync", batch=64), SpoConfig())  # asked for elsewhere


class Queue:
    def __init__(self, items: dict[str, dict]) -> None:
        self.items = items

    def kv_list(self, partition: str) -> dict:
        return {partition: dict(self.items)}

    def kv_clear(self, keys, partition_id) -> None:
        for key in keys:
            del self.items[key]


class OpenRollouts:
    def __init__(self, uids: list[str]) -> None:
        self.uids, self.calls = uids, []

    def open_uids(self) -> list[str]:
        return self.uids

    def settle(self, uids, kind) -> None:
        self.calls.append(("settle", uids, kind))

    def redispatch(self, uids, version) -> None:
        self.calls.append(("redispatch", sorted(uids), version))


def prompt(status: str) -> dict:
    return {"is_prompt": True, "status": status, "global_steps": 4}


def restored(monkeypatch, items: dict[str, dict], known: list[str]):
    queue = Queue(items)
    monkeypatch.setattr(trainer_module, "tq", queue)
    made = object.__new__(SpoTrainer)
    made.trainer_mode, made.global_steps = "colocate_async", 5
    made.tracker, made._restored_tq_prompt_count = (
        OpenRollouts(known),
        sum("is_prompt" in tag for tag in items.values()),
    )
    return made, queue


def test_after_a_restart_queue_and_tracker_hold_the_same_rollouts(monkeypatch):
    items = {"a": prompt("running"), "b": prompt("finished"), "b_0_0": {}, "c": prompt("finished"), "c_0_0": {}}
    made, queue = restored(monkeypatch, items, ["a", "b", "gone"])
    made._match_restored_rollouts()
    # c was dispatched without SPO: it and its trajectory go. "gone" is in no queue any more.
    assert set(queue.items) == {"a", "b", "b_0_0"}
    assert made._restored_tq_prompt_count == 2
    assert made.tracker.calls == [("settle", ["gone"], "aborted")]


def test_nothing_is_said_or_done_where_they_agree(monkeypatch):
    made, queue = restored(monkeypatch, {"a": prompt("pending")}, ["a"])
    made._match_restored_rollouts()
    assert (set(queue.items), made.tracker.calls, made._restored_tq_prompt_count) == ({"a"}, [], 1)


def test_reissued_prompts_are_frozen_anew_before_they_are_sent(monkeypatch):
    items = {"a": prompt("running"), "b": prompt("pending"), "c": prompt("finished"), "c_0_0": {}}
    made, _ = restored(monkeypatch, items, ["a", "b", "c"])

    class Stock:
        def _reissue_inflight_prompts(self, partition_id: str) -> int:
            assert made.tracker.calls == [("redispatch", ["a", "b"], 4)]
            return 2

    class Both(SpoTrainer, Stock):
        pass

    made.__class__ = Both
    assert made._reissue_inflight_prompts() == 2


# ---------------------------------------------------------------------- stopping what is late


class Evicted:
    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def add(self, kind, uids, trajectories, partition) -> None:
        self.calls.append((kind, set(uids), set(trajectories), partition))


def test_who_finishes_before_the_cancellation_arrives_is_kept(monkeypatch):
    items = {"a": prompt("running"), "a_0_0": {}, "b": prompt("pending"), "c": prompt("finished"), "c_0_0": {}}
    items["d"] = prompt("running")
    made, queue = restored(monkeypatch, items, [])
    made.agent_loop_manager, made._evicted, made.replay_buffer = "manager", Evicted(), SimpleNamespace()

    def cancel(manager, uids) -> None:
        assert (manager, set(uids)) == ("manager", {"a", "b", "d"})
        queue.items["d"], queue.items["d_0_0"] = prompt("finished"), {}

    monkeypatch.setattr(trainer_module, "abort_rollouts", cancel)
    assert made._abort_late() == 2
    assert made._evicted.calls == [("aborted", {"a", "b"}, {"a_0_0", "c_0_0", "d_0_0"}, "train")]
    assert set(queue.items) == {"c", "c_0_0", "d", "d_0_0"}
    assert made.replay_buffer.spo_aborted == {"a", "b"}


@pytest.mark.parametrize(("policy", "trigger", "expected"), [("abort", 1, [2, 2]), ("abort", 0, []), ("carry", 1, [])])
def test_late_rollouts_are_stopped_behind_the_last_mini_batch_of_a_version(monkeypatch, policy, trigger, expected):
    calls: list[int] = []

    class Stock:
        def on_sample_end(self) -> None:
            calls.append(0)

        def _add_prompts_to_generate(self, count: int) -> None:
            assert calls[-1] == 0  # verl has paused generation, so that the new ones wait for the new weights
            calls.append(count)

    class Made(SpoTrainer, Stock):
        def _abort_late(self) -> int:
            calls.append(2)
            return 2

    made = object.__new__(Made)
    made.spo = SpoConfig(late=LateConfig(policy=policy))
    made.local_trigger_step, made.parameter_sync_step = trigger, 2
    made.on_sample_end()
    assert [count for count in calls if count] == expected
