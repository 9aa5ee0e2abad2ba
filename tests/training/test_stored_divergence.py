"""The divergence of stored responses: which are compared, what counts, and what is stored for the next time."""

import math

import numpy as np
import pytest
import torch
from verl.utils.torch_functional import masked_mean

from spo_verl.config import DriftConfig, ForgettingConfig, SpoConfig
from spo_verl.tracker import Frozen, Recall, Tracker
from spo_verl.tracker.responses import StoredResponses
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.training.outputs import Output
from spo_verl.training.stored_divergence import (
    DivergenceProbe,
    comparable,
    new_responses,
    stored_divergence,
    stored_sequences,
)
from tests.training.test_log_probs import output

NAN = float("nan")


def stored(rows: list[tuple[int, list[int], list[int], list[float], Output]]) -> StoredResponses:
    return StoredResponses.from_rows(
        tokens=[np.array(tokens) for _, tokens, _, _, _ in rows],
        masks=[np.array(mask, dtype=bool) for _, _, mask, _, _ in rows],
        log_prob={"acting": [np.array(log_prob) for _, _, _, log_prob, _ in rows]},
        prompt_hash_B=np.array([out.prompt_hash for *_, out in rows], dtype=np.uint64),
        row_B=np.array([row for row, *_ in rows]),
    )


def test_a_stored_response_counts_only_under_the_same_prompt_tokens():
    old, new = output([1, 2], [3]), output([1, 9], [3])
    entries = comparable(stored([(0, [3], [1], [-1.0], old), (1, [3], [1], [-1.0], old)]), [new, old])
    assert entries.tolist() == [1]


def test_divergence_by_hand_with_prompts_that_have_nothing_stored():
    outs = [output([1], [2]), output([3], [4]), output([5], [6])]
    memory = stored(
        [
            (0, [7, 8, 9], [1, 0, 1], [-1.0, -9.0, -0.5], outs[0]),
            (2, [7], [0], [-4.0], outs[2]),
        ]
    )
    entries = comparable(memory, outs)
    now = [np.array([-1.5, -1.0, -0.25], dtype=np.float32), np.array([-1.0], dtype=np.float32)]
    drift = stored_divergence(memory, entries, "acting", now, size=3)
    # prompt 0: (|-1 + 1.5| + |-0.5 + 0.25|) / 2 = (0.5 + 0.25) / 2 = 0.375; the observation token is not counted
    # prompt 1: nothing stored; prompt 2: no token is masked in, so 0 by definition
    assert drift[0] == pytest.approx(0.375)
    assert math.isnan(drift[1])
    assert drift[2] == 0.0


def test_all_tokens_by_hand():
    outs = [output([1], [2]), output([5], [6])]
    memory = stored([(0, [7, 8, 9], [1, 0, 1], [-1.0, -9.0, -0.5], outs[0]), (1, [7], [0], [-4.0], outs[1])])
    now = [np.array([-1.5, -1.0, -0.25], dtype=np.float32), np.array([-1.0], dtype=np.float32)]
    drift = stored_divergence(memory, np.array([0, 1]), "acting", now, size=2, tokens="all")
    # (0.5 + 8 + 0.25) / 3, and 3 / 1: what a tool returned counts as what was generated does
    assert drift.tolist() == pytest.approx([8.75 / 3, 3.0])


@pytest.mark.parametrize("tokens", ["generated", "all"])
def test_both_readings_against_the_padded_tensors_of_the_published_recipe(tokens):
    """The oracle: right-padded rows and verl's masked mean over the response's attention mask, or its loss mask."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 30, 40)
    width = 32
    then, now = ((-3 * torch.rand(40, width)).half().float() for _ in range(2))
    attention = torch.arange(width) < torch.tensor(lengths)[:, None]
    generated = attention & torch.tensor(rng.random((40, width)) < 0.7)
    generated[:, 0] = True
    mask = attention if tokens == "all" else generated
    expected = masked_mean((then - now).abs(), mask.float(), axis=-1)
    outs = [output([1], [2])] * 40
    rows = [
        (row, [5] * n, generated[row, :n].numpy(), then[row, :n].numpy(), outs[row]) for row, n in enumerate(lengths)
    ]
    present = [now[row, :n].numpy() for row, n in enumerate(lengths)]
    drift = stored_divergence(stored(rows), np.arange(40), "acting", present, size=40, tokens=tokens)
    assert drift == pytest.approx(expected.numpy(), rel=1e-5)


@pytest.mark.parametrize("before", ["generated", "all"])
def test_a_checkpoint_made_under_either_setting_serves_the_other(tmp_path, before):
    """Stored are all tokens, all log-probs and the mask, whatever is counted."""
    outs = [output([1], [7, 8, 9], [1, 0, 1])]
    key_P = np.frombuffer(bytes(16), dtype="V16")
    settings = TrackerSettings.of(SpoConfig(drift=DriftConfig(tokens=before)))
    tracker = Tracker.create(key_P, settings)
    tracker.dispatch(["a"], [0], 0)
    tracker.remember(["a"], new_responses(outs, {"acting": [np.array([-1.0, -9.0, -0.5])]}, None))
    tracker.snapshot().write(tmp_path / "spo")
    loaded, _ = Tracker.load(tmp_path / "spo", key_P, settings)
    recalled = loaded.recall(["a"]).stored
    now = [np.array([-1.5, -1.0, -0.25], dtype=np.float32)]
    found = {
        tokens: stored_divergence(recalled, np.array([0]), "acting", now, size=1, tokens=tokens).item()
        for tokens in ("generated", "all")
    }
    assert found == pytest.approx({"generated": 0.375, "all": 8.75 / 3})


@pytest.mark.parametrize(("tokens", "expected"), [("generated", 0.375), ("all", 8.75 / 3)])
def test_a_step_counts_the_tokens_of_its_setting(tokens, expected):
    outs = [output([1], [7, 8, 9], [1, 0, 1])]
    memory = stored([(0, [7, 8, 9], [1, 0, 1], [-1.0, -9.0, -0.5], outs[0])])
    frozen = Frozen(np.arange(1), np.full(1, 0.5), np.ones(1), np.zeros(1, dtype=int))
    spo = SpoConfig(drift=DriftConfig(tokens=tokens))

    def score(sequences):
        return [np.array([-1.5, -1.0, -0.25], dtype=np.float32)]

    found = DivergenceProbe(spo, Recall(frozen, memory), outs, score, version=1).after_update()
    assert found.divergence_B.tolist() == pytest.approx([expected])


def test_each_reference_is_scored_by_its_policy_and_stored_for_the_next_step():
    """acting: the stored response before the update, own log-probs from verl; updated: both after it."""
    outs = [output([1], [2, 3]), output([4], [5])]
    memory = StoredResponses.from_rows(
        tokens=[np.array([7, 8])],
        masks=[np.ones(2, dtype=bool)],
        log_prob={"acting": [np.array([-1.0, -2.0])], "updated": [np.array([-3.0, -4.0])]},
        prompt_hash_B=np.array([outs[1].prompt_hash], dtype=np.uint64),
        row_B=np.array([1]),
    )
    frozen = Frozen(np.arange(2), np.full(2, 0.5), np.ones(2), np.zeros(2, dtype=int))
    spo = SpoConfig(forgetting=ForgettingConfig(reference="updated"), drift=DriftConfig(measure_both=True))
    policy = {"log_prob": -1.25}
    scored = []

    def score(sequences):
        scored.append([fields["input_ids"].tolist() for fields in sequences])
        return [np.full(len(fields["responses"]), policy["log_prob"], dtype=np.float32) for fields in sequences]

    probe = DivergenceProbe(spo, Recall(frozen, memory), outs, score, version=1)
    assert scored == [[[4, 7, 8]]]
    policy["log_prob"] = -5.0
    found = probe.after_update()
    assert scored[1:] == [[[4, 7, 8]], [[1, 2, 3], [4, 5]]]
    # acting: (|-1 + 1.25| + |-2 + 1.25|) / 2 = 0.5; updated: (|-3 + 5| + |-4 + 5|) / 2 = 1.5
    assert found.measured_B["acting"].tolist() == pytest.approx([NAN, 0.5], nan_ok=True)
    assert found.divergence_B.tolist() == pytest.approx([NAN, 1.5], nan_ok=True)
    assert found.responses.log_prob["acting"].tolist() == [-0.5, -0.5, -0.5]
    assert found.responses.log_prob["updated"].tolist() == [-5.0, -5.0, -5.0]
    assert found.metrics["drift/forwards_total"] == 3.0
    assert found.metrics["drift/tokens_total"] == 3 + 3 + 5
    assert found.metrics["divergence/mean"] == found.metrics["divergence_updated/mean"] == 1.5
    assert found.metrics["divergence_acting/mean"] == 0.5


def test_a_token_beyond_float16_is_the_same_on_both_sides():
    out = output([1], [7])
    memory = new_responses([out], {"acting": [np.array([-1e6])]}, None)
    drift = stored_divergence(memory, np.array([0]), "acting", [np.array([-1e7], dtype=np.float32)], 1, tokens="all")
    assert drift.tolist() == [0.0]


def test_a_policy_that_did_not_move_has_divergence_exactly_zero():
    out = output([1], [2])
    log_prob = np.array([-0.1234567, -3.3333333, -11.987654])
    memory = stored([(0, [7, 8, 9], [1, 1, 1], log_prob, out)])
    drift = stored_divergence(memory, np.array([0]), "acting", [log_prob.astype(np.float32)], size=1)
    assert drift.tolist() == [0.0]


def test_what_is_stored_is_a_prefix_with_its_mask():
    outs = [output([1], [2, 3, 4], [1, 0, 1]), output([5], [6])]
    responses = new_responses(outs, {"acting": [np.array([-1, -2, -3.0]), np.array([-1e6])]}, max_tokens=2)
    assert responses.token_N.tolist() == [2, 3, 6]
    assert responses.mask_N.tolist() == [True, False, True]
    assert responses.offset_B.tolist() == [0, 2, 3]
    assert responses.log_prob["acting"][:2].tolist() == [-1.0, -2.0]
    assert np.isfinite(responses.log_prob["acting"]).all()  # float16 cannot hold -1e6


def test_stored_sequences_take_the_row_of_their_prompt():
    outs = [output([1, 1], [2]), output([3, 3], [4])]
    memory = stored([(1, [7, 8], [1, 1], [-1.0, -1.0], outs[1])])
    [fields] = stored_sequences(memory, np.array([0]), outs)
    assert fields["input_ids"].tolist() == [3, 3, 7, 8]
