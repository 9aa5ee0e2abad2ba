"""A plan as tables for a reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_verl.planning.formulas import SYMBOLS, Figure
from spo_verl.planning.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console


def show(plan: Plan, console: Console, *, explain: bool = False) -> None:
    """Print model, assumptions, figures by section, with ``explain`` the formulae, and the verdicts last."""
    from rich.table import Table
    from rich.text import Text

    run, shape = plan.run, plan.shape
    engine = "Megatron" if run.megatron else "FSDP"
    where = f"{run.rollout_gpus} rollout GPUs of their own" if run.separate else "which generate too"
    console.print(
        Text(f"{shape.name}: {shape.parameters:,} parameters ({shape.source})"), Text(
            f"{engine} on {run.nodes} x {run.gpus_per_node} GPUs, {where}"), sep="\n", soft_wrap=True,
    )  # fmt: skip
    console.print(Text("assumed:", "bold"))
    for assumption in plan.assumptions:
        console.print(Text(f"  {assumption}"), soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", justify="right")
    table.add_column(overflow="fold", style="dim")
    for title, section in plan.sections.items():
        table.add_row(Text(title, "bold"), "", "")
        for entry in section.values():
            table.add_row(Text(f"  {entry.label}"), Text(text_of(entry)), Text(entry.formula))
    console.print(table)
    if explain:
        show_formulas(plan, console)
    for verdict in plan.verdicts:
        mark, style = ("fits", "green") if verdict.fits else ("DOES NOT FIT", "bold red")
        console.print(Text(f"{mark:<12}  {verdict.what}: {verdict.reason}", style), soft_wrap=True)
        if verdict.advice:
            console.print(Text(f"              -> {verdict.advice}"), soft_wrap=True)


def show_formulas(plan: Plan, console: Console) -> None:
    """Every figure as its expression with the numbers put in, then the symbols that occur."""
    from rich.text import Text

    used: set[str] = set()
    for section in plan.sections.values():
        for entry in section.values():
            used |= entry.inputs.keys()
            numbers = ", ".join(f"{name}={_number(value)}" for name, value in entry.inputs.items())
            console.print(Text(f"{entry.formula} = {entry.expression}"), soft_wrap=True)
            console.print(Text(f"    {numbers}", "dim"), soft_wrap=True)
            console.print(Text(f"    = {text_of(entry)} ({entry.label})"), soft_wrap=True)
    for name in SYMBOLS:
        if name in used:
            console.print(Text(f"{name}: {SYMBOLS[name]}", "dim"), soft_wrap=True)


def text_of(entry: Figure) -> str:
    """The number with a unit that suits its size."""
    value = entry.value
    if entry.unit == "bytes":
        for size, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:,.2f} {name}"
        return f"{value:,.0f} B"
    if entry.unit == "FLOP":
        for scale, name in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
            if value >= scale:
                return f"{value / scale:,.2f} {name}"
        return f"{value:,.0f} FLOP"
    if entry.unit == "share":
        return f"{100 * value:.1f} %"
    if entry.unit == "seconds":
        return f"{value:,.1f} s"
    return f"{value:,.0f} {entry.unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
