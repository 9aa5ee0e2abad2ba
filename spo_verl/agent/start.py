"""What can be known of a run's agent loops before its first rollout.

A loop is built again for every rollout, so what it refuses would come up in each of them, in the workers, after
minutes of starting. This looks at the file of agent loops where the run begins.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from spo_verl.agent.config import EmbeddedConfig, parse
from spo_verl.agent.interpreter.embedded import EmbeddedInterpreter

LOOP = "spo_verl.agent.loop.CodeInterpreterLoop"


def require_working_loops(file: str | Path) -> None:
    """Check each code interpreter loop that a file of agent loops names; other loops are left alone.

    An embedded interpreter is started and tries its own limits on this machine; workers elsewhere are taken to be
    alike.

    Args:
        file: as in ``actor_rollout_ref.rollout.agent.agent_loop_config_path``.

    Raises:
        SpoConfigError: settings are wrong; lists all problems.
        SpoInterpreterError: a limit does not hold on this machine, or the interpreter does not start.
    """
    entries: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    for entry in entries:
        if entry.get("_target_") != LOOP:
            continue
        settings = parse({key: value for key, value in entry.items() if key not in ("name", "_target_")})
        if isinstance(settings.interpreter, EmbeddedConfig):
            # In a thread: the caller may have an event loop that runs.
            with ThreadPoolExecutor(max_workers=1) as pool:
                pool.submit(asyncio.run, _start_and_close(settings.interpreter)).result()


async def _start_and_close(config: EmbeddedConfig) -> None:
    interpreter = EmbeddedInterpreter(config)
    try:
        await interpreter.start()
    finally:
        await interpreter.close()
