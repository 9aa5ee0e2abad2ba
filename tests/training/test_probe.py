"""The divergence forward: which sequences are scored, what is compared, what is stored."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.utils.torch_functional import masked_mean

from spo_verl.config import DriftConfig, SpoConfig
from spo_verl.tracker import Frozen, Recall, Tracker
from spo_verl.tracker.responses import StoredResponses
from spo_verl.training import probe
from spo_verl.training.metrics import Stopwatch
from spo_verl.training.probe import (
    LogProbScorer,
    Output,
    comparable,
    new_responses,
    stored_divergence,
    stored_sequences,
)
from spo_verl.training.sessions import read_sessions
from spo_verl.training.settings import tracker_settings
from spo_verl.training.step import StepRecord


def output(prompt: list[int], response: list[int], mask: list[int] | None = None, shift: int = 0) -> Output:
    total = len(prompt) + len(response)
    return Output(
        prompt=torch.tensor(prompt),
        response=torch.tensor(response, dtype=torch.int64),
        mask=torch.tensor([1] * len(response) if mask is None else mask),
        positions=torch.arange(shift, shift + total),
        multi_modal={},
        old_log_prob=torch.full((len(response),), -0.5),
    )


def stored(rows: list[tuple[int, list[int], list[int], list[float], Output]]) -> StoredResponses:
    return StoredResponses.from_rows(
        tokens=[np.array(tokens) for _, tokens, _, _, _ in rows],
        masks=[np.array(mask, dtype=bool) for _, _, mask, _, _ in rows],
        log_prob={"acting": [np.array(log_prob) for _, _, _, log_prob, _ in rows]},
        prompt_hash_B=np.array([out.prompt_hash for *_, out in rows], dtype=np.uint64),
        row_B=np.array([row for row, *_ in rows]),
    )


def test_the_sequence_is_the_current_prompt_and_the_stored_response():
    out = output([5, 6, 7], [1, 2], shift=10)
    fields = out.sequence(torch.tensor([8, 9, 4]), torch.tensor([1, 0, 1]))
    assert fields["input_ids"].tolist() == [5, 6, 7, 8, 9, 4]
    assert fields["position_ids"].tolist() == [10, 11, 12, 13, 14, 15]
    assert fields["response_mask"].tolist() == fields["loss_mask"].tolist() == [1, 0, 1]
    assert fields["prompts"].tolist() == [5, 6, 7]


def test_positions_with_several_dimensions_go_on_in_each():
    # a multimodal prompt: after the image the text position jumps, per dimension
    positions = torch.tensor([[0, 1, 1, 4, 5], [0, 1, 2, 4, 5], [0, 1, 1, 4, 5]])
    out = Output(torch.tensor([5, 6, 7]), torch.tensor([1, 2]), torch.ones(2), positions, {}, None)
    fields = out.sequence(torch.tensor([8, 9, 4]), torch.ones(3))
    assert fields["position_ids"].tolist() == [[0, 1, 1, 4, 5, 6], [0, 1, 2, 4, 5, 6], [0, 1, 1, 4, 5, 6]]


def test_an_empty_response_still_gives_a_start():
    out = Output(torch.tensor([5, 6]), torch.empty(0, dtype=torch.int64), torch.empty(0), torch.arange(2), {}, None)
    assert out.sequence(torch.tensor([8, 9]), torch.ones(2))["position_ids"].tolist() == [0, 1, 2, 3]


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
    settings = tracker_settings(SpoConfig(drift=DriftConfig(tokens=before)))
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
    batch = SimpleNamespace(keys=["a_0_0"], partition_id="train", tags=[{"response_len": 3}])
    frozen = Frozen(np.arange(1), np.full(1, 0.5), np.ones(1), np.zeros(1, dtype=int))
    spo = SpoConfig(drift=DriftConfig(tokens=tokens))
    record = StepRecord(spo, read_sessions(batch.keys, [{}]), Recall(frozen, memory), outs, batch, version=1)
    record._score = lambda sequences: [np.array([-1.5, -1.0, -0.25], dtype=np.float32)]
    record.before_update(Stopwatch())
    assert record.drift_B.tolist() == pytest.approx([expected])


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


class FakeQueue:
    """TransferQueue's key-value verbs in memory, and a worker group that scores token t as -t / 100."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.seen: list[list[str]] = []
        self.extra: dict[str, Any] = {}
        self._dispatch_info: dict[str, list[int]] = {}
        self.fail = False

    def kv_batch_put(self, keys, partition_id, fields, tags):
        assert partition_id == probe.PARTITION
        for row, key in enumerate(keys):
            self.rows[key] = {name: fields[name][row] for name in fields.keys()}  # noqa: SIM118 - a TensorDict

    def kv_batch_get(self, keys, partition_id, select_fields):
        nested = {
            name: torch.nested.as_nested_tensor([self.rows[key][name] for key in keys], layout=torch.jagged)
            for name in select_fields
        }
        return TensorDict(nested, batch_size=len(keys))

    def kv_clear(self, keys, partition_id):
        for key in keys:
            self.rows.pop(key, None)

    def _query_dispatch_info(self, role):
        return [0, 0, 1, 1]  # two data-parallel ranks, each with two model-parallel workers

    def compute_log_prob(self, meta):
        self.seen.append(list(meta.keys))
        self.extra = dict(meta.extra_info)
        if self.fail:
            raise RuntimeError("worker died")
        for key in meta.keys:
            row = self.rows[key]
            # a model output at position i predicts token i + 1
            row["log_probs"] = torch.cat([-row["input_ids"][1:] / 100.0, torch.zeros(1)])


@pytest.fixture
def queue(monkeypatch):
    fake = FakeQueue()
    for verb in ("kv_batch_put", "kv_batch_get", "kv_clear"):
        monkeypatch.setattr(probe.tq, verb, getattr(fake, verb))
    return fake


def sequences(count: int) -> list[dict[str, Any]]:
    return [output([1], list(range(10, 12 + row % 3))).sequence(torch.arange(10, 12 + row % 3), torch.ones(2 + row % 3))
            for row in range(count)]  # fmt: skip


@pytest.mark.parametrize(("count", "micro", "rows", "per_rank"), [(5, 4, 6, 3), (9, 4, 16, 4), (1, 4, 2, 1)])
def test_rows_divide_by_ranks_and_micro_batches(queue, count, micro, rows, per_rank):
    score = LogProbScorer(queue, temperature=0.7, micro_batch_size=micro)
    scored = score(sequences(count))
    assert len(scored) == count
    assert scored[0].tolist() == pytest.approx([-0.10, -0.11])
    [keys] = queue.seen
    assert len(keys) == rows
    assert rows % (2 * per_rank) == 0
    assert queue.extra == {
        "calculate_entropy": False,
        "compute_loss": False,
        "temperature": 0.7,
        "micro_batch_size_per_gpu": per_rank,
    }
    assert queue.rows == {}  # cleared


def test_verl_packs_by_tokens_where_it_is_told_to(queue):
    LogProbScorer(queue, temperature=1.0, micro_batch_size=None)(sequences(3))
    assert len(queue.seen[0]) == 4  # a multiple of the two ranks
    assert "micro_batch_size_per_gpu" not in queue.extra


def test_nothing_to_score_is_no_forward(queue):
    assert LogProbScorer(queue, temperature=1.0, micro_batch_size=4)([]) == []
    assert queue.seen == []


def test_the_partition_is_cleared_when_the_forward_fails(queue):
    queue.fail = True
    with pytest.raises(RuntimeError, match="worker died"):
        LogProbScorer(queue, temperature=1.0, micro_batch_size=4)(sequences(3))
    assert queue.rows == {}


def test_stored_sequences_take_the_row_of_their_prompt():
    outs = [output([1, 1], [2]), output([3, 3], [4])]
    memory = stored([(1, [7, 8], [1, 1], [-1.0, -1.0], outs[1])])
    [fields] = stored_sequences(memory, np.array([0]), outs)
    assert fields["input_ids"].tolist() == [3, 3, 7, 8]
