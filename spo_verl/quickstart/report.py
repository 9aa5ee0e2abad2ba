"""The result of a run, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spo_verl.quickstart.tables import plus_minus, table
from spo_verl.small.task import LEVELS


def summary(result: Mapping[str, Any]) -> str:
    """The whole text for one run; ``result`` is its ``result.json``."""
    parts = [
        *_how_far(result),
        "Accuracy before and after: the probability that a response at temperature 1 is right, computed exactly;",
        "+- is the standard error over prompts, paired prompt by prompt.",
        _accuracy_table(result),
        *_verdict(result),
        "",
        "What it cost",
        _spent_table(result["spent"]),
        _time_and_memory(result),
    ]
    if result["tracker"] is not None:
        parts += ["", *_tracker_lines(result["tracker"])]
    return "\n".join([*parts, "", *_places(result), "", *_next(result)])


def steps_done(result: Mapping[str, Any]) -> int:
    """Steps before the accuracies called ``after``; a run that came to its end has all of them."""
    return int(result.get("steps_done", result["settings"]["steps"]))


def offline_trajectories(result: Mapping[str, Any]) -> int:
    """Trajectories that the offline values took; 0 without."""
    return int(result["spent"].get("offline values", {}).get("trajectories", 0))


def _how_far(result: Mapping[str, Any]) -> list[str]:
    """What a run that is not finished has done."""
    settings, warm, done = result["settings"], result["warm_start"], steps_done(result)
    if done == settings["steps"]:
        return []
    lines = [f"This run is not finished: {done} of {settings['steps']} steps."]
    if not done:
        lines.append(
            f"  warm start: {warm['steps']} steps, accuracy {warm['accuracy']:.3f} of its problems (target "
            f"{settings['warm_start']['target']})"
        )
        if result["offline_prompts"]:
            lines.append(f"  offline values: {result['offline_prompts']} of {settings['train_prompts']} prompts")
    return [*lines, ""]


def _accuracy_table(result: Mapping[str, Any]) -> str:
    sets = (result["held_out"], result["train"])
    names = [f"{name} ({found['prompts']})" for name, found in zip(("held out", "training set"), sets, strict=True)]
    shown = ("before", "after", "change") if steps_done(result) else ("before",)
    keys = ("before", "after", "standard_error")

    def row(name: str, *numbers: Sequence[float]) -> list[str]:
        cells = [(f"{before:.3f}", f"{after:.3f}", plus_minus(after - before, se)) for before, after, se in numbers]
        return [name, *(cell for three in cells for cell in three[: len(shown)])]

    return table(
        ["level", *(f"{name if column == 'before' else ''}\n{column}" for name in names for column in shown)],
        [
            row(name, *([found[f"{key}_by_level"][index] for key in keys] for found in sets))
            for index, (name, _) in enumerate(LEVELS)
        ],
        [row("all, uniformly", *([found[key] for key in keys] for found in sets))],
    )


def _verdict(result: Mapping[str, Any]) -> list[str]:
    if not steps_done(result):
        return []
    held_out = result["held_out"]
    change, error = held_out["change"], held_out["standard_error"]
    times = abs(change) / error if error else float("inf")
    word, clear = "better" if change > 0 else "worse", "beyond" if times > 3 else "not beyond"
    seed = result["settings"]["seed"]
    lines = [
        f"Held-out prompts: {word} by {abs(change):.3f}, {times:.1f} standard errors, {clear} the noise of the choice",
        f"of prompts. That is seed {seed} alone; another seed gives another policy, --compare puts both together.",
    ]
    if sampled := result["sampled"]:
        shown = sampled if len(sampled) < 3 else (sampled[0], sampled[-1])
        values = ", ".join(f"{one['accuracy']:.3f} after step {one['step']}" for one in shown)
        error = sampled[-1]["standard_error"]
        lines.append(f"verl's own validation, one sampled response per prompt: {values} (standard error {error:.3f}).")
    return lines


def _spent_table(spent: Mapping[str, Any]) -> str:
    keys = ("trajectories", "response_tokens", "prompt_tokens")

    def row(name: str) -> list[str]:
        return [name, *(f"{spent[name][key]:,}" for key in keys)]

    names = ["", *(key.replace("_", " ") for key in keys)]
    return table(names, [row(name) for name in spent if name != "total"], [row("total")])


def _time_and_memory(result: Mapping[str, Any]) -> str:
    seconds = {name: result["seconds"][name] for name in ("warm_start", "training")}
    steps = f"warm start {seconds['warm_start']:.0f} s, "
    steps += ("offline values and " if result["offline_prompts"] else "") + f"training {seconds['training']:.0f} s"
    return (
        f"{sum(seconds.values()) / 60:.1f} minutes ({steps}); memory at most {result['peak_bytes'] / 2**30:.1f} GiB.\n"
        "Validation is not counted in the table."
    )


def _tracker_lines(tracker: Mapping[str, Any]) -> list[str]:
    found = tracker["tracker"]
    lines = [
        f"The tracker against the true success rates of the final policy ({found['prompts']} training prompts):",
        f"  mean absolute error {found['mean_absolute_error']:.3f} (the best constant: {found['constant_error']:.3f}), "
        f"mean difference {found['mean_difference']:+.3f}, correlation {found['correlation']:.2f}",
    ]
    if "offline" in tracker:
        offline = tracker["offline"]
        lines.append(
            f"  offline values against the initial policy, {offline['prompts']} prompts: mean absolute error "
            f"{offline['mean_absolute_error']:.3f}, correlation {offline['correlation']:.2f}"
        )
    rows = [
        [
            f"{LEVELS[prompt['level'] - 1][0]}: {prompt['question']}",
            f"{prompt['successes']:.0f} of {prompt['trials']}" if prompt["trials"] else "-",
            f"{prompt['before']:.3f}",
            str(prompt["visits"]),
            f"{prompt['value']:.3f}",
            f"{prompt['after']:.3f}",
        ]
        for prompt in panel(tracker["prompts"])
    ]
    columns = (
        "one prompt per level",
        "right answers\noffline",
        "true rate\nbefore",
        "visits",
        "tracker",
        "true rate\nafter",
    )
    return [*lines, table(columns, rows)]


def panel(prompts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first prompt of each level, so that nothing is picked."""
    first: dict[int, Mapping[str, Any]] = {}
    for prompt in prompts:
        first.setdefault(prompt["level"], prompt)
    return [first[level] for level in sorted(first)]


def _places(result: Mapping[str, Any]) -> list[str]:
    folder = result["folder"]
    lines = [
        f"Where it lies: {folder}",
        "  summary.png         the figures of this text",
        "  result.json         everything above as numbers, every prompt's rates included",
        "  checkpoints/        verl's; actor/huggingface is the model, spo/ the tracker",
        "  attempts/           each launch of verl: command.txt, train.log, metrics.jsonl",
    ]
    if "offline values" in result["spent"]:
        lines.append("  values.parquet      offline values: spo-verl values show values.parquet")
    return lines


def _next(result: Mapping[str, Any]) -> list[str]:
    settings = result["settings"]
    if steps_done(result) < settings["steps"]:
        return [
            "How to continue",
            "  the same call again                         continues from there",
            "  ... --time-limit 3600                       the same with an hour instead of 15 minutes",
        ]
    other = "grpo" if settings["estimator"] == "spo" else "spo"
    ideas = {
        f"./quickstart.sh --seed {settings['seed'] + 1}": "is it luck?",
        f"./quickstart.sh --estimator {other}": "the other estimator, with as many trajectories per step",
        "./quickstart.sh --no-offline-values": "what offline values are worth",
        "./quickstart.sh spo.sampling.mode=uniform": "any setting of SPO or verl",
        "./quickstart.sh --compare": "all finished runs in one table and one plot",
        "docs/howto-your-recipe.md": "three lines in a recipe of your own",
    }
    return ["What to try next", *(f"  {command:<44}{what}" for command, what in ideas.items())]
