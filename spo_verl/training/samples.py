"""Histograms and a table of samples in W&B, TensorBoard, MLflow and trackio, every ``spo.samples_every`` steps.

verl's loggers write scalars. What is here goes into the same runs, as verl's table of validation samples does; the
other loggers (console, file, ...) get nothing of it. Suffixes: S sessions of the batch, P all prompts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

SAMPLES = 8
TEXT = 4000
"""Characters of a prompt or response that are shown; of a longer one the beginning and the end."""
BINS = 50
COLUMNS = ("row", "prompt", "response", "reward", "value", "advantage")
TABLE, HISTOGRAM = "spo/samples", "spo/histogram/"


@dataclass(frozen=True)
class StepSamples:
    """What is logged of a step.

    Attributes:
        histograms: name -> numbers, none of them empty.
        rows: one per sample, as ``COLUMNS`` says: row of the dataset, texts, reward and value in [0, 1], and the
            normalised advantage.
    """

    histograms: dict[str, np.ndarray]
    rows: list[tuple[int, str, str, float, float, float]]


def chosen_sessions(raw_S: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """At most ``count`` sessions whose raw advantages range evenly from the lowest to the highest, int64."""
    order = np.argsort(raw_S, kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)
    chosen: np.ndarray = order[places]
    return chosen


def shortened(text: str) -> str:
    """The text, or its beginning and its end where it is longer than ``TEXT`` characters."""
    if len(text) <= TEXT:
        return text
    return f"{text[: TEXT // 2]}\n[... {len(text) - TEXT} characters ...]\n{text[-(TEXT // 2) :]}"


def step_samples(
    *,
    raw_S: np.ndarray,
    advantage_S: np.ndarray,
    reward_S: np.ndarray,
    value_S: np.ndarray,
    row_S: np.ndarray,
    evidence: tuple[np.ndarray, np.ndarray],
    rho_B: np.ndarray,
    texts: Callable[[np.ndarray], Sequence[tuple[str, str]]],
) -> StepSamples:
    """Put together what is logged of a step.

    Args:
        raw_S, advantage_S: raw and normalised advantage of each session.
        reward_S, value_S: its reward and its baseline's value, in [0, 1].
        row_S: row of the dataset that its prompt is in.
        evidence: alpha and beta of every prompt, after the step; the histogram is that of their own values.
        rho_B: retentions that the step applied.
        texts: sessions of the batch -> prompt and response of each.
    """
    alpha_P, beta_P = evidence
    histograms = {
        "value": alpha_P / (alpha_P + beta_P),
        "n_eff": alpha_P + beta_P,
        "raw_advantage": raw_S,
        "retention": rho_B,
    }
    chosen = chosen_sessions(raw_S)
    rows = [
        (
            int(row_S[session]),
            shortened(prompt),
            shortened(response),
            float(reward_S[session]),
            float(value_S[session]),
            float(advantage_S[session]),
        )
        for session, (prompt, response) in zip(chosen, texts(chosen), strict=True)
    ]
    return StepSamples({name: numbers for name, numbers in histograms.items() if len(numbers)}, rows)


def _to_wandb(wandb: Any, samples: StepSamples, step: int) -> None:
    pictures = {
        HISTOGRAM + name: wandb.Histogram(np_histogram=np.histogram(numbers, BINS))
        for name, numbers in samples.histograms.items()
    }
    table = wandb.Table(columns=list(COLUMNS), data=[list(row) for row in samples.rows])
    wandb.log({**pictures, TABLE: table}, step=step)


def _to_trackio(adapter: Any, samples: StepSamples, step: int) -> None:
    _to_wandb(adapter.trackio, samples, step)  # the same interface


def _to_tensorboard(adapter: Any, samples: StepSamples, step: int) -> None:
    for name, numbers in samples.histograms.items():
        adapter.writer.add_histogram(HISTOGRAM + name, numbers, step, bins=BINS)
    adapter.writer.add_text(TABLE, as_markdown(samples.rows), step)


def _to_mlflow(adapter: Any, samples: StepSamples, step: int) -> None:
    import mlflow

    columns = {name: [row[column] for row in samples.rows] for column, name in enumerate(COLUMNS)}
    mlflow.log_table(columns, f"{TABLE}/step_{step}.json")
    counted = {name: np.histogram(numbers, BINS) for name, numbers in samples.histograms.items()}
    histograms = {
        name: {"counts": counts.tolist(), "edges": edges.tolist()} for name, (counts, edges) in counted.items()
    }
    mlflow.log_dict(histograms, f"{HISTOGRAM}step_{step}.json")


def as_markdown(rows: Sequence[tuple[int, str, str, float, float, float]]) -> str:
    """The samples as Markdown; texts are shown as they are, whatever marks they contain."""
    parts = []
    for row, prompt, response, reward, value, advantage in rows:
        parts.append(f"**row {row}: reward {reward:g}, value {value:.3f}, advantage {advantage:+.3f}**")
        parts += [_fenced(prompt), _fenced(response)]
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


BACKENDS: dict[str, Callable[[Any, StepSamples, int], None]] = {
    "wandb": _to_wandb,
    "tensorboard": _to_tensorboard,
    "mlflow": _to_mlflow,
    "trackio": _to_trackio,
}
"""verl's name of each logger that can show them -> how it is given them."""


class SampleLog:
    """Hands a step's histograms and samples to the loggers that can show them."""

    def __init__(self, every: int | None) -> None:
        """
        Args:
            every: steps between two tables; None: never.
        """
        self._every = every
        self._last: int | None = None
        self._failed: set[str] = set()

    def due(self, loggers: Mapping[str, Any], step: int) -> bool:
        """Whether something is to be shown of this step; once, also where the step has several updates."""
        return (
            self._every is not None
            and step % self._every == 0
            and step != self._last
            and any(name in loggers and name not in self._failed for name in BACKENDS)
        )

    def show(self, loggers: Mapping[str, Any], samples: StepSamples, step: int) -> None:
        """Give it to every logger that can show it.

        A logger that raises is left out from then on, with a warning: a server that does not answer must not end a run.
        """
        self._last = step
        for name, show in BACKENDS.items():
            if name in loggers and name not in self._failed:
                try:
                    show(loggers[name], samples, step)
                except Exception:  # noqa: BLE001 - whatever a backend raises; logged with its cause
                    self._failed.add(name)
                    logger.warning(
                        "spo: %s took no histograms and samples, and gets none from now on; scalars are not affected. "
                        "Set spo.samples_every=null to silence this.",
                        name,
                        exc_info=True,
                    )
