"""``spo-verl quickstart``: the same as ``python -m spo_verl.quickstart``, whose parser knows the options."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

import typer

from spo_verl.cli.output import print_json

SHORT_HELP = "Train a small model on a CPU and compare before and after."
HELP = "Train a small model with SPO on a CPU and compare before and after; options: spo-verl quickstart --help."


def quickstart(context: typer.Context) -> None:
    """``--json`` is taken here and prints the result as JSON; everything else is the quickstart's own."""
    from spo_verl.quickstart.__main__ import execute

    arguments = [argument for argument in context.args if argument != "--json"]
    if len(arguments) == len(context.args):
        status, _ = execute(arguments, lambda line: print(line, flush=True))
        raise typer.Exit(status)
    try:
        with redirect_stdout(sys.stderr):
            status, result = execute(arguments, lambda line: print(line, flush=True))
    except SystemExit as ended:  # argparse has said on stderr what is wrong with the arguments
        status, result = (ended.code if isinstance(ended.code, int) else 0), None
    print_json({"status": status, "result": result})
    raise typer.Exit(status)
