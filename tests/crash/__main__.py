"""``python -m tests.crash --cases 2000 --seed 0 [--ledger FILE]``: exit status 1 where something was wrong."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.crash import plan
from tests.crash.campaign import campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ledger", type=Path, help="a line per case is added; cases that are there are left out")
    parser.add_argument("--only", type=int, help="the number of the only run")
    parser.add_argument("--kept", type=Path, help="folder to which a run with a problem is copied")
    parser.add_argument("--no-mount", action="store_true", help="as where a process may not mount")
    given = parser.parse_args()
    if given.kept is not None:
        given.kept.mkdir(parents=True, exist_ok=True)
    begin, ends, wrong = time.monotonic(), Counter[str](), 0
    found = campaign(
        given.seed, given.cases, ledger=given.ledger, only=given.only, mounts=not given.no_mount, kept=given.kept
    )
    for cases in found:
        for case in cases:
            ends[case.end] += 1
            if case.problems:
                wrong += 1
                print(
                    f"run {case.run} case {case.case} ({case.kind}; at {case.hit}): {case.problems}\n    "
                    f"{plan.run(given.seed, case.run)[0]}\n"
                    f"    repeat: python -m tests.crash --seed {given.seed} --only {case.run} --kept FOLDER",
                    flush=True,
                )
    ended = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    print(f"{ends.total()} cases in {time.monotonic() - begin:.0f} s ({ended}); {wrong} with a problem")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
