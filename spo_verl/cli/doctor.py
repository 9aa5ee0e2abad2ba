"""``spo-verl doctor``: what is installed, and whether a run could start here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from spo_verl.cli.output import Debug, Json, Outcome, verb

if TYPE_CHECKING:
    from rich.console import Console

    from spo_verl.cli.health.findings import Finding

SHORT_HELP = "Check whether an SPO run could start on this machine."
HELP = """Check whether an SPO run could start on this machine, and say what to do if not.

Looks at versions, the plugin, the names of verl that it uses, devices, Ray, the machine and what recipes need. Takes
some seconds, because verl, vLLM and Ray are imported in separate processes. Changes nothing and starts no cluster.
Exit status 1 if something would keep a run from working."""

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}


@verb
def doctor(
    time_limit: Annotated[
        float, typer.Option(min=1.0, help="Seconds after which the import of a library counts as failed.")
    ] = 120.0,
    json_output: Json = False,
    debug: Debug = False,
) -> Outcome:
    findings = list(examine(time_limit))
    counts = {status: sum(finding.status == status for finding in findings) for status in _MARKS}
    data = {"ok": not counts["fail"], "counts": counts, "checks": [asdict(finding) for finding in findings]}
    return Outcome(data, lambda console: _show(console, findings, counts), status=1 if counts["fail"] else 0)


def examine(time_limit_s: float) -> Iterator[Finding]:
    """Yield every finding, in the order of the report."""
    from spo_verl.cli.health import contained, devices, machine, processes, recipe_needs, software, verl_side

    verl_is_there = software.installed_version("verl") is not None
    wanted = ("verl", "devices", "ray", "reward") if verl_is_there else ("devices", "ray", "reward")
    answers = processes.ask(wanted, time_limit_s=time_limit_s)
    yield from software.versions()
    yield verl_side.entry_point_finding()
    yield verl_side.policy_finding(os.environ)
    if verl_is_there:
        yield from verl_side.plugin_findings(answers["verl"])
        yield from verl_side.seam_findings(answers["verl"])
        yield from devices.verl_findings(answers["verl"], os.environ)
    yield from devices.device_findings(answers["devices"], os.environ)
    if verl_is_there:
        yield from verl_side.workaround_findings(answers["verl"])
    yield from devices.ray_findings(answers["ray"], os.environ)
    yield from recipe_needs.recipe_findings(answers["reward"], answers["devices"], os.environ)
    yield from machine.resources()
    yield contained.interpreter_finding(time_limit_s)


def _show(console: Console, findings: list[Finding], counts: dict[str, int]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table.grid(*(Column(overflow="fold") for _ in range(4)), padding=(0, 2))
    group = None
    for finding in findings:
        heading = Text(finding.group if finding.group != group else "", "bold")
        group = finding.group
        word, style = _MARKS[finding.status]
        table.add_row(heading, Text(word, style), Text(finding.name), Text(finding.found))
        if finding.fix:
            table.add_row("", "", "", Text(f"-> {finding.fix}", style if finding.status == "fail" else ""))
    console.print(table)
    console.print(Text(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed", "bold"))
