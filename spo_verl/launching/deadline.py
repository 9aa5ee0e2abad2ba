"""Ends verl's trainer before the time of its launch is over: after a step, with a checkpoint.

:func:`spo_verl.launching.launch.run_main_ppo` writes the moment into the environment, and the plugin calls
:func:`install` in every process that imports verl's V1 trainer. verl's own loop then does the rest: before it looks
whether the step that has just been trained is to be saved and validated, its frequencies are set to every step, and its
last step to this one. Every trainer of the V1 loop ends so, whatever its estimator.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

STOP_AT = "SPO_STOP_AT"
"""Environment variable: the moment, in seconds of this machine's monotonic clock. Not set: nothing is changed."""

STOPPED = "spo: the time of this launch is nearly over"
"""Begins the line of the log that says which step was the last one."""

SAVE_EVERY_S = 60.0
"""Longest time between checkpoints, in seconds: a launch that is ended loses no more than that."""

_RECENT = 5
_MARGIN = 1.25
"""A further step may take so many times as long as the longest of the recent ones."""


class Deadline:
    """When to stop. ``seconds`` holds how long recent steps, saves and validations took.

    Args:
        stop_at: the moment, by ``clock``, at which the trainer should have saved and validated its last step.
    """

    def __init__(self, stop_at: float, clock: Callable[[], float]) -> None:
        self._stop_at, self._clock = stop_at, clock
        self._saved_at = clock()
        self._frequencies: tuple[int, int] | None = None
        self.seconds = {what: deque[float](maxlen=_RECENT) for what in ("step", "save", "validate")}

    def timed(self, what: str, action: Callable[[], Any]) -> Any:
        """Do it, and note how long it took."""
        began = self._clock()
        done = action()
        self.seconds[what].append(self._clock() - began)
        if what == "save":
            self._saved_at = self._clock()
        return done

    def after_step(self, trainer: Any) -> None:
        """To be called between a step and verl's look at what is due after it."""
        config = trainer.config.trainer
        if self._frequencies is None:
            self._frequencies = int(config.save_freq), int(config.test_freq)
        config.save_freq, config.test_freq = self._frequencies
        if trainer.global_steps >= trainer.total_training_steps:
            return
        left = self._stop_at - self._clock()
        step = self._longest("step")
        save = self._longest("save") or step  # unknown before the first one
        validate = self._longest("validate") if config.test_freq > 0 else 0.0
        if left < _MARGIN * (step + save + validate):
            print(
                f"{STOPPED}, so step {trainer.global_steps} of {trainer.total_training_steps} is its last one",
                file=sys.stderr,
                flush=True,
            )
            trainer.total_training_steps = trainer.global_steps
            config.save_freq = 1
            config.test_freq = 1 if config.test_freq > 0 and left > save + validate else 0
        elif config.save_freq > 0 and self._clock() - self._saved_at > SAVE_EVERY_S:
            config.save_freq = 1

    def _longest(self, what: str) -> float:
        return max(self.seconds[what], default=0.0)


def install(module: ModuleType) -> None:
    """Make the trainers derived from ``module`` (``verl.trainer.ppo.v1.trainer_base``) stop at the deadline."""
    if STOP_AT not in os.environ:
        return
    deadline = Deadline(float(os.environ[STOP_AT]), time.monotonic)

    def timed(what: str) -> Callable[..., Any]:
        def call(wrapped: Any, _trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return deadline.timed(what, lambda: wrapped(*args, **kwargs))

        return call

    def step(wrapped: Any, trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        done = deadline.timed("step", lambda: wrapped(*args, **kwargs))
        deadline.after_step(trainer)
        return done

    wrapt.wrap_function_wrapper(module, "PPOTrainer.step", step)
    wrapt.wrap_function_wrapper(module, "PPOTrainer._save_checkpoint", timed("save"))
    wrapt.wrap_function_wrapper(module, "PPOTrainer._validate", timed("validate"))
