"""The order in which a run draws, dispatches, publishes and observes, with verl's own loop, buffer and hooks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.config import ForgettingConfig, LateConfig, ReadOut, SamplingConfig, SpoConfig, ValueConfig
from spo_verl.errors import SpoConfigError, SpoStateError
from spo_verl.tracker import PromptSources
from spo_verl.training.checks import in_flight_problems, surplus
from tests.training.simulated_run import Setting, World, run, somehow

pytestmark = pytest.mark.long

ASYNC = ("colocate_async", "separate_async")
POLICIES = ("carry", "drop", "abort")
COUNTED = ForgettingConfig(mode="version", rho=1.0)
"""Nothing is forgotten: evidence is a count."""


def spo_of(policy: str, limit: int | None = 1, readout: ReadOut = "raw", **sampling: object) -> SpoConfig:
    return SpoConfig(
        value=ValueConfig(readout=readout),
        late=LateConfig(policy=policy),  # type: ignore[arg-type]
        forgetting=COUNTED,
        sampling=SamplingConfig(max_in_flight=limit, **sampling),  # type: ignore[arg-type]
    )


@st.composite
def any_run(draw) -> tuple[Setting, float, int]:
    mode = draw(st.sampled_from(["sync", *ASYNC]))
    sync_step = draw(st.sampled_from([1, 2, 3])) if mode == "separate_async" else 1
    batch = sync_step * draw(st.integers(1, 5))
    policy = draw(st.sampled_from(POLICIES))
    setting = Setting(
        mode,
        prompts=6 * batch + draw(st.integers(0, 20)),
        batch=batch,
        spo=spo_of(policy, draw(st.sampled_from([1, 2, None])), draw(st.sampled_from(["raw", "calibrated"]))),
        warmup=draw(st.floats(0, 2)),
        sync_step=sync_step,
        steps=draw(st.integers(1, 5)),
        threshold=draw(st.sampled_from([None, 1, 2, 4])),
        sessions=draw(st.sampled_from([1, 3])),
        refill_failed=mode == "sync",
        resumed=draw(st.sampled_from([0, 7])),
    )
    if mode != "sync" and setting.resumed:
        setting = replace(setting, restored=draw(st.integers(0, 2 * batch)))
    return setting, draw(st.sampled_from([0.0, 0.2, 0.6])), draw(st.integers(0, 2**32))


@given(any_run())
@settings(max_examples=60, deadline=None)
def test_versions_and_evidence_of_any_run(case):
    setting, failing, seed = case
    world, made = run(setting, somehow(failing), seed)
    made._evicted.absorb(made.tracker)  # what the end of the last version stopped
    tracker = made.tracker

    # The recorded version is that of the policy that begins to generate.
    assert {uid: tracker.world.recorded[uid] for uid in world.began} == world.began

    # Of every verified outcome the tracker hears once, but for those that wait for a batch.
    waiting = {uid for uid, tag in world.queue.items["train"].items() if tag.get("is_prompt")}
    assert set(tracker.open_uids()) == waiting
    assert set(tracker.observed.values()) <= {1}
    assert {one for one in world.outcomes if one[0] not in waiting} == set(tracker.observed)
    won_P, lost_P = np.full(setting.prompts, 0.5), np.full(setting.prompts, 0.5)
    for uid, session in tracker.observed:
        won_P[world.slot[uid]] += world.outcomes[uid, session]
        lost_P[world.slot[uid]] += 1 - world.outcomes[uid, session]
    np.testing.assert_allclose(tracker.evidence(), (won_P, lost_P), rtol=1e-12)

    # The calibrated read-out is fitted on every outcome, whatever its rollout's end.
    calibration = tracker.snapshot().calibration
    assert (calibration is None) == (setting.spo.value.readout == "raw")
    if calibration is not None:
        rewards = [world.outcomes[one] for one in tracker.observed]
        assert sorted(calibration.reward_N.tolist()) == sorted(rewards)
        assert all("spo/readout/slope" in metrics for metrics in made.logged)

    # Trained on once; a batch of drop and abort is of the version that it trains, whoever was left in flight.
    trained = Counter(uid for step in world.steps for uid in step.uids)
    assert set(trained.values()) <= {1}
    if setting.spo.late.policy != "carry":
        for step in world.steps:
            assert {world.began[uid] for uid in step.uids} == {step.version}

    # Every step begins with a batch and the surplus in flight, and no step has more (but for what a checkpoint held).
    beside = surplus(made.config)
    most = setting.batch + max(beside, setting.restored)
    if setting.mode != "sync":
        assert all(setting.batch + beside <= count <= most for count in made.in_flight)
    assert tracker.most_open <= most


@pytest.mark.parametrize("mode", ASYNC)
def test_replacements_of_stopped_rollouts_see_the_batch_that_was_taken(mode):
    """Three prompts, a batch of one, one more in flight: what is drawn behind an update knows its outcome."""
    spo = spo_of("abort", None)
    world, made = run(Setting(mode, prompts=3, batch=1, spo=spo, warmup=1.0, steps=6), somehow(), seed=3)
    assert sum(metrics["spo/rollouts/aborted_total"] for metrics in made.logged) > 0
    assert all(metrics["spo/staleness/max"] == 0 for metrics in made.logged)
    # Versions of dispatches: two of each, none of the version before.
    versions = Counter(world.recorded.values())
    assert versions == dict.fromkeys(range(6), 2)


def test_a_refill_that_the_batch_does_without_waits_for_the_next_version():
    """Two finish and one fails at once; the batch of two is complete, and generation pauses behind it."""

    def fate(world: World) -> list[tuple[str, str]]:
        ages = sorted(world.running, key=lambda uid: world.running[uid])
        return [(uid, "failure" if number == 0 else "finished") for number, uid in enumerate(ages)]

    setting = Setting("colocate_async", prompts=20, batch=2, spo=spo_of("carry"), warmup=0.5, steps=5)
    world, made = run(setting, fate)
    assert world.recorded == {**world.recorded, **world.began}
    assert set(made.in_flight) == {3}


# ---------------------------------------------------------------------- the start check


def stubborn(favourites: int, waves: int):
    """The favourite prompts never finish; all others fail for some polls, and finish from then on."""

    def fate(world: World) -> list[tuple[str, str]]:
        status = "failure" if world.polls < waves else "finished"
        return [(uid, status) for uid in world.running if world.slot[uid] >= favourites]

    return fate


@st.composite
def at_the_edge(draw) -> Setting:
    mode = draw(st.sampled_from(ASYNC))
    sync_step = draw(st.sampled_from([1, 2])) if mode == "separate_async" else 1
    batch = sync_step * draw(st.integers(1, 6))
    warmup = draw(st.one_of(st.floats(0, 3), st.sampled_from([0, 1, 2, 0.29, 0.57])))
    limit = draw(st.sampled_from([1, 1, 2, 3, None]))
    held = 0 if limit is None else math.floor(warmup * batch) // limit
    prompts = max(batch, batch + held + draw(st.integers(-2, 2)))
    policy = draw(st.sampled_from(POLICIES))
    spo = spo_of(policy, limit, epsilon=0.0)
    return Setting(mode, prompts, batch, spo, warmup, sync_step, threshold=draw(st.sampled_from([None, 2])))


def failure_of(setting: Setting, fate, seed: int = 0) -> str | None:
    try:
        run(setting, fate, seed)
    except SpoStateError as error:
        return str(error)
    return None


@given(at_the_edge())
@settings(max_examples=40, deadline=None)
def test_the_start_check_refuses_exactly_what_can_fail(setting):
    config = setting.config()
    refused = list(in_flight_problems(setting.prompts, config, setting.spo))
    limit = setting.spo.sampling.max_in_flight
    held = 0 if limit is None else surplus(config) // limit
    failure = failure_of(replace(setting, favourites=held), stubborn(held, waves=16))
    assert bool(refused) == (failure is not None), (refused, failure)
    if refused:
        assert f"{setting.batch} + {held} = {setting.batch + held} different prompts are needed" in refused[0]
        assert f"the training data has {setting.prompts}" in refused[0]
        assert "are in flight" in failure


@given(at_the_edge(), st.integers(0, 2**32), st.sampled_from([0.0, 0.3]))
@settings(max_examples=25, deadline=None)
def test_what_the_start_check_lets_pass_never_fails(setting, seed, failing):
    if not list(in_flight_problems(setting.prompts, setting.config(), setting.spo)):
        assert failure_of(setting, somehow(failing), seed) is None


@given(at_the_edge(), st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_a_checkpoint_with_more_in_flight_is_refused_exactly_where_it_would_fail(setting, restored):
    # One rollout per prompt: a checkpoint of this limit holds no more than there are prompts.
    setting = replace(setting, spo=replace(setting.spo, sampling=SamplingConfig(epsilon=0.0)), resumed=5)
    beside = max(surplus(setting.config()), restored)
    if beside > setting.prompts:
        return
    setting = replace(setting, restored=restored, favourites=beside)
    if setting.spo.late.policy == "abort":
        # What was restored is stopped when its version ends. A later step draws these favourites for its batch, and a
        # batch of prompts that never finish waits whatever the check says.
        setting = replace(setting, steps=1)
    fits = setting.batch + beside <= setting.prompts
    if fits:
        run(setting, stubborn(beside, waves=6))
    elif restored:
        with pytest.raises(SpoConfigError, match=r"different prompts are needed"):
            run(setting, stubborn(beside, waves=6))


@pytest.mark.parametrize("policy", ["carry", "drop"])
@pytest.mark.parametrize(("slow_prompts", "fails"), [(8, True), (9, False)])
def test_the_surplus_can_be_all_of_one_data_source(policy, slow_prompts, fails):
    """Half of a batch of six is of the slow source, and three in flight are: 3 + 6 of its prompts, not 6 + 6."""
    names = ("slow",) * slow_prompts + ("fast",) * 30
    spo = spo_of(policy, quota={"slow": 1, "fast": 1})
    setting = Setting("colocate_async", len(names), 6, spo, warmup=1.0, steps=8, slots_of_source=names)

    def fate(world: World) -> list[tuple[str, str]]:
        fast = [uid for uid in world.running if world.slot[uid] >= slow_prompts]
        return [(uid, "finished") for uid in fast or list(world.running)[:1]]

    problems = list(in_flight_problems(len(names), setting.config(), spo, PromptSources.of(names)))
    assert bool(problems) == fails
    if fails:
        assert "of the data source 'slow'" in problems[0]
        assert "3 + 6 = 9 different prompts of the data source 'slow' are needed" in problems[0]
    assert (failure_of(setting, fate) is not None) == fails
