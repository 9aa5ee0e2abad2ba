"""Figures 4 and 5 of the paper (arXiv 2509.13232, section 5.4): how long a group waits for its slowest rollout.

    python benchmarks/group_waiting.py

The paper simulates interaction times and names neither their distribution nor a seed. It prints seconds of one draw.
First table: what these seconds say. Second table: expected seconds under the distributions of ``stragglers.py``, whose
free parameters are set to the two times of figure 5; figure 4b, one group of eight, is then a prediction. ``idle`` is
the share of a group's rollout time that is spent waiting: 1 - mean time / time of the slowest. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

if __package__:
    from benchmarks import stragglers
else:  # run as a file
    import stragglers

PRINTED_LOW_VARIANCE = (133.0, 116.0, 112.0, 114.0, 112.0, 95.0, 94.0, 62.0)
"""The seconds in figure 4a."""


def idle(seconds: Sequence[float]) -> float:
    """Share of a group's rollout time that is waiting for the slowest, in [0, 1)."""
    return 1 - float(np.mean(seconds)) / max(seconds)


def printed() -> list[tuple[str, str]]:
    """What the paper's own seconds say."""
    low, high = PRINTED_LOW_VARIANCE, stragglers.PRINTED_SAMPLES
    groups = sorted(stragglers.PRINTED_GROUPS)[stragglers.PAPER_BATCH // stragglers.PAPER_SIZE - 1]
    return [
        ("4a, group of 8, low variance", f"complete after {max(low):.0f} s, idle {idle(low):.0%}"),
        ("4b, group of 8, long tail", f"complete after {max(high):.0f} s, idle {idle(high):.0%}"),
        ("5a, third of six groups of 8", f"{groups:.0f} s"),
        ("5b, 24th of 48 single streams", f"{stragglers.PAPER_STREAM:.0f} s (only this number is printed)"),
        ("5c, ratio", f"{groups / stragglers.PAPER_STREAM:.2f} (printed: {stragglers.PAPER_RATIO})"),
    ]


def expected(family: stragglers.Durations) -> dict[str, float]:
    """Expected seconds of figures 4b, 5a and 5b, their ratio 5c, and the idle share of 4b."""
    size, batch, started = stragglers.PAPER_SIZE, stragglers.PAPER_BATCH, stragglers.PAPER_STARTED
    group = stragglers.expected_time(family, 1, 1, size)
    of_groups = stragglers.expected_time(family, batch // size, started // size, size)
    of_streams = stragglers.expected_time(family, batch, started)
    return {
        "4b": group,
        "idle": 1 - family.mean() / group,
        "5a": of_groups,
        "5b": of_streams,
        "5c": of_groups / of_streams,
    }


def main() -> None:
    """Print both tables."""
    print("The paper's own seconds")
    for what, value in printed():
        print(f"  {what:<30}  {value}")
    print("\nExpected, with distributions of our choice")
    print(f"  {'':<22}{'4b: group of 8':>16}{'idle':>8}{'5a: groups':>12}{'5b: streams':>13}{'5c: ratio':>11}")
    for name, family in stragglers.paper_families().items():
        row = expected(family)
        seconds = f"{row['5a']:>10.0f} s{row['5b']:>11.0f} s{row['5c']:>11.2f}"
        print(f"  {name:<22}{row['4b']:>14.0f} s{row['idle']:>8.0%}{seconds}")


if __name__ == "__main__":
    main()
