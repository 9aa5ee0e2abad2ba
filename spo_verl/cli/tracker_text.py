"""What is known of prompts, printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spo_verl.cli.layout import bars, paragraph, sparkline, table
from spo_verl.cli.prompt_lists import number, prompts_table, share, short_text
from spo_verl.history.summaries import DRIFT_IS

if TYPE_CHECKING:
    from rich.console import Console

COMMON = [("value", "value", 3), ("n_eff", "n_eff", 2), ("draws", "draws", 0)]


def print_summary(console: Console, answer: Mapping[str, Any]) -> None:
    """Print what ``spo-verl tracker show`` found."""
    of = f"checkpoint of step {answer['step']}"
    if answer["source"] == "record":
        of = f"record up to step {answer['step']}; there is no checkpoint yet"
    open_ = "" if answer["open"] is None else f", {answer['open']} open rollouts"
    histogram = answer["value_histogram"]
    paragraph(console, f"{answer['path']}: {of}")
    labelled(
        console,
        {
            "prompts": f"{answer['prompts']:,} ({answer['prompts_aside']:,} kept aside){open_}",
            "coverage": f"{share(answer['coverage'])} drawn at least once, "
            f"{answer['prompts'] - answer['drawn_once']:,} never",
            "draws": f"{answer['draws']:,}, at most {answer['most_draws']:,} of a prompt; "
            f"{answer['visits']:,} outcomes",
            "value": f"mean {number(answer['value_mean'])}, over the {answer['with_evidence']:,} with evidence "
            f"{number(answer['value_mean_known'])}; below 0.05: {share(answer['value_near_0'])}, above 0.95: "
            f"{share(answer['value_near_1'])}",
            "n_eff": f"mean {number(answer['n_eff_mean'], 2)}, median {number(answer['n_eff_median'], 2)}",
            "drift": f"mean {number(answer['drift_mean'], 4)} ({DRIFT_IS[answer['drift_is']]})",
        },
    )
    paragraph(console, "prompts by value", style="bold")
    size = len(histogram)
    bars(console, [(f"{at / size:.1f} to {(at + 1) / size:.1f}", count) for at, count in enumerate(histogram)])
    paragraph(console, "prompts by draws", style="bold")
    bars(console, [(_class(one), one["prompts"]) for one in answer["draws_histogram"]])
    if answer.get("sources"):
        paragraph(console, "data sources", style="bold")
        rows = [
            (name or "(not named)", f"{one['prompts']:,}", share(one["coverage"]), number(one["value_mean"]))
            for name, one in answer["sources"].items()
        ]
        table(console, ("source", "prompts", "coverage", "value"), rows, numbers=True)
    _print_lists(console, answer)


def _print_lists(console: Console, answer: Mapping[str, Any]) -> None:
    lists = answer["lists"]
    titles = {
        "hardest": "hardest: lowest value",
        "most_uncertain": "most uncertain: largest standard deviation of the value",
        "most_drifted": f"most drifted: {DRIFT_IS[answer['drift_is']]}",
        "never_drawn": f"never drawn: {answer['prompts'] - answer['drawn_once']:,}",
    }
    digits = 0 if answer["drift_is"] == "age" else 4
    more = {"most_uncertain": [("sd", "uncertainty", 3)], "most_drifted": [("drift", "drift", digits)]}
    for name, title in titles.items():
        if lists[name]:
            paragraph(console, title, style="bold")
            columns = [*COMMON[:2]] if name == "never_drawn" else [*more.get(name, []), *COMMON]
            prompts_table(console, lists[name], columns)
    listed = [one for prompts in lists.values() for one in prompts]
    if listed and not any(one["text"] for one in listed):
        paragraph(console, "For the texts of prompts name the training data with --data.", style="dim")


def print_matches(console: Console, query: str, answer: Mapping[str, Any]) -> None:
    """Print the prompts that a query may mean."""
    shown = len(answer["matches"])
    which = "" if shown == answer["match_count"] else f"; the first {shown}"
    paragraph(console, f"{answer['match_count']:,} prompts match {query!r}{which}:")
    prompts_table(console, answer["matches"], COMMON)
    paragraph(console, "Name one by its key or row.", style="dim")


def print_history(console: Console, history: Mapping[str, Any]) -> None:
    """Print the history of one prompt."""
    rollouts = history["rollouts"]
    row = "" if history["row"] is None else f", row {history['row']}"
    source = f", {history['data_source']}" if history["data_source"] else ""
    paragraph(console, f"prompt {history['key']}{row}{source}", style="bold")
    if history["text"]:
        paragraph(console, " ".join(history["text"].split()), first="  ")
    values = [one["value"] for one in rollouts or []] + [history["value"]]
    initial = history.get("initial_value")
    labelled(
        console,
        {
            f"step {history['step']}": f"value {number(history['value'])}, n_eff {number(history['n_eff'], 2)}, "
            f"standard deviation {number(history['uncertainty'])}"
            + ("" if history["has_evidence"] else "; no evidence yet"),
            **({} if initial is None else {"at the start": f"value {number(initial)}"}),
            "drawn": f"{_times(history['draws'], 'time')}, {_times(history['visits'], 'outcome')}",
            **({"values": sparkline(console, values)} if len(values) > 1 else {}),
            **({"rewards": sparkline(console, [one["reward"] for one in rollouts])} if rollouts else {}),
        },
    )
    if rollouts is None:
        paragraph(
            console,
            "No record: the history is in record/ of the run's folder, which spo.record writes.",
            style="dim",
        )
        return
    if history["dropped_through_step"]:
        note = f"The record has dropped the rollouts up to step {history['dropped_through_step']} (spo.record)."
        paragraph(console, note, style="dim")
    if not rollouts:
        paragraph(console, "No rollout of it has ended in the steps of the record.")
        return
    headings = ("step", "value", "n_eff", "reward", "adv", "rho", "diverg", "tokens", "ending")
    rows = [
        (
            str(one["step"]),
            number(one["value"]),
            number(one["n_eff"], 1),
            number(one["reward"], 2),
            number(one["advantage"], 2),
            number(one["rho"]),
            number(one["divergence"], 4),
            "-" if one["tokens"] is None else str(one["tokens"]),
            one["ending"],
        )
        for one in rollouts
    ]
    table(console, headings, rows)
    dumped = [one for one in rollouts if one["response"]]
    if not dumped:
        return
    paragraph(console, "responses", style="bold")
    for one in dumped:
        for output in one["response"]:
            paragraph(console, short_text(output), first=f"  step {one['step']}: ")
    paragraph(console, "Whole responses: --json.", style="dim")


def labelled(console: Console, entries: Mapping[str, str]) -> None:
    """Print names with what they are, as a table without headings."""
    wide = max(map(len, entries)) + 2
    for name, text in entries.items():
        paragraph(console, text, first=f"{name:<{wide}}")


def _class(one: Mapping[str, int]) -> str:
    return f"{one['from']:,}" if one["from"] == one["to"] else f"{one['from']:,} to {one['to']:,}"


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
