"""The tables of ``docs/reliability.md`` from the ledgers: ``python -m tests.crash.page`` writes them into the page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.crash.ledger import LaunchCase, ProcessCase, read_launches, read_processes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
PROCESS = Path(__file__).parent / "ledgers" / "process.csv"
REAL = Path(__file__).parent / "ledgers" / "real.jsonl"
BEGIN = "<!-- python -m tests.crash.page -->\n"

MEANING = {
    "kill": "SIGKILL at any moment of training",
    "kill in save": "SIGKILL while the tracker's folder is written or renamed",
    "kill in merge": "SIGKILL while parts of the record are merged",
    "kill at marker": "SIGKILL before, in and after the write of verl's marker",
    "kill at start": "SIGKILL while a resumed process loads, or moves later rows aside",
    "full disk": "a disk with less room than the next save needs",
    "read-only": "the disk becomes read-only while training",
    "read-only start": "a restart on a read-only disk, mostly writable soon after; then SIGKILL",
    "clock jump": "wall clock and times of files jump by 10 s to 3 years, forwards or backwards; then SIGKILL",
    "other ranks": "a restart with another number of ranks; SIGKILL where no checkpoint refuses it",
    "other rollout workers": "a restart with another number of rollouts in flight; then SIGKILL",
}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())


def of_processes(cases: Sequence[ProcessCase]) -> str:
    """By what happened, and where the killed processes were."""
    kinds = defaultdict(list)
    for case in cases:
        kinds[case.kind].append(case)
    rows = [
        (
            meaning,
            len(kinds[kind]),
            counted(case.end for case in kinds[kind]),
            max((case.seconds for case in kinds[kind]), default=0),
            max((case.lost for case in kinds[kind]), default=0),
            sum(bool(case.problems) for case in kinds[kind]),
        )
        for kind, meaning in MEANING.items()
    ]
    total = (
        "together",
        len(cases),
        counted(case.end for case in cases),
        max(case.seconds for case in cases),
        max(case.lost for case in cases),
        sum(bool(case.problems) for case in cases),
    )
    places = Counter(place for case in cases if case.end == "killed" for place in case.hit.split(", "))
    hit = table(["at the kill the process was in", "cases"], places.most_common())
    head = ["what happened", "cases", "the process ended by", "longest wait (s)", "most steps made again", "wrong"]
    return f"{table(head, [*rows, total])}\n{hit}"


def of_launches(cases: Sequence[LaunchCase]) -> str:
    """By mode and victim."""
    if not cases:
        return "The campaign of real launches: not run.\n"
    groups = defaultdict(list)
    for case in cases:
        groups[case.mode, case.victim].append(case)
    rows = [
        (
            mode,
            victim,
            len(found),
            counted(case.outcome.split(":")[0].split("(")[0].rsplit(".", 1)[-1] for case in found),
            max(case.seconds for case in found),
            max(case.lost for case in found),
            sum(bool(case.problems) for case in found),
        )
        for (mode, victim), found in sorted(groups.items())
    ]
    total = ("together", "", len(cases), "", max(one.seconds for one in cases), max(one.lost for one in cases))
    head = ["mode", "killed", "cases", "ended by", "longest until then (s)", "most steps made again", "wrong"]
    return table(head, [*rows, (*total, sum(bool(case.problems) for case in cases))])


def tables() -> str:
    parts = [of_processes(read_processes(PROCESS)), of_launches(read_launches(REAL))]
    return BEGIN + "\n" + "\n".join(parts)


def main() -> None:
    before = PAGE.read_text().split(BEGIN)[0]
    PAGE.write_text(before + tables())


if __name__ == "__main__":
    main()
