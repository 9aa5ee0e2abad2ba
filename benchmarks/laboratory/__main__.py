"""``python -m benchmarks.laboratory run | summary | readout``; see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.laboratory")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run the cells that the ledger lacks")
    run.add_argument("--plan", default="gpu")
    run.add_argument("--ledger", type=Path, required=True)
    run.add_argument("--seconds", type=float, default=float("inf"))
    run.add_argument("--device", default="cuda")
    run.add_argument("--workers", type=int, default=6)
    run.add_argument("--stack", type=int, default=48, help="most cells in lock step")
    run.add_argument("--threads", type=int, default=1, help="CPU threads of each worker")
    run.add_argument("--warm-steps", type=int, default=6000, help="most steps of the supervised warm start")
    summary = verbs.add_parser("summary", help="tables, plots and Parquet from a ledger")
    summary.add_argument("--ledger", type=Path, required=True)
    summary.add_argument("--output", type=Path, required=True)
    readout = verbs.add_parser("readout", help="other read-outs on the visits that a run saved")
    readout.add_argument("--visits", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.verb == "readout":
        from .readout import compare

        if not given.visits.exists():
            parser.error(f"--visits {given.visits} does not exist; a run saves visits_*.npz next to its ledger")
        print("\n".join(compare(given.visits)))
        return 0
    if given.verb == "run":
        from .plan import PLANS
        from .running import Options
        from .running import run as run_cells

        if given.plan not in PLANS:
            parser.error(f"--plan {given.plan} is none of {', '.join(PLANS)}")
        if given.ledger.is_dir():
            parser.error(f"--ledger {given.ledger} is a folder; a run appends to a file (summary reads stored folders)")
        return run_cells(
            Options(
                given.plan,
                given.ledger,
                given.seconds,
                given.device,
                given.workers,
                given.stack,
                given.threads,
                given.warm_steps,
            )
        )
    from .summary import summarize

    if not given.ledger.exists():
        parser.error(f"--ledger {given.ledger} does not exist; make one with the verb run")
    summarize(given.ledger, given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
