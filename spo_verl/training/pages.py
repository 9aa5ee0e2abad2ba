"""Reference pages written from the code: docs/metrics.md and docs/seams.md.

``python -m spo_verl.training.pages metrics > docs/metrics.md``; a test compares both pages with this output.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from spo_verl.agent.seams import SEAMS as AGENT_SEAMS
from spo_verl.seam import Seam
from spo_verl.training.metrics import METRICS, PREFIX
from spo_verl.training.seams import SEAMS as TRAINING_SEAMS

SECTIONS: dict[str, tuple[str, str]] = {
    "reward/mean": ("The batch", "Of the step's rollouts."),
    "rho/mean": ("Forgetting", "Of the step's prompts."),
    "evidence/observed_total": ("Evidence", ""),
    "evidence/failed_total": ("Rollouts that were not trained on, or later", "In the asynchronous modes only."),
    "value/mean": ("The whole tracker", "All prompts of the dataset, after the step."),
    "source/<name>/drawn_share": ("Data sources", "With [quotas](data-sources.md) only; `<name>` is the data source."),
    "seconds_total/draw": ("Seconds of the step", ""),
}
"""First metric of each section -> heading of the section and the sentence below it."""

_METRICS = f"""# Metrics under `{PREFIX}`

Logged once per training step. A metric with nothing to report is absent. Where a step has several updates, their values
are combined by the key: `max`, `min`, `total` (sum), others the mean weighted by samples.
Written by `python -m spo_verl.training.pages metrics`.
"""

_SEAMS = """# Names of verl that the plugin builds on

An SPO run, and `spo-verl doctor`, check those of the trainer with their signatures. What a CPU needs:
[patches](../patches/README.md). Written by `python -m spo_verl.training.pages seams`.

*Overridden*: a method that SPO's classes replace and call; *wrapped*: extended in place; *read*: called as it is.
"""


def metrics_page() -> str:
    """The page ``docs/metrics.md``."""
    lines = [_METRICS]
    for key, meaning in METRICS.items():
        if key in SECTIONS:
            heading, sentence = SECTIONS[key]
            lines += [f"## {heading}\n", *([f"{sentence}\n"] if sentence else []), "| key | meaning |", "|---|---|"]
        lines.append(f"| `{PREFIX}{key}` | {_cell(meaning)} |")
    return _spaced(lines)


def seams_page() -> str:
    """The page ``docs/seams.md``."""
    lines = [_SEAMS]
    for room, seams in (("Trainer", TRAINING_SEAMS), ("Agent loop and reward", AGENT_SEAMS)):
        lines += [f"## {room}\n", "| module | overridden | wrapped | read |", "|---|---|---|---|", *_rows(seams)]
    return _spaced(lines)


def _rows(seams: Iterable[Seam]) -> Iterator[str]:
    seams = tuple(seams)
    for module in dict.fromkeys(seam.module for seam in seams):
        cells = (
            ", ".join(f"`{seam.name}`" for seam in seams if (seam.module, seam.use) == (module, use))
            for use in ("override", "wrap", "read")
        )
        yield f"| `{module}` | {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _spaced(lines: Iterable[str]) -> str:
    """The lines as a page, with an empty line before each heading."""
    return "\n".join(lines).replace("|\n## ", "|\n\n## ") + "\n"


PAGES = {"metrics": metrics_page, "seams": seams_page}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print a reference page, for docs/PAGE.md.")
    parser.add_argument("page", choices=PAGES)
    print(PAGES[parser.parse_args().page](), end="")
