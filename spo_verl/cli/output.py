"""What every verb has in common: ``--json``, ``--debug``, the exit status and how errors look.

A verb is a function that returns an :class:`Outcome` and prints nothing itself; :func:`verb` does the rest:

| exit status | meaning |
|---|---|
| 0 | fine |
| 1 | the verb worked, and what it looked at is not fine (a failed check, a problem in a configuration) |
| 2 | the verb could not do its work: an :class:`~spo_verl.errors.SpoError`, or wrong arguments |
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from spo_verl.errors import SpoError

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")

COULD_NOT = 2

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True)
class Outcome:
    """What a verb found.

    Attributes:
        data: the answer as plain data, printed with ``--json``.
        show: prints the same for a reader.
        status: exit status, 0 or 1.
    """

    data: Any
    show: Callable[[Console], None]
    status: int = 0


def verb(function: Callable[P, Outcome]) -> Callable[P, None]:
    """Turn a function with the parameters ``json_output`` and ``debug`` into a command."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs["json_output"])
        try:
            # Libraries print while they are imported, and a reader of JSON must not meet that.
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                outcome = function(*args, **kwargs)
        except SpoError as error:
            if kwargs["debug"]:
                raise
            _print_error(error, as_json=as_json)
            raise typer.Exit(COULD_NOT) from error
        if as_json:
            print_json(outcome.data)
        else:
            outcome.show(stdout_console())
        raise typer.Exit(outcome.status)

    return run


def stdout_console() -> Console:
    """A rich console on stdout; plain text where stdout is no terminal."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def print_json(data: Any) -> None:
    """One JSON document on stdout; numbers that JSON does not have (NaN, infinity) are written as texts."""
    print(json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False, default=str))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def _print_error(error: SpoError, *, as_json: bool) -> None:
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": str(error)}})
    else:
        print(f"error: {error}", file=sys.stderr)
