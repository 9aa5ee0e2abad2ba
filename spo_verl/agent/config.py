"""The settings of :class:`~spo_verl.agent.loop.CodeInterpreterLoop`: the keys of its YAML entry, checked at once.

They follow ``_target_`` in the file that ``actor_rollout_ref.rollout.agent.agent_loop_config_path`` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, fields
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from spo_verl.config import describe, no_such_setting, refuse

_WHAT = "the settings of the code interpreter loop"
_CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

Limit = Literal["cpu_time", "memory", "processes", "no_network", "private_files", "no_signals"]
"""What the embedded backend must hold a program to, besides wall time and output, which need nothing of the kernel."""

LIMITS: tuple[Limit, ...] = ("cpu_time", "memory", "processes", "no_network", "private_files", "no_signals")


@dataclass(frozen=True, config=_CLOSED)
class EmbeddedConfig:
    """Programs run on the machine of the agent loop worker, each in a contained process of its own."""

    backend: Literal["embedded"] = "embedded"
    """Selects this backend."""
    packages: tuple[str, ...] = ("numpy", "sympy")
    """Imported once, for all programs."""
    cpu_seconds: Annotated[int, Field(ge=1)] = 10
    """CPU time of a program."""
    wall_seconds: Seconds = 20.0
    """From its start to its end."""
    memory_mb: Count = 1024
    """MiB of address space, besides interpreter and packages."""
    disk_mb: Annotated[int, Field(ge=0)] = 64
    """MiB of its files, in memory; 0: it cannot write."""
    output_bytes: Annotated[int, Field(ge=256)] = 1 << 20
    """A program with more is stopped."""
    max_running: Count = 4
    """Programs at a time, per agent loop worker."""
    max_wait_seconds: Seconds = 600.0
    """Longest wait for a place."""
    attempts: Count = 3
    """Starts of a program while the backend itself fails."""
    allow_unenforced: tuple[Limit, ...] = ()
    """Limits that may be missing."""


@dataclass(frozen=True, config=_CLOSED)
class SandboxFusionConfig:
    """Programs run in SandboxFusion, a server reached over HTTP."""

    url: str
    """``http://host:port``, with a path if it is not ``/run_code``."""
    backend: Literal["sandbox_fusion"] = "sandbox_fusion"
    """Selects this backend."""
    run_seconds: Seconds = 10.0
    """``run_timeout`` of a program."""
    compile_seconds: Seconds = 10.0
    """``compile_timeout``."""
    memory_mb: Annotated[int, Field(ge=-1)] = 1024
    """``memory_limit_MB``; -1: none."""
    request_seconds: Seconds = 60.0
    """Longest wait for an answer, with the server's queue."""
    max_running: Count = 32
    """Requests in flight, per agent loop worker."""
    max_wait_seconds: Seconds = 600.0
    """Longest wait for a place."""
    attempts: Count = 5
    """Requests per program where the answer is missing, 429, 5xx, nonsense or ``SandboxError``."""
    backoff_seconds: Seconds = 0.5
    """Wait before the second attempt, then doubled, jittered."""
    max_backoff_seconds: Seconds = 30.0
    """Longest such wait, also by ``Retry-After``."""


InterpreterConfig = Annotated[EmbeddedConfig | SandboxFusionConfig, Field(discriminator="backend")]


@dataclass(frozen=True, config=_CLOSED)
class LoopConfig:
    """All settings of the loop."""

    style: Literal["tool", "code"] = "tool"
    """``tool`` or ``code``."""
    max_turns: Count = 8
    """Outputs after which a further call ends the rollout; malformed calls count."""
    max_output_tokens: Annotated[int, Field(ge=32)] = 1024
    """Longest output; more is cut."""
    keep: Literal["head", "tail", "both"] = "both"
    """What stays of a cut output: ``head``, ``tail`` or ``both``, half each."""
    reserve_tokens: Count = 64
    """Tokens that an output must leave to the model."""
    tool_name: Annotated[str, Field(min_length=1)] = "code_interpreter"
    """The tool of ``style=tool``; its parameter is ``code``."""
    interpreter: InterpreterConfig = field(default_factory=EmbeddedConfig)
    """Where programs run."""


def parse(section: Mapping[str, Any]) -> LoopConfig:
    """Build the settings from plain mappings.

    Raises:
        SpoConfigError: lists every problem, each with its fix.
    """
    section = dict(section)
    if isinstance(section.get("interpreter"), Mapping):
        section["interpreter"] = {"backend": "embedded", **section["interpreter"]}
    try:
        config: LoopConfig = TypeAdapter(LoopConfig).validate_python(section)
    except ValidationError as error:
        refuse([_describe(dict(item)) for item in error.errors()], _WHAT)
        raise AssertionError from error  # refuse raised
    refuse(list(_relations(config)), _WHAT)
    return config


def _relations(config: LoopConfig) -> Iterator[str]:
    interpreter = config.interpreter
    if isinstance(interpreter, SandboxFusionConfig):
        address = urlsplit(interpreter.url)
        if address.scheme not in ("http", "https") or not address.netloc:
            yield f"interpreter.url={interpreter.url!r} is no address of a server; write it as http://host:8080."
        if interpreter.request_seconds <= interpreter.run_seconds:
            yield (
                f"interpreter.request_seconds={interpreter.request_seconds} is over before a program's own time limit, "
                f"interpreter.run_seconds={interpreter.run_seconds}; set it well above."
            )
        if interpreter.max_backoff_seconds < interpreter.backoff_seconds:
            yield (
                f"interpreter.max_backoff_seconds={interpreter.max_backoff_seconds} is below "
                f"interpreter.backoff_seconds={interpreter.backoff_seconds}; raise it."
            )


def _describe(error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    backend = next((part for part in location if part in ("embedded", "sandbox_fusion")), None)
    key = ".".join(part for part in location if part != backend)
    if error["type"] == "unexpected_keyword_argument":
        classes: dict[str | None, type] = {"embedded": EmbeddedConfig, "sandbox_fusion": SandboxFusionConfig}
        known = [entry.name for entry in fields(classes.get(backend, LoopConfig))]
        return no_such_setting(key, location[-1], known, f"the known keys are {', '.join(known)}.")
    if error["type"] in ("missing", "missing_argument"):
        return f"{key} is missing; set it."
    return describe(key, error)
