"""The exceptions of :mod:`spo_verl.agent`, children of :class:`spo_verl.errors.SpoError`."""

from __future__ import annotations

from spo_verl.errors import SpoError


class SpoInterpreterError(SpoError, ConnectionError):
    """A program could not be run: the interpreter's backend failed, not the program.

    It ends the rollout, which verl counts as failed; a program's own error is text for the model instead.
    """


class SpoAgentError(SpoError, RuntimeError):
    """A rollout cannot continue: what the agent loop was given does not fit what it can do."""
