"""Run the seeded mistakes: ``python -m tests.mutations [--jobs N] [part of a name ...]``.

The tests are collected once. Each mistake then gets a process of its own, forked from this one, in which the
functions of the mutated file take over the code compiled from the changed text, so that every module that
imported them runs the mistake; then the tests of that file run until the first failure. The unchanged code goes
first: tests that fail anyway would catch everything. No file is written.

Exit status 0: every mistake was caught. 1: some survived, or broke before a test could fail. 2: nothing was
judged, because a mutation no longer applies or the tests fail without one.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

from .catalogue import MUTATIONS, TESTS_OF_FILE, Mutation

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "spo_verl" / "core"
LIMIT_S = 240
"""Seconds until a process is taken to hang, as a mutated loop may; a hang is a mistake that was noticed."""

CRASHES = (NameError, AttributeError, TypeError, ImportError)
"""What a test raises when the mutated text is not a mistake in the maths but code that cannot run."""

CAUGHT, HUNG, SURVIVED, BROKEN = "caught", "caught (hung)", "SURVIVED", "BROKEN"


@dataclass(frozen=True)
class Outcome:
    file: str
    name: str
    verdict: str
    detail: str
    seconds: float


def inapplicable(mutations: list[Mutation]) -> list[str]:
    """One line for each mutation whose text does not occur exactly once, or that changes nothing."""
    problems = []
    for mutation in mutations:
        found = (CORE / mutation.file).read_text().count(mutation.old)
        if found != 1:
            problems.append(f"{mutation.file}: {mutation.name!r}: its text occurs {found} times, not once")
        elif mutation.old == mutation.new:
            problems.append(f"{mutation.file}: {mutation.name!r}: changes nothing")
    return problems


def apply(mutation: Mutation) -> None:
    """Put the mistake into the imported module, in this process only."""
    path = CORE / mutation.file
    module = importlib.import_module(f"spo_verl.core.{path.stem}")
    if Path(str(module.__file__)).resolve() != path:
        raise RuntimeError(f"the tests import {module.__file__} and not {path}")
    mutant = ModuleType(module.__name__)
    sys.modules[mutant.__name__] = mutant  # dataclasses and the like look their module up while it is executed
    exec(compile(path.read_text().replace(mutation.old, mutation.new), str(path), "exec"), mutant.__dict__)
    sys.modules[module.__name__] = module
    if vars(module).keys() != vars(mutant).keys() | {"__file__", "__cached__"}:
        raise RuntimeError("the mutated text defines other names; mutate bodies and values, not definitions")
    for name, changed in vars(mutant).items():
        original = vars(module)[name]
        if getattr(changed, "__module__", None) == module.__name__:
            transplant(original, changed)
        elif isinstance(changed, (int, float, str, tuple)) and not name.startswith("__"):
            setattr(module, name, changed)


def transplant(original: Any, changed: Any) -> None:
    """Let ``original``, and every reference to it, run the code of ``changed``: a function, class or property."""
    if isinstance(original, FunctionType):
        original.__code__ = changed.__code__
        original.__defaults__, original.__kwdefaults__ = changed.__defaults__, changed.__kwdefaults__
    elif isinstance(original, property):
        transplant(original.fget, changed.fget)
    elif isinstance(original, type):
        for name, member in vars(original).items():
            if isinstance(member, (FunctionType, property)):
                transplant(member, vars(changed)[name])


class Run:
    """A pytest plugin that takes the place of the test loop; ``outcomes`` holds what it found."""

    def __init__(self, mutations: list[Mutation], jobs: int) -> None:
        self.mutations, self.jobs = mutations, jobs
        self.baseline: list[Outcome] = []
        self.outcomes: list[Outcome] = []
        self.failed_test, self.crash = "", ""

    def pytest_exception_interact(self, node: pytest.Item, call: pytest.CallInfo[Any]) -> None:
        if not self.failed_test and call.excinfo is not None:
            self.failed_test = node.nodeid.removeprefix("tests/core/")
            self.crash = call.excinfo.exconly() if call.excinfo.errisinstance(CRASHES) else ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:  # a test file could not be imported
            return True
        files = sorted({name for mutation in self.mutations for name in TESTS_OF_FILE[mutation.file]})
        self.baseline = list(self.in_processes((file, "unchanged", None, items_of(session, (file,))) for file in files))
        if all(outcome.verdict == SURVIVED for outcome in self.baseline):
            self.outcomes = list(
                self.in_processes(
                    (mutation.file, mutation.name, mutation, items_of(session, TESTS_OF_FILE[mutation.file]))
                    for mutation in self.mutations
                )
            )
        return True

    def in_processes(self, tasks: Iterator[tuple[str, str, Mutation | None, list[pytest.Item]]]) -> Iterator[Outcome]:
        """The outcome of each task, at most ``jobs`` of them at a time, in the order in which they end."""
        running: dict[Connection, tuple[BaseProcess, Callable[[str, str], Outcome]]] = {}
        for file, name, mutation, items in tasks:
            while len(running) >= self.jobs:
                yield from collect(running)
            receiver, sender = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.get_context("fork").Process(
                target=self.run_until_failure, args=(mutation, items, sender)
            )
            started = time.monotonic()
            process.start()
            sender.close()

            def outcome(
                verdict: str, detail: str, file: str = file, name: str = name, started: float = started
            ) -> Outcome:
                return Outcome(file, name, verdict, detail, time.monotonic() - started)

            running[receiver] = process, outcome
        while running:
            yield from collect(running)

    def run_until_failure(self, mutation: Mutation | None, items: list[pytest.Item], answer: Connection) -> None:
        """In a process of its own: send the name of the first test that fails ("" if none) and its crash."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_S)
        if mutation is not None:
            apply(mutation)
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed_test:
                break
        answer.send((self.failed_test, self.crash))
        answer.close()


def collect(running: dict[Connection, tuple[BaseProcess, Callable[[str, str], Outcome]]]) -> Iterator[Outcome]:
    """Wait for at least one process; what it sent or how it died gives its outcome."""
    ready = wait(list(running))
    for receiver in [receiver for receiver in running if receiver in ready]:
        process, outcome = running.pop(receiver)
        try:
            failed_test, crash = receiver.recv()
        except EOFError:  # it ended without an answer
            failed_test, crash = None, ""
        process.join()
        receiver.close()
        if crash:
            yield outcome(BROKEN, f"{failed_test}: {crash.splitlines()[0]}")
        elif failed_test is not None:
            yield outcome(CAUGHT if failed_test else SURVIVED, failed_test)
        elif process.exitcode == -signal.SIGALRM:
            yield outcome(HUNG, f"stopped after {LIMIT_S} s")
        else:
            yield outcome(BROKEN, f"its process ended with status {process.exitcode} before a test could fail")


def items_of(session: pytest.Session, test_files: tuple[str, ...]) -> list[pytest.Item]:
    """The collected tests of these files, file by file."""
    return [item for name in test_files for item in session.items if item.path.name == name]


def print_table(outcomes: list[Outcome]) -> None:
    for row in sorted(outcomes, key=lambda row: (row.file, row.name)):
        print(f"{row.file:24} {row.name:48} {row.verdict:14} {row.seconds:5.1f} s  {row.detail}")


def run(mutations: list[Mutation], jobs: int) -> Run:
    """Collect the tests of the mutated files and run them against each mutation."""
    # Only the verdict counts: few examples, and no search for the smallest one.
    settings.register_profile(
        "mutations", max_examples=25, phases=(Phase.explicit, Phase.generate), database=None, print_blob=False
    )
    settings.load_profile("mutations")
    torch.set_num_threads(1)  # no pool of threads may exist before a fork
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other installed plugins have no say here
    plugins = ["no:terminal", "no:cacheprovider", "_hypothesis_pytestplugin"]
    test_files = sorted({name for mutation in mutations for name in TESTS_OF_FILE[mutation.file]})
    judge = Run(mutations, jobs)
    pytest.main(
        [f"--rootdir={ROOT}", "-o", "addopts=", "--noconftest"]
        + [f"-p{plugin}" for plugin in plugins]
        + [str(ROOT / "tests" / "core" / name) for name in test_files],
        plugins=[judge],
    )
    return judge


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description="Run the seeded mistakes.")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes at a time")
    parser.add_argument("names", nargs="*", help="only mutations whose file and name contain one of these")
    chosen = parser.parse_args(arguments)
    mutations = [m for m in MUTATIONS if not chosen.names or any(n in f"{m.file} {m.name}" for n in chosen.names)]
    problems = inapplicable(mutations) or ([] if mutations else ["no mutation has such a name"])
    if problems:
        print("\n".join(problems))
        return 2
    judge = run(mutations, chosen.jobs)
    if not judge.outcomes:
        print("Without any mutation the tests fail or cannot be collected; see `python -m pytest tests/core`.")
        print_table(judge.baseline)
        return 2
    print_table(judge.outcomes)
    caught = sum(outcome.verdict in (CAUGHT, HUNG) for outcome in judge.outcomes)
    print(f"{caught} of {len(mutations)} mutations caught")
    return 0 if caught == len(mutations) else 1


if __name__ == "__main__":
    sys.exit(main())
