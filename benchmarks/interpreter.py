"""Programs per second of the embedded interpreter, with packages imported beforehand and without, side by side.

    python benchmarks/interpreter.py

Three programs: one that prints, one that uses sympy, one that computes for 50 ms. Each is run a number of times with
so many at a time; the last column is a fresh ``python`` per program, without any containment, for comparison. All
columns of a row are measured after each other on the same machine; other work on it moves them together.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from spo_verl.agent.config import EmbeddedConfig
from spo_verl.agent.interpreter.embedded import EmbeddedInterpreter

PROGRAMS = {
    "print(1)": "print(1)",
    "sympy": "import sympy\nx = sympy.symbols('x')\nprint(sympy.expand((x + 1) ** 5))",
    "50 ms": "import time\nend = time.process_time() + 0.05\nwhile time.process_time() < end: pass\nprint(1)",
}
CONCURRENCIES = (1, 2, 4, 8)


async def contained(packages: tuple[str, ...], program: str, concurrency: int, count: int) -> float:
    """Programs per second, after a first one."""
    interpreter = EmbeddedInterpreter(EmbeddedConfig(packages=packages, max_running=concurrency, wall_seconds=120.0))
    try:
        await interpreter.run(program)
        begin = time.perf_counter()
        results = await asyncio.gather(*(interpreter.run(program) for _ in range(count)))
        seconds = time.perf_counter() - begin
    finally:
        await interpreter.close()
    failed = [result for result in results if result.outcome != "finished"]
    if failed:
        raise SystemExit(f"{len(failed)} of {count} programs failed, the first with {failed[0]}")
    return count / seconds


async def plain(program: str, concurrency: int, count: int) -> float:
    """Programs per second of ``python -c``."""
    places = asyncio.Semaphore(concurrency)

    async def one() -> None:
        async with places:
            command = (sys.executable, "-I", "-c", program)
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            await process.communicate()

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - begin)


async def measure(count: int) -> None:
    print(f"{'program':<10} {'at a time':>9} {'packages imported':>18} {'none imported':>14} {'python -c':>10}")
    for name, program in PROGRAMS.items():
        for concurrency in CONCURRENCIES:
            # A program that imports sympy by itself takes a second; a tenth of the runs shows as much.
            few = max(8, count // 10)
            ready = await contained(("numpy", "sympy"), program, concurrency, count)
            bare = await contained((), program, concurrency, few if name == "sympy" else count)
            fresh = await plain(program, concurrency, few)
            print(f"{name:<10} {concurrency:>9} {ready:>16.0f}/s {bare:>12.1f}/s {fresh:>8.1f}/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="programs per figure (default: %(default)s)")
    asyncio.run(measure(parser.parse_args().count))


if __name__ == "__main__":
    main()
