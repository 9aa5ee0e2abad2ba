"""Which limits the embedded backend holds programs to on this machine.

    python -m spo_verl.agent.interpreter

Prints one JSON object; the exit code is 0 if the backend would start with its default settings.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

from spo_verl.agent.config import LIMITS, EmbeddedConfig
from spo_verl.agent.interpreter.embedded import EmbeddedInterpreter, Enforcement


async def enforcement() -> Enforcement:
    """What holds here, found by trying."""
    interpreter = EmbeddedInterpreter(EmbeddedConfig(packages=(), allow_unenforced=LIMITS))
    try:
        return await interpreter.start()
    finally:
        await interpreter.close()


def main() -> int:
    found = asyncio.run(enforcement())
    print(json.dumps(asdict(found), indent=2))
    return 0 if all(found.limits.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
