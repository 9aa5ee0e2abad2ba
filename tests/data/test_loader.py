"""The prioritized dataloader alone, within verl's batches, and against torchdata's stock loader."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn as verl_collate

from spo_verl.data import PrioritizedDataLoader, is_foreign_state
from spo_verl.errors import SpoCheckpointError, SpoConfigError, SpoStateError


class Script:
    """A source that hands out prepared draws and notes what was asked of it."""

    def __init__(self, *draws):
        self.draws = [np.asarray(draw) for draw in draws]
        self.asked = []

    def draw(self, size):
        self.asked.append(size)
        return SimpleNamespace(slot_B=self.draws.pop(0))


class Questions:
    """A dataset that notes which rows were read."""

    def __init__(self, rows):
        self.rows = rows
        self.read = []

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        self.read.append(row)
        return {"question": f"q{row}", "number": torch.tensor([row])}


def test_one_draw_and_exactly_its_rows_per_batch_in_the_order_of_the_draw():
    dataset, source = Questions(6), Script([4, 0], [1, 4])
    # Slots 0 to 4 live in rows 0, 2, 3, 4 and 5; row 1 is a duplicate.
    loader = PrioritizedDataLoader(dataset, source, batch_size=2, row_of_slot_P=np.array([0, 2, 3, 4, 5]))
    iterator = iter(loader)
    assert (source.asked, dataset.read) == ([], []), "nothing may be drawn before a batch is asked for"
    batch = next(iterator)
    assert (source.asked, dataset.read) == ([2], [5, 0])
    assert batch["question"] == ["q5", "q0"]
    assert batch["number"].tolist() == [[5], [0]]
    assert batch["spo_slot"].dtype == torch.int64
    assert batch["spo_slot"].tolist() == [4, 0]
    assert next(iterator)["question"] == ["q2", "q5"]
    assert source.asked == [2, 2]


def test_a_batch_sees_what_the_source_learnt_after_the_previous_one():
    class Favourite:
        slot = 0

        def draw(self, size):
            return SimpleNamespace(slot_B=np.array([self.slot]))

    source = Favourite()
    loader = PrioritizedDataLoader(Questions(9), source, batch_size=1)
    seen = []
    for batch in loader:
        seen += batch["question"]
        source.slot += 3
        if source.slot == 9:
            break
    assert seen == ["q0", "q3", "q6"]


def test_every_iterator_continues_the_same_endless_sequence():
    loader = PrioritizedDataLoader(Questions(3), Script([0], [1], [2]), batch_size=1)
    assert [next(iter(loader))["spo_slot"].item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TypeError, match="len"):
        len(loader)


def test_fetch_serves_any_size_with_one_draw():
    source = Script([2, 0, 1])
    loader = PrioritizedDataLoader(Questions(3), source, batch_size=1)
    assert loader.fetch(3)["question"] == ["q2", "q0", "q1"]
    assert source.asked == [3]


@pytest.mark.parametrize("size", [0, 4, -1])
def test_more_prompts_than_there_are_is_refused_before_the_draw(size):
    source = Script()
    loader = PrioritizedDataLoader(Questions(3), source, batch_size=1)
    with pytest.raises(SpoStateError, match=f"batch of {size} distinct prompts .* has 3"):
        loader.fetch(size)
    assert source.asked == []


@pytest.mark.parametrize("batch_size", [0, 3])
def test_a_batch_size_that_cannot_be_served_is_refused_at_once(batch_size):
    with pytest.raises(SpoConfigError, match=f"batch_size {batch_size} .* 5 rows hold 2 distinct prompts"):
        PrioritizedDataLoader(Questions(5), Script(), batch_size=batch_size, row_of_slot_P=np.array([0, 4]))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ([0, 1, 2], r"shape \(3,\)"),
        ([0.0, 1.0], "float64"),
        ([0, 5], "between 0 and 5, and the loader knows 0 to 4"),
        ([-1, 0], "between -1 and 0"),
    ],
)
def test_an_impossible_draw_is_named(draw, message):
    loader = PrioritizedDataLoader(Questions(5), Script(draw), batch_size=2)
    with pytest.raises(SpoStateError, match=message):
        next(loader)


@pytest.mark.parametrize("rows", [[0, 5], [-1, 0]])
def test_rows_that_the_dataset_does_not_have_are_refused(rows):
    with pytest.raises(SpoConfigError, match="the dataset's go from 0 to 4"):
        PrioritizedDataLoader(Questions(5), Script(), batch_size=1, row_of_slot_P=np.array(rows))


@pytest.mark.parametrize("rows", [np.array([[0, 1]]), np.array([0.0, 1.0])])
def test_rows_must_be_a_column_of_integers(rows):
    with pytest.raises(SpoConfigError, match="one-dimensional array of row numbers"):
        PrioritizedDataLoader(Questions(5), Script(), batch_size=1, row_of_slot_P=rows)


def test_an_iterable_dataset_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(SpoConfigError, match="type Stream cannot be indexed"):
        PrioritizedDataLoader(Stream(), Script(), batch_size=1)


def test_a_dataset_of_tuples_comes_under_batch():
    dataset = TensorDataset(torch.arange(4.0), torch.arange(4))
    batch = next(PrioritizedDataLoader(dataset, Script([3, 1]), batch_size=2))
    numbers, labels = batch["batch"]
    assert (numbers.tolist(), labels.tolist(), batch["spo_slot"].tolist()) == ([3.0, 1.0], [3, 1], [3, 1])


def test_rows_are_read_at_once_where_the_dataset_can():
    class Batched(Questions):
        def __getitems__(self, rows):
            self.read.append(tuple(rows))
            return [{"question": row} for row in rows]

    dataset = Batched(4)
    next(PrioritizedDataLoader(dataset, Script([3, 1]), batch_size=2))
    assert dataset.read == [(3, 1)]


def test_a_field_of_the_dataset_is_not_overwritten():
    loader = PrioritizedDataLoader(Questions(2), Script([0]), batch_size=1, slot_field="question")
    with pytest.raises(SpoConfigError, match="already has a field 'question'"):
        next(loader)


def test_slots_travel_through_the_batch_that_verl_makes_of_it():
    items = [{"raw_prompt": [{"role": "user", "content": str(n)}], "dummy_tensor": torch.zeros(1)} for n in range(4)]
    loader = PrioritizedDataLoader(items, Script([2, 3]), batch_size=2, collate_fn=verl_collate)
    batch_dict = next(loader)
    assert len(batch_dict["raw_prompt"]) == 2
    batch = tu.get_tensordict(batch_dict)  # as PPOTrainer._fetch_one_gen_batch does
    assert batch["spo_slot"].tolist() == [2, 3]
    assert batch["raw_prompt"][1] == [{"role": "user", "content": "3"}]


def test_the_state_is_empty_and_written_after_the_hook():
    calls = []
    loader = PrioritizedDataLoader(
        Questions(2), Script(), batch_size=1, before_state_dict=lambda: calls.append("joined")
    )
    assert loader.state_dict() == {}
    assert calls == ["joined"]
    loader.load_state_dict({})
    assert calls == ["joined"]


def test_a_hook_that_fails_fails_the_save():
    def join():
        raise SpoCheckpointError("the disk is full")

    loader = PrioritizedDataLoader(Questions(2), Script(), batch_size=1, before_state_dict=join)
    with pytest.raises(SpoCheckpointError, match="the disk is full"):
        loader.state_dict()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def stock(workers):
    return StatefulDataLoader(list(range(12)), batch_size=4, num_workers=workers, drop_last=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_stock_loader_starts_an_epoch_from_our_state(workers):
    state = through_a_file(PrioritizedDataLoader(Questions(2), Script(), batch_size=1).state_dict())
    loader = stock(workers)
    loader.load_state_dict(state)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_stock_loader_would_crash_on_any_state_of_our_own(workers):
    # Why state_dict is empty. If this fails, torchdata has become tolerant and the state might carry more.
    loader = stock(workers)
    loader.load_state_dict({"batches": 3})
    with pytest.raises(AssertionError, match="State doesn't contain key"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_state_of_the_stock_loader_is_foreign(workers):
    other = stock(workers)
    next(iter(other))
    state = through_a_file(other.state_dict())
    assert is_foreign_state(state)
    loader = PrioritizedDataLoader(Questions(2), Script([1]), batch_size=1)
    with pytest.raises(SpoCheckpointError, match=r"_iterator_finished.* was written by another loader"):
        loader.load_state_dict(state)
    told = []
    loader = PrioritizedDataLoader(Questions(2), Script([1]), batch_size=1, on_foreign_state=told.append)
    loader.load_state_dict(state)
    assert told == [state]
    assert next(loader)["spo_slot"].tolist() == [1]


@pytest.mark.parametrize(("state", "foreign"), [({}, False), ({"a": 1}, True), (None, True), ([], True)])
def test_only_the_empty_state_is_ours(state, foreign):
    assert is_foreign_state(state) is foreign
