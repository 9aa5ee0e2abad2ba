"""The prioritized dataloader: each batch is drawn from the whole dataset by the weights of that moment."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import default_collate

from spo_verl.data.columns import rows_of
from spo_verl.errors import SpoCheckpointError, SpoConfigError, SpoStateError

# Where batches that are not mappings go, see PrioritizedDataLoader.
BATCH_FIELD = "batch"


class DrawnSlots(Protocol):
    """What a source returns: the drawn slots, (B,) integers in [0, P)."""

    @property
    def slot_B(self) -> np.ndarray: ...


class DrawSource(Protocol):
    """Anything that draws prompt slots: the tracker, the client of its service, an object of your own."""

    def draw(self, size: int) -> DrawnSlots: ...


class PrioritizedDataLoader:
    """An endless iterator of batches whose rows a source draws, one draw per batch.

    Nothing is prefetched: the draw happens when the batch is asked for, so it sees every update of the source
    up to then. There are no epochs and therefore no ``len()``; a loop over the loader ends by its own
    ``break``.

    What a restart does to it: nothing is lost, because the loader holds no state. The position in the
    curriculum is the source's evidence and random state, and whoever saves the source has saved it.
    `state_dict` therefore returns ``{}``, which torchdata's StatefulDataLoader too takes for "start afresh":
    a run that continues such a checkpoint with another estimator, and so with verl's stock loader, begins
    a new epoch, with any number of workers.

    Args:
        dataset: Map-style dataset of N rows: ``len(dataset)`` and ``dataset[row]``; where it has
            ``__getitems__(rows)``, that is used.
        source: ``source.draw(size).slot_B`` gives the slots of one batch.
        batch_size: B, prompts per batch, from 1 to P; the attribute may be changed between batches.
        row_of_slot_P: (P,) integers in [0, N): the row that holds each slot's prompt
            (`DatasetKeys.row_of_slot_P`). Default: each row is a slot of its own.
        collate_fn: List of B items -> batch; default `torch.utils.data.default_collate`.
        slot_field: Name under which the batch carries its slots, an int64 tensor (B,) in the order of the
            rows. A batch that is not a mapping (a dataset of tuples) is put next to it under the name "batch".
        before_state_dict: Called at the beginning of every `state_dict`, e.g. to wait for a writer: verl
            calls ``state_dict`` after saving the model, before the marker that acknowledges the checkpoint.
        on_foreign_state: Called with a state that another loader wrote, instead of refusing it.

    Raises:
        SpoConfigError: The dataset is not map-style, ``batch_size`` is not in [1, P], or ``row_of_slot_P``
            names rows that the dataset does not have.

    Example, with a tracker in the same process and any torch dataset::

        from spo_verl.data import PrioritizedDataLoader, content_key, dataset_keys
        from spo_verl.tracker import Tracker, TrackerSettings

        questions = ["1+1", "2+2", "1+1", "3+3"]  # a list is a map-style dataset
        keys = dataset_keys(questions, key_fn=content_key)  # 4 rows, 3 prompts
        tracker = Tracker.create(keys.key_P, TrackerSettings(seed=7))
        loader = PrioritizedDataLoader(questions, tracker, batch_size=2, row_of_slot_P=keys.row_of_slot_P)
        batch = next(loader)  # e.g. {"batch": ["3+3", "1+1"], "spo_slot": tensor([2, 0])}
    """

    def __init__(
        self,
        dataset: Any,
        source: DrawSource,
        *,
        batch_size: int,
        row_of_slot_P: np.ndarray | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        slot_field: str = "spo_slot",
        before_state_dict: Callable[[], None] | None = None,
        on_foreign_state: Callable[[Any], None] | None = None,
    ) -> None:
        rows = rows_of(dataset)
        self._row_of_slot_P = _checked_rows(row_of_slot_P, rows)
        _check_batch_size(batch_size, len(self._row_of_slot_P), rows)
        self.dataset = dataset
        self.source = source
        self.batch_size = batch_size
        self.collate_fn = collate_fn or default_collate
        self.slot_field = slot_field
        self._before_state_dict = before_state_dict
        self._on_foreign_state = on_foreign_state

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The loader itself: every iterator over it continues the same endless sequence."""
        return self

    def __next__(self) -> dict[str, Any]:
        """`fetch` one batch of ``batch_size`` prompts; the sequence has no end."""
        return self.fetch(self.batch_size)

    def fetch(self, size: int) -> dict[str, Any]:
        """Draw, read and collate one batch of any size, with one call to the source.

        The prompts of one draw are distinct; two draws may share prompts.

        Args:
            size: B, from 1 to P.

        Returns:
            The collated batch with the slots, int64 (B,), under ``slot_field``.

        Raises:
            SpoStateError: More prompts are asked for than there are, or the source drew something impossible.
            SpoConfigError: The batch already has a field of the name ``slot_field``.
        """
        slot_B = self._draw(size)
        batch = self.collate_fn(self._read(self._row_of_slot_P[slot_B].tolist()))
        fields = dict(batch) if isinstance(batch, Mapping) else {BATCH_FIELD: batch}
        if self.slot_field in fields:
            raise SpoConfigError(
                f"the dataset already has a field {self.slot_field!r}, which the loader needs for the prompt "
                "slots: rename the dataset's field or choose another slot_field"
            )
        fields[self.slot_field] = torch.from_numpy(slot_B)
        return fields

    def state_dict(self) -> dict[str, Any]:
        """Run ``before_state_dict``, then return ``{}``; the class docstring tells why it is empty."""
        if self._before_state_dict is not None:
            self._before_state_dict()
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Accept this loader's own state, and hand any other to ``on_foreign_state``.

        Raises:
            SpoCheckpointError: Another loader wrote the state, and there is no ``on_foreign_state``.
        """
        if not is_foreign_state(state):
            return
        if self._on_foreign_state is None:
            held = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise SpoCheckpointError(
                f"the dataloader state ({held}) was written by another loader (verl's own, if the checkpoint "
                "was made with another estimator). Its position has no meaning here, as prompts are drawn by "
                "the tracker's weights: do not load it, or pass on_foreign_state to continue without it."
            )
        self._on_foreign_state(state)

    def _draw(self, size: int) -> np.ndarray:
        slots = len(self._row_of_slot_P)
        if not 1 <= size <= slots:
            raise SpoStateError(
                f"a batch of {size} distinct prompts was asked for, and the dataset has {slots}: "
                f"ask for 1 to {slots}, or add prompts"
            )
        slot_B = np.asarray(self.source.draw(size).slot_B)
        if slot_B.shape != (size,) or slot_B.dtype.kind not in "iu":
            raise SpoStateError(
                f"the source drew slots of shape {slot_B.shape} and dtype {slot_B.dtype}, not {size} "
                "integers: source.draw(size).slot_B must be an integer array (size,)"
            )
        if slot_B.min() < 0 or slot_B.max() >= slots:
            raise SpoStateError(
                f"the source drew slots between {slot_B.min()} and {slot_B.max()}, and the loader knows 0 to "
                f"{slots - 1}: build the tracker and the loader from the same DatasetKeys"
            )
        return slot_B.astype(np.int64)

    def _read(self, rows: list[int]) -> list[Any]:
        if hasattr(self.dataset, "__getitems__"):
            return list(self.dataset.__getitems__(rows))
        return [self.dataset[row] for row in rows]


def is_foreign_state(state: Any) -> bool:
    """Whether a loader other than PrioritizedDataLoader wrote this state: everything but ``{}``."""
    return not isinstance(state, Mapping) or len(state) > 0


def _checked_rows(row_of_slot_P: np.ndarray | None, rows: int) -> np.ndarray:
    if row_of_slot_P is None:
        return np.arange(rows, dtype=np.int64)
    row_P = np.asarray(row_of_slot_P)
    if row_P.ndim != 1 or row_P.dtype.kind not in "iu":
        raise SpoConfigError(
            f"row_of_slot_P has shape {row_P.shape} and dtype {row_P.dtype} and must be a one-dimensional "
            "array of row numbers: take it from dataset_keys(dataset)"
        )
    if row_P.size and not 0 <= row_P.min() <= row_P.max() < rows:
        raise SpoConfigError(
            f"row_of_slot_P holds rows from {row_P.min()} to {row_P.max()}, and the dataset's go from 0 to "
            f"{rows - 1}: take it from dataset_keys of this very dataset"
        )
    return row_P.astype(np.int64)


def _check_batch_size(batch_size: int, prompts: int, rows: int) -> None:
    if not 1 <= batch_size <= prompts:
        raise SpoConfigError(
            f"batch_size {batch_size} cannot be served: the dataset's {rows} rows hold {prompts} distinct "
            "prompts, and a batch holds each prompt at most once. Lower data.train_batch_size (or "
            "data.gen_batch_size), or add prompts."
        )
