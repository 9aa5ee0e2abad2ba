"""A script of verl's ``main_ppo`` with another method, as one of SPO: read, decided, edited, and read again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from spo_verl.converting.command_arguments import Arguments, read_arguments
from spo_verl.converting.edits import Editor
from spo_verl.converting.reader import line_of
from spo_verl.converting.rules import REPEATS, VERL_DEFAULTS, Decisions, KeyChange, RunValues, decide
from spo_verl.converting.tracing import MODULE, Launch, ScriptTracer
from spo_verl.errors import SpoConfigError

LONGEST = 200_000
_PARAMETER = re.compile(r"\$\{?[#!]?[@*#1-9]|\b(?:getopts|shift)\b|\bfor\s+\w+\s*(?:;|\n)\s*do\b")
"""A use of the arguments that a script is called with."""
Base = Callable[[Arguments], Mapping[str, str]]
"""What a configuration of one's own sets differently from verl's."""
Rows = Callable[[RunValues], int | None]
"""The rows of the training data, where they can be counted."""


@dataclass(frozen=True)
class Converted:
    """One command of a script.

    Attributes:
        line: where it begins, in the script as given.
        plan: what was decided.
        arguments: of the command in the converted script.
    """

    line: int
    plan: Decisions
    arguments: Arguments


@dataclass(frozen=True)
class Conversion:
    """A converted script.

    Attributes:
        script: its text.
        commands: each command of ``main_ppo``, converted.
        notes: what a reader should know about how it was read.
    """

    script: str
    commands: tuple[Converted, ...]
    notes: tuple[str, ...] = field(default=())


def command_line(words: Sequence[str]) -> str:
    """A script of one command from the words of a command line, or from overrides alone, one a line."""
    starts = next((number for number, word in enumerate(words) if word == MODULE or "main_ppo.py" in word), None)
    command = ["python3", "-m", MODULE] if starts is None else words[: starts + 1]
    rest = words if starts is None else words[starts + 1 :]
    if starts is None and words and "=" not in words[0] and not words[0].startswith(("-", "+", "~")):
        command, rest = words, ()
    return " \\\n    ".join([" ".join(map(_quoted, command)), *map(_quoted, rest)]) + "\n"


def _quoted(word: str) -> str:
    """A word for a shell; in double quotes where it holds single ones, as hydra's lists of texts do."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)


def convert_script(
    script: str,
    *,
    preset: str = "paper",
    outside: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    folder: str = "",
    base: Base | None = None,
    rows: Rows | None = None,
) -> Conversion:
    """Convert every command of ``main_ppo`` in a script.

    Args:
        script: its text.
        preset: as in ``+spo=paper``.
        outside: variables that are set before the script begins.
        arguments: what the script is called with.
        folder: where it runs.
        base: values of configurations of one's own.
        rows: counts the training data.

    Raises:
        SpoConfigError: it is no shell script, starts no ``main_ppo``, or has what cannot be converted; with the reason.
    """
    if len(script) > LONGEST:
        raise SpoConfigError(f"more than {LONGEST} characters are no script: name the script, or give the command")
    notes = []
    if "\r" in script:
        script = script.replace("\r\n", "\n").replace("\r", "\n")
        notes.append("Windows line endings were replaced: no shell on Linux runs a script with them")
    if "\0" in script:
        raise SpoConfigError("a script holds no NUL characters: is this a text file?")

    def read(text: str) -> ScriptTracer:
        tracer = ScriptTracer(text, outside or {}, arguments, folder)
        tracer.read()
        return tracer

    before = read(script)
    if not before.launches:
        raise _no_launch(before)
    if arguments and not _PARAMETER.search(script):
        raise SpoConfigError(
            f'the script uses no arguments ($1, "$@"), so that `{shlex.join(arguments)}` would have no effect: leave '
            "it out, or correct a misspelt option"
        )
    editor = Editor(script, before.looping)
    plans: list[tuple[Launch, Decisions]] = []
    for launch in before.launches:
        with _at(script, launch, several=len(before.launches) > 1):
            found = read_arguments(launch)
            if any("$" in one for one in found.options.values()):
                raise SpoConfigError(
                    f"the configuration ({', '.join(found.options.values())}) is only known when the script runs; give "
                    "its variables with --env NAME=VALUE, or the script's arguments after its name"
                )
            if found.multirun:
                raise SpoConfigError("hydra's --multirun starts several runs: convert one of them")
            _require_single(found, before.looping)
            run = _run(found, {} if base is None else base(found))
            plan = decide(run, preset=preset, rows=None if rows is None else rows(run))
            if not plan.already:
                editor.write(found, plan.changes, run.number(REPEATS))
        plans.append((launch, plan))
    converted = editor.result()
    after = read(converted)
    commands = []
    for number, (launch, plan) in enumerate(plans):
        now = read_arguments(after.launches[number]) if number < len(after.launches) else None
        _require(now, plan, script, launch)
        assert now is not None
        commands.append(Converted(line_of(script, launch.offset), plan, now))
        notes += [f"{one} is only known when the script runs; what it sets there wins" for one in now.unknown]
    notes += before.notes
    notes += [f"line {line}: {name} is another trainer and is left as it is" for name, line in before.others]
    return Conversion(converted, tuple(commands), tuple(dict.fromkeys(notes)))


class _at:
    """Errors inside begin with the command's line, where there are several."""

    def __init__(self, script: str, launch: Launch, *, several: bool) -> None:
        self._line = line_of(script, launch.offset) if several else None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._line is not None and isinstance(error, SpoConfigError) and not str(error).startswith("line "):
            raise SpoConfigError(f"line {self._line}: {error}") from error


def _require_single(arguments: Arguments, looping: Collection[str]) -> None:
    """Refuse what hides a size: a whole section in one override, and a number of responses that a loop changes."""
    for key, one in arguments.effective().items():
        inside = [name for name in VERL_DEFAULTS if name.startswith(f"{key}.")]
        if inside and one.text.lstrip().startswith("{"):
            raise SpoConfigError(f"{key}={one.text}: write the keys of a section one by one, then convert")
        if key == REPEATS and any(via.name in looping for piece in one.value for via in piece.via):
            raise SpoConfigError(
                f"{REPEATS}={one.text} is one of several values in a loop, and the batch has to follow it: convert one "
                "command without the loop"
            )


def _run(arguments: Arguments, base: Mapping[str, str]) -> RunValues:
    effective = arguments.effective()
    return RunValues(
        {key: one.text for key, one in effective.items()},
        base,
        {key: one.text for key, one in effective.items() if not one.known},
    )


def _require(now: Arguments | None, plan: Decisions, script: str, launch: Launch) -> None:
    """The converted script, read again, has to say what was decided."""
    values = {} if now is None else {key: one.text.strip("'\"") for key, one in now.effective().items()}
    wrong = [change for change in plan.changes if not _holds(change, values)]
    if now is None or wrong:
        what = "; ".join(f"{change.key}={change.after}" for change in wrong if change.after is not None)
        raise SpoConfigError(
            f"line {line_of(script, launch.offset)}: the script builds its command in a way that edits do not reach; "
            f"set by hand: {what or 'algorithm.adv_estimator=spo +spo=paper'}"
        )


def _holds(change: KeyChange, values: Mapping[str, str]) -> bool:
    if change.action == "drop":
        return change.key not in values
    if change.action in ("set", "scale", "add"):
        return values.get(change.key) == change.after
    return True


def _no_launch(read: ScriptTracer) -> SpoConfigError:
    if read.others:
        name, line = read.others[0]
        return SpoConfigError(
            f"line {line}: {name} is not converted: it is a trainer of its own, and SPO lives in verl's "
            f"{MODULE}. Convert a script of main_ppo with the same data and model."
        )
    if read.exit_line is not None:
        return SpoConfigError(
            f"line {read.exit_line}: the script ends there before it starts {MODULE}: give the arguments that it is "
            "called with after its name, and variables with --env NAME=VALUE"
        )
    skipped = "".join(f" {note}." for note in read.notes[:3])
    return SpoConfigError(
        f"no command `python3 -m {MODULE}` was found.{skipped} Give the script or command that starts it."
    )
