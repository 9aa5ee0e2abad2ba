"""``spo-verl evaluate``: metrics of generated responses."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spo_verl.cli.layout import paragraph, table
from spo_verl.cli.output import Debug, Json, Outcome, verb

if TYPE_CHECKING:
    from rich.console import Console

    from spo_verl.evaluation.generations import Regrade

SHORT_HELP = "Compute avg@k, pass@k and maj@k, next to the paper's."
HELP = """Compute avg@k, unbiased pass@k and maj@k of each benchmark from generations, with bootstrap intervals, and
show them next to Table 1 of the paper.

RUN is a folder of verl's validation dumps (trainer.validation_data_dir), or a file. Give several runs names:
spo=FOLDER grpo=FOLDER. The first run is compared with each of the others, prompt by prompt.

Missing prompts and missing or uneven responses are listed, and make the exit status 1."""


@verb
def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="[NAME=]RUN...", help="Folders of validation dumps, or files of generations.")
    ],
    k: Annotated[
        int | None, typer.Option("-k", min=1, help="Number of responses per prompt to count; default: all.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Training step whose dumps are read; default: the last.")] = None,
    source: Annotated[str | None, typer.Option(help="Benchmark of lines that have no data_source.")] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", metavar="FILE", help="Evaluation data, which names the benchmarks and their prompts; repeatable."
        ),
    ] = None,
    grade_key: Annotated[
        str | None, typer.Option(help="Field that has a response's grade; default: acc, or score if there is no acc.")
    ] = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade every response again, instead of reading its grade from the dump.")
    ] = False,
    verifier: Annotated[
        Literal["math_verify", "math_dapo"], typer.Option(help="The verifier that --regrade uses.")
    ] = "math_verify",
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence level of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(min=100, help="Number of bootstrap resamples for the intervals.")] = 10_000,
    subsets: Annotated[
        int, typer.Option(min=1, help="Subsets drawn per prompt for maj@k, if it has more than k responses.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --resamples and --subsets.")] = 0,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables to this file, as Markdown.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw pass@k over k into this file.")] = None,
    lm_eval: Annotated[
        Path | None, typer.Option("--lm-eval", metavar="FOLDER", help="Write results as EleutherAI's lm-eval does.")
    ] = None,
    lighteval: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write results as lighteval does.")] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.evaluation import result_tables
    from spo_verl.evaluation.exports import Format, check_folder, export
    from spo_verl.evaluation.generations import DataSources, EvaluationError, read_generations
    from spo_verl.evaluation.scores import EvaluationSettings
    from spo_verl.evaluation.scores import evaluate as compute
    from spo_verl.files import check_output, replacing

    read_files = [path for _, path in map(named, runs)] + (data or [])
    for target in (markdown, plot):
        if target is not None:
            check_output(target, EvaluationError, inputs=read_files, makes_folders=False)
    exports: dict[Format, Path] = {}
    exports |= {"lm-eval": lm_eval} if lm_eval is not None else {}
    exports |= {"lighteval": lighteval} if lighteval is not None else {}
    for folder in exports.values():
        check_folder(folder)
    sources = None
    if data:
        from spo_verl.data.data_files import DataFiles

        sources = DataSources(DataFiles(data))
    grade = _regrading(verifier) if regrade else None
    read = [
        read_generations(
            path,
            name,
            step=step,
            source=source,
            data=sources,
            grade_key=grade_key,
            regrade=grade,
            keep_texts=bool(exports),
        )
        for name, path in map(named, runs)
    ]
    found = compute(read, EvaluationSettings(k, level, resamples, seed, subsets))
    written: dict[str, str] = {}
    if markdown is not None:
        with replacing(markdown, EvaluationError) as stage:
            stage().write_text(result_tables.markdown(found), encoding="utf-8", errors="backslashreplace")
        written["markdown"] = str(markdown)
    if plot is not None:
        from spo_verl.evaluation.figures import plot as draw

        with replacing(plot, EvaluationError) as stage:
            draw(found, stage())
        written["plot"] = str(plot)

    for form, folder in exports.items():
        export(form, read, found, folder, datetime.now())
        written[form] = str(folder)

    def show(console: Console) -> None:
        for one in result_tables.tables(found):
            paragraph(console, one.heading, style="bold")
            table(console, one.columns, one.rows, numbers=True)
            console.print()
        for sentence in result_tables.sentences(found):
            paragraph(console, sentence)
        if found.problems:
            console.print()
            paragraph(console, f"incomplete ({len(found.problems)}):")
        for problem in found.problems:
            paragraph(console, problem, first="  ")
        for kind, path in written.items():
            paragraph(console, path, first=f"{kind}: ")

    return Outcome({**found.as_json(), "written": written}, show, status=1 if found.problems else 0)


def named(text: str) -> tuple[str, Path]:
    """Name and path of ``NAME=PATH``; a path that exists as a whole is called after its last part."""
    name, sign, path = text.partition("=")
    if sign and name and "/" not in name and not os.path.lexists(text):
        return name, Path(path)
    return Path(text).stem or text, Path(text)


def _regrading(verifier: str) -> Regrade:
    from spo_verl.agent.math_reward import compute_score, require_math_verify

    if verifier == "math_verify":
        require_math_verify()

    def grade(source: str, response: str, truth: Any) -> dict[str, Any]:
        return compute_score(source, response, truth, verifier=verifier)

    return grade
