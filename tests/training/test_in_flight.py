"""Verl's replay buffer, watched: what is taken first, and what becomes of evicted rollouts."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import replay_buffer as verl_buffer

from spo_verl.config import LateConfig, SpoConfig
from spo_verl.errors import SpoRewardError, SpoRolloutError
from spo_verl.training import in_flight, rewards
from spo_verl.training.in_flight import EvictedRollouts, FailureStreak, first_to_finish, watched_buffer
from spo_verl.training.sessions import read_sessions, response_tokens


class FakeQueue:
    """TransferQueue in a dictionary: the verbs that verl's buffer and the rewards use."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, dict]] = {"train": {}, "val": {}}
        self.rewards: dict[str, float] = {}

    def prompt(self, uid: str, status: str, step: int, *, reward: float | None = None, tokens: int = 3) -> None:
        self.items["train"][uid] = {"is_prompt": True, "status": status, "global_steps": step}
        if reward is not None:
            self.items["train"][f"{uid}_0_0"] = {"response_len": tokens, "global_steps": step}
            self.rewards[f"{uid}_0_0"] = reward

    def kv_list(self, partition: str | None = None) -> dict:
        return {name: dict(items) for name, items in self.items.items() if partition in (None, name)}

    def kv_clear(self, keys, partition_id) -> None:
        for key in keys:
            self.items[partition_id].pop(key, None)

    def kv_batch_get(self, keys, partition_id, select_fields):
        assert select_fields == ["rm_scores"]
        if not set(keys) <= set(self.rewards):
            raise ValueError("Some fields are not ready in all the requested keys!")  # as TransferQueue says it
        rows = [torch.tensor([0.0, self.rewards[key]]) for key in keys]
        return {"rm_scores": torch.nested.nested_tensor(rows, layout=torch.jagged)}


@pytest.fixture
def queue(monkeypatch) -> FakeQueue:
    fake = FakeQueue()
    monkeypatch.setattr(verl_buffer, "tq", fake)
    monkeypatch.setattr(in_flight, "tq", fake)
    monkeypatch.setattr(rewards, "tq", fake)
    return fake


def buffer_of(queue: FakeQueue, *, threshold: int | None = 2, verified: bool = True, **late: object):
    spo = dataclasses.replace(SpoConfig(), late=LateConfig(**late))  # type: ignore[arg-type]
    refilled: list[int] = []

    def refill(count: int) -> None:
        refilled.append(count)
        for number in range(count):
            queue.prompt(f"new{len(refilled)}.{number}", "finished", 5, reward=1.0)

    stock = verl_buffer.ReplayBufferAsync(
        trainer_mode="colocate_async",
        trainer_config=OmegaConf.create({}),
        max_off_policy_threshold=threshold,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create({}),
        poll_interval=0.01,
        refill_fn=refill,
    )
    evicted = EvictedRollouts(spo, verified=lambda: verified)
    return watched_buffer(stock, spo, evicted), evicted, refilled


def uids_of(batch) -> list[str]:
    return sorted(key.split("_")[0] for key in batch.keys)


def test_a_batch_takes_what_finished_first_whatever_was_dispatched_first(queue):
    buffer, _, _ = buffer_of(queue, threshold=None)
    queue.prompt("old", "running", 1)
    queue.prompt("young", "finished", 5, reward=1.0)
    buffer._sync_metadata_from_transfer_queue()
    queue.prompt("old", "finished", 1, reward=0.0)
    queue.prompt("third", "finished", 2, reward=0.0)
    batch, _ = buffer.sample(global_steps=5, partition_id="train", batch_size=2)
    # Seen first: young. Then old and third at the same poll, in the order of their dispatch.
    assert uids_of(batch) == ["old", "young"]


def test_the_bound_reserves_places_for_the_oldest():
    seen = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    step = {"a": 9, "b": 9, "c": 9, "d": 1}
    assert first_to_finish(set(seen), 2, seen, step, None) == ["a", "b"]
    # A quarter of two, rounded up, is one place: that of d, dispatched at step 1.
    assert first_to_finish(set(seen), 2, seen, step, 0.25) == ["d", "a"]
    assert first_to_finish(set(seen), 3, seen, step, 1.0) == ["d", "a", "b"]
    assert first_to_finish(set(seen), 4, seen, step, 0.5) == ["d", "a", "b", "c"]


def test_stale_rollouts_are_evidence_and_failed_ones_are_not(queue):
    buffer, evicted, refilled = buffer_of(queue, threshold=2)
    queue.prompt("stale", "finished", 3, reward=1.0, tokens=7)
    queue.prompt("broken", "failure", 5)
    queue.prompt("fine", "finished", 4, reward=0.0)
    batch, metrics = buffer.sample(global_steps=5, partition_id="train", batch_size=3)
    assert sum(refilled) == 2
    assert {"fine"} < set(uids_of(batch))
    assert metrics["training/off_policy/evicted_samples"] == 1
    by_kind = {entry.kind: entry for entry in evicted.drain()}
    assert by_kind.keys() == {"stale", "failed"}
    assert list(by_kind["stale"].uids) == ["stale"]
    assert list(np.asarray(by_kind["stale"].reward_B)) == [1.0]
    assert by_kind["stale"].over == ["stale"]
    assert list(by_kind["failed"].uids) == []
    assert by_kind["failed"].over == ["broken"]
    assert evicted.drain_step().token_count == [7]
    assert evicted.drain() == []
    assert evicted.drain_step().token_count == []


def test_dropping_what_an_earlier_batch_left_behind(queue):
    buffer, evicted, refilled = buffer_of(queue, threshold=8, policy="drop")
    queue.prompt("left", "finished", 4, reward=1.0)
    queue.prompt("fresh", "finished", 5, reward=0.0)
    batch, _ = buffer.sample(global_steps=5, partition_id="train", batch_size=2)
    assert uids_of(batch) == ["fresh", "new1.0"]
    assert refilled == [1]
    [late] = evicted.drain()
    assert (late.kind, list(late.uids)) == ("surplus", ["left"])
    carrying, evicted, refilled = buffer_of(queue, threshold=8)
    queue.prompt("left", "finished", 4, reward=1.0)
    queue.prompt("fresh", "finished", 5, reward=0.0)
    batch, _ = carrying.sample(global_steps=5, partition_id="train", batch_size=2)
    assert uids_of(batch) == ["fresh", "left"]
    assert (evicted.drain(), refilled) == ([], [])


def test_a_partly_failed_group_tells_what_its_other_sessions_found(queue):
    buffer, evicted, _ = buffer_of(queue)
    queue.prompt("half", "failure", 5, reward=1.0)
    queue.prompt("fine", "finished", 5, reward=0.0)
    buffer.sample(global_steps=5, partition_id="train", batch_size=1)
    [late] = evicted.drain()
    assert (late.kind, list(late.uids), list(np.asarray(late.reward_B))) == ("failed", ["half"], [1.0])


def test_rollouts_without_a_reward_yet_end_without_evidence(queue):
    buffer, evicted, _ = buffer_of(queue, threshold=2, verified=False)
    queue.prompt("stale", "finished", 3, reward=1.0)
    queue.prompt("fine", "finished", 5, reward=1.0)
    buffer.sample(global_steps=5, partition_id="train", batch_size=1)
    [late] = evicted.drain()
    assert (list(late.uids), late.over) == ([], ["stale"])


def test_a_reward_out_of_range_stops_the_run_here_too(queue):
    buffer, _, _ = buffer_of(queue, threshold=2)
    queue.prompt("stale", "finished", 3, reward=7.0)
    with pytest.raises(SpoRewardError, match=r"evicted rollout stale has score = 7\.0"):
        buffer.sample(global_steps=5, partition_id="train", batch_size=1)


def test_the_class_is_made_once_and_keeps_the_users_own():
    class Custom(verl_buffer.ReplayBufferAsync):
        pass

    made = [Custom.__new__(Custom) for _ in range(2)]
    watched = [watched_buffer(one, SpoConfig(), SimpleNamespace()) for one in made]  # type: ignore[arg-type]
    assert type(watched[0]) is type(watched[1])
    assert isinstance(watched[0], Custom)
    assert type(watched[0]).__name__ == "WatchedCustom"


def test_tokens_of_all_outputs_of_a_session_count_and_padding_does_not():
    keys = ["a_0_0", "a_0_1", "b_0_0", "a_0_0"]
    tags = [{"response_len": 2}, {"response_len": 3}, {"response_len": 7}, {"response_len": 9, "is_padding": True}]
    assert response_tokens(read_sessions(keys, tags), tags).tolist() == [5, 7]


def test_what_a_stopped_rollout_was_just_writing_is_cleared(queue):
    buffer, _, _ = buffer_of(queue, threshold=None)
    queue.prompt("kept", "finished", 5, reward=1.0)
    queue.items["train"]["gone"] = {"status": "running"}  # without the mark of a prompt: written behind the clearing
    queue.items["train"]["gone_1_0"] = {"response_len": 3, "global_steps": 5}
    buffer.spo_aborted = {"gone"}
    batch, _ = buffer.sample(global_steps=5, partition_id="train", batch_size=1)
    assert uids_of(batch) == ["kept"]
    assert not [key for key in queue.items["train"] if key.startswith("gone")]


@pytest.mark.parametrize("kind", ["aborted", "failed"])
def test_a_session_whose_writing_was_cut_off_has_delivered_nothing(queue, kind):
    """Sessions of one prompt: 0 was written, 1 has the first of two outputs only, 2 is registered and no more."""
    evicted = EvictedRollouts(SpoConfig(), verified=lambda: True)
    written = {"u_0_0": 1.0, "v_0_0": 0.0, "u_1_0": 1.0}
    queue.rewards |= written
    trajectories = {key: {"response_len": 2} for key in (*written, "u_1_1", "u_2_0")}
    evicted.add(kind, {"u", "v"}, trajectories, "train")
    [late] = evicted.drain()
    told = dict(zip(zip(late.uids, late.session_B, strict=True), late.reward_B, strict=True))
    assert told == {("u", 0): 1.0, ("v", 0): 0.0}
    assert (late.kind, sorted(late.ended)) == (kind, ["u", "v"])
    assert evicted.drain_step().token_count == [2, 2]


def test_without_a_written_session_the_prompts_only_end(queue):
    evicted = EvictedRollouts(SpoConfig(), verified=lambda: True)
    evicted.add("aborted", {"u"}, {"u_0_0": {}, "u_1_0": {}}, "train")
    [late] = evicted.drain()
    assert (list(late.uids), late.ended) == ([], ["u"])


def test_a_finished_rollout_without_a_reward_is_an_error(queue):
    evicted = EvictedRollouts(SpoConfig(), verified=lambda: True)
    with pytest.raises(ValueError, match="not ready"):
        evicted.add("surplus", {"u"}, {"u_0_0": {}}, "train")


# ---------------------------------------------------------------------- an engine that is gone


def test_failures_in_a_row_end_the_run_when_they_are_many_and_last():
    streak = FailureStreak()
    for second in range(15):
        streak.note(0, 10, batch=16, now=100.0 + second)  # many, and not for long
    streak.note(1, 9, batch=16, now=130.0)
    for second in range(5):
        streak.note(0, 12, batch=16, now=131.0 + 9 * second)  # for long, and not many
    streak.note(0, 0, batch=16, now=300.0)
    with pytest.raises(SpoRolloutError, match="the last 64 rollouts failed, for 169 s"):
        streak.note(0, 4, batch=16, now=300.0)


@pytest.mark.parametrize(("batch", "least"), [(16, 64), (100, 400), (math.inf, math.inf)])
def test_large_batches_need_more_failures(batch, least):
    streak = FailureStreak()
    streak.note(0, 1, batch=batch, now=0.0)
    streak.note(0, int(min(least, 10**6)) - 2, batch=batch, now=99.0)
    if least < math.inf:
        with pytest.raises(SpoRolloutError):
            streak.note(0, 1, batch=batch, now=99.0)


def test_a_buffer_whose_replacements_all_fail_does_not_wait_for_ever(queue, monkeypatch):
    monkeypatch.setattr(in_flight, "FAILING_SECONDS", 0.2)
    buffer, _, refilled = buffer_of(queue, threshold=None)

    def fails(count: int) -> None:
        refilled.append(count)
        for number in range(count):
            queue.prompt(f"bad{len(refilled)}.{number}", "failure", 5)

    buffer.spo_refill = fails
    queue.prompt("fine", "finished", 5, reward=1.0)
    queue.prompt("broken", "failure", 5)
    with pytest.raises(SpoRolloutError, match="rollout engine"):
        buffer.sample(global_steps=5, partition_id="train", batch_size=2)
    assert sum(refilled) >= 63
