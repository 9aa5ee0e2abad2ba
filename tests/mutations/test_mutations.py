import re
import subprocess
import sys

import pytest

from .__main__ import ROOT, inapplicable
from .catalogue import MUTATIONS, TESTS_OF_FILE, Mutation

pytestmark = pytest.mark.long

THREE = """
import sys
from tests.mutations import __main__ as runner
from tests.mutations.catalogue import Mutation

runner.MUTATIONS = (
    Mutation("no mistake", "forgetting.py", "np.exp2(-divergence / half_life)", "2.0 ** (-divergence / half_life)"),
    Mutation("cannot run", "forgetting.py", "np.exp2(", "np.exp3("),
    Mutation("a mistake", "forgetting.py", "np.exp2(", "np.exp("),
)
sys.exit(runner.main([]))
"""


def run_python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=1100, check=False
    )


def test_every_mutation_is_caught():
    run = run_python("-m", "tests.mutations")
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(MUTATIONS)} of {len(MUTATIONS)} mutations caught" in run.stdout
    assert len(re.findall(r" caught .* test_\w+\.py::", run.stdout)) == len(MUTATIONS)


def test_a_survivor_and_a_crash_are_told_from_a_caught_mistake():
    run = run_python("-c", THREE)
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(r"no mistake +SURVIVED", run.stdout)
    assert re.search(r"cannot run +BROKEN .*exp3", run.stdout)
    assert re.search(r"a mistake +caught ", run.stdout)
    assert "1 of 3 mutations caught" in run.stdout


def test_the_catalogue_covers_the_maths():
    assert len(MUTATIONS) >= 20
    assert len({(mutation.file, mutation.name) for mutation in MUTATIONS}) == len(MUTATIONS)
    assert {mutation.file for mutation in MUTATIONS} == TESTS_OF_FILE.keys()
    code = {path.name for path in (ROOT / "spo_verl" / "core").glob("*.py")} - {"__init__.py"}
    assert TESTS_OF_FILE.keys() == code


def test_every_mutation_still_applies():
    assert inapplicable(list(MUTATIONS)) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("no such text", "", "occurs 0 times"),
        ("import", "", r"occurs \d+ times"),
        ("np.exp2(", "np.exp2(", "changes nothing"),
    ],
)
def test_a_mutation_that_no_longer_applies_is_a_problem(old, new, problem):
    (line,) = inapplicable([Mutation("stale", "forgetting.py", old, new)])
    assert re.search(problem, line)
