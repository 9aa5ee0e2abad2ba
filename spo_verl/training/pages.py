"""Reference files written from the code: docs/metrics.md, docs/seams.md and docs/grafana.json.

``python -m spo_verl.training.pages metrics > docs/metrics.md``; a test compares each file with this output.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from spo_verl.agent.seams import SEAMS as AGENT_SEAMS
from spo_verl.seam import Seam
from spo_verl.training.dashboard import dashboard
from spo_verl.training.early_warnings import FEW, WARNINGS
from spo_verl.training.health import HEALTH
from spo_verl.training.metrics import METRICS, PREFIX
from spo_verl.training.seams import SEAMS as TRAINING_SEAMS

SECTIONS: dict[str, tuple[str, str]] = {
    "reward/mean": ("The batch", "Of the step's rollouts."),
    "rho/mean": ("Forgetting", "Of the step's prompts."),
    "evidence/observed_total": ("Evidence", ""),
    "evidence/failed_total": ("Rollouts that were not trained on, or later", "In asynchronous modes."),
    "value/mean": ("The whole tracker", "All prompts, after the step."),
    "source/<name>/drawn_share": (
        "Data sources",
        "With [quotas](data-sources.md). `<name>`: the source, with `_` for what Prometheus refuses, and a hash\n"
        "where names are then alike.",
    ),
    "seconds_total/draw": ("Seconds of the step", ""),
}
"""First metric of each section -> heading of the section and the sentence below it."""

_METRICS = f"""# Metrics under `{PREFIX}`

Logged per step, if there is something to report. **Bold** is healthy; then what to do otherwise. The key
says how several updates of a step are combined: `max`, `min`, `total` (sum), else the mean weighted by samples.
"""

_WARNINGS = f"""
## Early warnings

Of {FEW} steps or more, each logged once (`spo: early warning`), with what to do:
"""

_ELSEWHERE = """
## Histograms and samples

Every `spo.samples_every` steps to `wandb`, `trackio`, `tensorboard` and, as artifacts, `mlflow`: `spo/histogram/*` and
`spo/samples`, eight rollouts by raw advantage. A logger that raises is left out, with a warning.

## Grafana

`trainer.logger=[console,rl_insight]` gives all to Prometheus (package `rl-insight` 0.3), for
[grafana.json](grafana.json).

## Texts that verl writes

- `trainer.rollout_data_dir=<folder>`: trained rollouts, as `<step>.jsonl`
- `trainer.validation_data_dir=<folder>`: those of each validation. `scripts/rollout_viewer.py <folder>` in verl's
  repository (not its wheel) shows them, with `textual==0.52.1`
- `trainer.log_val_generations=10` (default 0): ten validation samples, of the same prompts, in the logger
"""

_SEAMS = """# Names of verl that the plugin builds on

An SPO run and `spo-verl doctor` check the trainer's, with signatures. For a CPU:
[patches](../patches/README.md). Written by `python -m spo_verl.training.pages seams`.

*Overridden*: SPO's classes replace and call it; *wrapped*: extended in place; others: called as they are.
"""


def metrics_page() -> str:
    """The page ``docs/metrics.md``."""
    lines = [_METRICS.rstrip()]
    for key, meaning in METRICS.items():
        if key in SECTIONS:
            heading, sentence = SECTIONS[key]
            lines += [f"\n## {heading}\n", *([f"{sentence}\n"] if sentence else [])]
        healthy, otherwise = HEALTH[key]
        lines.append(f"- `{PREFIX}{key}`: {meaning} **{healthy}** {otherwise}".rstrip())
    lines += [_WARNINGS, *(f"- **{warning.name}**: {warning.condition}" for warning in WARNINGS), _ELSEWHERE]
    return "\n".join(lines)


def seams_page() -> str:
    """The page ``docs/seams.md``."""
    lines = [_SEAMS]
    for room, seams in (("Trainer", TRAINING_SEAMS), ("Agent loop and reward", AGENT_SEAMS)):
        lines += [f"## {room}\n", *_entries(seams), ""]
    return "\n".join(lines)


def _entries(seams: Iterable[Seam]) -> Iterator[str]:
    """One line of a list per module: its names by their use."""
    seams = tuple(seams)
    for module in dict.fromkeys(seam.module for seam in seams):
        used = {
            word: [f"`{seam.name}`" for seam in seams if (seam.module, seam.use) == (module, use)]
            for word, use in (("", "read"), ("overridden ", "override"), ("wrapped ", "wrap"))
        }
        yield f"- `{module}`: {'; '.join(word + ', '.join(names) for word, names in used.items() if names)}"


PAGES = {"metrics": metrics_page, "seams": seams_page, "dashboard": dashboard}
FILES = {"metrics": "metrics.md", "seams": "seams.md", "dashboard": "grafana.json"}
"""Where each belongs, in ``docs/``."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", choices=PAGES)
    print(PAGES[parser.parse_args().page](), end="")
