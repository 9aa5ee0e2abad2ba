"""Files that are wrong in every way end in one message and exit status 2, never in a traceback."""

import json
import signal

import pytest
from typer.testing import CliRunner

from spo_verl.cli.app import app
from tests.cli.hostile_files import VERBS, valid_files, variant

SEEDS = range(60)
"""A few seconds; of thousands of further ones `test_thousands_of_variants` takes care."""


def refused(arguments, told):
    """Run a verb over files that may be wrong; what is not as promised, or None."""
    with deadline(60):
        done = CliRunner().invoke(app, arguments)
    where = f"{arguments} ({told})"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(where) from done.exception
    assert done.exit_code in (0, 1, 2), where
    if "--json" in arguments and not done.stderr.startswith("Usage"):
        found = json.loads(done.stdout)
        assert done.exit_code != 2 or found["error"]["message"], where
    elif done.exit_code == 2:
        assert done.stderr.strip(), where
    assert "Traceback" not in done.output, where
    return done


class deadline:
    """A pipe that nobody writes into must not be waited for."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __enter__(self):
        signal.signal(signal.SIGALRM, self.hang)
        signal.alarm(self.seconds)

    def __exit__(self, *_):
        signal.alarm(0)

    @staticmethod
    def hang(*_):
        raise AssertionError("it waits")


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_files_are_one_message(seed, tmp_path):
    one = variant(seed, tmp_path / "files")
    refused(one.arguments, one.told)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 21000, 500))
def test_thousands_of_variants(seed, tmp_path):
    for number in range(seed, seed + 500):
        one = variant(number, tmp_path / "files")
        refused(one.arguments, one.told)


def test_the_files_are_valid_before_they_are_damaged(tmp_path):
    """Otherwise the variants would find what every file has."""
    valid_files(tmp_path / "files")
    for number, verb in enumerate(VERBS):
        if "dapo_math_17k" in verb:
            continue  # rows of another source
        named = [part.replace("@", f"{tmp_path}/files/").replace("+", f"{tmp_path}/{number}") for part in verb]
        done = refused(named, "valid")
        assert done.exit_code in (0, 1), (verb, done.output)


READERS = {
    "values show": lambda file: ["values", "show", file],
    "values import": lambda file: [
        "values",
        "import",
        file,
        "--kind",
        "reference",
        "--data",
        file,
        "-o",
        f"{file}.out",
    ],
    "dumps": lambda file: ["values", "import", file, "--kind", "dump", "--data", "DATA", "-o", f"{file}.out"],
    "check": lambda file: ["data", "check", file],
    "source": lambda file: ["data", "check", file, "--source", "gsm8k"],
    "prepare": lambda file: ["data", "prepare", "gsm8k", "--from", file, "-o", f"{file}.parquet"],
    "overlap": lambda file: ["data", "overlap", file, file],
    "evaluate": lambda file: ["evaluate", file],
    "data of a run": lambda file: ["evaluate", "DUMP", "--data", file],
}
CONTENTS = {
    "empty": (b"", "empty|no generation|no line"),
    "blank": (b"\n \n", "no row|no generation|no line|empty|Parquet"),
    "latin-1": ('{"question": "café"}\n' * 3).encode("latin-1"),
    "cut": '{"question": "na\u20ac"}'.encode()[:-3],
    "utf-16": '{"question": "q"}'.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00",
    "deep": b'{"question": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "null": b"null\n",
    "digits": b'{"question": ' + b"9" * 5000 + b"}",
}
WORDS = {
    "latin-1": "line 1: byte 0xe9 after 17 others is no UTF-8|0xe9",
    "cut": "line 1: the file ends inside a character|ends inside a character",
    "utf-16": "text in UTF-16",
    "gzip": "compressed with gzip",
    "deep": "nested more than 100 levels",
    "null": "instead of a JSON object|not a JSON object|one JSON object",
    "digits": "more than 4300 digits",
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_file_and_row(reader, content, tmp_path):
    files = valid_files(tmp_path / "files")
    made = CONTENTS[content]
    raw, words = made if isinstance(made, tuple) else (made, WORDS[content])
    file = tmp_path / ("x.parquet" if reader == "values show" else "x.json" if reader == "values import" else "x.jsonl")
    file.write_bytes(raw)
    known = {"DATA": files["data.parquet"], "DUMP": files["0.jsonl"]}
    done = refused([str(known.get(part, part)) for part in READERS[reader](str(file))], content)
    assert done.exit_code == 2
    message = done.stderr.removeprefix("error: ")
    assert len(message.splitlines()) == 1, message
    assert file.name in message
    words = "Parquet|empty" if reader == "values show" else words
    assert any(word in message for word in words.split("|")), message


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_read(reader, tmp_path, monkeypatch):
    """Tests run as root, whom no permission stops: the system's answer is made up."""
    import pathlib

    files = valid_files(tmp_path / "files")
    file = tmp_path / ("x.json" if reader == "values import" else "x.jsonl")
    file.write_text('{"a": 1}\n')
    original = pathlib.Path.open

    def denied(self, *arguments, **more):
        if self.name == file.name:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments, **more)

    monkeypatch.setattr(pathlib.Path, "open", denied)
    known = {"DATA": files["data.parquet"], "DUMP": files["0.jsonl"]}
    done = refused([str(known.get(part, part)) for part in READERS[reader](str(file))], "denied")
    assert done.exit_code == 2
    assert f"{file} cannot be read (Permission denied)" in done.stderr


@pytest.mark.parametrize(
    "verb",
    [
        ["values", "import", "@scores.json", "--data", "@data.parquet", "-o", "@data.parquet"],
        ["values", "import", "@scores.json", "--data", "@data.parquet", "-o", "@scores.json"],
        ["values", "merge", "@values.parquet", "-o", "@values.parquet"],
        ["data", "prepare", "gsm8k", "--from", "@published.parquet", "-o", "@published.parquet", "--force"],
        ["evaluate", "@plain.jsonl", "--resamples", "100", "--markdown", "@plain.jsonl"],
        ["evaluate", "a=@plain.jsonl", "--resamples", "100", "--plot", "@plain.jsonl"],
    ],
)
def test_no_output_replaces_what_is_read(verb, tmp_path):
    files = valid_files(tmp_path / "files")
    before = {name: file.read_bytes() for name, file in files.items()}
    arguments = [part.replace("@", f"{tmp_path}/files/") for part in verb]
    done = refused(arguments, "same")
    assert done.exit_code == 2
    assert "is read too and would be replaced" in done.stderr
    assert {name: file.read_bytes() for name, file in files.items()} == before
