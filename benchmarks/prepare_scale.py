"""Time and memory of preparing a stand-in for the original DAPO-Math-17k: few problems, each some hundred times.

    python benchmarks/prepare_scale.py
    python benchmarks/prepare_scale.py --row-group 10000

Writes a Parquet file with the original's columns and ``--rows`` rows of ``--problems`` different problems, a fifth of
them in Chinese, prepares it in a process of its own, and prints what that process took. Row groups are by default as
large as pyarrow makes them: the worst case, as a reader decodes a row group whole. The texts are made up; their lengths
are about those of competition problems.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'

CHILD = """
import json, resource, sys, time
from pathlib import Path
import datasets, spo_verl.data.prepare as prepare
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
imported, began = peak(), time.perf_counter()
report = prepare.prepare("dapo_math_17k", Path(sys.argv[2]), origin=[sys.argv[1]])
print(json.dumps({"imported": imported, "peak": peak(), "seconds": time.perf_counter() - began, **report.as_json()}))
"""


def problems(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Different problems with their answers."""
    words = ("let", "triangle", "the", "integer", "of", "sum", "number", "such", "that", "find", "all", "positive")
    made = []
    for number in range(count):
        text = " ".join(rng.choices(words, k=rng.randint(20, 90))) + f" $x_{{{number}}}^2$."
        made.append((f"求下列各数之和：{text}" if number % 5 == 0 else text, str(rng.randint(0, 999))))
    return made


def write_original(file: Path, rows: int, different: list[tuple[str, str]], group: int | None = None) -> None:
    """The original's columns and nesting; every row has its own index."""
    kinds = pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("ground_truth", pa.string()), ("style", pa.string())])),
            ("extra_info", pa.struct([("index", pa.string())])),
        ]
    )
    table = pa.Table.from_pylist(
        [
            {
                "data_source": "math_dapo",
                "prompt": [{"content": f"{BEFORE}{text}{AFTER}", "role": "user"}],
                "ability": "MATH",
                "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
                "extra_info": {"index": f"{number:032x}"},
            }
            for number, (text, answer) in enumerate(different)
        ],
        schema=kinds,
    )
    whole = pa.concat_tables([table] * (-(-rows // len(different)))).slice(0, rows)
    pq.write_table(whole, file, row_group_size=group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_791_700)
    parser.add_argument("--problems", type=int, default=17_398)
    parser.add_argument("--row-group", type=int, help="rows of a row group; default: pyarrow's, 1,048,576")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        original, prepared = Path(folder) / "original.parquet", Path(folder) / "prepared.parquet"
        began = time.perf_counter()
        write_original(original, arguments.rows, problems(arguments.problems, random.Random(0)), arguments.row_group)
        made = pq.ParquetFile(original).metadata
        decoded = sum(made.row_group(number).total_byte_size for number in range(made.num_row_groups))
        print(
            f"made {made.num_rows} rows in {made.num_row_groups} row groups, {original.stat().st_size / 2**20:.0f} MiB "
            f"on disk, {decoded / 2**20:.0f} MiB before compression, in {time.perf_counter() - began:.0f} s"
        )
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(original), str(prepared)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        size = prepared.stat().st_size / 2**20
    print(f"read {found['read']}, written {found['written']} ({size:.1f} MiB), dropped {found['dropped']}")
    print(f"{found['seconds']:.1f} s, {found['read'] / found['seconds']:.0f} rows/s")
    print(f"peak memory {found['peak']:.0f} MiB, of which {found['imported']:.0f} MiB after the imports")


if __name__ == "__main__":
    main()
