"""A run as it is now, printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spo_verl.cli.layout import bars, paragraph, sparkline, table
from spo_verl.cli.prompt_lists import number, share
from spo_verl.cli.tracker_text import labelled

if TYPE_CHECKING:
    from rich.console import Console

STATES = {
    "running": "running",
    "ended": "ended",
    "crashed": "crashed: its process is gone",
    "unknown": "on another machine, or not known to live",
}
PARTS = 6
"""Parts of a step that are shown, the longest."""


def print_frame(console: Console, frame: Mapping[str, Any]) -> None:
    """Print one picture of a run."""
    steps, prompts = frame["steps"], frame["prompts"]
    named = " ".join(str(one) for one in (frame["experiment"], frame["mode"]) if one)
    paragraph(console, frame["run"], style="bold")
    entries = {"state": STATES[frame["state"]] + (f"; {named}" if named else "")}
    if frame["step"] is not None:
        of = f" of {frame['total_steps']}" if frame["total_steps"] else ""
        entries["step"] = f"{frame['step']}{of} is over{_since(frame)}"
    if steps.get("step"):
        entries |= _of_steps(console, steps)
    entries |= _of_prompts(prompts)
    entries |= _of_time(frame)
    labelled(console, entries)
    if frame["value_histogram"]:
        counts = frame["value_histogram"]
        pairs = [sum(counts[at : at + len(counts) // 10]) for at in range(0, len(counts), len(counts) // 10)]
        paragraph(console, "prompts by value", style="bold")
        bars(console, [(f"{at / 10:.1f} to {(at + 1) / 10:.1f}", count) for at, count in enumerate(pairs)])
    if frame["source"] == "service":
        paragraph(console, "Prompts as the tracker service has them now, steps from the record.", style="dim")
    else:
        why = f" (tracker service: {frame['service_error']})" if frame["service_error"] else ""
        paragraph(console, f"From the record alone{why}.", style="dim")


def print_step(console: Console, frame: Mapping[str, Any], step: int) -> None:
    """Print one step as a line."""
    steps = frame["steps"]
    at = steps["step"].index(step)
    texts = [f"step {step}", f"reward {number(steps['reward'][at])}", f"value {number(steps['value'][at])}"]
    texts += [f"rho {number(steps['rho'][at])}", f"outcomes {steps['outcomes'][at]}"]
    texts += [f"{name} {steps[name][at]}" for name in _OTHER if steps[name][at]]
    if frame["prompts"]["coverage"] is not None:
        texts.append(f"coverage {share(frame['prompts']['coverage'])}")
    paragraph(console, "  ".join(texts))


def print_list(console: Console, frames: Sequence[Mapping[str, Any]]) -> None:
    """Print several runs, one line each."""
    paragraph(console, f"{len(frames)} runs are under way on this machine; name one for more:")
    rows = []
    for frame in frames:
        rewards = frame["steps"].get("reward") or [None]
        rows.append((str(frame["step"] if frame["step"] is not None else "-"), number(rewards[-1]), frame["run"]))
    table(console, ("step", "reward", "run"), rows)


_OTHER = ("stale", "surplus", "rejected", "failed", "aborted")


def _since(frame: Mapping[str, Any]) -> str:
    seconds = frame["idle_seconds"]
    return "" if seconds is None or frame["state"] == "ended" else f", the record grew {_duration(seconds)} ago"


def _of_steps(console: Console, steps: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    def line(name: str, digits: int = 3, **range_: float) -> str:
        drawn = sparkline(console, steps[name], room=40, **range_)
        return f"{number(steps[name][-1], digits)}  {drawn}".rstrip()

    last = {name: steps[name][-1] for name in ("trained", *_OTHER)}
    most = max((one for one in steps["divergence"] if one == one), default=0.0)
    least = min((one for one in steps["rho"] if one == one), default=0.0)
    return {
        "reward": line("reward"),
        "baseline": line("value"),
        "retention": line("rho", low=least),
        "divergence": line("divergence", 4, high=most or 1.0),
        "near zero": f"{share(steps['near_zero'][-1])} of the advantages",
        "rollouts": ", ".join(f"{count} {name}" for name, count in last.items() if count),
        "tokens": f"{number(steps['tokens'][-1], 0)} of a response",
    }


def _of_prompts(prompts: Mapping[str, float | None]) -> dict[str, str]:
    if prompts["prompts"] is None:
        return {}
    open_ = "" if prompts["open"] is None else f", {prompts['open']:.0f} rollouts open"
    return {
        "prompts": f"{prompts['prompts']:,.0f}, {share(prompts['coverage'])} drawn at least once{open_}",
        "all values": f"mean {number(prompts['value_mean'])}, n_eff {number(prompts['n_eff_mean'], 2)}",
    }


def _of_time(frame: Mapping[str, Any]) -> dict[str, str]:
    timing = dict(frame["timing"])
    whole = timing.pop("step", None)
    if whole is None:
        return {}
    parts = sorted(timing.items(), key=lambda one: -one[1])[:PARTS]
    listed = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in parts)
    entries = {"a step": f"{_duration(whole)}: {listed}" if listed else _duration(whole)}
    if frame["throughput"] is not None:
        entries["speed"] = f"{frame['throughput']:,.0f} tokens/s per device"
    return entries


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
