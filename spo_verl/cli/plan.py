"""``spo-verl plan``: what a recipe will need, before it takes accelerators."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spo_verl.cli.output import Debug, Json, Outcome, verb
from spo_verl.errors import SpoConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

SHORT_HELP = "Estimate what a run needs: memory, KV cache, operations."
HELP = """Estimate what a run needs, from its configuration: tokens per step, memory per GPU, KV cache, memory of
the tracker, size of checkpoints, and operations per step (with the share that measures the divergence).

RUN is a recipe (a name of `spo-verl recipes ls`, or a YAML file) with overrides, or your own command line, with or
without `python -m verl.trainer.main_ppo`. Starts and downloads nothing. Exit status 1 if something does not fit."""

GIB = 2**30


@verb
def plan(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="A recipe and overrides, or a command line.")],
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs per node; default: the configuration's.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes; default: the configuration's.")] = None,
    gpu_memory: Annotated[float, typer.Option(min=1, help="Memory of a GPU in GiB.")] = 80.0,
    reserve: Annotated[float, typer.Option(min=0, help="GiB of each GPU left free for what the estimate omits.")] = 4.0,
    prompts: Annotated[
        int | None,
        typer.Option(min=1, help="Number of different prompts; default: the rows of the training files, if present."),
    ] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=0, help="Mean length of a prompt, in tokens.")] = None,
    response_tokens: Annotated[float | None, typer.Option(min=0, help="Mean length of a response, in tokens.")] = None,
    mfu: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1, help="Share of --gpu-tflops that training reaches; together they give its time."
        ),
    ] = None,
    gpu_tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Peak speed of one GPU in TFLOP/s; with --mfu gives the time of training."),
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(min=0.001, help="Tokens per second that one rollout GPU generates; gives the time of generation."),
    ] = None,
    model_config: Annotated[
        Path | None, typer.Option(exists=True, help="The model's config.json, or its folder.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print each formula with its numbers.")] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    from spo_verl.cli.plan_text import show
    from spo_verl.launching.recipes import accepted, find_run
    from spo_verl.planning.inputs import Assumptions, run_of
    from spo_verl.planning.plan import make_plan
    from spo_verl.planning.shapes import model_shape

    counts = {"trainer.n_gpus_per_node": gpus, "trainer.nnodes": nodes}
    more = [f"{key}={count}" for key, count in counts.items() if count is not None]
    source, overrides = find_run(run)
    composed = accepted(source, [*overrides, *more]).config
    planned = run_of(composed)
    assumed = Assumptions(
        gpu_memory=gpu_memory * GIB,
        reserve=reserve * GIB,
        prompts=_rows(composed) if prompts is None else prompts,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        mfu=mfu,
        gpu_tflops=gpu_tflops,
        tokens_per_second=tokens_per_second,
    )
    made = make_plan(planned, model_shape(planned.model_path, model_config), assumed)
    data = {"recipe": source.name, "overrides": overrides, **made.as_json()}
    return Outcome(data, lambda console: show(made, console, explain=explain), status=0 if made.fits else 1)


def _rows(config: DictConfig) -> int | None:
    """Rows of the training files, an upper bound of the different prompts; None unless all are Parquet files here."""
    from omegaconf import OmegaConf

    named = OmegaConf.select(config, "data.train_files")
    files = [Path(os.path.expanduser(str(file))) for file in ([named] if isinstance(named, str) else named or [])]
    if not files or not all(os.path.isfile(file) and file.suffix == ".parquet" for file in files):
        return None
    from spo_verl.files import parquet_file

    rows = 0
    for file in files:
        with parquet_file(file, SpoConfigError) as parquet:
            rows += int(parquet.metadata.num_rows)
    return rows
