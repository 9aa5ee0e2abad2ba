"""Real problems all the way: identity, imported values, draws, two steps of stock verl with its own scorer, checkpoint.

What the tracker must hold afterwards is computed here from the rows, from verl's own dump of the rollouts and from the
formulas of docs/algorithm.md.
"""

import json
import math
import re

import numpy as np
import pytest

from spo_verl.data import dataset_keys
from spo_verl.data.data_files import DataFiles
from spo_verl.tracker import Tracker, TrackerSettings
from tests.support import gsm8k as problems
from tests.system.gsm8k_run import BATCH, RESPONSE_TOKENS, STEPS

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(5400), problems.needs_gsm8k]

ROWS = 7473
MASS = 8.0  # 1 / (1 - rho_min)
RHO_MAX = 0.96


@pytest.fixture(scope="module")
def rows():
    return problems.rows("train")


@pytest.fixture(scope="module")
def keys(gsm8k):
    return dataset_keys(DataFiles([gsm8k.checkpoints.parent / "train.parquet"]))


@pytest.fixture(scope="module")
def initial(rows, keys):
    """(P, 2): alpha and beta of every prompt before the first step, from its first row's accuracy over 8 trials."""

    def evidence(accuracy):
        if accuracy is None:
            return 0.5, 0.5
        successes, trials = accuracy * problems.TRIALS, problems.TRIALS
        return MASS * (successes + 0.5) / (trials + 1), MASS * (trials - successes + 0.5) / (trials + 1)

    return np.array([evidence(rows[row]["extra_info"]["accuracy"]) for row in keys.row_of_slot_P.tolist()])


@pytest.fixture(scope="module")
def dumped(gsm8k, rows, keys):
    """Step -> [(slot, uid, score)], from verl's dump; a prompt is found by its text and ground truth."""
    slot_of = {
        (row["prompt"][0]["content"], row["reward_model"]["ground_truth"]): int(slot)
        for row, slot in zip(rows, keys.slot_of_row_N, strict=True)
    }
    assert len(slot_of) == keys.prompts
    found = {}
    for path in gsm8k.rollouts.glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        # The names of the roles are all that is left of the chat template in the dump.
        texts = [r["input"].removeprefix("user\n").removesuffix("\nassistant\n") for r in records]
        found[int(path.stem)] = [
            (slot_of[text, r["gts"]], r["uid"], r["score"]) for text, r in zip(texts, records, strict=True)
        ]
    return found


def test_both_steps_finished(gsm8k):
    assert gsm8k.returncode == 0, gsm8k.log[-3000:]
    assert set(gsm8k.metrics()) == set(range(1, STEPS + 1))


def test_no_problem_was_dropped_and_all_became_prompts(gsm8k, keys):
    assert f"Filtering prompts longer than {problems.LONGEST_PROMPT} tokens" in gsm8k.log
    lengths = re.findall(r"filter dataset len: (\d+)", gsm8k.log)
    assert lengths == [str(ROWS), "1319"]
    assert keys.rows == ROWS
    assert f"{ROWS} rows hold {keys.prompts} distinct prompts ({keys.duplicates} duplicates)" in gsm8k.log


def test_the_imported_values_reached_the_run(gsm8k, keys, initial):
    covered = int((initial.sum(axis=1) > 1).sum())
    assert 0.9 < covered / keys.prompts < 0.92  # ten rows of eleven
    assert f"column 'extra_info.accuracy': {covered} of {keys.prompts}" in (
        gsm8k.checkpoints.parent / "import.log"
    ).read_text().replace("\n", " ")
    trials = covered * problems.TRIALS
    assert f"offline values cover {covered} of {keys.prompts} prompts" in gsm8k.log
    assert f"with {trials} trials" in gsm8k.log


def test_every_step_observed_its_whole_batch_once(gsm8k, dumped):
    assert set(dumped) == set(range(1, STEPS + 1))
    uids = [uid for step in dumped.values() for _, uid, _ in step]
    assert len(uids) == len(set(uids)) == BATCH * STEPS
    for number, step in gsm8k.metrics().items():
        assert len({slot for slot, _, _ in dumped[number]}) == BATCH  # a prompt once per batch
        assert step["spo/evidence/observed_total"] == BATCH
        assert step["spo/rollouts/failed_total"] == 0
        assert step["spo/staleness/max"] == 0


def test_the_rewards_are_those_of_verls_scorer(gsm8k, dumped):
    from verl.utils.reward_score import default_compute_score

    for number in dumped:
        lines = (gsm8k.rollouts / f"{number}.jsonl").read_text(encoding="utf-8").splitlines()
        for record in map(json.loads, lines):
            assert record["score"] == default_compute_score("openai/gsm8k", record["output"], record["gts"])
    assert {score for step in dumped.values() for _, _, score in step} <= {0.0, 1.0}


def test_baselines_differ_so_that_advantages_are_finite_and_not_all_zero(gsm8k, dumped, initial):
    value_P = initial[:, 0] / initial.sum(axis=1)
    for number, step in gsm8k.metrics().items():
        advantages = [step[f"critic/advantages/{name}"] for name in ("min", "mean", "max")]
        assert all(math.isfinite(advantage) for advantage in advantages)
        assert advantages[0] < 0 < advantages[2]
        assert 0 < step["actor/grad_norm"] < math.inf
        # first visits only (see below): the baseline is the initial value, and the raw advantage reward minus it
        slots, scores = zip(*((slot, score) for slot, _, score in dumped[number]), strict=True)
        raw = np.array(scores) - value_P[list(slots)]
        assert step["spo/value/batch_mean"] == pytest.approx(value_P[list(slots)].mean())
        assert step["spo/advantage/raw_variance"] == pytest.approx(raw.var(ddof=1))
        # every rollout's normalised advantage stands on its tokens, so the extremes are those of the rollouts
        normalised = (raw - raw.mean()) / (raw.std(ddof=1) + 1e-8)
        assert [advantages[0], advantages[2]] == pytest.approx([normalised.min(), normalised.max()], abs=1e-4)


def test_responses_have_their_limit(gsm8k):
    for step in gsm8k.metrics().values():
        assert 0 < step["response_length/mean"] <= step["response_length/max"] <= RESPONSE_TOKENS
        assert step["prompt_length/max"] <= problems.LONGEST_PROMPT


def test_the_saved_evidence_follows_from_values_rewards_and_retention(gsm8k, keys, initial, dumped):
    drawn = [slot for step in dumped.values() for slot, _, _ in step]
    # The draws follow from the seed and from rewards that a random model does not earn. A prompt that came twice would
    # need the divergence of its two visits.
    assert len(set(drawn)) == BATCH * STEPS
    for step in gsm8k.metrics().values():
        assert step["spo/first_visit_share"] == 1.0
        assert step["spo/rho/min"] == step["spo/rho/max"] == RHO_MAX  # a first visit has D = 0
    expected = initial.copy()
    for step in dumped.values():
        for slot, _, score in step:
            expected[slot] = RHO_MAX * expected[slot] + [score, 1 - score]
    folder = gsm8k.checkpoints / f"global_step_{STEPS}" / "spo"
    tracker, report = Tracker.load(folder, keys.key_P, TrackerSettings())
    assert (report.matched, report.new, report.vanished) == (keys.prompts, 0, 0)
    found = np.stack(tracker.evidence(), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    untouched = np.setdiff1d(np.arange(keys.prompts), drawn)
    assert len(untouched) == keys.prompts - BATCH * STEPS
    np.testing.assert_allclose(found[untouched], initial[untouched], rtol=1e-15)
    assert (np.abs(found[drawn] - initial[drawn]).max(axis=1) > 0.01).all()
