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
    "kill in save": "SIGKILL while the tracker is written or renamed",
    "kill in merge": "SIGKILL in a merge of the record",
    "kill at marker": "SIGKILL before, in, after the write of the marker",
    "kill at start": "SIGKILL while a resume loads or moves later rows aside",
    "full disk": "disk too full for the next save",
    "read-only": "disk becomes read-only",
    "read-only start": "start on a read-only disk, mostly writable soon; SIGKILL",
    "clock jump": "clock and file times jump by 10 s to 3 years, either way; SIGKILL",
    "other ranks": "other number of ranks; SIGKILL where not refused",
    "other rollout workers": "other number of rollouts in flight; SIGKILL",
}

HEAD = ["what happened", "ended by", "longest wait (s)"]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())


def total(cases: Sequence[ProcessCase | LaunchCase], wrong: Sequence[str]) -> str:
    """How many cases, how many steps they lost, and which were wrong."""
    listed = f" ({'; '.join(wrong)})" if wrong else ""
    lost = max(case.lost for case in cases)
    return f"{len(cases)} cases, {len(wrong)} wrong{listed}; steps made again: at most {lost}.\n"


def of_processes(cases: Sequence[ProcessCase]) -> str:
    """By what happened, and where the killed processes were."""
    kinds = defaultdict(list)
    for case in cases:
        kinds[case.kind].append(case)
    rows = [
        (meaning, counted(case.end for case in found), max((case.seconds for case in found), default=0))
        for meaning, found in ((meaning, kinds[kind]) for kind, meaning in MEANING.items())
    ]
    places = counted(place for case in cases if case.end == "killed" for place in case.hit.split(", "))
    wrong = [f"run {case.run}: {case.problems}" for case in cases if case.problems]
    return f"{total(cases, wrong)}At the kill: {places}.\n\n{table(HEAD, rows)}"


def of_launches(cases: Sequence[LaunchCase]) -> str:
    """By mode and victim, with the seeds."""
    if not cases:
        return "The campaign of real launches: not run.\n"
    groups = defaultdict(list)
    for case in cases:
        groups[case.mode, case.victim].append(case)
    rows = [
        (
            f"{mode}, {victim}",
            counted(case.outcome.split(":")[0].split("(")[0].rsplit(".", 1)[-1] for case in found),
            max(case.seconds for case in found),
            seeds(found),
        )
        for (mode, victim), found in sorted(groups.items())
    ]
    wrong = [f"{case.mode} {case.seed}:{case.case}, {'; '.join(case.problems)}" for case in cases if case.problems]
    return f"{total(cases, wrong)}\n{table(['killed', *HEAD[1:], 'seed:cases'], rows)}"


def seeds(cases: Iterable[LaunchCase]) -> str:
    """Each seed with its cases: ``1001:2,3 2000:1``."""
    found = defaultdict(list)
    for case in cases:
        found[case.seed].append(case.case)
    return " ".join(f"{seed}:{','.join(map(str, sorted(numbers)))}" for seed, numbers in sorted(found.items()))


def tables() -> str:
    parts = [of_processes(read_processes(PROCESS)), of_launches(read_launches(REAL))]
    return BEGIN + "\n" + "\n".join(parts)


def main() -> None:
    before = PAGE.read_text().split(BEGIN)[0]
    PAGE.write_text(before + tables())


if __name__ == "__main__":
    main()
