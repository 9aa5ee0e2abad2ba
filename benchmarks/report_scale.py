"""Time, memory and size of the page of a long run: `spo-verl report` over a made record.

    python benchmarks/report_scale.py
    python benchmarks/report_scale.py --steps 100 --rollouts 512 --prompts 2000 --no-responses

Writes a record of ``--steps`` steps with ``--rollouts`` rollouts each over ``--prompts`` prompts, random numbers in
every column and texts of about 300 characters, dumps a response of about 1,500 characters for every rollout, and makes
the page in a process of its own. ``--keep FOLDER`` keeps the run and its page.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spo_verl.record.schema import ENDINGS, FOLDER, PROMPTS, ROLLOUTS, RUN, SCHEMA_VERSION, STEPS, VERSION_KEY

SOURCES = ("openai/gsm8k", "math_dapo", "aime")
WORDS = (
    "let",
    "triangle",
    "the",
    "integer",
    "of",
    "sum",
    "number",
    "such",
    "that",
    "find",
    "all",
    "positive",
    "so",
    "we",
)


def texts(count: int, words: int, rng: np.random.Generator) -> list[str]:
    """Texts of so many random words."""
    chosen = np.array(WORDS, dtype=object)[rng.integers(0, len(WORDS), (count, words))]
    return [" ".join(row) + f" {number}" for number, row in enumerate(chosen)]


def write(table: dict, schema: pa.Schema, path: Path) -> None:
    arrays = [pa.array(table[field.name], from_pandas=True).cast(field.type) for field in schema]
    schema = schema.with_metadata({VERSION_KEY: str(SCHEMA_VERSION).encode()})
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)


def make_run(folder: Path, steps: int, rollouts: int, prompts: int, responses: bool) -> None:
    """A run's folder with its record, and its dumps where asked for."""
    rng = np.random.default_rng(0)
    record, dumps = folder / FOLDER, folder / "rollouts"
    record.mkdir(parents=True)
    config = {"trainer.rollout_data_dir": str(dumps) if responses else None, "trainer.experiment_name": "long"}
    (record / RUN).write_text(json.dumps({"schema_version": SCHEMA_VERSION, "config": config, "starts": []}))
    keys = np.array([rng.bytes(16).hex() for _ in range(prompts)], dtype=object)
    chance_P = rng.beta(0.7, 0.9, prompts)
    slots = np.arange(prompts)
    source_P = np.array(SOURCES, dtype=object)[slots % len(SOURCES)]
    known = {"key": keys, "slot": slots, "row": slots, "data_source": source_P, "value": chance_P}
    known |= {"n_eff": np.ones(prompts), "text": texts(prompts, 55, rng)}
    write(known, PROMPTS, record / "prompts.parquet")
    outputs = texts(200, 300, rng)
    if responses:
        dumps.mkdir()
    for first in range(1, steps + 1, 100):
        last = min(first + 99, steps)
        size = (last - first + 1) * rollouts
        step_N = np.repeat(np.arange(first, last + 1), rollouts)
        slot_N = rng.integers(0, prompts, size)
        value_N = np.clip(chance_P[slot_N] + rng.normal(0, 0.1, size), 0, 1)
        reward_N = (rng.random(size) < chance_P[slot_N]).astype(float)
        trained_N = rng.random(size) < 0.95
        ending_N = np.where(trained_N, 0, rng.integers(1, len(ENDINGS), size))
        uids = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(size)]
        table = {"uid": uids, "session": np.zeros(size), "key": keys[slot_N], "slot": slot_N, "row": slot_N,
                 "data_source": source_P[slot_N], "step": step_N, "version_dispatch": step_N - 1 - (ending_N > 0),
                 "version_first": step_N - 1, "version_last": step_N - 1, "value": value_N,
                 "n_eff": 1 + 7 * rng.random(size), "reward": reward_N,
                 "raw_advantage": np.where(trained_N, reward_N - value_N, np.nan),
                 "advantage": np.where(trained_N, (reward_N - value_N) * 2.1, np.nan),
                 "divergence": rng.exponential(0.03, size), "rho": 0.875 + 0.085 * rng.random(size),
                 "ending": np.array(ENDINGS, dtype=object)[ending_N], "tokens": rng.integers(100, 8000, size),
                 "seconds": rng.random(size) * 100}  # fmt: skip
        write(table, ROLLOUTS, record / f"rollouts-{first:08d}-{last:08d}.parquet")
        names = [f"group_{number // 10}/metric_{number}" for number in range(150)]
        names += [f"spo/value/bin_{number}" for number in range(10)] + ["timing_s/step", "timing_s/gen", "timing_s/adv"]
        numbers = {"step": np.repeat(np.arange(first, last + 1), len(names)), "name": names * (last - first + 1),
                   "value": rng.random(len(names) * (last - first + 1))}  # fmt: skip
        write(numbers, STEPS, record / f"steps-{first:08d}-{last:08d}.parquet")
        for step in range(first, last + 1) if responses else ():
            start = (step - first) * rollouts
            lines = [
                {"input": "...", "output": outputs[place % 200], "gts": "1", "score": reward_N[place], "step": step,
                 "uid": f"{uids[place]}_0_0"}
                for place in range(start, start + rollouts)
            ]  # fmt: skip
            (dumps / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--rollouts", type=int, default=1_024, help="of a step")
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--no-responses", action="store_true", help="dump none")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="folder for the run and its page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch) / "long"
        if not folder.exists():
            make_run(folder, arguments.steps, arguments.rollouts, arguments.prompts, not arguments.no_responses)
        page = folder / "report.html"
        began = time.perf_counter()
        command = [sys.executable, "-m", "spo_verl.cli", "report", str(folder), "--output", str(page), "--json"]
        answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(json.dumps({"seconds": round(seconds, 1), "peak_GiB": round(peak, 2), **answer}, indent=2))


if __name__ == "__main__":
    main()
