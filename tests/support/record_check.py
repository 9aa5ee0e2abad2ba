"""The record of a run against its last checkpoint, prompt by prompt, and against verl's dumps.

    python -m tests.support.record_check RUN [DUMPS]

prints what differs; nothing means that they agree.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.core import fold_events, update_evidence
from spo_verl.record import Record
from spo_verl.tracker import checkpoint

OTHER_ENDINGS = ("failed", "stale", "surplus", "rejected", "aborted")


def differences(folder: Path, dumps: Path | None = None) -> list[str]:
    """What the record and the last marked checkpoint of a run say differently.

    Args:
        folder: ``trainer.default_local_dir``.
        dumps: ``trainer.rollout_data_dir``.
    """
    step = int((folder / "latest_checkpointed_iteration.txt").read_text())
    saved, record = checkpoint.read(folder / f"global_step_{step}" / "spo"), Record.open(folder)
    rows = [row for row in record.rollouts().to_pylist() if row["step"] <= step]
    found = [*once(rows), *counts(rows, saved), *evidence(rows, saved, record)]
    found += [] if dumps is None else dumped(rows, dumps, record.run["config"]["spo"])
    numbers = set(record.steps()["step"].to_pylist())
    # The numbers of a step are written after its checkpoint: a crash in between loses those of the marked step.
    missing = {row["step"] for row in rows if row["step"] < step} - numbers
    return [*found, *(f"there are no numbers of step {one}" for one in sorted(missing))]


def once(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Every session is there once, every dispatch has one ending and one prompt."""
    for name, count in Counter((row["uid"], row["session"]) for row in rows).items():
        if count > 1:
            yield f"{name} is there {count} times"
    for fact in ("ending", "key", "version_dispatch", "value", "step"):
        of_uid = defaultdict(set)
        for row in rows:
            of_uid[row["uid"]].add(row[fact])
        yield from (f"{uid} has the {fact} {sorted(values)}" for uid, values in of_uid.items() if len(values) > 1)


def counts(rows: list[dict[str, Any]], saved: checkpoint.Saved) -> Iterator[str]:
    """Outcomes, draws and endings are those of the tracker."""
    table, ledger = saved.table, saved.ledger
    key_P = [bytes(key).hex() for key in table.key_P]
    outcomes = Counter(row["key"] for row in rows if row["reward"] is not None)
    ended = Counter(key for _, key in {(row["uid"], row["key"]) for row in rows})
    still = Counter(key_P[one.slot] for one in ledger.open.values())
    for key, visits, draws in zip(key_P, table.visits_P.tolist(), table.draws_P.tolist(), strict=True):
        if outcomes[key] != visits:
            yield f"{key}: {outcomes[key]} outcomes, the tracker observed {visits}"
        if ended[key] + still[key] != draws:
            yield f"{key}: {ended[key]} ended and {still[key]} open, the tracker drew it {draws} times"
    yield from (f"{key} is no prompt of the tracker" for key in (set(outcomes) | set(ended)).difference(key_P))
    yield from (f"{uid} ended, and is open in the tracker" for uid in {row["uid"] for row in rows} & set(ledger.open))
    endings = Counter(ending for _, ending in {(row["uid"], row["ending"]) for row in rows})
    counters = saved.manifest.counters
    expected = {kind: counters.get(kind, 0) for kind in OTHER_ENDINGS}
    expected["trained"] = counters["settled"] - sum(expected.values())
    for kind, count in expected.items():
        if endings[kind] != count:
            yield f"{endings[kind]} rollouts are {kind}, the tracker counted {count}"


def evidence(rows: list[dict[str, Any]], saved: checkpoint.Saved, record: Record) -> Iterator[str]:
    """Evidence follows from the initial values and the rows."""
    settings, table = saved.settings, saved.table
    start = {
        row["key"]: (row["value"] * row["n_eff"], (1 - row["value"]) * row["n_eff"])
        for row in record.prompts().to_pylist()
    }
    of_key = defaultdict(list)
    for row in rows:
        if row["reward"] is not None:
            of_key[row["key"]].append(row)
    begun = record.run["starts"][0]["step"]
    for key, alpha, beta in zip(table.key_P, table.alpha_P.tolist(), table.beta_P.tolist(), strict=True):
        name = bytes(key).hex()
        if settings.forgetting_mode == "version":
            found = in_event_time(*start[name], of_key[name], begun, settings.rho)
        else:
            found = discounted(*start[name], of_key[name])
        if not np.allclose(found, (alpha, beta), rtol=1e-9):
            yield f"{name}: evidence {found} follows from {len(of_key[name])} rows, the tracker has {(alpha, beta)}"


def discounted(alpha: float, beta: float, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """A discount at the first outcome of each newer version, and the rewards."""
    newest = -1
    for row in rows:
        rho = row["rho"] if row["version_dispatch"] > newest else 1.0
        newest = max(newest, row["version_dispatch"])
        alpha, beta = update_evidence(alpha, beta, row["reward"], rho)
    return float(alpha), float(beta)


def in_event_time(alpha: float, beta: float, rows: list[dict[str, Any]], begun: int, rho: float) -> tuple[float, float]:
    """Every outcome at the version of its dispatch, evidence from before at the version of the start."""
    events = np.array([row["version_dispatch"] for row in rows], dtype=np.int64)
    rewards = np.array([row["reward"] for row in rows], dtype=np.float64)
    group = np.zeros(len(rows), dtype=np.int64)
    first = np.array([begun], dtype=np.int64)
    found = fold_events(np.array([alpha]), np.array([beta]), first, group, events, rewards, rho=rho)
    return float(found[0][0]), float(found[1][0])


def dumped(rows: list[dict[str, Any]], dumps: Path, spo: dict[str, Any]) -> Iterator[str]:
    """Trained sessions and their rewards are those of verl's dumps, where a step was dumped."""
    low, high = spo["reward"]["low"], spo["reward"]["high"]
    trained = defaultdict(dict)
    for row in rows:
        if row["ending"] == "trained":
            trained[row["step"]][f"{row['uid']}_{row['session']}"] = row["reward"]
    for step, expected in trained.items():
        path = dumps / f"{step}.jsonl"
        if path.exists():
            lines = map(json.loads, path.read_text().splitlines())
            scores = {one["uid"].rsplit("_", 1)[0]: one["score"] for one in lines if not one["uid"].startswith("pad")}
            found = {session: (score - low) / (high - low) for session, score in scores.items()}
            if found.keys() != expected.keys():
                yield f"step {step}: {len(expected)} trained sessions, verl dumped {len(found)}"
            elif any(abs(found[session] - expected[session]) > 1e-6 for session in found):
                yield f"step {step}: rewards are not those that verl dumped"


if __name__ == "__main__":
    different = differences(*map(Path, sys.argv[1:]))
    print("\n".join(different))
    sys.exit(bool(different))
