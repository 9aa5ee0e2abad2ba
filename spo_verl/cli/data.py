"""``spo-verl data``: prepare, check and compare training and evaluation data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spo_verl.cli.layout import paragraph, table
from spo_verl.cli.output import Debug, Json, Outcome, verb

if TYPE_CHECKING:
    from rich.console import Console

    from spo_verl.data.prepare import CheckReport, OverlapReport, PromptLimit

SHORT_HELP = "Prepare and check training and evaluation data."
HELP = "Write problems, from public sources or your own, as files with verl's columns, and check such files."

LIST_HELP = "List the public sources that can be prepared: address, rows, licence."
PREPARE_HELP = """Write one Parquet file with verl's columns from a source.

NAME is a source of `spo-verl data list`. For your own data it is any new name, which becomes their data_source, and
--question and --answer name their columns. Rows come from the Hugging Face hub, or from --from. It is printed how many
rows were written, and how many dropped and why."""
CHECK_HELP = """Check the rows of FILE. Each problem found names the row and the field.

FILE has verl's columns (data_source, prompt, reward_model, ...). With --source NAME, FILE is what `prepare` reads: a
file, folder or hub id with rows as that source publishes them, or with the columns --question and --answer."""
OVERLAP_HELP = """List the problems of the EVAL files that are also in TRAIN, even if typeset differently.

Exit status 1 if there are any."""

_SHOWN = 20

Template = Literal["boxed", "code", "tool", "none"]
Conflicts = Literal["drop", "first", "keep"]
Form = Literal["whole", "hashes", "boxed"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

ConfigName = Annotated[
    str | None, typer.Option("--config", help="Configuration of the dataset on the hub; default: the source's own.")
]
Question = Annotated[
    str | None,
    typer.Option("--question", metavar="COLUMN", help="Your own data: column of the question, text or chat messages."),
]
Answer = Annotated[
    str | None,
    typer.Option(
        "--answer",
        metavar="COLUMN",
        help="Your own data: column of the answer, a text, a number or a list of right ones.",
    ),
]
Identifier = Annotated[
    str | None, typer.Option("--id", metavar="COLUMN", help="Your own data: column of the rows' identifier.")
]
AnswerForm = Annotated[
    Form, typer.Option(help="Your own data: the answer is the whole text, what follows its last ####, or its last box.")
]
Ability = Annotated[
    str, typer.Option(help="Your own data: value of verl's column `ability`; only math has its answers checked.")
]
Model = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Folder or hub id of the tokenizer that counts --max-prompt-length.")
]
MaxPromptLength = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of a prompt, as data.max_prompt_length; needs --model.")
]
Split = Annotated[
    str | None, typer.Option(help="Split to read from the hub or folder; for files, the name to give it.")
]


@app.command("list", help=LIST_HELP, short_help="List the public sources that can be prepared.")
@verb
def list_sources(json_output: Json = False, debug: Debug = False) -> Outcome:
    from spo_verl.data.prepare import SOURCES, TEMPLATES

    answer = {
        "sources": [asdict(source) for source in SOURCES.values()],
        "templates": [asdict(template) for template in TEMPLATES.values()],
    }

    def show(console: Console) -> None:
        rows = []
        for source in answer["sources"]:
            for release in source["releases"]:
                where = ", ".join(f"({config or 'default'}, {split})" for config, split in release["parts"])
                count = "?" if release["documented_rows"] is None else f"{release['documented_rows']:,}"
                origin = f"{release['hub_id']} {where}"
                rows.append((source["name"], source["use"], release["name"], count, release["licence"], origin))
        table(console, ("name", "use", "release", "rows", "licence", "hub id (configuration, split)"), rows)
        paragraph(
            console,
            "The first release of a source is the default. Rows and licences: as their pages say, docs/data.md.",
        )

    return Outcome(answer, show)


@app.command("prepare", help=PREPARE_HELP, short_help="Write a source as a file with verl's columns.")
@verb
def prepare_source(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A source of `spo-verl data list`, or a new name.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The Parquet file to write.")],
    origin: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Origin of the rows: hub id, local folder, or file; repeatable for files.",
        ),
    ] = None,
    question: Question = None,
    answer: Answer = None,
    source_id: Identifier = None,
    answer_form: AnswerForm = "whole",
    ability: Ability = "math",
    config: ConfigName = None,
    split: Split = None,
    template: Annotated[
        Template | None,
        typer.Option(help="The instruction that follows each problem; default: boxed, for mathematics."),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Your own instruction after each problem, instead of --template.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt before each problem.")] = None,
    conflicts: Annotated[
        Conflicts,
        typer.Option(help="What to do with a problem that has several answers: drop it, keep the first, or keep all."),
    ] = "drop",
    drop_invalid: Annotated[
        bool,
        typer.Option(
            "--drop-invalid", help="Drop rows that do not have the published form, instead of refusing the source."
        ),
    ] = False,
    model: Model = None,
    max_prompt_length: MaxPromptLength = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of rows to read.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.data.prepare import named_source, prepare

    _quiet_libraries()
    own = named_source(name, question, answer, source_id=source_id, answer_form=answer_form, ability=ability)
    prompt_limit = _prompt_limit(model, max_prompt_length)
    with _progress(name) as progress:
        report = prepare(
            own or name,
            output,
            origin=origin or [],
            config=config,
            split=split,
            template=template,
            instruction=instruction,
            system=system,
            conflicts=conflicts,
            drop_invalid=drop_invalid,
            prompt_limit=prompt_limit,
            limit=limit,
            force=force,
            progress=progress,
        )

    def show(console: Console) -> None:
        for line in (*report.lines(), f"file        {output}"):
            console.print(line, markup=False, soft_wrap=True)

    return Outcome({"file": str(output), **report.as_json()}, show)


@app.command("check", help=CHECK_HELP, short_help="Check the rows of a file.")
@verb
def check_data(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file; with --source also a folder or a hub id.")],
    source: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Check raw rows: as this source publishes them, or a name for your own data."
        ),
    ] = None,
    question: Question = None,
    answer: Answer = None,
    answer_form: AnswerForm = "whole",
    ability: Ability = "math",
    model: Model = None,
    max_prompt_length: MaxPromptLength = None,
    config: ConfigName = None,
    split: Split = None,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.data.prepare import SpoDataError, check_file, check_source, find_source, named_source

    _quiet_libraries()
    own = named_source(source or "own", question, answer, answer_form=answer_form, ability=ability)
    if source is None and own is None:
        report = check_file(Path(file), _prompt_limit(model, max_prompt_length))
    elif max_prompt_length is not None:
        raise SpoDataError(
            "--max-prompt-length is for files in verl's columns: prepare the rows first, and check that file."
        )
    else:
        report = check_source(own or find_source(str(source)), [file], config=config, split=split)
    return Outcome(
        {**asdict(report), "fine": report.fine}, lambda console: _show_check(console, report), int(not report.fine)
    )


@app.command("overlap", help=OVERLAP_HELP, short_help="Find evaluation problems that are also in training data.")
@verb
def overlap_data(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="Training file in verl's columns.")],
    evaluation: Annotated[list[Path], typer.Argument(metavar="EVAL...", help="Evaluation files in verl's columns.")],
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.data.prepare import overlap

    _quiet_libraries()
    report = overlap(train, evaluation)
    return Outcome(
        {**asdict(report), "shared": report.shared},
        lambda console: _show_overlap(console, report),
        int(report.shared > 0),
    )


def _show_check(console: Console, report: CheckReport) -> None:
    from spo_verl.data.prepare.prepare_report import counted

    def line(text: str) -> None:
        paragraph(console, text, rest="    ")

    sources = ", ".join(f"{name} {count}" for name, count in sorted(report.data_sources.items()))
    line(f"{report.file}: {counted(report.rows, 'row')}" + (f" ({sources})" if sources else ""))
    if report.duplicates and report.kind == "verl":
        line(f"{report.duplicates} rows repeat prompt and ground truth of an earlier one: SPO sees them as one prompt")
    elif report.duplicates:
        line(f"{report.duplicates} rows repeat problem and answer of an earlier one: `prepare` drops them")
    if report.only_text:
        line(f"{counted(report.only_text, 'answer')} right only if written alike, for the mathematical reward")
    if report.prepared is not None:
        made = report.prepared
        line(f"prepared from {made.get('origin')} with template {made.get('template')}, {made.get('date')}")
    for problem in report.problems:
        line(f"  {problem}")
    if report.problem_count > len(report.problems):
        line(f"  ... and {report.problem_count - len(report.problems)} more")
    line("no problems" if report.fine else counted(report.problem_count, "problem"))


def _show_overlap(console: Console, report: OverlapReport) -> None:
    from spo_verl.data.prepare.prepare_report import counted

    def line(text: str) -> None:
        paragraph(console, text, rest="    ")

    line(f"{report.train}: {counted(report.train_rows, 'row')}")
    for one in report.files:
        line(f"{one.file}: {len(one.shared)} of {counted(one.problems, 'problem')} in the training data")
        for entry in one.shared[:_SHOWN]:
            rows = ", ".join(map(str, entry["train_rows"]))
            same = (
                "" if entry["answer"] == entry["train_answer"] else f", there with the answer {entry['train_answer']}"
            )
            line(f"  row {entry['row']} (training rows {rows}{same}): {entry['problem']}")
        if len(one.shared) > _SHOWN:
            line(f"  ... and {len(one.shared) - _SHOWN} more (all with --json)")


def _prompt_limit(model: str | None, most: int | None) -> PromptLimit | None:
    from spo_verl.data.prepare import PromptLimit, SpoDataError

    if model is None and most is None:
        return None
    if model is None or most is None:
        raise SpoDataError("--model and --max-prompt-length belong together: give both.")
    return PromptLimit(model, most)


def _quiet_libraries() -> None:
    """`datasets` has progress bars of its own, and logs a reason that the error repeats."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int | None], Callable[[int, int], None]]]:
    """A bar on stderr while rows are read; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows read, {task.fields[kept]:,} kept"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:

        def begin(rows: int | None) -> Callable[[int, int], None]:
            task = bar.add_task(name, total=rows, kept=0)
            return lambda read, kept: bar.update(task, completed=read, kept=kept)

        yield begin
