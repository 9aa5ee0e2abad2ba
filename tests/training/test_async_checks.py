"""What the asynchronous modes allow, and what is put right after a restart."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from spo_verl.config import LateConfig, SamplingConfig, SpoConfig
from spo_verl.errors import SpoConfigError
from spo_verl.training import asynchronous
from spo_verl.training.checks import aborts, apply_oversampling, contradictions, unusual
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


@pytest.mark.parametrize("key", ["lora_rank", "lora.rank"])
@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
@pytest.mark.parametrize("merge", [None, False, True])
@pytest.mark.parametrize("rank", [0, 8])
def test_an_adapter_reaches_rollout_processes_of_their_own_only_merged(key, mode, merge, rank):
    given = config(mode)
    OmegaConf.update(given, f"actor_rollout_ref.model.{key}", rank)
    if merge is not None:
        OmegaConf.update(given, "actor_rollout_ref.model.lora.merge", merge)
    problems = list(contradictions(given, SpoConfig()))
    assert len(problems) == (mode == "separate_async" and rank > 0 and not merge)
    for problem in problems:
        assert f"actor_rollout_ref.model.{key}=8" in problem
        assert "set actor_rollout_ref.model.lora.merge=True" in problem


def test_oversampling_becomes_verls_warm_up():
    for mode in ("colocate_async", "separate_async"):
        given = config(mode)
        apply_oversampling(given, SpoConfig(oversample=0.25))
        assert given.trainer.v1[mode].num_warmup_batches == 0.25
        untouched = config(mode)
        apply_oversampling(untouched, SpoConfig())
        assert untouched == config(mode)


@pytest.mark.parametrize("policy", ["carry", "drop", "abort"])
def test_in_a_synchronous_run_nothing_is_late_and_every_policy_is_accepted(policy):
    spo = SpoConfig(late=LateConfig(policy=policy))
    manager = {"actor_rollout_ref": {"rollout": {"agent": {"agent_loop_manager_class": "a.B"}}}}
    given = OmegaConf.merge(config("sync"), manager)
    assert list(contradictions(given, spo)) == []
    assert not aborts(given, spo)
    told = [remark for remark in unusual(given, spo) if "spo.late.policy" in remark]
    assert bool(told) == (policy != "carry")
    assert all("has no effect in the synchronous trainer" in remark for remark in told)
    preset = dataclasses.replace(spo, preset="plus_plus")
    assert not [remark for remark in unusual(given, preset) if "late" in remark]
    assert aborts(config(), spo) == (policy == "abort")


def test_more_in_flight_than_there_are_prompts_is_refused_with_the_arithmetic():
    """16 of a batch, and beside them floor(16 * warm-up), each of which keeps a prompt or half a one from a draw."""

    def checked(warmup: float, limit: int | None, prompts: int = 40) -> None:
        spo = SpoConfig(sampling=SamplingConfig(max_in_flight=limit))
        _require_enough_in_flight(SimpleNamespace(key_P=np.zeros(prompts)), config(warmup=warmup), spo)

    checked(1.5, 1)  # 16 + 24 = 40
    words = (
        r"while 25 rollouts .*num_warmup_batches=1.6.*25 / 1 = 25 prompts.*16 \+ 25 = 41 .* the training data has 40;"
    )
    with pytest.raises(SpoConfigError, match=words):
        checked(1.6, 1)
    checked(3.0625, 2)  # 16 + 49 // 2 = 40
    with pytest.raises(SpoConfigError, match=r"50 / 2 = 25 prompts.*16 \+ 25 = 41"):
        checked(3.125, 2)
    checked(9, None)
    _require_enough_in_flight(SimpleNamespace(key_P=np.zeros(40)), config("sync", batch=64), SpoConfig())  # elsewhere


def test_rollouts_of_the_checkpoint_count_where_they_are_more():
    def checked(restored: int) -> None:
        keys = SimpleNamespace(key_P=np.zeros(40))
        _require_enough_in_flight(keys, config(warmup=1), SpoConfig(), restored=restored)

    checked(0)
    checked(24)
    with pytest.raises(SpoConfigError, match=r"while 25 rollouts .*\(the checkpoint that is resumed\).*16 \+ 25 = 41"):
        checked(25)


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

    def redispatch(self, uids, version) -> None:
        self.calls.append(("redispatch", sorted(uids), version))


def prompt(status: str) -> dict:
    return {"is_prompt": True, "status": status, "global_steps": 4}


def restored(monkeypatch, items: dict[str, dict], known: list[str]):
    queue = Queue(items)
    monkeypatch.setattr(asynchronous, "tq", queue)
    made = object.__new__(SpoTrainer)
    made.trainer_mode, made.global_steps = "colocate_async", 5
    made.config, made.spo = config(), SpoConfig()
    made._evicted, made._recorder = Evicted(), SimpleNamespace(dispatched=lambda uids, frozen: None)
    made._keys, made._sources = SimpleNamespace(key_P=np.zeros(40)), None
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
    assert made._evicted.calls == [("aborted", {"gone"}, set(), "train")]


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


def test_at_the_end_of_a_version_nothing_is_left_and_what_had_finished_is_evidence(monkeypatch):
    items = {"a": prompt("running"), "a_0_0": {}, "b": prompt("pending"), "c": prompt("finished"), "c_0_0": {}}
    items |= {"d": prompt("running"), "e": prompt("failure"), "taken_0_0": {}}
    made, queue = restored(monkeypatch, items, [])
    made.agent_loop_manager, made.replay_buffer = "manager", SimpleNamespace()
    made._aborts = True

    def cancel(manager, uids) -> None:
        assert (manager, set(uids)) == ("manager", {"a", "b", "d"})
        queue.items["d"], queue.items["d_0_0"] = prompt("finished"), {}  # before the cancellation reached it

    monkeypatch.setattr(asynchronous, "abort_rollouts", cancel)
    made._end_version()
    told = {kind: uids for kind, uids, *_ in made._evicted.calls}
    assert told == {"aborted": {"a", "b"}, "surplus": {"c", "d"}, "failed": {"e"}}
    assert all("d_0_0" in trajectories for *_, trajectories, _ in made._evicted.calls)
    assert set(queue.items) == {"taken_0_0"}  # the batch that was taken
    assert made.replay_buffer.spo_aborted == {"a", "b"}


@pytest.mark.parametrize(
    ("mode", "aborting", "trigger", "expected"),
    [
        ("colocate_async", True, 1, ["end", "pause", "publish"]),
        ("colocate_async", True, 0, ["pause", "publish"]),
        ("colocate_async", False, 1, ["pause", "publish"]),
        ("separate_async", True, 1, ["pause", "end", "publish"]),
        ("sync", False, 1, ["pause", "publish"]),
    ],
)
def test_late_rollouts_are_stopped_where_generation_pauses_or_changes_its_weights(mode, aborting, trigger, expected):
    calls: list[str] = []

    class Stock:
        def on_sample_end(self) -> None:
            calls.append("pause")

        def on_step_end(self) -> None:
            calls.append("publish")

    class Made(SpoTrainer, Stock):
        def _end_version(self) -> None:
            if self._aborts:
                calls.append("end")

    made = object.__new__(Made)
    made.trainer_mode, made._aborts = mode, aborting
    made.local_trigger_step, made.parameter_sync_step = trigger, 2
    made.on_sample_end()
    made.on_step_end()
    assert calls == expected
