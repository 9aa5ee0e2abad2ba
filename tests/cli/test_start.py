"""The command itself: quick to start, complete, and registered."""

import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import spo_verl
from tests.cli.helpers import run

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "verl", "vllm", "ray", "hydra", "omegaconf", "pydantic", "numpy", "pyarrow", "datasets", "rich")
VERBS = ("doctor", "config", "plan", "settings", "quickstart", "values", "data", "evaluate", "rehearse", "recipes")

DATA = ("data list", "data prepare", "data check", "data overlap")
RECIPES = ("recipes ls", "recipes show", "recipes cp")


def test_the_help_lists_every_verb_and_imports_nothing_heavy():
    code = (
        "import sys; from spo_verl.cli import main\n"
        "try: main()\n"
        f"finally: print('imported:', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "imported: []" in done.stderr
    assert "Usage: spo-verl" in done.stdout
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "spo_verl.cli", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == spo_verl.__version__


def test_the_console_script_leads_to_main():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["spo-verl"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))
    names = {requirement.partition(">")[0] for requirement in project["dependencies"]}
    assert {"typer", "rich"} <= names


@pytest.mark.parametrize(
    "verb", [*VERBS, "values import", "values merge", "values show", "values estimate", *DATA, *RECIPES]
)
def test_every_verb_has_help(verb):
    result = run(*verb.split(), "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout or verb in ("values", "data", "recipes", "quickstart")


def test_without_a_verb_the_help_is_shown():
    assert "doctor" in run().output
