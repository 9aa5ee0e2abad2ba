"""Tables of an evaluation, for a terminal and as Markdown; one description of rows serves both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spo_verl.core.evaluation import Interval
from spo_verl.evaluation.benchmarks import AVERAGE, paper_table, title
from spo_verl.evaluation.scores import METRICS, EvaluatedRun, Evaluation


@dataclass(frozen=True)
class Table:
    """A heading, the names of the columns, and rows of texts."""

    heading: str
    columns: list[str]
    rows: list[list[str]]


def tables(evaluation: Evaluation) -> list[Table]:
    """All tables: each run, all runs next to the paper's, differences."""
    found = [_of_run(run) for run in evaluation.runs]
    compared = _next_to_the_paper(evaluation.runs)
    found += [compared] if compared else []
    return found + list(_differences(evaluation))


def sentences(evaluation: Evaluation) -> list[str]:
    """The sentences below the tables: what they show, notes, problems."""
    settings = evaluation.settings
    found = [
        f"Percent, with {settings.level:.0%} bootstrap intervals over prompts ({settings.resamples} resamples, "
        f"seed {settings.seed}). pass@k is the unbiased estimate; a tie in maj@k shares the credit."
    ]
    for run in evaluation.runs:
        found.append(f"{run.name}: {run.account}")
        if run.regraded is not None:
            count, changed, given_up = run.regraded
            found.append(f"{run.name}: {count} responses graded again, {changed} grades changed, {given_up} given up")
        found += [f"{run.name}: {note}" for note in run.notes]
    return found


def markdown(evaluation: Evaluation) -> str:
    """The same as one Markdown document."""
    lines: list[str] = []
    for table in tables(evaluation):
        lines += [f"## {table.heading}", "", _row(table.columns)]
        lines += [_row(["---", *["---:"] * (len(table.columns) - 1)]), *map(_row, table.rows), ""]
    lines += [f"{sentence}\n" for sentence in sentences(evaluation)]
    if evaluation.problems:
        lines += ["## Incomplete", "", *(f"- {problem}" for problem in evaluation.problems), ""]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _of_run(run: EvaluatedRun) -> Table:
    rows = []
    for source, one in run.benchmarks.items():
        fewest, most = one.responses
        n = str(most) if fewest == most else f"{fewest} to {most}"
        missing = "-" if one.missing_answers is None else f"{100 * one.missing_answers:.1f}"
        metrics = [_text(one.intervals.get(metric)) for metric in METRICS]
        rows.append([title(source), str(one.prompts), n, str(one.k), *metrics, missing])
    if run.average:
        prompts = next(iter(run.average.values())).prompts
        rows.append([AVERAGE, str(prompts), "", "", *(_text(run.average.get(metric)) for metric in METRICS), ""])
    heading = run.name if run.step is None else f"{run.name}, step {run.step}"
    columns = ["benchmark", "prompts", "n", "k", *(f"{metric}@k" for metric in METRICS), "no answer"]
    return Table(heading, columns, rows)


def _next_to_the_paper(runs: list[EvaluatedRun]) -> Table | None:
    """The layout of the paper's Table 1, its rows below those of the runs; None without one of its benchmarks."""
    paper = paper_table()
    shown = [name for name in paper.title_of if any(name in run.benchmarks for run in runs)]
    if not shown:
        return None
    columns = [*shown, AVERAGE] if any(run.average for run in runs) else shown
    rows = []
    for run in runs:
        cells = []
        for name in columns:
            intervals = run.average if name == AVERAGE else _intervals(run, name)
            cells.append(" / ".join(_mean(intervals.get(metric)) for metric in ("maj", "avg")))
        ks = sorted({run.benchmarks[name].k for name in shown if name in run.benchmarks})
        rows.append([f"{run.name} (k = {', '.join(map(str, ks))})", *cells])
    for name, row in paper.rows.items():
        cells = [f"{row['maj'][column]:.1f} / {row['avg'][column]:.1f}" for column in columns]
        rows.append([f"paper, {name} (k = {paper.k})", *cells])
    return Table("maj@k / avg@k next to Table 1 of arXiv 2509.13232", ["", *map(title, columns)], rows)


def _intervals(run: EvaluatedRun, source: str) -> dict[str, Interval]:
    return run.benchmarks[source].intervals if source in run.benchmarks else {}


def _differences(evaluation: Evaluation) -> Iterator[Table]:
    for first, second in dict.fromkeys((one.first, one.second) for one in evaluation.differences):
        mine = [one for one in evaluation.differences if (one.first, one.second) == (first, second)]
        rows = []
        for source in dict.fromkeys(one.source for one in mine):
            of_source = {one.metric: one for one in mine if one.source == source}
            some = next(iter(of_source.values()))
            cells = [_text(of_source[m].interval, sign=True) if m in of_source else "-" for m in METRICS]
            rows.append([title(source), str(some.interval.prompts), str(some.k), *cells])
        columns = ["benchmark", "prompts", "k", *(f"{metric}@k" for metric in METRICS)]
        yield Table(f"{first} - {second}, paired prompt by prompt", columns, rows)


def _text(interval: Interval | None, *, sign: bool = False) -> str:
    if interval is None:
        return "-"
    plus = "+" if sign else ""
    low, mean, high = (format(100 * value, f"{plus}.1f") for value in (interval.low, interval.mean, interval.high))
    return f"{mean} [{low}, {high}]"


def _mean(interval: Interval | None) -> str:
    return "-" if interval is None else f"{100 * interval.mean:.1f}"
