"""Rows per second of the mathematical reward, answers that need no algebra and answers that do.

    python benchmarks/math_reward.py [--rows 1000] [--characters 20000] [--processes 1 2]

Responses are as long as given, with thinking and a boxed answer at the end. "string" rows have whole numbers as
answers (half of them right) and never leave the process. "algebra" rows have roots in two forms, no two alike, so that
nothing is remembered, and are graded by as many processes and threads as given. CPU time is that of the grading
processes, which other work on the machine does not change much. The start of a grading process is timed apart.
"""

import argparse
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from spo_verl.agent.grading.processes import ComparisonLimits, grader
from spo_verl.agent.math_reward import close_all, compute_score


def response(answer: str, characters: int) -> str:
    thought = "Let me think about it once more. "
    return "<think>" + thought * (characters // len(thought)) + f"</think> The answer is $\\boxed{{{answer}}}$."


def rows_per_second(rows: list[tuple[str, str]], processes: int) -> float:
    def grade(row: tuple[str, str]) -> float:
        return float(compute_score("aime_2024", row[0], row[1], processes=processes)["score"])

    started = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        scores = list(pool.map(grade, rows))
    seconds = time.perf_counter() - started
    if sum(scores) != len(rows) // 2:
        raise SystemExit(f"{sum(scores):.0f} of {len(rows)} rows are right, and half of them should be")
    return len(rows) / seconds


def warm_up(processes: int) -> None:
    one = grader(ComparisonLimits(processes=processes))
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(one.compare, ["2\\sqrt{3}"] * 4 * processes, ["\\sqrt{12}"] * 4 * processes))


def cpu_of_children() -> float:
    """Seconds of user and system time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--characters", type=int, default=20_000, help="of a response")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()

    starts = []
    for _ in range(5):
        started = time.perf_counter()
        grader(ComparisonLimits(processes=1)).compare("1", "x")
        starts.append(time.perf_counter() - started)
        close_all()
    print(f"start of a grading process: {statistics.median(starts):.2f} s (median of {len(starts)})")

    rows = [(response(str(n + n % 2), options.characters), str(n)) for n in range(options.rows)]
    print(f"string:  {rows_per_second(rows, 1):8.0f} rows/s, responses of {options.characters} characters")
    offset = 2
    for processes in options.processes:
        warm_up(processes)
        numbers = range(offset, offset + options.rows)
        offset += options.rows
        pairs = [(f"\\sqrt{{{3 * n * n + n % 2}}}", f"{n}\\sqrt{{3}}") for n in numbers]
        rows = [(response(answer, options.characters), truth) for answer, truth in pairs]
        before = cpu_of_children()
        speed = rows_per_second(rows, processes)
        close_all()
        cpu = 1000 * (cpu_of_children() - before) / len(rows)
        print(f"algebra: {speed:8.0f} rows/s with {processes} process(es), {cpu:.1f} ms of CPU time per row")


if __name__ == "__main__":
    main()
