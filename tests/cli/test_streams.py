"""stdout of any encoding, closed, full or gone; control characters in texts of others; defects without a traceback."""

import io
import json
import os
import subprocess
import sys

import pytest

from spo_verl.cli.output import console_on, contained, print_json
from spo_verl.visible import visible
from tests.cli.helpers import run

ODD = "d数√\x1b[1mx\x07\u202e\ud800"


@pytest.fixture
def odd_file(tmp_path):
    line = {"prompt_id": "p", "response": "x", "acc": 1, "pred": "√2", "data_source": ODD}
    file = tmp_path / "g.jsonl"
    file.write_text(json.dumps(line) + "\n")
    return file


def spo_verl(*arguments, encoding="utf-8", **more):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "VERL_PLATFORM": "cpu"}
    command = [sys.executable, "-m", "spo_verl.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output="stdout" not in more, timeout=120, env=environment, **more)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16", "cp1252"])
def test_any_encoding_of_stdout_takes_tables_and_json(odd_file, encoding, monkeypatch):
    for json_output in (False, True):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        from spo_verl.cli.app import app

        arguments = ["evaluate", str(odd_file), "--resamples", "100", *(["--json"] if json_output else [])]
        with pytest.raises(SystemExit) as ended:
            contained(lambda arguments=arguments: app(arguments))
        monkeypatch.undo()
        assert ended.value.code == 0
        text = raw.getvalue().decode(encoding)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        if json_output:
            assert ODD in json.loads(text)["runs"][0]["benchmarks"]
        else:
            assert "\\x1b[1m" in text
            assert ("d数" if encoding in ("utf-8", "utf-16") else "d\\u6570") in text


def test_an_error_shows_control_characters_as_escapes(tmp_path):
    done = run("values", "show", tmp_path / "no\x1b[31m\r\nfile.parquet")
    assert done.exit_code == 2
    assert "no\\x1b[31m\\x0d\nfile.parquet" in done.stderr


@pytest.mark.parametrize(("text", "shown"), [("a\tb\nc", "a\tb\nc"), ("\r\x7f\x9b", "\\x0d\\x7f\\x9b"), ("é√", "é√")])
def test_visible(text, shown):
    assert visible(text) == shown


def test_a_table_keeps_rich_own_controls_and_loses_those_of_the_data(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    console_on(sys.stdout).print("a\x1b]0;title\x07b", markup=False)
    assert stream.getvalue() == "a\\x1b]0;titleb\n"  # the bell is taken out by rich itself


def test_json_escapes_what_moves_a_terminal(capsys):
    print_json({"\x9b\u2028": "\x7f√"})
    printed = capsys.readouterr().out
    assert "\\u009b\\u2028" in printed
    assert "\\u007f√" in printed
    assert json.loads(printed) == {"\x9b\u2028": "\x7f√"}


@pytest.mark.parametrize(
    "words",
    [
        "settings",
        "settings --markdown",
        "settings --json",
        "recipes ls",
        "--help",
        "--version",
        "recipes show no --json",
    ],
)
def test_a_reader_that_leaves_ends_it_as_sigpipe_does(words):
    """The pipe is closed before anything is written."""
    command = [sys.executable, "-m", "spo_verl.cli", *words.split()]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.wait(timeout=60) == 141
    assert child.stderr.read() == b""
    child.stderr.close()


def test_a_closed_or_full_stdout():
    arguments = ("settings", "--json")
    with open("/dev/full", "wb") as full:
        done = spo_verl(*arguments, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "error: the output cannot be written (No space left on device): make room, or send it elsewhere\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m spo_verl.cli {" ".join(arguments)} >&-'], stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_defect_is_one_line_and_its_traceback_a_file(capsys, monkeypatch):
    def broken():
        raise ZeroDivisionError("by \x1b zero")

    with pytest.raises(SystemExit) as ended:
        contained(broken)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "a defect of spo-verl (ZeroDivisionError: by \\x1b zero). Please report it" in line
    place = line.partition("traceback in ")[2].partition(";")[0]
    with open(place) as file:
        assert "Traceback (most recent call last)" in file.read()
    os.unlink(place)
    monkeypatch.setenv("SPO_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        contained(broken)


def test_no_colours_where_they_are_not_wanted(monkeypatch):
    """Nor cursor movements: rich asks the terminal, NO_COLOR and TERM."""
    # A map of datasets with several processes, in another test, leaves a copy of os.environ in its place.
    monkeypatch.setattr("rich.console.Console._environ", os.environ)
    for wanted in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda: True
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.delenv("NO_COLOR", raising=False) if wanted else monkeypatch.setenv("NO_COLOR", "1")
        console_on(sys.stdout).print("text", style="red", markup=False)
        assert ("\x1b[31m" in stream.getvalue()) is wanted
