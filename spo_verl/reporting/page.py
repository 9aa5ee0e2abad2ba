"""One HTML page of one run or several: it needs no network, no server and no other file.

The data are JSON and whole numbers, compressed and as base64 in blocks that no browser executes, so nothing in a prompt
or response can end a block or become markup; the page's script only ever writes texts. The page states its own content
policy: no connection, and no script or style but its own, by hash.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from spo_verl.drawing import COLOURS, MARKERS
from spo_verl.history.places import configuration
from spo_verl.history.responses import dumped_responses
from spo_verl.record.schema import ENDINGS
from spo_verl.reporting import aggregates, samples
from spo_verl.reporting.sources import ReportError, Source

LIMIT = 16_000_000
"""Bytes of a page, unless another limit is asked for."""
LEAST = 500_000
AROUND = 100
"""Bytes around a block, more than enough."""
SAMPLES_SHARE = 0.4
"""Of the room that curves and prompts leave, at most so much is for samples."""
FACTS = ("folder", "steps", "rollouts", "prompts", "trainer mode", "forgetting", "started", "versions")


@dataclass(frozen=True)
class Embedded:
    """What a page holds of one run.

    Attributes:
        name: of the run.
        steps, rollouts, prompts: in the record.
        prompts_shown, histories, samples, responses: in the page: prompts, prompts with their whole history, rollouts
            with what is known of each, and how many of those have their response.
    """

    name: str
    steps: int
    rollouts: int
    prompts: int
    prompts_shown: int
    histories: int
    samples: int
    responses: int


def make_page(
    sources: Sequence[Source],
    made: str,
    limit: int = LIMIT,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[str, list[Embedded]]:
    """The page, and what it holds of each run.

    Args:
        sources: at least one run.
        made: when, as the page says it.
        limit: bytes of the page at most, ``LEAST`` at least. Curves and prompts come first, then samples, then
            histories.
        progress: is given a line before what may take a while.

    Raises:
        ReportError: the limit is too small, or a run has no rollouts and no steps yet.
        SpoError: a record or a dump cannot be read.
    """
    if limit < LEAST:
        raise ReportError(f"a page of {limit:,} bytes has no room for its charts: allow {LEAST:,} at least.")
    assets = {name: files("spo_verl.reporting").joinpath(name).read_text(encoding="utf-8")
              for name in ("page.html", "page.css", "charts.js", "page.js")}  # fmt: skip
    room = (limit - sum(map(len, assets.values())) - 10_000) // len(sources)
    blocks: dict[str, str] = {}
    runs, embedded = [], []
    for number, source in enumerate(sources):
        progress(f"{source.name}: reading {source.record.path}")
        with source.faults():
            run, found = _embed(number, source, room, blocks)
        runs.append(run)
        embedded.append(found)
    book = {
        "colours": COLOURS,
        "markers": MARKERS,
        "rest": aggregates.REST,
        "endings": ENDINGS,
        "history": samples.HISTORY,
        "piece": samples.PIECE,
        "missing": samples.MISSING,
        "facts": FACTS,
        "runs": runs,
    }
    blocks["book"] = _packed_json(book)
    title = f"SPO: {', '.join(source.name for source in sources)}, {made}"
    style = assets["page.css"]
    script = assets["charts.js"] + assets["page.js"].replace('"use strict";\n', "", 1)
    data = "\n".join(f'<script type="text/plain" id="{name}">{block}</script>' for name, block in blocks.items())
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; form-action 'none'"
    page = assets["page.html"]
    # The texts of users come last: nothing is looked for in them.
    for name, text in (("policy", policy), ("style", style), ("script", script), ("data", data)):
        page = page.replace(f"{{{{{name}}}}}", text)
    return page.replace("{{title}}", html.escape(title)), embedded


def _embed(number: int, source: Source, room: int, blocks: dict[str, str]) -> tuple[dict[str, Any], Embedded]:
    """Add the blocks of one run, in at most so many bytes."""
    rollouts, steps, prompts = source.tables(tuple(dict.fromkeys((*aggregates.COLUMNS, *samples.COLUMNS))))
    curves = aggregates.aggregates(rollouts, steps, prompts)
    arranged = samples.arrange(rollouts, prompts, room)
    block = _packed_json({"curves": curves, "prompts": arranged.prompts})
    left = room - len(block)
    if left < 0:
        raise ReportError(
            f"the charts and prompts of {source.name} need {-left:,} bytes more than its part of the page has: "
            "raise --limit, or give fewer runs."
        )
    blocks[f"run-{number}"] = block
    block, shown = _samples(source, arranged, int(SAMPLES_SHARE * left))
    blocks[f"samples-{number}"] = block
    left -= len(block)
    pieces = 0
    for piece in samples.histories(arranged):
        block = _packed(piece)
        left -= len(block) + AROUND
        if left < 0:
            break
        blocks[f"history-{number}-{pieces}"] = block
        pieces += 1
    prompts_shown = len(arranged.count_P)
    found = Embedded(
        name=source.name,
        steps=curves["steps"],
        rollouts=curves["rollouts"],
        prompts=prompts_shown + arranged.left_out,
        prompts_shown=prompts_shown,
        histories=min(pieces * samples.PIECE, prompts_shown),
        samples=len(shown["step"]),
        responses=sum(one is not None for one in shown["output"]),
    )
    run = {
        "name": source.name,
        "path": str(source.path),
        "pieces": pieces,
        "facts": _facts(source, curves),
        "notes": {"prompts": _about_prompts(found, arranged), "samples": _about_samples(found, source)},
    }
    return run, found


def _samples(source: Source, arranged: samples.Rollouts, room: int) -> tuple[str, dict[str, Any]]:
    """The block of samples, as many as fit, and what it holds."""
    chosen = samples.choose(arranged)
    wanted = zip(*(arranged.table[name].take(chosen).to_pylist() for name in ("step", "uid", "session")), strict=True)
    sessions = [one for one in wanted if one[2] is not None]
    responses = {} if source.responses is None else dumped_responses(source.responses, sessions)
    while True:
        shown = samples.described(arranged, chosen, responses)
        block = _packed_json(shown)
        if len(block) <= room or not len(chosen):
            return block, shown
        chosen = samples.choose(arranged, len(chosen) // 2)


def _about_prompts(found: Embedded, arranged: samples.Rollouts) -> str:
    texts = f" Texts have {arranged.prompts['text_length']:,} characters at most."
    left_out = f" {arranged.left_out:,} prompts more are in the record." if arranged.left_out else ""
    return (
        f"{found.name}: {found.prompts_shown:,} prompts, {found.histories:,} with the history of all their rollouts."
        f"{left_out}{texts}"
    )


def _about_samples(found: Embedded, source: Source) -> str:
    said = f"{found.name}: {found.samples:,} of {found.rollouts:,} rollouts, {found.responses:,} with their response."
    if source.responses is None:
        said += " The run dumped no responses (trainer.rollout_data_dir)."
    return said


def _facts(source: Source, curves: dict[str, Any]) -> dict[str, str]:
    run = source.record.run
    config = configuration(source.record)
    starts = run.get("starts") or []
    every = f", a point for {curves['width']}" if curves["width"] > 1 else ""
    dropped = run.get("dropped_through_step")
    if dropped is not None:
        every += f"; up to step {dropped} rows were dropped (spo.record)"
    return {
        "folder": str(source.path),
        "steps": f"{curves['steps']:,}{every}",
        "rollouts": f"{curves['rollouts']:,}, {curves['trained']:,} of them trained",
        "prompts": f"{curves['prompts']:,}, {curves['drawn']:,} of them drawn",
        "trainer mode": str(config.get("trainer.v1.trainer_mode") or "-"),
        "forgetting": str(((config.get("spo") or {}).get("forgetting") or {}).get("mode") or "-"),
        "started": ", ".join(str(start.get("time")) for start in starts if isinstance(start, dict)) or "-",
        "versions": f"verl {run.get('verl') or '-'}, spo_verl {run.get('spo_verl') or '-'}",
    }


def _packed_json(data: Any) -> str:
    return _packed(json.dumps(aggregates.plain(data), allow_nan=False, separators=(",", ":")).encode("ascii"))


def _packed(raw: bytes) -> str:
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def lines_about(embedded: Iterable[Embedded]) -> list[str]:
    """What a page holds, a line for each run."""
    return [
        f"{one.name}: {one.steps:,} steps, {one.rollouts:,} rollouts; the page holds {one.prompts_shown:,} of "
        f"{one.prompts:,} prompts, {one.histories:,} with their history, and {one.samples:,} samples, "
        f"{one.responses:,} with a response"
        for one in embedded
    ]
