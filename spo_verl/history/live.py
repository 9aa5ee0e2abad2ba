"""A run as it is now: from its tracker service where that answers, and from its record."""

from __future__ import annotations

import time
from typing import Any

from spo_verl.errors import SpoError
from spo_verl.history.observing import Observer
from spo_verl.history.places import configuration
from spo_verl.history.running import Running, ray_token, state_of
from spo_verl.history.states import from_record
from spo_verl.history.steps import latest_metrics, per_step
from spo_verl.history.summaries import value_histogram
from spo_verl.record.schema import ENDINGS

FIRST_ANSWER_SECONDS = 20.0
HISTOGRAM_BINS = 20
TAIL = 60
"""Steps that a frame shows."""
NUMBERS = ("prompts", "coverage", "value_mean", "n_eff_mean", "effective_prompts", "open", "stored_responses", "drawn")
_PREFIX = "spo/tracker/"
_STEP_COLUMNS = ("step", "rollouts", "outcomes", "reward", "value", "error", "rho", "divergence", "near_zero", "tokens",
                 *ENDINGS)  # fmt: skip


class Watched:
    """One run, looked at again and again; a context manager. Nothing of the run is changed.

    Args:
        running: the run.
        service: ask the tracker service too.
    """

    def __init__(self, running: Running, *, service: bool = True) -> None:
        self.running = running
        self._observer: Observer | None = None
        self._waited = False
        self._why_not = "not asked for" if not service else ""
        self._seen: tuple[Any, dict[str, Any]] | None = None
        if service and self._is_over():
            self._why_not = "the run is not under way"
        elif service and not (running.address and running.name):
            self._why_not = "the record does not name its Ray cluster"
        elif service:
            assert running.address is not None
            self._observer = Observer(running.address, running.name, running.namespace, ray_token(running))

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        if self._observer is not None:
            self._observer.close()

    def wait_for_service(self) -> None:
        """Until the service has answered, or cannot be asked."""
        if self._observer is not None:
            self._observer.wait(FIRST_ANSWER_SECONDS)
            self._waited = True

    def frame(self) -> dict[str, Any]:
        """The run as it is now, as plain data.

        | name | what |
        |---|---|
        | ``run``, ``experiment``, ``mode`` | which run |
        | ``state`` | running, ended, crashed, or unknown: on another machine |
        | ``source``, ``service_error`` | ``service`` or ``record`` has the numbers over prompts; why not the service |
        | ``step``, ``total_steps`` | the last that is over; of how many (None: not known) |
        | ``idle_seconds`` | since the record last grew |
        | ``prompts``, ``value_histogram`` | numbers over all prompts (``NUMBERS``, None where unknown) |
        | ``steps`` | columns of :func:`spo_verl.history.steps.per_step` as lists, the last ``TAIL`` steps |
        | ``timing``, ``throughput`` | part of a step -> seconds; tokens per second and device |

        Raises:
            SpoRecordError: the record cannot be read.
        """
        recorded = self._recorded()
        latest, error = (
            (None, self._why_not) if self._observer is None else (self._observer.latest, self._observer.error)
        )
        silent = f"no answer within {FIRST_ANSWER_SECONDS:.0f} s" if self._waited and latest is None else None
        frame = {"run": self.running.label, **recorded, "source": "record", "service_error": error or silent}
        if latest is not None and error is None:
            frame["source"] = "service"
            frame["prompts"] = {name: latest["metrics"].get(name) for name in NUMBERS}
            frame["value_histogram"] = latest["value_histogram"]
            if self.running.record is None:
                frame["state"] = "running"
        elif self.running.record is None and error:
            frame["state"] = "ended"
        return frame

    def _is_over(self) -> bool:
        return self.running.record is not None and state_of(self.running.record.run) in ("ended", "crashed")

    def _recorded(self) -> dict[str, Any]:
        """What the record says; read again only where its files have changed."""
        record = self.running.record
        if record is None:
            unknown = ("experiment", "mode", "step", "total_steps", "idle_seconds", "throughput", "value_histogram")
            empty: dict[str, Any] = {"prompts": dict.fromkeys(NUMBERS), "steps": {}, "timing": {}, "state": "unknown"}
            return empty | dict.fromkeys(unknown)
        run = record.run
        files = {path.name: path.stat().st_mtime for path in record.path.glob("*.parquet") if path.exists()}
        if self._seen is None or self._seen[0] != files:
            self._seen = files, _numbers_of(self.running)
        config = configuration(record)
        return {
            "experiment": config.get("trainer.experiment_name"),
            "mode": config.get("trainer.v1.trainer_mode"),
            "total_steps": config.get("trainer.total_training_steps"),
            "state": state_of(run),
            "idle_seconds": max(0.0, time.time() - max(files.values())) if files else None,
            **self._seen[1],
        }


def _numbers_of(running: Running) -> dict[str, Any]:
    record = running.record
    assert record is not None
    table, metrics = per_step(record), latest_metrics(record)
    step_B = table["step"]
    try:
        bins: list[int] | None = value_histogram(from_record(record).value_P, HISTOGRAM_BINS)
    except SpoError:  # the prompts are not written yet
        bins = None
    return {
        "step": int(step_B[-1]) if len(step_B) else 0,
        "prompts": {name: metrics.get(f"{_PREFIX}{name}") for name in NUMBERS},
        "value_histogram": bins,
        "steps": {name: table[name][-TAIL:].tolist() for name in _STEP_COLUMNS},
        "timing": {
            name.removeprefix("timing_s/"): value for name, value in metrics.items() if name.startswith("timing_s/")
        },
        "throughput": metrics.get("perf/throughput"),
    }
