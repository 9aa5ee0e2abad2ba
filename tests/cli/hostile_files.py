"""Files that are wrong in every way: seeded damage to valid ones, and the verbs of ``spo-verl`` that read them.

`variant(seed, folder)` makes one command line over files of which one is damaged; the same seed gives the same one.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spo_verl.data.identity import prompt_key
from spo_verl.data.values import FORMAT, OfflineValues, provenance
from spo_verl.data.values.values_table import _file_digest
from tests.cli.helpers import row, write_rows
from tests.evaluation.files import dump_line, write_lines


@dataclass(frozen=True)
class Variant:
    """A command line, and what was done to which file."""

    arguments: list[str]
    told: str


def valid_files(folder: Path) -> dict[str, Path]:
    """One valid file of every kind."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {**row(f"What is {n} + 1? naïve €", str(n + 1)), "extra_info": {"index": n, "problem": f"q{n}", "rate": n / 8}}
        for n in range(6)
    ]
    for n, one in enumerate(rows):
        one["accuracy"] = n / 8
    dump = [dump_line("mine", n // 2, n % 2, "√2", "1") for n in range(6)]
    for n, line in enumerate(dump):
        line |= {"input": f"user\nWhat is {n // 2} + 1? naïve €\nassistant\n", "gts": str(n // 2 + 1), "step": 0}
    plain = [
        {"prompt_id": f"p{n // 2}", "response": "r €", "acc": float(n % 2), "pred": "√2", "data_source": "mine"}
        for n in range(6)
    ]
    published = [{"question": f"What is {n}? €", "answer": f"so\n#### {n}"} for n in range(6)]
    scores = {f"What is {n} + 1? naïve €": [0.0, 1.0, n / 8] for n in range(6)}
    keys = np.frombuffer(b"".join(map(prompt_key, rows[:4])), dtype="V16")
    made = {
        "data.jsonl": lambda file: write_lines(file, rows),
        "data.json": lambda file: file.write_text(json.dumps(rows)),
        "data.parquet": lambda file: write_rows(file, rows),
        "0.jsonl": lambda file: write_lines(file, dump),
        "plain.jsonl": lambda file: write_lines(file, plain),
        "plain.parquet": lambda file: write_rows(file, plain),
        "published.jsonl": lambda file: write_lines(file, published),
        "published.parquet": lambda file: write_rows(file, published),
        "scores.json": lambda file: file.write_text(json.dumps(scores, ensure_ascii=False)),
        "values.parquet": lambda file: OfflineValues(
            keys, np.arange(4.0), np.full(4, 8), (provenance("estimate", policy="m €", sampling={"t": 1.0}),)
        ).write(file),
    }
    for name, make in made.items():
        make(folder / name)
    return {name: folder / name for name in made}


VERBS: list[list[str]] = [
    ["values", "show", "@values.parquet"],
    ["values", "show", "@values.parquet", "--data", "@data.parquet"],
    ["values", "show", "@values.parquet", "--data", "@data.jsonl"],
    ["values", "merge", "@values.parquet", "-o", "+out.parquet"],
    ["values", "import", "@scores.json", "--data", "@data.parquet", "-o", "+out.parquet"],
    ["values", "import", "@scores.json", "--data", "@data.jsonl", "-o", "+out.parquet", "--reward-low", "0"],
    ["values", "import", "@0.jsonl", "--data", "@data.json", "-o", "+out.parquet"],
    ["values", "import", "@0.jsonl", "--data", "@data.parquet", "-o", "+out.parquet", "--reward-key", "acc"],
    ["values", "import", "--column", "accuracy", "--trials", "8", "--data", "@data.parquet", "-o", "+out.parquet"],
    ["values", "import", "--column", "accuracy", "--trials", "8", "--data", "@data.jsonl", "-o", "+out.parquet"],
    [
        "values",
        "import",
        "--column",
        "extra_info.rate",
        "--trials",
        "8",
        "--data",
        "@data.parquet",
        "-o",
        "+out.parquet",
    ],
    ["data", "check", "@data.parquet"],
    ["data", "check", "@data.jsonl"],
    ["data", "check", "@data.json"],
    ["data", "check", "@published.jsonl", "--source", "gsm8k"],
    ["data", "check", "@published.parquet", "--source", "gsm8k"],
    ["data", "check", "@data.jsonl", "--source", "dapo_math_17k"],
    ["data", "prepare", "gsm8k", "--from", "@published.jsonl", "-o", "+out.parquet"],
    ["data", "prepare", "gsm8k", "--from", "@published.parquet", "-o", "+out.parquet", "--drop-invalid"],
    ["data", "prepare", "dapo_math_17k", "--from", "@data.jsonl", "-o", "+out.parquet", "--force"],
    [
        "data",
        "prepare",
        "own",
        "--from",
        "@published.jsonl",
        "--question",
        "question",
        "--answer",
        "answer",
        "-o",
        "+out.parquet",
        "--drop-invalid",
    ],
    ["data", "overlap", "@data.parquet", "@data.jsonl"],
    ["data", "overlap", "@data.json", "@data.parquet"],
    ["evaluate", "@0.jsonl", "--resamples", "100"],
    ["evaluate", "@plain.jsonl", "--resamples", "100", "--markdown", "+out.md"],
    ["evaluate", "@plain.parquet", "--resamples", "100"],
    ["evaluate", "a=@plain.parquet", "b=@plain.jsonl", "--resamples", "100", "--grade-key", "acc"],
    ["evaluate", "@0.jsonl", "--resamples", "100", "--data", "@data.parquet"],
]
"""``@`` names a file that is read, ``+`` one that is written."""


def variant(seed: int, folder: Path) -> Variant:
    """One command line in a new folder, with one file damaged (or the place of the output)."""
    rng = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    files = valid_files(folder)
    verb = rng.choice(VERBS)
    placed = [part for part in verb if "@" in part or part.startswith("+")]
    victim = rng.choice(placed)
    told = ""
    arguments = []
    for part in verb:
        head, sign, name = part.partition("@")
        if sign:
            file = files[name]
            told = damage(file, rng) if part is victim else told
            arguments.append(f"{head}{file}")
        elif part.startswith("+"):
            output = folder / part[1:]
            if part is victim:
                output, told = hostile_output(output, files, rng)
            arguments.append(str(output))
        else:
            arguments.append(part)
    if rng.random() < 0.3:
        arguments.append("--json")
    return Variant(arguments, f"{victim}: {told}")


def damage(file: Path, rng: random.Random) -> str:
    """Damage a file; returns in words what was done."""
    kinds: list[Callable[[Path, random.Random], str]] = [_bytes, _bytes, _instead]
    if file.suffix == ".parquet":
        kinds += [_columns] * 4 + ([_metadata] * 3 if file.name == "values.parquet" else [])
    else:
        kinds += [_json] * 6
    return rng.choice(kinds)(file, rng)


def _bytes(file: Path, rng: random.Random) -> str:
    raw = file.read_bytes()
    at = rng.randrange(len(raw))

    def flipped() -> bytes:
        changed = bytearray(raw)
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    ways: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "blank": lambda: b" \n\n \n",
        "cut": lambda: raw[:at],
        "cut in a character": lambda: raw[: raw.rfind(b"\xe2") + 2] if b"\xe2" in raw else raw[:at],
        "begins later": lambda: raw[at:],
        "flipped": flipped,
        "random bytes in between": lambda: raw[:at] + rng.randbytes(rng.randint(1, 20)) + raw[at:],
        "zeros in between": lambda: raw[:at] + bytes(rng.randint(1, 2000)) + raw[at:],
        "random": lambda: rng.randbytes(rng.randint(1, 3000)),
        "latin-1": lambda: raw.decode("utf-8", "replace").encode("latin-1", "replace"),
        "utf-16": lambda: raw.decode("utf-8", "replace").encode("utf-16"),
        "utf-16 without a mark": lambda: raw.decode("utf-8", "replace").encode("utf-16-le"),
        "utf-8 with a mark": lambda: b"\xef\xbb\xbf" + raw,
        "gzip": lambda: gzip.compress(raw),
        "CRLF": lambda: raw.replace(b"\n", b"\r\n"),
        "twice": lambda: raw + raw,
        "one line": lambda: raw.replace(b"\n", b" "),
        "deep": lambda: b"[" * 100_000 + b"]" * 100_000,
        "deep and open": lambda: b'{"a":' * 50_000,
        "a number": lambda: b"7",
        "a text": lambda: b'"x"',
        "null": lambda: b"null",
        "null lines": lambda: b"null\n" * 3,
        "numbers": lambda: b"1\n2\n",
        "an empty object": lambda: b"{}",
        "an empty list": lambda: b"[]",
        "other magic": lambda: rng.choice([b"PAR1", b"PK\x03\x04", b"ARROW1"]) + raw,
    }
    way = rng.choice(list(ways))
    file.write_bytes(ways[way]())
    return way


def _instead(file: Path, rng: random.Random) -> str:
    """Something else in the file's place."""
    way = rng.choice(["nothing", "folder", "broken link", "loop", "pipe", "device", "below a file", "no permission"])
    file.unlink()
    if way == "folder":
        file.mkdir()
    elif way == "broken link":
        file.symlink_to(file.parent / "nowhere")
    elif way == "loop":
        file.symlink_to(file.name)
    elif way == "pipe":
        os.mkfifo(file)
    elif way == "device":
        file.symlink_to("/dev/zero")
    elif way == "below a file":
        file.symlink_to("/etc/hostname/x")
    elif way == "no permission":
        file.symlink_to("/proc/1/mem")  # root may open it and not read it
    return f"instead: {way}"


HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**63, 2**64, -(2**70), 10**308, 10**400, 1e308, float("nan"), float("inf"),
    float("-inf"), "", " ", "0", "nan", "1/0", "5/8", "9" * 400 + "/" + "9" * 401, "1" * 5000, "\ud800",
    "a\udc00b", "\0",
    "\x1b[31mred\x1b[0m", "\r\n", "\u202e", "[red]markup[/red]", "x" * 100_000, "[" * 5000, [], {}, [None], [[]],
    [1, "a"], {"a": 1}, {"": None}, [{"role": "user"}], [{"role": "user", "content": None}], [{"content": 7}],
    {"ground_truth": 10**400}, {"ground_truth": None}, [{"role": "user", "content": [{"text": 3}, None]}], "\u2028",
]  # fmt: skip
"""Values that a field should not have, or seldom has."""
NAMES = ["uid", "step", "input", "output", "gts", "score", "acc", "data_source", "prompt", "reward_model", "extra_info",
         "pred", "prompt_id", "response", "ground_truth", "images", "tools", "question", "answer", ""]  # fmt: skip


def _json(file: Path, rng: random.Random) -> str:
    text = file.read_text(encoding="utf-8")
    lines = file.suffix == ".jsonl"
    content = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    rows = content if isinstance(content, list) else [content]
    one = rng.choice(rows)
    chosen = rows if rng.random() < 0.3 else [one]
    way = rng.choice(["value", "value", "value", "inner", "remove", "add", "rename", "row", "twice", "deep", "digits"])
    name = rng.choice(list(one))
    value = rng.choice(HOSTILE)
    mark = "THE MARK"
    if way in ("value", "inner"):
        for each in chosen:
            if way == "inner" and isinstance(each.get(name), (dict, list)) and each[name]:
                inner = each[name] if isinstance(each[name], dict) else rng.choice(each[name])
                if isinstance(inner, dict):
                    inner[rng.choice(list(inner))] = value
                    continue
            each[name] = value
    elif way == "remove":
        for each in chosen:
            each.pop(name, None)
    elif way == "add":
        for each in chosen:
            each[rng.choice(NAMES)] = value
    elif way == "rename":
        one[rng.choice(NAMES)] = one.pop(name)
    elif way == "row" and isinstance(content, list):
        content[rng.randrange(len(content))] = value
    else:
        one[name] = mark
    if lines:
        text = "".join(
            json.dumps(each, ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace").decode() + "\n"
            for each in content
        )
    else:
        text = json.dumps(content)
    raw = {
        "twice": f'"x", "{name}": 1' if isinstance(one, dict) else "1",
        "deep": "[" * (depth := rng.choice([101, 500, 1000, 3000, 100_000])) + "]" * depth,
        "digits": rng.choice(["-", ""]) + "9" * rng.choice([19, 20, 309, 400, 4300, 4301, 100_000]),
    }.get(way, "null")
    file.write_text(text.replace(json.dumps(mark), raw), encoding="utf-8")
    return f"{way} {name!r} {value!r:.60} {raw[:30]} in {'every row' if chosen is rows else 'one row'}"


def _columns(file: Path, rng: random.Random) -> str:
    table = pq.read_table(file)
    n, at = table.num_rows, rng.randrange(table.num_columns)
    name = table.column_names[at]
    invalid = pa.StringArray.from_buffers(
        n, pa.py_buffer(np.arange(n + 1, dtype=np.int32).tobytes()), pa.py_buffer(b"\xff" * n)
    )
    kinds: dict[str, Callable[[], Any]] = {
        "null": lambda: pa.nulls(n),
        "int": lambda: pa.array(range(n)),
        "large": lambda: pa.array([2**63 - 1] * n),
        "unsigned": lambda: pa.array([2**64 - 1] * n, pa.uint64()),
        "float": lambda: pa.array([float("nan"), float("inf"), -0.0, 1e308, *[0.5] * n][:n]),
        "half": lambda: pa.array(np.full(n, 0.5, np.float16)),
        "bool": lambda: pa.array([True] * n),
        "text": lambda: pa.array(["x\x1b[31m"] * n),
        "dictionary": lambda: pa.array(["x", "y"] * n)[:n].dictionary_encode(),
        "binary": lambda: pa.array([b"\xff\x00"] * n),
        "fixed": lambda: pa.array([b"0123456789abcdef"] * n, pa.binary(16)),
        "large text": lambda: pa.array(["x" * 10_000] * n, pa.large_string()),
        "no text": lambda: invalid,
        "time": lambda: pa.array([2**62 + 1] * n, pa.timestamp("ns")),
        "year": lambda: pa.array([2**50] * n, pa.timestamp("s", "Europe/Nowhere")),
        "date": lambda: pa.array([2**30] * n, pa.date32()),
        "duration": lambda: pa.array([2**62] * n, pa.duration("s")),
        "decimal": lambda: pa.array([1] * n).cast(pa.decimal256(60, 5)),
        "list": lambda: pa.array([[1, None]] * n),
        "struct": lambda: pa.array([{"a": {"b": [1]}}] * n),
        "map": lambda: pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        "messages": lambda: pa.array([[{"role": "user", "content": None}]] * n),
        "some null": lambda: pa.array(
            [None if i % 2 else v for i, v in enumerate(table.column(at).to_pylist())], table.schema.field(at).type
        ),
    }
    way = rng.choice([*kinds, *kinds, "remove", "twice", "no rows", "rename", "add", "no columns", "view"])
    if way in kinds:
        table = table.set_column(at, name, kinds[way]())
    elif way == "remove":
        table = table.remove_column(at)
    elif way == "twice":
        table = table.append_column(name, table.column(at))
    elif way == "no rows":
        table = table.slice(0, 0)
    elif way == "rename":
        table = table.rename_columns(
            [rng.choice(NAMES) if i == at else one for i, one in enumerate(table.column_names)]
        )
    elif way == "add":
        added = rng.choice(NAMES)
        if added not in table.column_names:
            table = table.append_column(added, rng.choice(list(kinds.values()))())
    elif way == "no columns":
        table = table.select([])
    else:
        table = table.set_column(
            at, name, pa.array([str(v) for v in table.column(at).to_pylist()]).cast(pa.string_view())
        )
    try:
        pq.write_table(table, file, store_schema=rng.random() < 0.8)
    except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow does not write every type
        return f"{way} {name}: not written ({error})"
    return f"{way} {name}"


def _metadata(file: Path, rng: random.Random) -> str:
    """Other metadata in a file of offline values, most of them with the right digest."""
    table = pq.read_table(file)
    metadata = json.loads(table.schema.metadata[FORMAT.encode()])
    name = rng.choice(list(metadata))
    entry = metadata["source"][0]
    inner = rng.choice([*entry, ""])
    value = rng.choice(HOSTILE)
    if inner and rng.random() < 0.5:
        entry[inner] = value
        name = f"source[0].{inner}"
    else:
        metadata[name] = value
    if rng.random() < 0.7:
        metadata["sha256"] = _file_digest(metadata, OfflineValues.read(file).digest())
    text = json.dumps(metadata)
    way = rng.choice(["as it is", "as it is", "as it is", "deep", "bytes"])
    if way == "deep":
        text = "[" * 100_000
    raw = b"\xff\xfe" + text.encode() if way == "bytes" else text.encode()
    pq.write_table(table.replace_schema_metadata({FORMAT.encode(): raw}), file)
    return f"metadata {name} = {value!r:.60}, {way}"


def hostile_output(output: Path, files: dict[str, Path], rng: random.Random) -> tuple[Path, str]:
    """A place where nothing can or must be written."""
    ending = output.suffix
    way = rng.choice(["folder", "below a file", "missing folders", "input", "device", "full", "proc", "long", "bytes",
                      "broken link", "loop", "link to an input", "other ending", "nothing"])  # fmt: skip
    target = {
        "below a file": files["0.jsonl"] / f"x{ending}",
        "missing folders": output.parent / "a" / "b" / output.name,
        "input": rng.choice(list(files.values())),
        "device": Path("/dev/null"),
        "full": Path("/dev/full"),
        "proc": Path(f"/proc/out{ending}"),
        "long": output.parent / ("x" * 300 + ending),
        "bytes": output.parent / f"\udcff{ending}",
        "other ending": output.with_suffix(".txt"),
        "nothing": Path(),
    }.get(way, output)
    if way == "folder":
        output.mkdir()
    elif way == "broken link":
        output.symlink_to(output.parent / "nowhere")
    elif way == "loop":
        output.symlink_to(output.name)
    elif way == "link to an input":
        output.symlink_to(rng.choice(list(files.values())))
    return target, f"output: {way}"
