"""``spo-verl convert``: a command or script of another method as one of SPO."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spo_verl.cli.layout import paragraph, table
from spo_verl.cli.output import Debug, Json, Outcome, console_on, verb
from spo_verl.conf import PRESETS
from spo_verl.errors import SpoConfigError
from spo_verl.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

    from spo_verl.converting import Conversion, Converted

SHORT_HELP = "Turn a command or script of GRPO, PPO, RLOO... into one of SPO."
HELP = """Turn a command or script that trains with another method (GRPO, PPO, RLOO...) into one that trains with SPO.

WORDS is one of: a shell script and its arguments; `-` for a script on stdin; a command of
`python -m verl.trainer.main_ppo`, of which the words after main_ppo are enough. The script is read, not run.

Prints the converted script on stdout, and what changes and why on stderr. With --output FILE the script is written to
FILE, and the changes are printed on stdout."""

_HYDRAS = re.compile(r"-c[pnd]\b|--config-(path|name|dir)\b")
_NAME = re.compile(r"[A-Za-z_]\w*")


@verb
def convert(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORDS", help="A shell script and its arguments, `-`, or a command.")
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option(help="Hydra's --config-path, for a command without a script.")
    ] = None,
    config_name: Annotated[
        str | None, typer.Option(help="Hydra's --config-name, for a command without a script.")
    ] = None,
    config_dir: Annotated[
        Path | None, typer.Option(help="Hydra's --config-dir, for a command without a script.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Preset of SPO, as in +spo=paper; bspo keeps several responses per prompt.")
    ] = "paper",
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows of the training data that data.filter_overlong_prompts keeps; default: all rows of its Parquet "
            "files, if they are on this machine.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env", metavar="NAME=VALUE", help="An environment variable that the script expects; repeatable."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the converted script there; nothing is overwritten.")
    ] = None,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="With --output and --check: write the script even if there are problems."),
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Check the result as `spo-verl config --verl` does.")] = False,
    files: Annotated[
        bool,
        typer.Option(
            "--files/--no-files", help="With --check: check that the files named by the result are on this machine."
        ),
    ] = True,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.converting import convert_script
    from spo_verl.converting.configuration import base_values, training_rows
    from spo_verl.files import check_output

    if not (PRESETS / f"{preset}.yaml").is_file() or not _NAME.fullmatch(preset):
        names = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
        raise SpoConfigError(f"--preset {preset}: there is no such preset; take one of {names}.")
    options = {"path": config_path, "name": config_name, "dir": config_dir}
    script, arguments, source = _script(words or [], {name: str(one) for name, one in options.items() if one})
    if output is not None:
        check_output(output, SpoConfigError, makes_folders=False)
        if output.exists():
            raise SpoConfigError(f"{output} is there already: name another file, or remove it first")
    converted = convert_script(
        script,
        preset=preset,
        outside={"HOME": os.path.expanduser("~"), "PWD": os.getcwd(), **_variables(env or [])},
        arguments=arguments,
        folder=os.getcwd(),
        base=base_values,
        rows=training_rows if rows is None else lambda _: rows,
    )
    checks = [_checked(one, files) for one in converted.commands] if check else None
    data = _data(converted, checks)
    failed = any(one["problems"] for one in checks or ())
    if output is not None:
        written = anyway or not failed
        if written:
            _write(output, converted.script, source)
        data["output"] = str(output) if written else None
    return Outcome(data, lambda console: _show(console, data, output), status=1 if failed else 0)


# -------------------------------------------------------------------- what is read


def _script(words: list[str], options: dict[str, str]) -> tuple[str, list[str], Path | None]:
    """The text to convert, the arguments that it is called with, and its file."""
    from spo_verl.converting import command_line
    from spo_verl.files import opened

    if not words and not options:
        raise SpoConfigError(
            "name a script, `-` for one on stdin, or a command: spo-verl convert run_grpo.sh; spo-verl convert python3 "
            "-m verl.trainer.main_ppo algorithm.adv_estimator=grpo ..."
        )
    first = words[0] if words else ""
    path = Path(first)
    if first == "-" or first.endswith((".sh", ".sbatch", ".slurm")) or (first and _is_file(path)):
        if options:
            raise SpoConfigError("--config-path, --config-name and --config-dir are of a command; a script has its own")
        if first == "-":
            return _decoded(sys.stdin.buffer.read(), "stdin"), words[1:], None
        with opened(path, SpoConfigError) as file:
            return _decoded(file.read(), first), words[1:], path
    if len(words) == 1 and "main_ppo" in first and re.search(r"\s", first):
        return first if first.endswith("\n") else f"{first}\n", [], None
    if first.startswith("-") and not _HYDRAS.match(first):
        raise SpoConfigError(f"{first}: convert has no such option; `spo-verl convert --help` lists them.")
    flags = []
    for name, value in options.items():
        # hydra would look for a relative path next to verl's own files
        flags.append(f"--config-{name}={value if name == 'name' else os.path.realpath(value)}")
    at = next((number for number, word in enumerate(words) if "main_ppo" in word), -1) + 1
    if flags and not at:
        words, at = ["python3", "-m", "verl.trainer.main_ppo", *words], 3
    return command_line([*words[:at], *flags, *words[at:]]), [], None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _decoded(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpoConfigError(f"{name} is no UTF-8 text (byte {error.start}): convert it with iconv first") from error


def _variables(texts: list[str]) -> dict[str, str]:
    variables = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise SpoConfigError(f"--env {text}: write NAME=VALUE")
        variables[name] = value
    return variables


def _write(path: Path, script: str, source: Path | None) -> None:
    from spo_verl.files import writing

    with writing(path, SpoConfigError), path.open("x", encoding="utf-8", newline="") as file:
        file.write(script)
    if source is not None:
        path.chmod(source.stat().st_mode & 0o777)


# -------------------------------------------------------------------- what is found


def _checked(command: Converted, files: bool) -> dict[str, Any]:
    """What stops or warns at the start of the converted run."""
    import contextlib
    import io
    import warnings

    from spo_verl.converting.configuration import composed
    from spo_verl.launching.composition import examine, examine_files, verl_problem

    whole, left_out = composed(command.arguments)
    found = [examine(whole)]
    if files:
        found.append(examine_files(whole, whole=True))
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # verl's check prints that all is well
        warnings.simplefilter("ignore")
        theirs = verl_problem(whole.config)
    return {
        "problems": [*(one for part in found for one in part.problems), *([] if theirs is None else [theirs])],
        "warnings": [one for part in found for one in part.warnings],
        "not_checked": left_out,
    }


def _data(converted: Conversion, checks: list[dict[str, Any]] | None) -> dict[str, Any]:
    commands = []
    for number, one in enumerate(converted.commands):
        changes = [
            {"key": c.key, "action": c.action, "before": c.before, "after": c.after, "reason": c.reason}
            for c in one.plan.changes
        ]
        commands.append(
            {
                "line": one.line,
                "already_spo": one.plan.already,
                "changes": changes,
                "needs": list(one.plan.needs),
                **({} if checks is None else {"check": checks[number]}),
            }
        )
    return {"script": converted.script, "commands": commands, "notes": list(converted.notes)}


# -------------------------------------------------------------------- what is shown

_TITLES = {
    "changed": ("set", "scale", "add", "drop"),
    "set by the preset": ("preset",),
    "kept on purpose": ("keep",),
}


def _show(console: Console, data: dict[str, Any], output: Path | None) -> None:
    if output is None:
        sys.stdout.write(visible(data["script"]))
        sys.stdout.flush()
        console = console_on(sys.stderr)
    for command in data["commands"]:
        _show_command(console, command, several=len(data["commands"]) > 1)
    for note in data["notes"]:
        paragraph(console, f"{note}.", first="note: ", style="yellow")
    if output is not None and data["output"] is None:
        paragraph(console, f"not written: {output}. Correct the problems above, or add --anyway.", style="yellow")
    elif output is not None:
        paragraph(console, f"written: {output}")


def _show_command(console: Console, command: dict[str, Any], *, several: bool) -> None:
    if several:
        paragraph(console, f"the command in line {command['line']}:", style="bold")
    if command["already_spo"]:
        paragraph(console, "it trains with SPO already: nothing to change")
    for title, actions in _TITLES.items():
        changes = [change for change in command["changes"] if change["action"] in actions]
        rows = [(one["key"], one["before"] or "-", one["after"] or "-", one["reason"]) for one in changes]
        if rows:
            paragraph(console, f"{title}:", style="bold")
            table(console, ("key", "before", "SPO", "why"), rows)
            console.print()
    if command["needs"]:
        paragraph(console, "what the run needs:")
        for need in command["needs"]:
            paragraph(console, need, first="  - ")
    if "check" in command:
        _show_check(console, command["check"])


def _show_check(console: Console, check: dict[str, Any]) -> None:
    problems = check["problems"]
    if not problems:
        paragraph(console, "checked: no problems", style="green")
    else:
        count = f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}"
        paragraph(console, f"checked: {count}:", style="bold red")
    for number, problem in enumerate(problems, 1):
        paragraph(console, problem, first=f"  {number}. ")
    for warning in check["warnings"]:
        paragraph(console, warning, first="warning: ", style="yellow")
    if check["not_checked"]:
        paragraph(console, f"not checked, as only known when the script runs: {', '.join(check['not_checked'])}")
