"""The verbs of ``spo-verl`` put together."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from spo_verl import __version__
from spo_verl.cli import (
    config,
    convert,
    data,
    diff,
    doctor,
    evaluate,
    export,
    plan,
    quickstart,
    recipes,
    rehearse,
    report,
    settings,
    tracker,
    values,
    watch,
)
from spo_verl.cli.output import COULD_NOT, print_json, reader_left

# typer has a copy of click in newer versions; its public error leads to the right one in all of them.
_UsageError: Any = typer.BadParameter.__base__


class _Root(TyperGroup):
    """The root command, whose complaints about arguments are JSON where ``--json`` is among them.

    A closed pipe is handled here, before click sees it and ends with status 1.
    """

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError:
            reader_left()

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().invoke(*args, **kwargs)
        except BrokenPipeError:
            reader_left()

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if "--json" not in (kwargs.get("args") or sys.argv[1:]):
            return super().main(*args, **kwargs)
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except _UsageError as error:
            print_json({"error": {"type": "UsageError", "message": error.format_message()}})
            raise SystemExit(COULD_NOT) from None
        except typer.Abort:
            raise SystemExit(1) from None
        raise SystemExit(status if isinstance(status, int) else 0)


# Words with a dash may belong to the command line of a run; the verb refuses those that do not.
RUNS = {"ignore_unknown_options": True}

# typer's own tracebacks are switched off: what is expected is printed without one, a defect by `output.contained`.
app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Single-stream Policy Optimization (SPO) for verl.\n\n"
    "Start with `doctor`; `config` checks the command line of a run.",
)
app.command("doctor", help=doctor.HELP, short_help=doctor.SHORT_HELP)(doctor.doctor)
app.command("config", cls=config.WholeLine, help=config.HELP, short_help=config.SHORT_HELP)(config.config)
app.command("convert", help=convert.HELP, short_help=convert.SHORT_HELP, context_settings=RUNS)(convert.convert)
app.command("plan", help=plan.HELP, short_help=plan.SHORT_HELP, context_settings=RUNS)(plan.plan)
app.command("settings", help=settings.HELP, short_help=settings.SHORT_HELP)(settings.settings)
app.add_typer(recipes.app, name="recipes", help=recipes.HELP, short_help=recipes.SHORT_HELP)
app.command("rehearse", help=rehearse.HELP, short_help=rehearse.SHORT_HELP, context_settings=RUNS)(rehearse.rehearse)
app.add_typer(values.app, name="values", help=values.HELP, short_help=values.SHORT_HELP)
app.add_typer(tracker.app, name="tracker", help=tracker.HELP, short_help=tracker.SHORT_HELP)
app.command("watch", help=watch.HELP, short_help=watch.SHORT_HELP)(watch.watch)
app.command("diff", help=diff.HELP, short_help=diff.SHORT_HELP)(diff.diff)
app.command("export", help=export.HELP, short_help=export.SHORT_HELP)(export.export)
app.command("report", help=report.HELP, short_help=report.SHORT_HELP)(report.report)
app.command("plot", help=report.PLOT_HELP, short_help=report.PLOT_SHORT_HELP)(report.plot)
app.add_typer(data.app, name="data", help=data.HELP, short_help=data.SHORT_HELP)
app.command("evaluate", help=evaluate.HELP, short_help=evaluate.SHORT_HELP)(evaluate.evaluate)
app.command(
    "quickstart",
    help=quickstart.HELP,
    short_help=quickstart.SHORT_HELP,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)(quickstart.quickstart)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Options before the verb."""
