"""Shell commands in pages: taken apart, composed with verl's configuration, parsed as ``spo-verl`` parses them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from spo_verl.cli.app import app
from tests.docs.pages import inline_code, scripts

OWN = "READERS_OWN"
_OWN = re.compile(r"<[^<>\n]+>|\"?\$\{?\w+(?:\[@\])?\}?\"?")
# typer carries a copy of click in newer versions; its public error leads to the right one in all of them.
_UsageError: Any = typer.BadParameter.__base__
_ENDS = {"|", "||", "&", "&&", ";"}


@dataclass(frozen=True)
class Command:
    """One simple command: assignments before it, its words, and whether some of it is the reader's own."""

    environment: dict[str, str]
    words: list[str]
    partial: bool

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands(script: str) -> list[Command]:
    """The commands of a shell script, without the reader's own words; ``# ...`` and redirections are left out."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        lexer = shlex.shlex(_OWN.sub(OWN, line), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        tokens = iter([*lexer, ";"])
        for word in tokens:
            if word in (">", ">>", "<"):
                next(tokens)
            elif word not in _ENDS:
                words.append(word)
            elif words:
                found.append(_command(words))
                words = []
    return found


def _command(words: list[str]) -> Command:
    environment = {}
    while words and (assignment := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
        environment[assignment[1]] = assignment[2]
        words = words[1:]
    kept = [word for word in words if word not in (OWN, "...")]
    return Command(environment, kept, partial=len(kept) < len(words))


# ---------------------------------------------------------------------- main_ppo


def main_ppo_arguments(command: Command) -> list[str] | None:
    """What stands behind ``python -m verl.trainer.main_ppo``, or None for another command."""
    if len(command.words) < 3 or not re.fullmatch(r"(?:.*/)?python3?", command.words[0]):
        return None
    return command.words[3:] if command.words[1:3] == ["-m", "verl.trainer.main_ppo"] else None


@dataclass(frozen=True)
class Request:
    """A configuration to compose: overrides, hydra's flags, and whether verl's own check runs as well."""

    overrides: list[str]
    config_name: str = "ppo_trainer"
    config_dir: str | None = None
    whole: bool = False


def request(arguments: Sequence[str], *, whole: bool, folder: Path | None = None) -> Request:
    """Split hydra's own flags from the overrides.

    Args:
        arguments: of ``main_ppo``.
        whole: no part of the command is the reader's own, so that verl's own check can run as well.
        folder: where relative ``--config-dir`` are.
    """
    overrides, flags, waiting = [], {}, ""
    for word in arguments:
        if waiting:
            flags[waiting], waiting = word, ""
        elif word.startswith("--"):
            name, sign, value = word.partition("=")
            assert name in ("--config-name", "--config-dir"), f"{word}: a flag of hydra that this test does not know"
            flags[name], waiting = value, "" if sign else name
        else:
            overrides.append(word)
    folder_name = flags.get("--config-dir")
    return Request(
        overrides,
        flags.get("--config-name", "ppo_trainer"),
        None if folder_name is None else str((folder or Path()) / folder_name),
        whole,
    )


_CHILD = textwrap.dedent(
    """
    import contextlib, io, json, logging, sys, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    from omegaconf import OmegaConf
    from spo_verl.launching.composition import compose, examine, verl_problem
    answers = []
    for request in json.loads(sys.stdin.read()):
        place = request["config_dir"]
        composed = compose(
            request["overrides"], config_name=request["config_name"], config_dir=None if place is None else Path(place)
        )
        examined = examine(composed)
        problems = list(examined.problems)
        with contextlib.redirect_stdout(io.StringIO()):
            problem = verl_problem(composed.config) if request["whole"] else None
        problems += [problem] if problem else []
        config = OmegaConf.to_container(composed.config, resolve=False)
        answers.append({"problems": problems, "warnings": examined.warnings, "config": config})
    print("ANSWERS", json.dumps(answers))
    """
)


def examine_all(requests: Sequence[Request], **environment: str) -> list[dict[str, Any]]:
    """Compose and check all requests in one child process.

    Returns:
        Per request ``problems``, ``warnings`` and ``config``.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps([vars(one) for one in requests]),
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, done.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(lines[-1].removeprefix("ANSWERS "))
    return answers


# ---------------------------------------------------------------------- spo-verl


def spo_verl_lines(text: str) -> Iterator[Command]:
    """Yield every ``spo-verl`` command of a page: in bash blocks, after a ``$`` prompt, and in inline code."""
    prompts = re.findall(r"^ +\$ (.*(?:\\\n.*)*)$", text, re.MULTILINE)
    for script in [*scripts(text), *prompts, *inline_code(text)]:
        if "spo-verl" in script:
            yield from (one for one in commands(script) if one.words and one.words[0] == "spo-verl")


def wrong_with(command: Command) -> str | None:
    """What ``spo-verl`` would say of the command's form; nothing is run, and no file is looked for."""
    node: Any = typer.main.get_command(app)
    words = command.words[1:]
    while hasattr(node, "commands"):
        if not words or words[0].isupper():  # `spo-verl`, `spo-verl values`, `spo-verl VERB --help`
            return None
        if words[0].startswith("-"):
            known = {option for one in node.params for option in one.opts} | {"--help"}
            return None if words[0] in known else f"no option {words[0]}"
        if words[0] not in node.commands:
            return f"no verb {words[0]}"
        node, words = node.commands[words[0]], words[1:]
    if "--help" in words:
        return None
    context = node.context_class(node, info_name=node.name)
    if node.context_settings.get("ignore_unknown_options") or not node.params:
        return None
    try:
        given, rest, _ = node.make_parser(context).parse_args(list(words))
    except _UsageError as error:
        return error.format_message()
    if rest and not any(one.nargs == -1 for one in node.params):
        return f"unexpected {rest}"
    missing = [one.name for one in node.params if one.required and given.get(one.name) in (None, ())]
    complete = words and not command.partial  # the bare name of a verb is no command line
    return f"missing {', '.join(map(str, missing))}" if missing and complete else None


# ---------------------------------------------------------------------- keys in inline code


def keys_in(text: str) -> set[str]:
    """The dotted keys in a page's inline code, alone or with a value."""
    found = set()
    for code in inline_code(text):
        for word in code.split():
            match = re.fullmatch(r"\+{0,2}([a-z_]\w*(?:\.\w+)+)(?:=.*)?", word)
            if match:
                found.add(match[1])
    return found
