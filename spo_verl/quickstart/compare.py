"""Finished runs in one table and one plot."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from spo_verl.launching.runs import write_json
from spo_verl.quickstart.plots import curve, draw_comparison
from spo_verl.quickstart.report import offline_trajectories
from spo_verl.quickstart.tables import plus_minus, table
from spo_verl.small.launches import Settings

Result = Mapping[str, Any]
SETS = ("held_out", "train")
LABEL_WIDTH = 28


def compare(results: Sequence[Result], folder: Path) -> dict[str, Any]:
    """Write ``compare.png`` and ``compare.json`` into ``folder``; return the latter with the table under ``text``."""
    groups = by_variant(results)
    rows = [_row(result) for group in groups.values() for result in group]
    means = {variant: group_means(group) for variant, group in groups.items()}
    labels, common = labels_of(groups)
    plot = folder / "compare.png"
    draw_comparison({labels[variant]: group for variant, group in groups.items()}, plot)
    found = {"runs": rows, "variants": means, "in_common": common, "plot": str(plot)}
    write_json(folder / "compare.json", found)
    return {**found, "text": _text(groups, means, labels, common, plot)}


def check(result: Result) -> None:
    """Read what a comparison needs from a result; another form raises an error of Python."""
    groups = by_variant([result])
    _text(groups, {}, *labels_of(groups), Path())
    group_means([result])
    if not isinstance(result["variant"], str) or not isinstance(result["settings"]["seed"], int):
        raise TypeError("its variant is no text, or its seed no whole number")
    for key in SETS:
        for numbers in curve(result, key):
            statistics.fmean(numbers)


def by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Groups of runs that differ in their seed only, each by seed."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: (_variant(result), result["settings"]["seed"])):
        groups.setdefault(_variant(result), []).append(result)
    return groups


def _variant(result: Result) -> str:
    """By its settings: a run may be older than the present defaults."""
    return Settings.from_json(dict(result["settings"])).variant


def labels_of(groups: Mapping[str, Sequence[Result]]) -> tuple[dict[str, str], list[str]]:
    """A short name for each variant, made of what differs, and what all of them have in common.

    Both leave out what is at its default.
    """
    chosen = {variant: Settings.from_json(dict(group[0]["settings"])) for variant, group in groups.items()}
    parts = {variant: settings.differences() for variant, settings in chosen.items()}
    first, *others = parts.values()
    common = [part for part in first if all(part in other for other in others)]
    labels = {
        variant: ", ".join([chosen[variant].estimator, *(part for part in parts[variant] if part not in common)])
        for variant in groups
    }
    return labels, common


def group_means(group: Sequence[Result]) -> dict[str, Any]:
    """Mean change of a variant's runs and, from two on, its standard error over runs."""
    means: dict[str, Any] = {"runs": len(group), "seeds": [result["settings"]["seed"] for result in group]}
    for key in SETS:
        changes = [result[key]["change"] for result in group]
        error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else None
        after = statistics.fmean(result[key]["after"] for result in group)
        means[key] = {"after": after, "change": statistics.fmean(changes), "standard_error_over_runs": error}
    return means


def _row(result: Result) -> dict[str, Any]:
    spent = result["spent"]
    return {
        "variant": _variant(result),
        "seed": result["settings"]["seed"],
        "steps": result["settings"]["steps"],
        "trajectories": spent["total"]["trajectories"],
        "offline_trajectories": offline_trajectories(result),
        "response_tokens": spent["total"]["response_tokens"],
        "minutes": sum(result["seconds"].values()) / 60,
        "folder": result["folder"],
        **{
            f"{key}_{name}": result[key][name]
            for key in SETS
            for name in ("before", "after", "change", "standard_error")
        },
    }


def _text(
    groups: Mapping[str, Sequence[Result]],
    means: Mapping[str, Any],
    labels: Mapping[str, str],
    common: Sequence[str],
    plot: Path,
) -> str:
    names = "run|seed|trajectories\n(offline)|held out\nbefore|\nafter|\nchange|train\nafter|\nchange|minutes"
    sections = []
    for variant, group in groups.items():
        rows = [
            [
                str(row["seed"]),
                f"{row['trajectories']:,} ({row['offline_trajectories']:,})",
                f"{row['held_out_before']:.3f}",
                f"{row['held_out_after']:.3f}",
                plus_minus(row["held_out_change"], row["held_out_standard_error"]),
                f"{row['train_after']:.3f}",
                plus_minus(row["train_change"], row["train_standard_error"]),
                f"{row['minutes']:.1f}",
            ]
            for row in map(_row, group)
        ]
        if len(group) > 1:
            after_and_change = (
                (f"{mean['after']:.3f}", plus_minus(mean["change"], mean["standard_error_over_runs"]))
                for mean in (means[variant][key] for key in SETS)
            )
            rows.append([f"mean of {len(group)}", "", "", *(text for two in after_and_change for text in two), ""])
        name = textwrap.wrap(labels[variant], LABEL_WIDTH)
        empty = [""] * len(rows[0])
        sections.append([[line, *(row or empty)] for line, row in zip_longest(name, rows, fillvalue="")])
    return "\n".join(
        [
            table(names.split("|"), *sections),
            *(textwrap.wrap(f"In common: {', '.join(common)}", 100, break_on_hyphens=False) if common else ()),
            "Exact accuracies; +- is the standard error: over prompts in a run's line, over runs in that of a mean.",
            "Trajectories count offline ones. Runs of one seed share task and warm-started model.",
            f"Plot: {plot}",
        ]
    )
