"""Runs whose files are damaged end in one message and exit status 2, never in a traceback."""

import json
import random
import shutil

import pytest
from typer.testing import CliRunner

from spo_verl.cli.app import app
from tests.cli.test_hostile_files import refused
from tests.support.records import made_run

VERBS = [
    ["tracker", "show", "@"],
    ["tracker", "prompt", "@", "6"],
    ["tracker", "prompt", "@", "what is 3"],
    ["watch", "@", "--once"],
    ["diff", "@", "@@"],
    ["export", "@", "-o", "+.csv"],
    ["export", "@", "-o", "+.parquet", "--what", "values"],
    ["export", "@", "-o", "+.jsonl", "--what", "prompts"],
]
STRANGE = [None, [], {}, "", "x", -1, 2**70, 0.5, True, [None], {"a": []}, "\x1b[31m"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    return made_run(folder, mode="separate_async", prompts=30, steps=3, batch=8, checkpoint_every=2, ended=False).folder


def damage(root, rng):
    """Damage one file of a run; returns what was done."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if rng.random() < 0.35:
        path = root / "record" / "run.json"
        run = json.loads(path.read_text())
        holder = run if rng.random() < 0.5 else run["config"]
        name = rng.choice(sorted(holder))
        holder[name] = rng.choice(STRANGE)
        path.write_text(json.dumps(run))
        return f"{name} of run.json is {holder[name]!r}"
    path = rng.choice(files)
    raw = bytearray(path.read_bytes())
    at = rng.randrange(max(1, len(raw)))
    way = rng.choice(["cut", "flipped", "empty", "gone", "folder", "random"])
    if way in ("gone", "folder"):
        path.unlink()
        if way == "folder":
            path.mkdir()
    else:
        if way == "flipped" and raw:
            raw[at] ^= 1 << rng.randrange(8)
        made = {"cut": raw[:at], "flipped": raw, "empty": b"", "random": rng.randbytes(rng.randint(1, 2000))}
        path.write_bytes(made[way])
    return f"{path.relative_to(root)}: {way}"


@pytest.mark.parametrize("seed", range(40))
def test_damaged_runs_are_one_message(made, seed, tmp_path):
    rng = random.Random(seed)
    shutil.copytree(made, tmp_path / "run")
    told = damage(tmp_path / "run", rng)
    verb = rng.choice(VERBS)
    places = {"@": str(tmp_path / "run"), "@@": str(made)}
    words = [places.get(word, word.replace("+", str(tmp_path / "out"))) for word in verb]
    refused(words + (["--json"] if rng.random() < 0.4 else []), told)


def test_runs_are_valid_before_they_are_damaged(made, tmp_path):
    for number, verb in enumerate(VERBS):
        words = [str(made) if word.startswith("@") else word.replace("+", f"{tmp_path}/{number}") for word in verb]
        assert CliRunner().invoke(app, words).exit_code == 0, words
