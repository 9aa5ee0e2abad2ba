"""``spo-verl values``: offline values of prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spo_verl.cli import estimate
from spo_verl.cli.output import Debug, Json, Outcome, verb
from spo_verl.cli.values_text import show_description
from spo_verl.errors import SpoConfigError, SpoValuesError

if TYPE_CHECKING:
    from rich.console import Console

    from spo_verl.config import RewardConfig
    from spo_verl.data.values import MatchReport, OfflineValues

SHORT_HELP = "Estimate, import, merge or show success rates of prompts."
HELP = "Offline values, the success rates of prompts before training: estimate, import, merge or show them."

Kind = Literal["auto", "reference", "dump", "column", "tracker"]

IMPORT_HELP = """Read offline values from SOURCE, match them with the training data and write one Parquet file.

SOURCE is one of: the reference recipe's offline_values.json (prompt text -> scores); verl's validation dumps (.jsonl
files or their folder); the spo folder of a checkpoint. Without SOURCE, name a column of the training data that has
accuracies with --column. What did not match is reported."""
MERGE_HELP = "Add the successes and trials of several files, prompt by prompt."
SHOW_HELP = "Show what a file of offline values holds; with --data, how much of a dataset it covers."

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("estimate", help=estimate.HELP, short_help=estimate.SHORT_HELP)(estimate.estimate)

Data = Annotated[
    list[Path] | None, typer.Option("--data", metavar="FILE", help="Training data (parquet, json, jsonl); repeatable.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The Parquet file to write.")]
PromptKey = Annotated[str, typer.Option(help="Column of the data with the prompt, as verl's data.prompt_key.")]


@app.command("import", help=IMPORT_HELP, short_help="Convert success rates from other formats.")
@verb
def import_values(
    output: Output,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SOURCE",
            exists=True,
            help="Files or folders to read: offline_values.json, .jsonl dumps, or a spo folder.",
        ),
    ] = None,
    data: Data = None,
    kind: Annotated[Kind, typer.Option(help="Kind of SOURCE; auto recognises it by its name.")] = "auto",
    column: Annotated[str | None, typer.Option(help="Column of the data with accuracies, e.g. difficulty.")] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Number of trials from which each accuracy in --column was computed."),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Model that gave the responses; noted in the file.")] = None,
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            "--sampling",
            metavar="NAME=VALUE",
            help="A setting of the sampling, to note in the file, e.g. temperature=1.0; repeatable.",
        ),
    ] = None,
    date: Annotated[str | None, typer.Option(help="Date of the responses, e.g. 2026-01-31; default: now.")] = None,
    reward_key: Annotated[
        str | None, typer.Option(help="Field of a dump that has the reward, as spo.reward.key.")
    ] = None,
    reward_low: Annotated[
        float | None, typer.Option(help="Lower end of the rewards' range, as spo.reward.low.")
    ] = None,
    reward_high: Annotated[
        float | None, typer.Option(help="Upper end of the rewards' range, as spo.reward.high.")
    ] = None,
    mixed_steps: Annotated[
        bool, typer.Option("--mixed-steps", help="Allow dumps of different training steps, and add them up.")
    ] = False,
    prompt_key: PromptKey = "prompt",
    image_key: Annotated[
        str, typer.Option(help="Column of the data with images, as verl's data.image_key.")
    ] = "images",
    video_key: Annotated[
        str, typer.Option(help="Column of the data with videos, as verl's data.video_key.")
    ] = "videos",
    audio_key: Annotated[
        str, typer.Option(help="Column of the data with audios, as verl's data.audio_key.")
    ] = "audios",
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.data import dataset_keys
    from spo_verl.data.data_files import Columns, DataFiles
    from spo_verl.data.values import from_accuracy_column, from_reference_json, from_tracker, from_validation_dump
    from spo_verl.files import check_output

    paths = sources or []
    kind = kind_of(paths, column) if kind == "auto" else kind
    details: dict[str, Any] = {"policy": policy, "sampling": _assignments(sampling or []), "date": date}
    reward = _reward(reward_key, reward_low, reward_high)
    if not data and kind != "tracker":
        raise SpoConfigError("prompts are known by the rows of the training data: name the files with --data.")
    if kind == "column" and column is None:
        raise SpoConfigError("--kind column needs the name of the column of accuracies: add --column NAME.")
    if kind in ("tracker", "reference") and len(paths) != 1:
        raise SpoConfigError(f"--kind {kind} reads one source, not {len(paths)}: import one by one, then merge.")
    check_output(output, SpoValuesError, inputs=[*paths, *(data or [])])
    dataset = DataFiles(data, Columns(prompt_key, image_key, video_key, audio_key)) if data else None
    if kind == "tracker":
        keys = None if dataset is None else dataset_keys(dataset)
        values, report = from_tracker(paths[0], keys=keys, **details)
    elif kind == "reference":
        values, report = from_reference_json(paths[0], dataset, reward=reward, **details)
    elif kind == "dump":
        files = dump_files(paths)
        values, report = from_validation_dump(files, dataset, reward=reward, mixed_steps=mixed_steps, **details)
    else:
        assert column is not None
        values, report = from_accuracy_column(dataset, column, trials, **details)
    values.write(output)
    return _written(output, values, report)


@app.command("merge", help=MERGE_HELP, short_help="Add up several files, prompt by prompt.")
@verb
def merge_values(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files of offline values to add up.")],
    output: Output,
    mixed_policies: Annotated[
        bool, typer.Option("--mixed-policies", help="Allow files that were sampled with different policies.")
    ] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.data.values import OfflineValues, merge
    from spo_verl.files import check_output

    check_output(output, SpoValuesError, inputs=files)
    values = merge(*(OfflineValues.read(file) for file in files), mixed_policies=mixed_policies)
    values.write(output)
    return _written(output, values, None)


@app.command("show", help=SHOW_HELP, short_help="Show what a file of offline values holds.")
@verb
def show_values(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of offline values.")],
    data: Data = None,
    prompt_key: PromptKey = "prompt",
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.data.values import OfflineValues

    values = OfflineValues.read(file)
    answer = {"file": str(file), **values.describe()}
    sentence = ""
    if data:
        from spo_verl.data import dataset_keys
        from spo_verl.data.data_files import Columns, DataFiles
        from spo_verl.data.values import initial_evidence_for

        keys = dataset_keys(DataFiles(data, Columns(prompt=prompt_key)))
        coverage = initial_evidence_for(values, keys.key_P)[2]
        answer["coverage"], sentence = coverage.as_json(), str(coverage)

    def show(console: Console) -> None:
        show_description(console, answer)
        if sentence:
            console.print(sentence, markup=False, soft_wrap=True)

    return Outcome(answer, show)


def kind_of(paths: list[Path], column: str | None) -> Kind:
    """What the sources are, by their names.

    Raises:
        SpoConfigError: the names do not say.
    """
    if column is not None and not paths:
        return "column"
    if column is None and len(paths) == 1 and os.path.isfile(paths[0] / "manifest.json"):
        return "tracker"
    if column is None and len(paths) == 1 and paths[0].suffix == ".json":
        return "reference"
    if column is None and paths and all(path.suffix == ".jsonl" or any(path.glob("*.jsonl")) for path in paths):
        return "dump"
    named = ", ".join(map(str, paths)) or "no source"
    with_column = "" if column is None else f" with --column {column}"
    raise SpoConfigError(
        f"cannot tell what to import from {named}{with_column}: give one .json file of the reference recipe, verl's "
        ".jsonl dumps or their folder, the spo folder of a checkpoint, or no source and --column NAME; --kind says "
        "which it is where names do not."
    )


def dump_files(paths: list[Path]) -> list[Path]:
    """The ``.jsonl`` files among paths and in folders, in order; ``10.jsonl`` comes after ``2.jsonl``."""
    files = []
    for path in paths:
        is_folder = os.path.isdir(path)
        inside = sorted(path.glob("*.jsonl"), key=lambda file: (len(file.name), file.name)) if is_folder else []
        files += inside if is_folder else [path]
    return files


def _written(output: Path, values: OfflineValues, report: MatchReport | None) -> Outcome:
    answer: dict[str, Any] = {"file": str(output), **values.describe()}
    if report is not None:
        answer["match"] = report.as_json()

    def show(console: Console) -> None:
        if report is not None:
            console.print(str(report), markup=False, soft_wrap=True)
        show_description(console, answer)
        console.print(f"written; train with ++spo.initial.values={output}", markup=False, soft_wrap=True)

    return Outcome(answer, show)


def _reward(key: str | None, low: float | None, high: float | None) -> RewardConfig | None:
    """The declared reward, or None to leave each source its own default."""
    from spo_verl.config import RewardConfig

    if key is None and low is None and high is None:
        return None
    low, high = 0.0 if low is None else low, 1.0 if high is None else high
    if not low < high:
        raise SpoConfigError(f"--reward-low {low} is not below --reward-high {high}: declare the range of the scores.")
    return RewardConfig(key=key, low=low, high=high)


def _assignments(texts: list[str]) -> dict[str, Any]:
    """``name=value`` pairs; numbers, true, false and null are read as such."""
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign):
            raise SpoConfigError(f"--sampling {text}: write name=value, e.g. --sampling temperature=1.0.")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found
