"""Small prompts, responses and training steps for the tests of the tracker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spo_verl.tracker import StoredResponses, Tracker, TrackerSettings
from spo_verl.tracker.checkpoint.folder import MANIFEST, checksum

CONSTANT = TrackerSettings(forgetting_mode="constant", rho=0.5)


def keys(names: int | Sequence[int]) -> np.ndarray:
    """Keys of the prompts with these numbers, or of the first so many; equal numbers give equal keys."""
    numbers = range(names) if isinstance(names, int) else names
    digests = [hashlib.blake2b(str(number).encode(), digest_size=16).digest() for number in numbers]
    return np.frombuffer(b"".join(digests), dtype="V16")


def responses(
    lengths: Sequence[int], seed: int = 0, references: Sequence[str] = ("acting",), rows: Sequence[int] | None = None
) -> StoredResponses:
    """Random responses of the given lengths; roughly a third of the tokens is masked out."""
    rng = np.random.default_rng(seed)
    return StoredResponses.from_rows(
        tokens=[rng.integers(0, 150_000, n) for n in lengths],
        masks=[rng.random(n) < 0.7 for n in lengths],
        log_prob={name: [-rng.exponential(1.0, n).astype(np.float16) for n in lengths] for name in references},
        prompt_hash_B=rng.integers(0, 2**63, len(lengths), dtype=np.uint64),
        row_B=None if rows is None else np.array(rows),
    )


def train_step(tracker, version: int, size: int, *, references: Sequence[str] = ("acting",)) -> np.ndarray:
    """One step whose rewards, divergences and responses depend on the step and the drawn prompts only."""
    drawn = tracker.draw(size)
    uids = [f"v{version}-{position}" for position in range(size)]
    tracker.dispatch(uids, drawn.slot_B, version)
    recalled = tracker.recall(uids)
    rng = np.random.default_rng([version, *drawn.slot_B.tolist()])
    divergence_B = np.full(size, np.nan)
    divergence_B[recalled.stored.row_B] = rng.exponential(0.05, len(recalled.stored))
    tracker.finish_step(
        uids,
        np.zeros(size, dtype=np.int64),
        (rng.random(size) < 0.4).astype(np.float64),
        divergence_B,
        remember_uids=uids,
        responses=responses(rng.integers(0, 30, size).tolist(), seed=version, references=references),
        settle_uids=uids,
    )
    return drawn.slot_B


def observe_one(tracker: Tracker, uid: str, slot: int, version: int, *rewards: float, divergence: float = np.nan):
    """Dispatch one rollout and observe one session per reward."""
    tracker.dispatch([uid], [slot], version)
    count = len(rewards)
    return tracker.observe([uid] * count, np.arange(count), np.array(rewards), np.full(count, divergence))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rewrite_manifest(folder: Path, **changes: object) -> None:
    """Change fields of a manifest and give it a checksum that fits."""
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    content.pop("checksum")
    content |= changes
    path.write_text(json.dumps(content | {"checksum": checksum(content)}))
