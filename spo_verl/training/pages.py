"""Reference files written from the code: docs/metrics.md, docs/seams.md and docs/grafana.json.

``python -m spo_verl.training.pages metrics > docs/metrics.md``; a test compares each file with this output.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from spo_verl.agent.seams import SEAMS as AGENT_SEAMS
from spo_verl.seam import Seam
from spo_verl.training.dashboard import dashboard
from spo_verl.training.early_warnings import WARNINGS
from spo_verl.training.health import HEALTH
from spo_verl.training.metrics import METRICS, PREFIX
from spo_verl.training.seams import SEAMS as TRAINING_SEAMS

SECTIONS: dict[str, tuple[str, str]] = {
    "reward/mean": ("The batch", "Of the step's rollouts."),
    "rho/mean": ("Forgetting", "Of the step's prompts."),
    "evidence/observed_total": ("Evidence", ""),
    "evidence/failed_total": ("Rollouts that were not trained on, or later", "In the asynchronous modes only."),
    "value/mean": ("The whole tracker", "All prompts of the dataset, after the step."),
    "source/<name>/drawn_share": (
        "Data sources",
        "With [quotas](data-sources.md) only. `<name>` is the data source, with `_` for what Prometheus refuses, and\n"
        "with a hash where names are then alike.",
    ),
    "seconds_total/draw": ("Seconds of the step", ""),
}
"""First metric of each section -> heading of the section and the sentence below it."""

_METRICS = f"""# Metrics under `{PREFIX}`

Logged once per training step; a metric with nothing to report is absent. Several updates of a step are combined by the
key: `max`, `min`, `total` (sum), others the mean weighted by samples.
Written by `python -m spo_verl.training.pages metrics`.
"""

_HEADER = ["| key | meaning | healthy | otherwise |", "|---|---|---|---|"]

_WARNINGS = """## Early warnings

The log says each of these once, as `spo: early warning, NAME. What was seen. What to do.`

| name | when | because | what to do |
|---|---|---|---|
"""

_ELSEWHERE = """
## Histograms and samples

Every `spo.samples_every` steps (10; `null`: never), by `trainer.logger`:

- `wandb`, `trackio`: `spo/histogram/*`, table `spo/samples`
- `tensorboard`: `spo/histogram/*`, text `spo/samples`
- `mlflow`: artifacts `spo/histogram/step_<n>.json` (counts and edges), tables `spo/samples/step_<n>.json`

Histograms: values and effective sample sizes of all prompts, raw advantages and retentions of the step. Samples: eight,
from the lowest to the highest raw advantage. A logger that raises an error is left out, with a warning.

## Grafana

`trainer.logger=[console,rl_insight]` gives every number to Prometheus (package `rl-insight` 0.3).
[grafana.json](grafana.json) has a panel for every metric above, with its healthy range.

## Texts that verl writes

- `trainer.rollout_data_dir=<folder>`: `<step>.jsonl` with every rollout that was trained on.
- `trainer.validation_data_dir=<folder>`: those of each validation. `scripts/rollout_viewer.py <folder>`, in verl's
  repository, not its wheel, shows these files in a terminal (`textual==0.52.1`).
- `trainer.log_val_generations=10` (default 0): ten validation samples, always of the same prompts, in the logger.
"""

_SEAMS = """# Names of verl that the plugin builds on

An SPO run, and `spo-verl doctor`, check those of the trainer with their signatures. What a CPU needs:
[patches](../patches/README.md). Written by `python -m spo_verl.training.pages seams`.

*Overridden*: SPO's classes replace and call it; *wrapped*: extended in place; *read*: called as it is.
"""


def metrics_page() -> str:
    """The page ``docs/metrics.md``."""
    lines = [_METRICS]
    for key, meaning in METRICS.items():
        if key in SECTIONS:
            heading, sentence = SECTIONS[key]
            lines += [f"## {heading}\n", *([f"{sentence}\n"] if sentence else []), *_HEADER]
        lines.append(f"| `{PREFIX}{key}` | {' | '.join(map(_cell, (meaning, *HEALTH[key])))} |")
    lines.append(_WARNINGS.rstrip())
    lines += [
        f"| {' | '.join(map(_cell, (warning.name, warning.condition, warning.reason, warning.fix)))} |"
        for warning in WARNINGS
    ]
    lines.append(_ELSEWHERE.rstrip())
    return _spaced(lines)


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
            for word, use in (("overridden", "override"), ("wrapped", "wrap"), ("read", "read"))
        }
        yield f"- `{module}`: {'; '.join(f'{word} ' + ', '.join(names) for word, names in used.items() if names)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _spaced(lines: Iterable[str]) -> str:
    """The lines as a page, with an empty line before each heading."""
    return "\n".join(lines).replace("|\n## ", "|\n\n## ") + "\n"


PAGES = {"metrics": metrics_page, "seams": seams_page, "dashboard": dashboard}
FILES = {"metrics": "metrics.md", "seams": "seams.md", "dashboard": "grafana.json"}
"""Where each belongs, in ``docs/``."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", choices=PAGES)
    print(PAGES[parser.parse_args().page](), end="")
