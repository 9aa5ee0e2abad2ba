"""Programs in SandboxFusion: ``POST /run_code`` over HTTP.

The server answers 200 with a ``status``: ``Success``, ``Failed`` (the program's own doing: exit code, time limit), or
``SandboxError`` (the server's). The first two are results; the third, and everything that is no such answer, is tried
again and fails the rollout in the end.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from spo_verl.agent.agent_errors import SpoInterpreterError
from spo_verl.agent.config import SandboxFusionConfig
from spo_verl.agent.interpreter import Outcome, ProgramResult
from spo_verl.agent.interpreter.gate import Gate


class _TryAgainError(Exception):
    """An attempt failed in a way that another may not. ``wait``: what the server asked for, seconds."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


class SandboxFusion:
    """Client of one server, with connections that are kept."""

    def __init__(self, config: SandboxFusionConfig) -> None:
        self.config = config
        self.url = _endpoint(config.url)
        self._gate = Gate(config.max_running, config.max_wait_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def run(self, code: str) -> ProgramResult:
        """See :class:`~spo_verl.agent.interpreter.Interpreter`. A place is held while attempts wait for each other,
        so that a server in trouble gets less, not more."""
        async with self._gate.place():
            problem = ""
            for attempt in range(self.config.attempts):
                try:
                    return await self._attempt(code)
                except _TryAgainError as error:
                    problem = str(error)
                    if attempt + 1 < self.config.attempts:
                        await asyncio.sleep(self._pause(attempt, error.wait))
        raise SpoInterpreterError(
            f"SandboxFusion at {self.url} failed {self.config.attempts} times, at last: {problem}; see that the server "
            "runs and can be reached from this machine, or lower interpreter.max_running"
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _pause(self, attempt: int, asked: float | None) -> float:
        """Seconds before the next attempt: doubling, the random part against many clients in step."""
        longest = self.config.max_backoff_seconds
        own = min(longest, self.config.backoff_seconds * 2.0**attempt) * random.uniform(0.5, 1.0)
        return max(own, min(longest, asked or 0.0))

    async def _attempt(self, code: str) -> ProgramResult:
        if self._session is None:
            # No limit of its own: the gate is the limit.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = {
            "code": code,
            "language": "python",
            "run_timeout": self.config.run_seconds,
            "compile_timeout": self.config.compile_seconds,
            "memory_limit_MB": self.config.memory_mb,
        }
        timeout = aiohttp.ClientTimeout(total=self.config.request_seconds)
        try:
            async with self._session.post(self.url, json=body, timeout=timeout) as response:
                text = await response.text(errors="replace")
                status, retry_after = response.status, response.headers.get("Retry-After")
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise _TryAgainError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if status == 429 or status >= 500:
            raise _TryAgainError(f"HTTP {status}: {text[:200]}", _seconds(retry_after))
        if status != 200:
            raise SpoInterpreterError(
                f"SandboxFusion at {self.url} refused the request with HTTP {status}: {text[:200]}; check "
                "interpreter.url and that the server is SandboxFusion"
            )
        return _result(text)


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    path = parts.path if parts.path not in ("", "/") else "/run_code"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` in its form of seconds; the form of a date is left to the back-off."""
    try:
        seconds = float(retry_after) if retry_after is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None


def _result(text: str) -> ProgramResult:
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise _TryAgainError(f"the answer is no JSON ({error}): {text[:200]!r}") from error
    if not isinstance(answer, Mapping) or answer.get("status") not in ("Success", "Failed", "SandboxError"):
        raise _TryAgainError(f"the answer has no status of SandboxFusion: {text[:200]!r}")
    if answer["status"] == "SandboxError":
        raise _TryAgainError(f"SandboxError: {str(answer.get('message'))[:200]}")
    for part in ("compile_result", "run_result"):
        run = answer.get(part)
        if isinstance(run, Mapping) and (part == "run_result" or run.get("return_code") not in (0, None)):
            return _of_run(run)
    raise _TryAgainError(f"the answer has no run_result: {text[:200]!r}")


def _of_run(run: Mapping[str, Any]) -> ProgramResult:
    code = run.get("return_code")
    outcome: Outcome = "finished"
    note = ""
    if run.get("status") == "TimeLimitExceeded":
        outcome, note = "timeout", "The program ran out of time and was stopped."
    elif code is not None and code != 0:
        outcome = "failed"
        note = "" if run.get("stderr") else f"The program ended with exit code {code}."
    seconds = run.get("execution_time")
    return ProgramResult(
        stdout=str(run.get("stdout") or ""),
        stderr=str(run.get("stderr") or ""),
        outcome=outcome,
        seconds=float(seconds) if isinstance(seconds, (int, float)) else 0.0,
        note=note,
        status=code if isinstance(code, int) else None,
    )
