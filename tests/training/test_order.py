"""Which rows share a mini-batch, where the actor receives them: in verl's own loop over mini-batches, on every rank.

The oracle of most tests is invariance: whatever must not matter is changed, and the mini-batches stay what they were.
"""

import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_verl.errors import SpoConfigError
from spo_verl.training.order import deal, mini_batch_seed
from tests.support.actor_batches import MODES, SPO, Step

pytestmark = pytest.mark.long

BATCH = ["actor_rollout_ref.actor.ppo_mini_batch_size=16"]
GRPO = ["algorithm.adv_estimator=grpo"]


def rollouts(prompts: int, *, sessions: int = 1, seed: int = 0) -> dict[tuple[int, int, int], int]:
    """Token counts by (prompt, session, output), long-tailed as responses are."""
    rng = np.random.default_rng(seed)
    return {
        (prompt, session, 0): int(np.exp(rng.normal(6.0, 0.6)).clip(20, 4000))
        for prompt in range(prompts)
        for session in range(sessions)
    }


def names(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


def by_length(length_of: dict) -> list:
    """The order in which rows finish where all of them begin at once."""
    return sorted(length_of, key=lambda row: (length_of[row], row))


def members(mini_batches: list) -> list[list]:
    """Mini-batch -> its rows, all ranks together."""
    return [sorted(row for rank in ranks for row in rank) for ranks in mini_batches]


@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
def test_neither_finishing_time_nor_names_nor_ranks_decide_who_shares_a_mini_batch(monkeypatch, mode):
    length_of = rollouts(64)
    step = Step(monkeypatch, [*SPO, *BATCH], mode=mode)
    rng = np.random.default_rng(1)
    rows = by_length(length_of)
    reference = members(step.run(length_of, rows, names(64)))
    for ranks in (1, 2, 4, 8):
        step.use(ranks)
        for finished in (rows, rows[::-1], [rows[place] for place in rng.permutation(64)]):
            found = step.run(length_of, finished, names(64))
            assert members(found) == reference
            assert [len(keys) for mini in found for keys in mini] == [16 // ranks] * 4 * ranks
        # Other lengths move rows to other ranks, and not to other mini-batches.
        other = rollouts(64, seed=9)
        assert members(step.run(other, by_length(other), names(64))) == reference


def test_without_the_plugins_order_the_last_mini_batch_is_the_longest_rows(monkeypatch):
    """What this is about, and that the tests here would see it."""
    length_of = rollouts(64)
    stock = Step(monkeypatch, [*GRPO, *BATCH]).run(length_of, by_length(length_of), names(64))
    assert members(stock)[-1] == sorted(by_length(length_of)[-16:])


def test_a_separate_trainer_orders_the_one_mini_batch_of_each_update(monkeypatch):
    one = ["actor_rollout_ref.actor.ppo_mini_batch_size=64"]
    length_of = rollouts(64)
    step = Step(monkeypatch, [*SPO, *one], mode="separate_async", ranks=2)
    found = [step.run(length_of, rows, names(64)) for rows in (by_length(length_of), by_length(length_of)[::-1])]
    assert found[0] == found[1]
    step.trainer.local_trigger_step = 1  # the second update of a version
    assert step.run(length_of, by_length(length_of), names(64)) != found[0]


@pytest.mark.parametrize("mode", MODES)
def test_grpo_with_the_same_seed_has_the_same_mini_batches(monkeypatch, mode):
    sizes = {"sync": 4, "colocate_async": 4, "separate_async": 8}
    overrides = [f"actor_rollout_ref.actor.ppo_mini_batch_size={sizes[mode]}", "actor_rollout_ref.rollout.n=8"]
    length_of = rollouts(8, sessions=8)
    spo = Step(monkeypatch, [*SPO, "spo.bspo=True", "spo.seed=3", *overrides], mode=mode, ranks=2, prompts=8)
    grpo = Step(monkeypatch, [*GRPO, "+mini_batch_seed=3", *overrides], mode=mode, ranks=2, prompts=8)
    ours = spo.run(length_of, by_length(length_of), names(8))
    assert ours == grpo.run(length_of, by_length(length_of)[::-1], names(8))
    if mode != "separate_async":  # groups do not stay together
        assert len({prompt for prompt, _, _ in members(ours)[0]}) == 8


def test_the_seed_of_mini_batches_can_be_given_apart(monkeypatch):
    length_of = rollouts(64)
    runs = {
        name: members(Step(monkeypatch, [*SPO, *BATCH, *seeds]).run(length_of, by_length(length_of), names(64)))
        for name, seeds in {
            "0": [],
            "1": ["spo.seed=1"],
            "1 again": ["spo.seed=0", "+mini_batch_seed=1"],
        }.items()
    }
    assert runs["0"] != runs["1"]
    assert runs["1"] == runs["1 again"]


def test_each_step_has_an_order_of_its_own_and_a_second_process_the_same(monkeypatch):
    length_of = rollouts(64)

    def process() -> list:
        step, found = Step(monkeypatch, [*SPO, *BATCH]), []
        for number in (1, 2, 3):
            step.trainer.global_steps = number
            found.append(members(step.run(length_of, by_length(length_of), names(64))))
        return found

    first = process()
    assert first == process()
    assert first[0] != first[1] != first[2] != first[0]


def test_order_of_dispatch_decides_what_equal_rollouts_become(monkeypatch):
    """A prompt drawn second takes the place of the second, whichever prompt it is."""
    length_of = dict.fromkeys(rollouts(64), 100)
    rows = by_length(length_of)
    straight = Step(monkeypatch, [*SPO, *BATCH]).run(length_of, rows, names(64))
    turned = Step(monkeypatch, [*SPO, *BATCH]).run(length_of, rows, names(64), dispatched=list(range(63, -1, -1)))
    assert members(turned) == [sorted((63 - p, s, o) for p, s, o in mini) for mini in members(straight)]


def test_padding_is_dealt_out_evenly(monkeypatch):
    length_of = rollouts(64)
    length_of |= {(prompt, 0, 1): 333 for prompt in range(10)}  # second outputs: 74 rows fill five of 16
    found = Step(monkeypatch, [*SPO, *BATCH], ranks=4).run(length_of, by_length(length_of), names(64))
    padding = [sum(row[0] == -1 for row in mini) for mini in members(found)]
    assert len(padding) == 5
    assert (sum(padding), max(padding) - min(padding)) == (6, 1)
    assert sorted(row for mini in members(found) for row in mini if row[0] >= 0) == sorted(length_of)


def test_a_failed_session_leaves_the_others_in_their_order(monkeypatch):
    length_of = rollouts(64)
    del length_of[17, 0, 0]
    step = Step(monkeypatch, [*SPO, *BATCH], ranks=2)
    found = [members(step.run(length_of, rows, names(64))) for rows in (by_length(length_of), list(length_of))]
    assert found[0] == found[1]
    assert sum(row[0] == -1 for mini in found[0] for row in mini) == 1


def test_ranks_have_equal_work_in_every_mini_batch_and_in_all(monkeypatch):
    length_of = rollouts(512)
    overrides = [*SPO, "actor_rollout_ref.actor.ppo_mini_batch_size=128"]
    step = Step(monkeypatch, overrides, ranks=8, prompts=512)
    found = step.run(length_of, by_length(length_of), names(512))
    tokens = np.array([[sum(length_of[row] for row in rank) for rank in mini] for mini in found])
    # One row in ten is as long as a third of a rank's sixteen; dealt out by number alone the ratio is above 1.5.
    assert (tokens.max(axis=1) / tokens.min(axis=1)).max() < 1.2
    total = tokens.sum(axis=0)
    assert total.max() / total.min() < 1.03
    assert (step.metrics["global_seqlen/balanced_min"], step.metrics["global_seqlen/balanced_max"]) == (
        total.min(),
        total.max(),
    )


@pytest.mark.parametrize("setting", ["trainer.balance_batch=False", "actor_rollout_ref.actor.shuffle=True"])
def test_settings_of_verl_that_touch_the_order_do_not_bring_finishing_time_back(monkeypatch, setting):
    length_of = rollouts(64)
    step = Step(monkeypatch, [*SPO, *BATCH, setting], ranks=2)
    found = [step.run(length_of, rows, names(64)) for rows in (by_length(length_of), by_length(length_of)[::-1])]
    assert found[0] == found[1]


def test_every_epoch_trains_on_every_row_once(monkeypatch):
    length_of = rollouts(64)
    step = Step(monkeypatch, [*SPO, *BATCH, "actor_rollout_ref.actor.ppo_epochs=2"], ranks=2)
    found = members(step.run(length_of, by_length(length_of), names(64)))
    assert len(found) == 8
    for epoch in (found[:4], found[4:]):
        assert sorted(row for mini in epoch for row in mini) == sorted(length_of)


def test_the_token_centres_of_eight_updates_are_within_noise(monkeypatch):
    """The paper's batch: 2,048 rollouts, eight updates, a reward that falls with length.

    Centre of an update: sum of tokens times advantage over its tokens, which a token-mean loss sees. Its spread over
    random subsets is computed here from many of them.
    """
    rng = np.random.default_rng(0)
    length_of = rollouts(2048)
    tokens = np.array([length_of[prompt, 0, 0] for prompt in range(2048)], dtype=float)
    right = rng.random(2048) < np.clip(0.5 - 0.25 * (np.log(tokens) - 6.0), 0.01, 0.99)
    advantage = right - right.mean()
    advantage -= (tokens * advantage).sum() / tokens.sum()

    def centre(rows: np.ndarray) -> float:
        return float((tokens[rows] * advantage[rows]).sum() / tokens[rows].sum())

    spread = np.std([centre(rng.permutation(2048)[:256]) for _ in range(500)])
    runs = {
        "stock": [*GRPO, "actor_rollout_ref.actor.ppo_mini_batch_size=256"],
        "spo": [*SPO, "actor_rollout_ref.actor.ppo_mini_batch_size=256"],
    }
    worst = {}
    for name, overrides in runs.items():
        step = Step(monkeypatch, overrides, ranks=2, prompts=2048)
        found = step.run(length_of, by_length(length_of), names(2048))
        centres = [centre(np.array([row[0] for row in mini])) for mini in members(found)]
        worst[name] = max(abs(one) / spread for one in centres)
    assert len(centres) == 8
    assert worst["stock"] > 8  # the order of finishing is far outside
    assert worst["spo"] < 4


def test_every_mini_batch_is_as_likely_for_every_row():
    """Chi-square over many steps; lengths and sources are as uneven as they come."""
    rows, minis, steps = 24, 4, 1000
    length_R = [10 * (row + 1) ** 2 for row in range(rows)]
    count = np.zeros((rows, minis))
    for step in range(steps):
        [share] = deal(range(rows), [], length_R, mini_batch=6, ranks=1, rng=np.random.default_rng((7, step)))
        count[share, np.repeat(np.arange(minis), 6)] += 1
    expected = steps / minis
    statistic = ((count - expected) ** 2 / (expected * (1 - 1 / minis))).sum(axis=1) * (minis - 1) / minis
    # 24 statistics of about chi-square with 3 degrees of freedom: 21.1 is exceeded once in 10,000 each.
    assert statistic.max() < 21.1
    assert 1.5 < statistic.mean() < 4.5


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_dealing_loses_nothing_and_fills_every_mini_batch_of_every_rank(data):
    ranks = data.draw(st.sampled_from([1, 2, 3, 4, 8]))
    mini = ranks * data.draw(st.integers(1, 4))
    total = mini * data.draw(st.integers(1, 5))
    pads = data.draw(st.integers(0, min(total - 1, mini - 1)))
    order = data.draw(st.permutations(range(total)))
    length_R = data.draw(st.lists(st.integers(1, 5000), min_size=total, max_size=total))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shares = deal(order[pads:], order[:pads], length_R, mini_batch=mini, ranks=ranks, rng=rng)
    assert sorted(row for share in shares for row in share) == list(range(total))
    assert [len(share) for share in shares] == [total // ranks] * ranks
    size = mini // ranks
    padding = set(order[:pads])
    for number in range(total // mini):
        inside = [row for share in shares for row in share[number * size : (number + 1) * size]]
        assert pads // (total // mini) <= len(padding.intersection(inside)) <= -(-pads // (total // mini))


def test_a_step_without_an_update_is_dealt_out_as_one():
    """verl fills only up to the number of ranks then; the mini-batch does not divide the batch."""
    shares = deal(range(6), [], [1] * 6, mini_batch=16, ranks=2, rng=np.random.default_rng(0))
    assert sorted(shares[0] + shares[1]) == list(range(6))
    assert [len(share) for share in shares] == [3, 3]


@pytest.mark.parametrize("value", [-1, 1.5, "abc", True, [1]])
def test_a_seed_that_is_none_is_refused(value):
    with pytest.raises(SpoConfigError, match=r"mini_batch_seed=.*\+mini_batch_seed=0"):
        mini_batch_seed({"mini_batch_seed": value})


@pytest.mark.parametrize("estimator", [SPO, GRPO])
def test_both_kinds_of_run_check_their_seed(monkeypatch, estimator):
    with pytest.raises(SpoConfigError, match="mini_batch_seed='abc'"):
        Step(monkeypatch, [*estimator, "+mini_batch_seed=abc"])


def test_no_seed_asks_for_nothing():
    assert mini_batch_seed({}) is None
    assert mini_batch_seed({"mini_batch_seed": 0}) == 0
