"""A plan as tables for a reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spo_verl.cli.layout import paragraph, table
from spo_verl.planning.formulas import SYMBOLS, Figure

if TYPE_CHECKING:
    from rich.console import Console

    from spo_verl.planning.plan import Plan


def show(plan: Plan, console: Console, *, explain: bool = False) -> None:
    """Print model, assumptions, figures by section, with ``explain`` the formulae, and the verdicts last."""
    run, shape = plan.run, plan.shape
    engine = "Megatron" if run.megatron else "FSDP"
    where = f"{run.rollout_gpus} rollout GPUs of their own" if run.separate else "which generate too"
    paragraph(console, f"{shape.name}: {shape.parameters:,} parameters ({shape.source})")
    paragraph(console, f"{engine} on {run.nodes} x {run.gpus_per_node} GPUs, {where}")
    paragraph(console, "assumed:", style="bold")
    for assumption in plan.assumptions:
        paragraph(console, assumption, first="  ")
    for title, section in plan.sections.items():
        paragraph(console, title, style="bold")
        rows = [(entry.label, text_of(entry), entry.formula) for entry in section.values()]
        table(console, ("figure", "value", "formula"), rows)
    if explain:
        show_formulas(plan, console)
    for verdict in plan.verdicts:
        mark, style = ("fits", "green") if verdict.fits else ("DOES NOT FIT", "bold red")
        paragraph(console, f"{verdict.what}: {verdict.reason}", first=f"{mark:<12}  ", style=style)
        if verdict.advice:
            paragraph(console, verdict.advice, first="              -> ")


def show_formulas(plan: Plan, console: Console) -> None:
    """Every figure as its expression with the numbers put in, then the symbols that occur."""
    used: set[str] = set()
    for section in plan.sections.values():
        for entry in section.values():
            used |= entry.inputs.keys()
            numbers = ", ".join(f"{name}={_number(value)}" for name, value in entry.inputs.items())
            paragraph(console, f"{entry.formula} = {entry.expression}", rest="    ")
            paragraph(console, numbers, first="    ", style="dim")
            paragraph(console, f"= {text_of(entry)} ({entry.label})", first="    ")
    for name in SYMBOLS:
        if name in used:
            paragraph(console, SYMBOLS[name], first=f"{name}: ", style="dim")


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
