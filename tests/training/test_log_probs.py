"""Log-probs by the training engine: which sequences it gets, and how they divide among its ranks."""

from typing import Any

import pytest
import torch
from tensordict import NonTensorStack, TensorDict

from spo_verl.training import log_probs
from spo_verl.training.log_probs import LogProbScorer
from spo_verl.training.outputs import Output


def output(prompt: list[int], response: list[int], mask: list[int] | None = None, shift: int = 0) -> Output:
    total = len(prompt) + len(response)
    return Output(
        key="_".join(map(str, ["uid", *prompt])),
        prompt=torch.tensor(prompt),
        response=torch.tensor(response, dtype=torch.int64),
        mask=torch.tensor([1] * len(response) if mask is None else mask),
        positions=torch.arange(shift, shift + total),
        old_log_prob=torch.full((len(response),), -0.5),
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
    out = Output("a", torch.tensor([5, 6, 7]), torch.tensor([1, 2]), torch.ones(2), positions, None)
    fields = out.sequence(torch.tensor([8, 9, 4]), torch.ones(3))
    assert fields["position_ids"].tolist() == [[0, 1, 1, 4, 5, 6], [0, 1, 2, 4, 5, 6], [0, 1, 1, 4, 5, 6]]


def test_an_empty_response_still_gives_a_start():
    out = Output("a", torch.tensor([5, 6]), torch.empty(0, dtype=torch.int64), torch.empty(0), torch.arange(2), None)
    assert out.sequence(torch.tensor([8, 9]), torch.ones(2))["position_ids"].tolist() == [0, 1, 2, 3]


class FakeQueue:
    """TransferQueue's key-value verbs in memory, and a worker group that scores token t as -t / 100."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.put: list[TensorDict] = []
        self.fetched: list[str] = []
        self.seen: list[list[str]] = []
        self.extra: dict[str, Any] = {}
        self._dispatch_info: dict[str, list[int]] = {}
        self.fail = False

    def kv_batch_put(self, keys, partition_id, fields, tags):
        assert partition_id == log_probs.PARTITION
        self.put.append(fields)
        for row, key in enumerate(keys):
            self.rows[key] = {name: fields[name][row] for name in fields.keys()}  # noqa: SIM118 - a TensorDict

    def kv_batch_get(self, keys, partition_id, select_fields):
        if select_fields == ["multi_modal_inputs"]:
            assert partition_id == "train"
            self.fetched += keys
            pixels = [{"pixel_values": torch.tensor([float(key.split("_")[1])])} for key in keys]
            return TensorDict({"multi_modal_inputs": NonTensorStack(*pixels)}, batch_size=len(keys))
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
        monkeypatch.setattr(log_probs.tq, verb, getattr(fake, verb))
    return fake


def sequences(count: int) -> list[dict[str, Any]]:
    return [output([1], list(range(10, 12 + row % 3))).sequence(torch.arange(10, 12 + row % 3), torch.ones(2 + row % 3))
            for row in range(count)]  # fmt: skip


@pytest.mark.parametrize(("count", "micro", "rows", "per_rank"), [(5, 4, 6, 3), (9, 4, 16, 4), (1, 4, 2, 1)])
def test_rows_divide_by_ranks_and_micro_batches(queue, count, micro, rows, per_rank):
    score = LogProbScorer(queue, partition="train", temperature=0.7, micro_batch_size=micro)
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
    LogProbScorer(queue, partition="train", temperature=1.0, micro_batch_size=None)(sequences(3))
    assert len(queue.seen[0]) == 4  # a multiple of the two ranks
    assert "micro_batch_size_per_gpu" not in queue.extra


def test_the_engine_gets_each_prompt_with_its_own_pictures_which_are_fetched_once(queue):
    """Three of the batch's prompts are scored, one of them twice and one as a filler; nobody fetches the others'."""
    prompts = [3, 1, 2, 1]
    batch = [output([prompt], [10, 11]).sequence(torch.arange(10, 12 + prompt), torch.ones(2 + prompt))
             for prompt in prompts]  # fmt: skip
    LogProbScorer(queue, partition="train", temperature=1.0, micro_batch_size=3)(batch)
    [fields] = queue.put
    shown = [int(item["pixel_values"]) for item in list(fields["multi_modal_inputs"])]
    assert shown == [int(prompt[0]) for prompt in fields["prompts"].unbind()]
    assert shown[:4] == prompts
    assert queue.fetched == ["uid_3", "uid_1", "uid_2"]
    assert "key" not in fields.keys()  # noqa: SIM118 - a TensorDict


def test_nothing_to_score_is_no_forward(queue):
    assert LogProbScorer(queue, partition="train", temperature=1.0, micro_batch_size=4)([]) == []
    assert queue.seen == []


def test_the_partition_is_cleared_when_the_forward_fails(queue):
    queue.fail = True
    with pytest.raises(RuntimeError, match="worker died"):
        LogProbScorer(queue, partition="train", temperature=1.0, micro_batch_size=4)(sequences(3))
    assert queue.rows == {}
