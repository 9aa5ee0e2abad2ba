"""Help of every verb and option, completion, and terminals without width, colour or a reader's eyes."""

import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from spo_verl.cli.app import app
from tests.cli.helpers import run

OWN_PARSER = "quickstart"
WIDTH = "60"


def commands(node=None, words=()):
    """Every verb with its words, groups included."""
    node = typer.main.get_command(app) if node is None else node
    yield words, node
    for name, inner in getattr(node, "commands", {}).items():
        yield from commands(inner, (*words, name))


VERBS = {" ".join(words): node for words, node in commands()}
LEAVES = [verb for verb, node in VERBS.items() if not hasattr(node, "commands") and verb != OWN_PARSER]
OPTIONS = [
    pytest.param(option, id=f"{verb} {option.name}")
    for verb, node in VERBS.items()
    for option in node.params
    if not getattr(option, "hidden", False) and option.name not in ("install_completion", "show_completion")
]


@pytest.mark.parametrize("option", OPTIONS)
def test_the_help_of_an_option_makes_sense_alone(option):
    first, *others = option.help.split()
    assert len(others) >= 2, option.help
    assert first[0].isupper() or not first[0].isalpha(), option.help
    assert first not in ("Of", "As", "That", "How", "When", "Where", "Which", "It", "Them"), option.help
    assert "see above" not in option.help
    assert option.help.endswith((".", "...")), option.help


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != OWN_PARSER])
def test_dash_h_is_help_and_nothing_is_cut_in_60_columns(verb):
    short, long = (
        CliRunner().invoke(app, [*verb.split(), flag], terminal_width=int(WIDTH)) for flag in ("-h", "--help")
    )
    assert short.exit_code == 0
    assert short.stdout == long.stdout
    words = short.stdout.split()
    node = VERBS[verb]
    for option in node.params:
        if not getattr(option, "hidden", False):
            remaining = iter(words)
            assert all(word in remaining for word in option.help.split()), option.help
    for name, inner in getattr(node, "commands", {}).items():
        remaining = iter(words)
        assert all(word in remaining for word in [name, *inner.short_help.split()])
    assert all(len(line) <= int(WIDTH) for line in short.stdout.splitlines())


@pytest.mark.parametrize("verb", LEAVES)
def test_every_verb_has_json_and_says_what_is_wrong_with_arguments_in_it(verb):
    result = run(*verb.split(), "--json", "--no-such-option")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    # Words with a dash may belong to a command line of main_ppo, so these verbs look at them, not typer.
    assert error["type"] == ("SpoConfigError" if verb in ("convert", "plan", "rehearse") else "UsageError")
    assert "--no-such-option" in error["message"]


def asked(*, words=(), **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "_SPO_VERL_COMPLETE"}
    return subprocess.run(
        [sys.executable, "-m", "spo_verl.cli", *words], capture_output=True, text=True, timeout=120,
        env={**inherited, **environment},
    )  # fmt: skip


def test_the_completion_of_bash_and_zsh_is_generated_and_completes():
    for shell, setup in (("bash", "complete -o default -F"), ("zsh", "compdef _spo_verl_completion")):
        script = asked(_SPO_VERL_COMPLETE=f"source_{shell}").stdout
        assert setup in script
        assert "spo-verl" in script
    if os.path.exists("/bin/bash"):
        subprocess.run(["/bin/bash", "-n"], input=asked(_SPO_VERL_COMPLETE="source_bash").stdout, text=True, check=True)
    verbs = asked(_SPO_VERL_COMPLETE="complete_bash", COMP_WORDS="spo-verl con", COMP_CWORD="1").stdout.split()
    assert verbs == ["config", "convert"]
    options = asked(_SPO_VERL_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="spo-verl values show --").stdout
    assert "--data" in options


def test_no_color_prints_no_colour_on_a_terminal():
    """In a pseudo-terminal of 60 columns; a problem is red there otherwise."""
    import pty

    def shown(**environment):
        main, other = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", "spo_verl.cli", "config", "critic.enable=1"],
            stdout=other, stderr=other, stdin=other,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": WIDTH, **environment},
        )  # fmt: skip
        os.close(other)
        text = b""
        try:
            while part := os.read(main, 65536):
                text += part
        except OSError:  # the other side is closed: the child has ended
            pass
        child.wait()
        os.close(main)
        return text.decode()

    coloured, plain = shown(), shown(NO_COLOR="1")
    assert "\x1b[1;31m" in coloured
    assert "\x1b[1;31m" not in plain
    assert "31m" not in plain
    assert "33m" not in plain
