"""What a call that launches verl may use, and what ends it."""

from __future__ import annotations

from dataclasses import dataclass


class RunError(Exception):
    """A run could not continue; the message says why, and where to look."""


class OutOfTime(RunError):
    """The time of this call is over. Nothing is wrong: results so far are kept and shown; the same call continues."""


@dataclass(frozen=True)
class Limits:
    """What a call may use; no part of what a run is."""

    seconds: float = 900.0
    silence_s: float = 300.0
    memory_gib: float = 10.0

    def problems(self) -> list[str]:
        """Each limit that is not above 0, by the name of its option."""
        options = {"--time-limit": self.seconds, "--silence-limit": self.silence_s, "--memory-limit": self.memory_gib}
        return [f"{name} must be above 0: {value}" for name, value in options.items() if not value > 0]
