"""Dumps and plain files as verl and others write them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FIVE = {"aime_2024": 30, "aime_2025": 30, "beyond_aime": 100, "brumo_2025": 30, "hmmt_feb_2025": 30}


def question(source: str, number: int) -> str:
    return f"user\nQuestion {number} of {source}?\nassistant\n"


def dump_line(source: str, number: int, session: int, pred: str, truth: str, **more: Any) -> dict[str, Any]:
    """One line as `_write_generations` of verl's trainer writes it with the reward's extra infos."""
    uid = uuid.uuid5(uuid.NAMESPACE_OID, f"{source} {number}")
    acc = float(pred == truth)
    boxed = f"so \\boxed{{{pred}}}" if pred else "I give up"
    line = {"input": question(source, number), "output": boxed, "gts": truth, "score": acc, "step": 7, "reward": acc}
    line |= {"acc": acc, "pred": pred, "grading_timeout": 0.0, "data_source": source, "uid": f"{uid}_{session}_0"}
    return {name: value for name, value in (line | more).items() if value is not None}


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def sampled(source: str, prompts: int, n: int, rate: float, seed: int, **more: Any) -> list[dict[str, Any]]:
    """n lines for each prompt, right with probability ``rate``, wrong ones spread over three answers."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(prompts):
        for session in range(n):
            pred = str(number) if rng.random() < rate else str(1000 + int(rng.integers(3)))
            lines.append(dump_line(source, number, session, pred, str(number), **more))
    return lines


def five(folder: Path, n: int, rate: float, seed: int) -> Path:
    """A dump of all five benchmarks."""
    lines = [line for source, prompts in FIVE.items() for line in sampled(source, prompts, n, rate, seed)]
    write_lines(folder / "7.jsonl", lines)
    return folder


def answers(source: str, rows: Sequence[Sequence[str]], **more: Any) -> list[dict[str, Any]]:
    """Prompt i has the ground truth "1" and the answers of row i."""
    return [
        dump_line(source, number, session, pred, "1", **more)
        for number, row in enumerate(rows)
        for session, pred in enumerate(row)
    ]
