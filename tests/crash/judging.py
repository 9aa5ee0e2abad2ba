"""Checkpoint and record of a run against its journal, prompt by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.record import Record
from spo_verl.tracker import checkpoint
from tests.crash import journal
from tests.crash.plan import Shape
from tests.support.record_check import differences
from tests.training.simulated_run import keys

RTOL = 1e-11
"""Of evidence that was discounted; without discounts it is a count, and equal."""


def problems(folder: Path, lines: Sequence[journal.Line], shape: Shape, step: int) -> list[str]:
    """What is not as it must be of a run whose marker names a step.

    Args:
        folder: of the run.
        lines: its journal, all of it.
        shape: its settings.
        step: that the next process will continue from.
    """
    alive = journal.surviving(lines)
    acknowledged = journal.acknowledged(alive)
    if step < acknowledged:
        return [f"step {acknowledged} was acknowledged, and the run continues from {step}"]
    if step == 0:
        return []
    counted = journal.Recount(shape.forgetting, Fraction(*shape.rho)).replay(alive[: journal.saved_at(alive, step)])
    saved = checkpoint.read(folder / f"global_step_{step}" / "spo")
    return [*of_tracker(saved, counted, step), *of_record(folder, saved, counted, step)]


def of_tracker(saved: checkpoint.Saved, counted: journal.Recount, step: int) -> Iterator[str]:
    table = saved.table
    if saved.manifest.step != step:
        yield f"the checkpoint is of step {saved.manifest.step} instead of {step}"
    exact = counted.rho == 1
    for slot in range(len(table)):
        known = counted.prompts[slot]
        found = (table.alpha_P[slot], table.beta_P[slot])
        expected = (float(known.alpha), float(known.beta))
        if not (found == expected if exact else np.allclose(found, expected, rtol=RTOL, atol=0)):
            yield f"prompt {slot} has the evidence {found}, its outcomes make {expected}"
        if (table.draws_P[slot], table.visits_P[slot]) != (known.draws, known.visits):
            yield f"prompt {slot}: {table.draws_P[slot]} draws and {table.visits_P[slot]} outcomes, not {known}"
    found_open = {uid: (one.slot, one.version, tuple(sorted(one.sessions))) for uid, one in saved.ledger.open.items()}
    expected_open = {uid: (one.slot, one.version, tuple(sorted(one.sessions))) for uid, one in counted.open.items()}
    if found_open != expected_open:
        yield f"open rollouts differ: {sorted(found_open.items() ^ expected_open.items())[:4]}"
    for uid in found_open.keys() & expected_open.keys():
        one, other = saved.ledger.open[uid], counted.open[uid]
        if not np.allclose((one.value, one.n_eff), (other.value, other.n_eff), rtol=RTOL, atol=0):
            yield f"{uid} is scored by {one.value, one.n_eff}, not by {other.value, other.n_eff}"
    counters = saved.manifest.counters
    draws = sum(known.draws for known in counted.prompts.values())
    expected_counters = {
        "drawn": draws,
        "dispatched": draws,
        "observations": counted.observations,
        "settled": counted.endings.total(),
        **{kind: counted.endings[kind] for kind in ("failed", "stale", "surplus", "rejected", "aborted")},
    }
    for name, count in expected_counters.items():
        if counters.get(name, 0) != count:
            yield f"the tracker counts {counters.get(name, 0)} {name}, the journal {count}"


def of_record(folder: Path, saved: checkpoint.Saved, counted: journal.Recount, step: int) -> Iterator[str]:
    # The numbers of a step follow its checkpoint: they are missing where a process died in between.
    resumed = {f"there are no numbers of step {start['step']}" for start in Record.open(folder).run["starts"]}
    yield from (one for one in differences(folder) if one not in resumed)
    hex_P = [bytes(key).hex() for key in keys(len(saved.table))]
    rows = [row for row in Record.open(folder).rollouts().to_pylist() if row["step"] <= step]
    found = Counter(map(_fact, rows))
    expected: Counter[Any] = Counter(
        (uid, session, hex_P[slot], at, version, ending, reward)
        for uid, session, slot, at, version, ending, reward in counted.rows
    )
    if found != expected:
        lost, more = expected - found, found - expected
        yield f"the record lacks {lost.total()} rows and has {more.total()} others: {[*lost][:2]} {[*more][:2]}"


def _fact(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("uid", "session", "key", "step", "version_dispatch", "ending", "reward")
    return tuple(row[name] for name in names)
