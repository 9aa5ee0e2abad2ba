"""A made run with its record, dumps and checkpoints: a real tracker, real advantages, invented responses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spo_verl.core import normalize_advantages
from spo_verl.record.schema import FOLDER, PROMPTS, ROLLOUTS
from spo_verl.record.writing import RecordWriter, as_table
from spo_verl.tracker import Tracker, TrackerSettings
from spo_verl.tracker.reports import Frozen, Late, ObserveReport

SOURCES = ("openai/gsm8k", "math_dapo")
GIB = 2**30


@dataclass
class MadeRun:
    """What was written.

    Attributes:
        folder: of the run, as ``trainer.default_local_dir``.
        rows: the rows of the record as dictionaries, in its order.
        numbers: metrics by step.
        tracker: in its state after the last step.
        success_P: the probability with which each prompt is answered correctly.
    """

    folder: Path
    tracker: Tracker
    success_P: np.ndarray
    rows: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[int, dict[str, float]] = field(default_factory=dict)


def prompt_keys(count: int) -> np.ndarray:
    """Keys of so many prompts, V16."""
    digests = [hashlib.blake2b(f"prompt {number}".encode(), digest_size=16).digest() for number in range(count)]
    return np.frombuffer(b"".join(digests), dtype="V16")


def hex_keys(key_P: np.ndarray) -> list[str]:
    return [bytes(key).hex() for key in key_P]


def prompt_table(tracker: Tracker, key_P: np.ndarray) -> pa.Table:
    """The rows of ``prompts.parquet`` of a run that begins; prompt ``s`` is row ``2 s`` of the dataset."""
    slots, (alpha_P, beta_P) = np.arange(len(key_P)), tracker.evidence()
    columns = {
        "key": hex_keys(key_P),
        "slot": slots,
        "row": 2 * slots,
        "data_source": [SOURCES[slot % 2] for slot in slots],
        "value": tracker.values(),
        "n_eff": alpha_P + beta_P,
        "text": [f"What is {slot} + {slot * 7 % 100}?" for slot in slots],
    }
    return as_table(columns, PROMPTS)


def made_run(
    folder: Path,
    *,
    mode: str = "sync",
    forgetting: str = "kl",
    prompts: int = 300,
    steps: int = 12,
    batch: int = 48,
    sessions: int = 1,
    checkpoint_every: int = 4,
    dumps: bool = True,
    ended: bool = True,
    limit: int = GIB,
    seed: int = 0,
) -> MadeRun:
    """Make a run of ``steps`` steps in a folder.

    Args:
        folder: made where it is missing.
        mode: ``sync``, or ``separate_async`` (``colocate_async``): rollouts stay open over steps and end in every way.
        forgetting: mode of the tracker.
        prompts: in the dataset.
        steps: trained.
        batch: dispatched prompts of a step.
        sessions: rollouts of each.
        checkpoint_every: steps between checkpoints; 0 saves none.
        dumps: write responses as verl does, to ``rollouts/<step>.jsonl``.
        ended: the run has ended; otherwise it is as if it were under way.
        limit: bytes of the record.
        seed: of everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, key_P = np.random.default_rng(seed), prompt_keys(prompts)
    settings = TrackerSettings(forgetting_mode=forgetting, seed=seed)
    made = MadeRun(folder, Tracker.create(key_P, settings), rng.beta(0.7, 0.9, prompts))
    writer = RecordWriter(folder / FOLDER, limit)
    writer.resume(0)
    writer.describe(description(folder, mode=mode, forgetting=forgetting, prompts=prompts, dumps=dumps))
    first = prompt_table(made.tracker, key_P)
    writer.prompts(lambda: first)
    world = _World(made, rng, key_P, mode, sessions)
    for step in range(1, steps + 1):
        rows = world.step(step, batch)
        made.rows += rows
        writer.append(step, {name: [row[name] for row in rows] for name in ROLLOUTS.names if name != "step"})
        made.numbers[step] = world.numbers(step, rows)
        if dumps:
            _dump(folder / "rollouts", step, [row for row in rows if row["ending"] == "trained"])
        saves = checkpoint_every and step % checkpoint_every == 0
        if saves:
            made.tracker.snapshot().write(folder / f"global_step_{step}" / "spo", step=step)
            writer.cut(step)
            assert writer.flush()
            (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
        writer.append_step(step, made.numbers[step])
    assert writer.flush()
    if ended:
        writer.close(ended="2026-01-02T04:00:00+00:00")
    return made


def description(folder: Path, *, mode: str, forgetting: str, prompts: int, dumps: bool) -> dict[str, Any]:
    """What ``run.json`` says of such a run."""
    return {
        "config": {
            "data.train_files": ["train.parquet"],
            "data.prompt_key": "prompt",
            "trainer.default_local_dir": str(folder),
            "trainer.experiment_name": folder.name,
            "trainer.rollout_data_dir": str(folder / "rollouts") if dumps else None,
            "trainer.validation_data_dir": None,
            "trainer.v1.trainer_mode": mode,
            "algorithm.adv_estimator": "spo",
            "spo": {"forgetting": {"mode": forgetting}, "reward": {"low": 0.0, "high": 1.0}, "record": 1.0},
        },
        "prompts": prompts,
        "verl": "0.9.1",
        "spo_verl": "0.1.0",
        "ray_address": None,
        "tracker": {"name": "spo_tracker", "namespace": "spo-made"},
        "pid": 1,
        "host": "made",
        "start": {"time": "2026-01-02T03:00:00+00:00", "step": 0},
    }


class _World:
    """Draws, answers and observes."""

    def __init__(self, made: MadeRun, rng: np.random.Generator, key_P: np.ndarray, mode: str, sessions: int) -> None:
        self.made, self.rng, self.mode, self.sessions = made, rng, mode, sessions
        self.hex_P = hex_keys(key_P)
        self.slot_of: dict[str, int] = {}
        self.open: dict[str, tuple[int, int]] = {}  # uid -> version of its dispatch, tokens
        self.count = 0

    def step(self, step: int, batch: int) -> list[dict[str, Any]]:
        tracker, rng, version = self.made.tracker, self.rng, step - 1
        size = batch + (batch // 4 if self.mode != "sync" and step == 1 else 0)
        drawn = tracker.draw(size, version)
        uids = [f"{self.count + number:08d}-made" for number in range(size)]
        self.count += size
        tracker.dispatch(uids, drawn.slot_B, version)
        for uid, slot in zip(uids, drawn.slot_B.tolist(), strict=True):
            self.slot_of[uid] = slot
            self.open[uid] = (version, int(rng.integers(20, 400)))
        order = sorted(self.open, key=lambda uid: self.open[uid][1] + 1000 * self.open[uid][0])
        if self.mode == "sync":
            over, kinds = order, {"failed": order[:1]}
        else:
            over = order[:batch]
            kinds = dict(
                zip(("failed", "aborted", "stale", "surplus", "rejected"), ([uid] for uid in over), strict=False)
            )
        late_uids = [uid for uids in kinds.values() for uid in uids]
        return self._end(step, [uid for uid in over if uid not in late_uids], kinds)

    def _end(self, step: int, trained: list[str], kinds: dict[str, list[str]]) -> list[dict[str, Any]]:
        tracker, rng = self.made.tracker, self.rng
        both = [*trained, *(uid for uids in kinds.values() for uid in uids)]
        frozen = tracker.recall(both).frozen
        at = {uid: number for number, uid in enumerate(both)}
        divergence = {uid: float(rng.exponential(0.03)) if rng.random() < 0.8 else np.nan for uid in trained}

        def outcomes(uids: Sequence[str]) -> tuple[list[str], list[int], list[float]]:
            flat = [(uid, session) for uid in uids for session in range(self.sessions)]
            rewards = [float(rng.random() < self.made.success_P[self.slot_of[uid]]) for uid, _ in flat]
            return [uid for uid, _ in flat], [session for _, session in flat], rewards

        late, late_rows = [], []
        for kind, uids in kinds.items():
            if kind in ("failed", "aborted"):
                late.append(Late(kind, ended=uids))
                late_rows += [(kind, uid, None, np.nan) for uid in uids]
            else:
                uid_B, session_B, reward_B = outcomes(uids)
                late.append(Late(kind, uid_B, session_B, reward_B, ended=uids))
                late_rows += [(kind, *row) for row in zip(uid_B, session_B, reward_B, strict=True)]
        uid_B, session_B, reward_B = outcomes(trained)
        value_B = np.array([frozen.value_B[at[uid]] for uid in uid_B])
        tokens = {uid: self.open.pop(uid)[1] for uid in both}
        raw_B = np.array(reward_B) - value_B
        advantage_B = normalize_advantages(raw_B, np.array([tokens[uid] for uid in uid_B]))
        measured = [divergence[uid] for uid in uid_B]
        report = tracker.finish_step(uid_B, session_B, reward_B, measured, settle_uids=trained, late=late).observe
        rho = rho_of(report)
        rows = []
        for number, row in enumerate(zip(uid_B, session_B, reward_B, strict=True)):
            rows.append(self._row(step, "trained", *row, frozen, at, tokens, rho))
            rows[-1] |= {"raw_advantage": float(raw_B[number]), "advantage": float(advantage_B[number])}
            rows[-1]["divergence"] = measured[number]
        rows += [self._row(step, *row, frozen, at, tokens, rho) for row in late_rows]
        return sorted(rows, key=lambda row: row["version_dispatch"])

    def _row(
        self,
        step: int,
        ending: str,
        uid: str,
        session: int | None,
        reward: float,
        frozen: Frozen,
        at: dict[str, int],
        tokens: dict[str, int],
        rho: dict[tuple[int, int], float],
    ) -> dict[str, Any]:
        number, slot = at[uid], self.slot_of[uid]
        version = int(frozen.version_B[number])
        known = session is not None
        return {
            "uid": uid,
            "session": session,
            "key": self.hex_P[slot],
            "slot": slot,
            "row": 2 * slot,
            "data_source": SOURCES[slot % 2],
            "step": step,
            "version_dispatch": version,
            "version_first": version if known else None,
            "version_last": min(step - 1, version + (tokens[uid] > 300)) if known else None,
            "value": float(frozen.value_B[number]),
            "n_eff": float(frozen.n_eff_B[number]),
            "reward": None if np.isnan(reward) else reward,
            "raw_advantage": None,
            "advantage": None,
            "divergence": None,
            "rho": rho.get((slot, version)) if known else None,
            "ending": ending,
            "tokens": tokens[uid] if known else None,
            "seconds": round(tokens[uid] / 32, 3) if known else None,
        }

    def numbers(self, step: int, rows: list[dict[str, Any]]) -> dict[str, float]:
        trained = [row for row in rows if row["ending"] == "trained"]
        tokens = sum(row["tokens"] for row in trained)
        return {
            "training/global_step": float(step),
            "critic/score/mean": float(np.mean([row["reward"] for row in trained])),
            "timing_s/step": 10.0 + step,
            "timing_s/gen": 6.0,
            "timing_s/old_log_prob": 1.0,
            "timing_s/adv": 0.1,
            "timing_s/update_actor": 2.5 + step,
            "perf/throughput": tokens / (10.0 + step),
            "actor/entropy": 1.0 / step,
            "spo/advantage/near_zero_1e-4_share": 0.25,
            **{f"spo/tracker/{name}": value for name, value in self.made.tracker.metrics().items()},
        }


def rho_of(report: ObserveReport) -> dict[tuple[int, int], float]:
    """The retention by slot and version."""
    pairs = zip(report.slot_B.tolist(), report.version_B.tolist(), strict=True)
    return dict(zip(pairs, report.rho_B.tolist(), strict=True))


def _dump(folder: Path, step: int, rows: list[dict[str, Any]]) -> None:
    """The responses of a step as verl dumps them."""
    folder.mkdir(exist_ok=True)
    lines = []
    for row in sorted(rows, key=lambda row: (row["uid"], row["session"])):
        slot = row["slot"]
        truth = slot + slot * 7 % 100
        lines.append(
            {
                "input": f"user\nWhat is {slot} + {slot * 7 % 100}?\nassistant\n",
                "output": f"It is {truth if row['reward'] else truth + 1}.",
                "gts": str(truth),
                "score": row["reward"],
                "step": step,
                "uid": f"{row['uid']}_{row['session']}_0",
            }
        )
    (folder / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
