"""Two FSDP2 ranks with two vLLM replicas: what SPO does is that of one rank, computed here from verl's dumps and from
what the ranks received (``tests/support/batch_probe.py``).
"""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest

from spo_verl.core import normalize_advantages
from tests.system import mini_batches
from tests.system.harness import Run, merged

pytestmark = [pytest.mark.system, pytest.mark.timeout(5400)]

RANKS = 2


def scores(run: Run, step: int) -> dict[tuple[str, int], float]:
    """(uid, session) -> score in [0, 1] of what a step was trained on, from verl's dump."""
    found = {}
    for line in (run.rollouts / f"{step}.jsonl").read_text().splitlines():
        record = json.loads(line)
        if not record["uid"].startswith("pad"):
            uid, session, _ = record["uid"].rsplit("_", 2)
            found[uid, int(session)] = (record["score"] + 1) / 2
    return found


def trained_of(run: Run) -> list[dict]:
    return [one for one in run.notes() if "trained" in one]


def advantages(run: Run, step: int) -> dict[tuple[str, int], tuple[float, int]]:
    """(uid, session) -> its advantage and the rank that trained on its first output."""
    wanted, found = scores(run, step), {}
    for note in trained_of(run):
        for uid, session, tokens in zip(note["trained"], note["session"], note["advantage"], strict=True):
            key = (uid, int(session))
            if key in wanted:
                assert len(set(tokens)) == 1  # the same at every token
                assert found.setdefault(key, (tokens[0], note["rank"]))[0] == tokens[0]
    assert found.keys() == wanted.keys()
    return found


@pytest.mark.parametrize("step", range(1, 6))
def test_advantages_are_normalised_over_the_batch_of_all_ranks(orphaned, step):
    of_session, reward = advantages(orphaned, step), scores(orphaned, step)
    value_S = np.array([advantage for advantage, _ in of_session.values()])
    rank_S = np.array([rank for _, rank in of_session.values()])
    assert set(rank_S) == set(range(RANKS))
    assert abs(value_S.mean()) < 1e-6
    assert value_S.std(ddof=1) == pytest.approx(1, rel=1e-5)
    if step == 1:  # nothing is known of any prompt yet: every value is 1/2
        raw_S = np.array([reward[key] - 0.5 for key in of_session])
        np.testing.assert_allclose(value_S, normalize_advantages(raw_S), rtol=1e-5)
    # Two sessions of a prompt differ by their rewards over one deviation, whichever ranks they are on.
    pairs = [((uid, 0), (uid, 1)) for uid, session in of_session if session == 0 and (uid, 1) in of_session]
    scale = [
        (of_session[one][0] - of_session[two][0]) / (reward[one] - reward[two])
        for one, two in pairs
        if reward[one] != reward[two]
    ]
    assert len(scale) > 1
    np.testing.assert_allclose(scale, scale[0], rtol=1e-5)


def test_no_rank_has_a_centre_of_its_own(orphaned):
    """A normalisation per rank would have it, and would pass what is asked of the whole batch."""
    for step in range(1, 6):
        of_session = advantages(orphaned, step).values()
        means = [np.mean([value for value, rank in of_session if rank == one]) for one in range(RANKS)]
        if max(map(abs, means)) > 1e-3:
            return
    pytest.fail("every rank's advantages have mean 0 in every step")


def test_ranks_share_every_mini_batch_which_is_that_of_one_rank(spo):
    notes = trained_of(spo)
    assert Counter(note["rank"] for note in notes) == {rank: len(notes) // RANKS for rank in range(RANKS)}
    assert {len(note["trained"]) for note in notes} == {8 // RANKS}
    dispatched, trained = spo.mini_batches()
    steps = mini_batches.by_step(trained, prompts=16)
    assert len(steps) == 4
    # The oracle knows nothing of ranks.
    mini_batches.check(steps, mini_batches.places(dispatched), seed=0, first=3)


def test_one_draw_per_step(spo):
    assert re.findall(r"spo: step=(\d+) drew=(\d+)", spo.log) == [(str(step), "16") for step in range(3, 7)]


def test_every_stored_response_is_scored_once_and_the_padding_is_the_shortest(spo):
    dispatched, trained = spo.mini_batches()
    dispatched = [batch for batch in dispatched if batch[0][1] < 1000]  # the others validate
    response_of = {uid: response for mini in trained for uid, _, response in mini}
    expected: list[list[tuple[int, ...]]] = []  # by forward
    last: dict[int, tuple[int, ...]] = {}
    for batch in dispatched:
        stored = [last[index] for _, index in batch if index in last]
        own = [response_of[uid] for uid, _ in batch]
        # acting: stored ones before the update; updated: stored ones and this batch's own after it
        expected += [*([stored, stored] if stored else []), own]
        last |= {index: response_of[uid] for uid, index in batch}
    notes = [one for one in spo.notes() if "scored" in one]
    assert {len(one["scored"]) for one in notes if one["rank"] == 0}  # the probe ran
    assert len(notes) == RANKS * len(expected)
    padding = 0
    for forward, whole in zip(expected, merged(notes), strict=True):
        found = Counter((tuple(p), tuple(r)) for p, r in zip(whole["prompt"], whole["scored"], strict=True))
        scored = Counter(response for _, response in found.elements())
        assert not Counter(forward) - scored
        per_rank = min(8, math.ceil(len(forward) / RANKS))
        extra = -len(forward) % (RANKS * per_rank)
        assert scored.total() == len(forward) + extra
        # A prompt is in a batch once, so what was scored twice is padding.
        twice = {pair: count - 1 for pair, count in found.items() if count > 1}
        assert sum(twice.values()) == extra
        assert len(twice) <= 1
        shortest = min(len(prompt) + len(response) for prompt, response in found)
        assert all(len(prompt) + len(response) == shortest for prompt, response in twice)
        padding += extra
    assert padding > 0
    for share in zip(*([one for one in notes if one["rank"] == rank] for rank in range(RANKS)), strict=True):
        lengths = [[len(p) + len(r) for p, r in zip(one["prompt"], one["scored"], strict=True)] for one in share]
        assert len({len(one) for one in lengths}) == 1
        # By length, with the same number of rows: sums differ by less than one sequence.
        assert abs(sum(lengths[0]) - sum(lengths[1])) <= max(map(max, lengths))
    steps = spo.metrics()
    assert sum(metrics["spo/drift/forwards_total"] for metrics in steps.values()) == len(expected)


def test_rollouts_of_two_replicas_and_training_on_two_ranks_agree(grpo, spo, orphaned):
    for run in (grpo, spo, orphaned):
        for metrics in run.metrics().values():
            assert metrics["training/rollout_probs_diff_max"] < 1e-4


def test_movement_is_the_mean_over_tokens_extrapolated_from_the_mini_batches(orphaned):
    uids_of = {step: {uid for uid, _ in scores(orphaned, step)} for step in orphaned.metrics()}
    for step, metrics in orphaned.metrics().items():
        count = sum(bool(uids_of[step] & set(note["trained"])) for note in merged(trained_of(orphaned)))
        assert count >= 2
        mean = metrics["actor/spo_movement"] / metrics["actor/spo_movement_tokens"]
        assert metrics["spo/drift/movement_total"] == pytest.approx(2 * count / (count - 1) * mean, rel=1e-5)
