"""What a file of offline values holds, printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from spo_verl.visible import visible

if TYPE_CHECKING:
    from rich.console import Console


def show_description(console: Console, answer: dict[str, Any]) -> None:
    """Print what :meth:`OfflineValues.describe` returns."""
    from rich.table import Column, Table
    from rich.text import Text

    mean = "-" if answer["value_mean"] is None else f"{answer['value_mean']:.3f}"
    spread = answer["trials_per_prompt"]
    rows = {
        "file": answer["file"],
        "prompts": f"{answer['prompts']} ({answer['prompts_without_trials']} without a trial)",
        "trials": f"{answer['trials']}" + (f", {_per_prompt(spread)} per prompt" if spread else ""),
        "mean value": f"{mean}; never solved {answer['never_solved']}, always solved {answer['always_solved']}",
        "policy": ", ".join("unknown" if policy is None else policy for policy in answer["policies"]),
    }
    table = Table.grid(Column(overflow="fold"), Column(overflow="fold"), padding=(0, 2))
    for name, text in rows.items():
        table.add_row(Text(name, "bold"), Text(visible(text)))
    for number, entry in enumerate(answer["source"]):
        rest = {key: value for key, value in entry.items() if key not in ("kind", "policy", "date") and value}
        text = f"{entry['kind']}, {entry['date']}" + "".join(f", {key} {_short(value)}" for key, value in rest.items())
        table.add_row(Text("" if number else "source", "bold"), Text(visible(text)))
    console.print(table)
    most = max(answer["value_histogram"], default=0)
    for number, count in enumerate(answer["value_histogram"] if most else []):
        low, high = number / 10, (number + 1) / 10
        bar = "#" * -(-40 * count // most)
        console.print(f"  {low:.1f} to {high:.1f}  {count:>8}  {bar}", markup=False)


def _per_prompt(spread: Any) -> str:
    if isinstance(spread, dict) and {"min", "max"} <= spread.keys():
        low, high = spread["min"], spread["max"]
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return str(spread)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
