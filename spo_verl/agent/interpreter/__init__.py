"""Where programs run: one small interface, two backends.

``await interpreter.run(code)`` gives a :class:`ProgramResult` whatever the program did, and raises
:class:`~spo_verl.agent.agent_errors.SpoInterpreterError` when the backend could not run it at all.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass
from typing import Literal, Protocol

from spo_verl.agent.config import EmbeddedConfig, SandboxFusionConfig

Outcome = Literal["finished", "failed", "timeout", "output_limit", "killed"]


@dataclass(frozen=True)
class ProgramResult:
    """The result of one program.

    Attributes:
        stdout: what it printed.
        stderr: what it wrote to stderr, the traceback of an uncaught exception included.
        outcome: ``finished`` (exit code 0), ``failed`` (another exit code), ``timeout`` (wall or CPU time),
            ``output_limit`` (stopped because it wrote too much), ``killed`` (by a signal).
        seconds: time from its start to its end.
        note: a sentence for the model where stderr does not say what happened; empty otherwise.
        status: exit code, negative for the number of a signal; ``None`` where the backend does not tell.
    """

    stdout: str
    stderr: str
    outcome: Outcome
    seconds: float
    note: str = ""
    status: int | None = None


class Interpreter(Protocol):
    """A backend. It belongs to the event loop that it is used in."""

    async def run(self, code: str) -> ProgramResult:
        """Run one program in a fresh interpreter.

        Raises:
            SpoInterpreterError: the backend failed after all attempts; nothing is known about the program.
        """
        ...

    async def close(self) -> None:
        """Stop what is running and free what the backend holds."""
        ...


def create(config: EmbeddedConfig | SandboxFusionConfig) -> Interpreter:
    """A new backend of these settings."""
    if isinstance(config, EmbeddedConfig):
        from spo_verl.agent.interpreter.embedded import EmbeddedInterpreter

        return EmbeddedInterpreter(config)
    from spo_verl.agent.interpreter.sandbox_fusion import SandboxFusion

    return SandboxFusion(config)


_shared: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[EmbeddedConfig | SandboxFusionConfig, Interpreter]
] = weakref.WeakKeyDictionary()


def shared(config: EmbeddedConfig | SandboxFusionConfig) -> Interpreter:
    """The backend of these settings for the running event loop, made at the first call.

    verl makes an agent loop per rollout; limits on what runs at the same time hold for all of them together.
    """
    backends = _shared.setdefault(asyncio.get_running_loop(), {})
    if config not in backends:
        backends[config] = create(config)
    return backends[config]
