"""Programs that mean no harm find what they would find under ``python program.py``."""

import asyncio
import json

import pytest

from spo_verl.agent.agent_errors import SpoInterpreterError
from spo_verl.agent.config import EmbeddedConfig
from spo_verl.agent.interpreter.embedded import EmbeddedInterpreter
from tests.agent.interpreter import corpus

pytestmark = pytest.mark.long


def contained(programs, packages=("numpy", "sympy")):
    """name -> what the embedded interpreter says."""

    async def all_of_them():
        interpreter = EmbeddedInterpreter(EmbeddedConfig(packages=packages, max_running=3))
        try:
            await interpreter.start()
            return await asyncio.gather(*(interpreter.run(code) for code in programs.values()))
        finally:
            await interpreter.close()

    try:
        results = asyncio.run(all_of_them())
    except SpoInterpreterError as error:
        if "does not hold programs to" not in str(error):
            raise
        pytest.skip(f"this machine cannot contain programs: {error}")
    for result in results:
        assert (result.outcome == "finished") == (result.status == 0), result
    said = (corpus.comparable(result.status, result.stdout, result.stderr) for result in results)
    return dict(zip(programs, said, strict=True))


def differences(said, expected):
    return {name: (said[name], expected[name]) for name in expected if said[name] != expected[name]}


@pytest.mark.parametrize("group", corpus.LIBRARY)
def test_the_standard_library(group):
    programs = corpus.programs_of(group)
    assert differences(contained(programs), corpus.all_plain(programs)) == {}


@pytest.mark.parametrize("group", corpus.PACKAGES)
def test_packages(group):
    programs = corpus.programs_of(group)
    expected = {name: corpus.Said(*said) for name, said in json.loads(corpus.EXPECTED.read_text())[group].items()}
    assert list(expected) == list(programs), "run python -m tests.agent.interpreter.corpus"
    packages = ("numpy", "sympy", "pandas") if group == "pandas" else ("numpy", "sympy")
    assert differences(contained(programs, packages), expected) == {}


@pytest.mark.slow
@pytest.mark.parametrize("group", corpus.PACKAGES)
def test_what_is_recorded_is_what_python_says(group):
    said = corpus.all_plain(corpus.programs_of(group))
    expected = json.loads(corpus.EXPECTED.read_text())[group]
    assert differences(said, {name: corpus.Said(*values) for name, values in expected.items()}) == {}


def test_there_are_enough():
    assert sum(len(corpus.programs_of(group)) for group in (*corpus.LIBRARY, *corpus.PACKAGES)) >= 300
