"""How the tracker scales with the number of prompts, next to per-prompt dictionaries that are rebuilt every step.

    python benchmarks/tracker_scale.py --prompts 14000 1000000 10000000
    python benchmarks/tracker_scale.py --prompts 10000000 --sources 8
    python benchmarks/tracker_scale.py --prompts 14000 1000000 10000000 --sources 8 --readout calibrated

The second command draws with quotas: equal parts for data sources of which each is half as large as the one before. The
third one has no quotas; values are read with a coefficient for each of these sources.

A checkpoint is loaded in a process of its own, as a resumed run does. Needs no GPU and no training framework. Memory:
some 260 bytes per prompt while tracker, snapshot and loaded tracker exist together; the dictionaries take several times
that and are left out above ``--dict-limit`` prompts.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spo_verl.tracker import PromptSources, StoredResponses, Tracker, TrackerSettings

STEPS = 5


def seconds_of(work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Wall-clock seconds of a call, and what it returned."""
    began = time.perf_counter()
    answer = work(*args)
    return time.perf_counter() - began, answer


def make_responses(size: int, tokens: int, rng: np.random.Generator) -> StoredResponses:
    """Random responses of one length."""
    count = size * tokens
    return StoredResponses(
        row_B=np.arange(size),
        offset_B=np.arange(size + 1) * tokens,
        token_N=rng.integers(0, 150_000, count, dtype=np.int32),
        mask_N=np.ones(count, dtype=np.bool_),
        log_prob={"acting": -rng.random(count).astype(np.float16)},
        prompt_hash_B=rng.integers(0, 2**63, size, dtype=np.uint64),
    )


def tracker_steps(tracker: Tracker, batch: int, tokens: int, rng: np.random.Generator) -> dict[str, float]:
    """Median seconds of the verbs of a step; the first step warms up."""
    taken: dict[str, list[float]] = {}
    for version in range(STEPS + 1):
        uids = [f"{version}-{number}" for number in range(batch)]
        outcome = (
            np.zeros(batch, dtype=np.int64),
            (rng.random(batch) < 0.5).astype(np.float64),
            rng.random(batch) * 0.1,
        )
        responses = make_responses(batch, tokens, rng)
        seconds: dict[str, float] = {}
        seconds["draw"], drawn = seconds_of(tracker.draw, batch)
        seconds["dispatch"], _ = seconds_of(tracker.dispatch, uids, drawn.slot_B, version)
        seconds["recall"], _ = seconds_of(tracker.recall, uids)
        seconds["observe"], _ = seconds_of(tracker.observe, uids, *outcome)
        seconds["remember"], _ = seconds_of(tracker.remember, uids, responses)
        seconds["settle"], _ = seconds_of(tracker.settle, uids)
        if tracker.settings.readout == "calibrated":
            seconds["weights"], _ = seconds_of(tracker.draw, batch)
        seconds["metrics"], _ = seconds_of(lambda: (tracker.metrics(), tracker.value_histogram(10)))
        for name, value in seconds.items():
            taken.setdefault(name, []).append(value)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def dictionary_steps(prompts: int, batch: int, rng: np.random.Generator) -> float:
    """Median seconds of a step on dictionaries keyed by text: weights of all prompts, a draw, the batch's update."""
    evidence = {f"question number {number}": (0.5, 0.5) for number in range(prompts)}
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        values = {text: alpha / (alpha + beta) for text, (alpha, beta) in evidence.items()}
        weights = {text: math.sqrt(value * (1 - value)) + 0.05 for text, value in values.items()}
        weight_P = np.array(list(weights.values()))
        texts = list(weights)
        for slot in rng.choice(prompts, batch, replace=False, p=weight_P / weight_P.sum()):
            alpha, beta = evidence[texts[slot]]
            reward = float(rng.random() < 0.5)
            evidence[texts[slot]] = (0.9 * alpha + reward, 0.9 * beta + 1 - reward)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def make_sources(prompts: int, count: int, rng: np.random.Generator) -> PromptSources:
    """Prompts of ``count`` data sources in random order, each source half as large as the one before."""
    part_Q = 0.5 ** np.arange(count)
    source_P = rng.choice(count, prompts, p=part_Q / part_Q.sum())
    source_P[:count] = np.arange(count)
    return PromptSources(tuple(f"source {number:03d}" for number in range(count)), source_P)


def made(
    prompts: int, source_count: int, readout: Any
) -> tuple[np.ndarray, PromptSources | None, TrackerSettings, np.random.Generator]:
    """Prompt keys, data sources and settings: the same every time."""
    rng = np.random.default_rng(0)
    key_P = np.frombuffer(rng.bytes(16 * prompts), dtype="V16")
    sources = make_sources(prompts, source_count, rng) if source_count else None
    quota = dict.fromkeys(sources.names, 1.0) if sources and readout == "raw" else None
    return key_P, sources, TrackerSettings(quota=quota, readout=readout), rng


def load(folder: Path, prompts: int, source_count: int, readout: Any) -> tuple[float, str]:
    """Seconds of loading a checkpoint, and the digest of what was loaded."""
    key_P, sources, settings, _ = made(prompts, source_count, readout)
    seconds, (loaded, _) = seconds_of(lambda: Tracker.load(folder, key_P, settings, sources=sources))
    return seconds, loaded.digest()


def measure(
    prompts: int, batch: int, tokens: int, folder: Path, dict_limit: int, source_count: int, readout: Any
) -> dict[str, float | None]:
    """All figures for one number of prompts; seconds, or bytes where the name says so."""
    key_P, sources, settings, rng = made(prompts, source_count, readout)
    figures: dict[str, float | None] = {}
    figures["create"], tracker = seconds_of(lambda: Tracker.create(key_P, settings, sources=sources))
    verbs = tracker_steps(tracker, batch, tokens, rng)
    figures |= verbs | {"step": sum(verbs[name] for name in ("dispatch", "recall", "observe", "settle"))}
    figures["snapshot"], snapshot = seconds_of(tracker.snapshot)
    figures["digest"], digest = seconds_of(getattr, snapshot, "digest")
    figures["write"], written = seconds_of(snapshot.write, folder / "spo")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures["load"], loaded = pool.apply(load, (folder / "spo", prompts, source_count, readout))
    if loaded != digest:
        raise SystemExit("the loaded tracker differs from the one that was saved")
    figures["bytes on disk"] = written.nbytes
    figures["bytes of columns"] = tracker.metrics()["table_bytes"]
    figures["bytes of responses"] = tracker.metrics()["memory_bytes"]
    rebuilt = dictionary_steps(prompts, batch, rng) if prompts <= dict_limit else None
    ratio = rebuilt and rebuilt / (verbs["draw"] + verbs["observe"])
    return figures | {"dictionaries": rebuilt, "ratio": ratio}


def as_text(name: str, figure: float | None) -> str:
    """A figure with its unit."""
    if figure is None:
        return "skipped"
    if name.startswith("bytes"):
        return f"{figure / 1e6:.1f} MB"
    if name == "ratio":
        return f"{figure:.1f} x"
    return f"{figure * 1000:.1f} ms" if figure < 1 else f"{figure:.2f} s"


ROWS = {
    "create": "create",
    "draw": "draw({batch})",
    "step": "dispatch + recall + observe + settle of {batch}",
    "observe": "  of which observe",
    "remember": "remember {batch} responses of {tokens} tokens",
    "weights": "draw({batch}) after a fit: all weights",
    "metrics": "metrics and histogram",
    "snapshot": "snapshot (training waits)",
    "digest": "digest",
    "write": "write (while training continues)",
    "load": "load",
    "bytes on disk": "checkpoint on disk",
    "bytes of columns": "prompt columns",
    "bytes of responses": "stored responses",
    "dictionaries": "rebuilt dictionaries: weights + draw + update",
    "ratio": "  over draw + observe of the tracker",
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[14_000, 1_000_000, 10_000_000])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=512, help="tokens per stored response")
    parser.add_argument("--dict-limit", type=int, default=2_000_000, help="no dictionaries above this many prompts")
    parser.add_argument("--sources", type=int, default=0, help="data sources, with quotas unless calibrated; 0: none")
    parser.add_argument("--readout", choices=["raw", "calibrated"], default="raw", help="spo.value.readout")
    args = parser.parse_args()
    columns = []
    for prompts in args.prompts:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(
                prompts, args.batch, args.tokens, Path(folder), args.dict_limit, args.sources, args.readout
            )
        columns.append([f"{prompts:,}", *(as_text(name, figures.get(name)) for name in ROWS)])
    labels = ["prompts", *(label.format(batch=args.batch, tokens=args.tokens) for label in ROWS.values())]
    width = max(map(len, labels))
    for label, *cells in zip(labels, *columns, strict=True):
        print(label.ljust(width), *(cell.rjust(12) for cell in cells))
    if max(args.prompts) > args.dict_limit:
        print(f"\nDictionaries are skipped above {args.dict_limit:,} prompts (raise --dict-limit to have them).")


if __name__ == "__main__":
    main()
