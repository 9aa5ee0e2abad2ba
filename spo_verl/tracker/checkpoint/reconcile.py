"""Meeting a dataset that is not the one of the checkpoint: reordered, extended, shrunk, or grown back."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from spo_verl.errors import SpoDatasetMismatchError
from spo_verl.tracker.checkpoint.folder import REMEDY
from spo_verl.tracker.checkpoint.reading import Saved
from spo_verl.tracker.forgetting_rules import forgetting
from spo_verl.tracker.memory import ResponseMemory
from spo_verl.tracker.reports import LoadReport
from spo_verl.tracker.settings import TrackerSettings, make_generators
from spo_verl.tracker.table import PromptTable, match_keys


@dataclass(frozen=True)
class MatchCounts:
    """How many prompts of dataset and checkpoint met; see ``LoadReport`` for the words."""

    matched: int
    new: int
    vanished: int
    returned: int
    aside: int


def _join(saved: PromptTable, fresh: PromptTable, old_row_P: NDArray[np.int64], aside_O: NDArray) -> PromptTable:
    """The dataset's rows, with what is known of them, and after them the rows kept aside."""
    known_P = old_row_P >= 0
    columns = {}
    for name, saved_O in saved.columns():
        fresh_P = np.array(getattr(fresh, name))
        fresh_P[known_P] = saved_O[old_row_P[known_P]]
        columns[name] = np.concatenate([fresh_P, saved_O[aside_O]])
    return fresh.with_columns(np.concatenate([fresh.key_P, saved.key_P[aside_O]]), columns)


def meet(saved: Saved, fresh: PromptTable) -> MatchCounts:
    """Give ``saved`` the slots of the dataset, in place; new prompts stay as they are in ``fresh``.

    Raises:
        SpoDatasetMismatchError: no prompt in common.
    """
    table, size = saved.table, len(fresh)
    if len(table) == table.active == size and np.array_equal(table.key_P.view(np.uint64), fresh.key_P.view(np.uint64)):
        return MatchCounts(matched=size, new=0, vanished=0, returned=0, aside=0)  # without the columns of a match
    old_row_P = match_keys(table.key_P, fresh.key_P)
    known_P = old_row_P >= 0
    matched = int(known_P.sum())
    if not matched:
        raise SpoDatasetMismatchError(
            f"tracker checkpoint {saved.folder}: none of its {len(table)} prompts is among the {size} "
            "prompts of the dataset. Point data.train_files at the dataset it was trained on (reordered, "
            "extended or shrunk is fine; a changed system prompt, tool schema or answer makes another "
            "prompt), or start a new run in another "
            f"trainer.default_local_dir. {REMEDY}"
        )
    left_O = np.ones(len(table), dtype=np.bool_)
    left_O[old_row_P[known_P]] = False
    aside_O = np.flatnonzero(left_O)
    counts = MatchCounts(
        matched=matched,
        new=size - matched,
        vanished=int((aside_O < table.active).sum()),
        returned=int((old_row_P >= table.active).sum()),
        aside=len(aside_O),
    )
    if counts.new or not np.array_equal(old_row_P, np.arange(table.active)):
        new_slot_O = np.empty(len(table), dtype=np.int64)
        new_slot_O[old_row_P[known_P]] = np.flatnonzero(known_P)
        new_slot_O[aside_O] = np.arange(size, size + len(aside_O))
        saved.table = _join(table, fresh, old_row_P, aside_O)
        saved.memory = saved.memory.remapped(new_slot_O, len(saved.table))
        saved.ledger.move_slots(new_slot_O)
    return counts


def refit(memory: ResponseMemory, references: tuple[str, ...], max_tokens: int | None) -> tuple[ResponseMemory, int]:
    """The memory under other settings, and how many responses had to go as they lack a log-prob column."""
    if set(references) == set(memory.references) and max_tokens == memory.max_tokens:
        return memory, 0
    fitted = ResponseMemory(memory.rows, references, max_tokens)
    if not references or not set(references) <= set(memory.references):
        return fitted, memory.entries
    for packed in memory.view().chunks():
        fitted.extend(packed)
    return fitted, 0


def _resume_generators(saved: Saved, settings: TrackerSettings) -> dict[str, np.random.Generator]:
    """The generators where they were, or new ones when the seed was changed.

    One that the present settings do not use goes along if it was saved, so that a setting that comes back does not
    repeat its random numbers; one that they use and that was not saved begins.
    """
    states = saved.manifest.random if settings.seed == saved.settings.seed else {}
    generators = make_generators(settings.seed, {*settings.purposes, *states})
    for purpose, state in states.items():
        generators[purpose].bit_generator.state = state
    return generators


def newest_version(saved: Saved) -> int:
    """The version at which a run continues without being given one: that of its step, or the newest that it knows."""
    dispatched = [one.version for one in saved.ledger.open.values()]
    clock = int(saved.manifest.clock.get("version", 0))
    return max(saved.manifest.step, clock, int(saved.table.version_P.max(initial=0)), *dispatched)


def resume(
    saved: Saved, fresh: PromptTable, settings: TrackerSettings, version: int | None = None
) -> tuple[Saved, dict[str, np.random.Generator], LoadReport]:
    """Fit ``saved`` to the dataset of ``fresh`` and the present settings, in place, and return it."""
    version = newest_version(saved) if version is None else version
    before, rule = forgetting(saved.settings), forgetting(settings)
    saved.table = rule.take_over(saved.table, before, version)
    counts = meet(saved, before.fit(rule.enter(fresh, version)))
    saved.table = rule.fit(saved.table)
    saved.memory, dropped = refit(saved.memory, settings.references, settings.max_tokens)
    was, now = saved.settings.as_json(), settings.as_json()
    report = LoadReport(
        step=saved.manifest.step,
        digest=saved.manifest.digest,
        **asdict(counts),
        settings_changed={name: (was[name], now[name]) for name in now if was[name] != now[name]},
        responses_dropped=dropped,
        extra=saved.manifest.extra,
    )
    return saved, _resume_generators(saved, settings), report
