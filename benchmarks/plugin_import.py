"""What the plugin adds to `import verl`, which every worker process of verl pays once.

    python benchmarks/plugin_import.py [--repeats 7]

Runs fresh interpreters alternately with and without the plugin and prints the medians and their difference.
"""

import argparse
import os
import statistics
import subprocess
import sys

CODE = (
    "import time, resource; t = time.perf_counter(); import verl; t = time.perf_counter() - t;"
    "print(t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
)


def measure(plugins: str) -> tuple[float, float]:
    env = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": plugins}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE], env=env, capture_output=True, text=True, check=True
    ).stdout
    seconds, mebibytes = map(float, out.split())
    return seconds, mebibytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    measure("none")  # warm the file cache
    pairs = [(measure("none"), measure("auto")) for _ in range(repeats)]
    without, with_plugin = (
        [statistics.median(sample[side][what] for sample in pairs) for what in (0, 1)] for side in (0, 1)
    )
    added = statistics.median(b[0] - a[0] for a, b in pairs)
    print(f"import verl without plugins: {without[0]:.3f} s, {without[1]:.0f} MiB")
    print(f"import verl with spo_verl:   {with_plugin[0]:.3f} s, {with_plugin[1]:.0f} MiB")
    print(f"ratio {with_plugin[0] / without[0]:.3f}; median of the paired differences {1000 * added:+.0f} ms")


if __name__ == "__main__":
    main()
