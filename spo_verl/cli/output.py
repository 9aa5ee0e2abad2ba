"""What every verb has in common: ``--json``, ``--debug``, the exit status and how errors look.

A verb is a function that returns an :class:`Outcome` and prints nothing itself; :func:`verb` does the rest:

| exit status | meaning |
|---|---|
| 0 | fine |
| 1 | the verb worked, and what it looked at is not fine (a failed check, a problem in a configuration) |
| 2 | the verb could not do its work: an :class:`~spo_verl.errors.SpoError`, or wrong arguments |

Texts come from files of others: control characters in them are printed as escapes, and what stdout's encoding does not
have as well, so that any terminal shows every verb's output and JSON stays JSON.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer

from spo_verl.errors import SpoError
from spo_verl.visible import CONTROL, visible

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")

COULD_NOT = 2
CLOSED = 141
"""Exit status where the reader of stdout has gone, as of a process that SIGPIPE ended."""
DEBUG_VARIABLE = "SPO_DEBUG"
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

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
        prepare_streams()
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
            outcome.show(console_on(sys.stdout))
        raise typer.Exit(outcome.status)

    return run


def prepare_streams() -> None:
    """Let stdout and stderr write any text: what their encoding does not have becomes an escape."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def console_on(stream: IO[str]) -> Console:
    """A rich console; plain text where the stream is no terminal. Control characters in texts become visible.

    The width is the terminal's, or ``COLUMNS``; 120 characters where neither says any.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Careful(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else visible(text), style, control)

        def on_broken_pipe(self) -> None:
            """Leave the error to :func:`contained`; rich would end with status 1."""
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    known = stream.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Careful(file=stream, highlight=False, width=None if known else 120)


def print_json(data: Any) -> None:
    """One JSON document on stdout; numbers that JSON does not have (NaN, infinity) are written as texts."""
    # JSON is read as UTF-8, so where stdout has another encoding everything beyond ASCII is escaped.
    ascii_only = not (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf8")
    text = json.dumps(_finite(data), indent=2, ensure_ascii=ascii_only, allow_nan=False, default=str)
    print(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def _print_error(error: SpoError, *, as_json: bool) -> None:
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": str(error)}})
    else:
        print(visible(f"error: {error}"), file=sys.stderr)


def contained(command: Callable[[], None]) -> None:
    """Run the command line; nothing that it raises reaches the user as a traceback.

    Errors that are expected are printed by :func:`verb`. What arrives here is a closed pipe, which ends quietly, a
    stdout that cannot be written, or a defect: one line, with the traceback in a file.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    prepare_streams()
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        reader_left()
    except OSError as error:
        if error.filename is not None or error.errno not in _CANNOT_WRITE:
            _defect(error)
        _let_go(sys.stdout)
        print(
            f"error: the output cannot be written ({error.strerror}): make room, or send it elsewhere", file=sys.stderr
        )
        raise SystemExit(COULD_NOT) from None
    except Exception as error:  # noqa: BLE001
        _defect(error)


def reader_left() -> NoReturn:
    """End as a process does that SIGPIPE ended: quietly, with status :data:`CLOSED`."""
    _let_go(sys.stdout)
    raise SystemExit(CLOSED)


def _let_go(stream: IO[str]) -> None:
    """Let nothing more go to a stream: Python would complain at its end about what it could not write."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # a stream without a descriptor of its own
        return


def _defect(error: Exception) -> None:
    if os.environ.get(DEBUG_VARIABLE) or "--debug" in sys.argv:
        raise error
    with tempfile.NamedTemporaryFile("w", prefix="spo-verl-", suffix=".txt", delete=False, encoding="utf-8",
                                     errors="backslashreplace") as file:  # fmt: skip
        file.write("".join(traceback.format_exception(error)))
    what = " ".join(visible(f"{type(error).__name__}: {error}").split())[:300]
    message = (
        f"a defect of spo-verl ({what}). Please report it with the traceback in {file.name}; "
        f"{DEBUG_VARIABLE}=1 shows it here."
    )
    if "--json" in sys.argv:
        print_json({"error": {"type": type(error).__name__, "message": message}})
    else:
        print(f"error: {message}", file=sys.stderr)
    raise SystemExit(COULD_NOT) from None
