"""How much runs at the same time, and how long the rest may wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from spo_verl.agent.agent_errors import SpoInterpreterError


class Gate:
    """Lets ``places`` callers in at a time, first come first served; a longer wait than ``max_wait`` seconds fails."""

    def __init__(self, places: int, max_wait: float) -> None:
        self._semaphore = asyncio.Semaphore(places)
        self._places = places
        self._max_wait = max_wait
        self.waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place.

        Raises:
            SpoInterpreterError: none became free in time.
        """
        self.waiting += 1
        try:
            await asyncio.wait_for(self._semaphore.acquire(), self._max_wait)
        except asyncio.TimeoutError as error:
            raise SpoInterpreterError(
                f"no place for a program within {self._max_wait} s: {self._places} are running and {self.waiting - 1} "
                "others wait; raise interpreter.max_running, give the backend more machines, or raise "
                "interpreter.max_wait_seconds"
            ) from error
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._semaphore.release()
