"""Recipes in folders of any name: what the launcher passes on, and that hydra reads the folder back."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from spo_verl.launching.launch import hydra_value
from spo_verl.launching.recipes import Recipe, find_recipe
from tests.recipes.helpers import ROOT

NAMES = ["run=1", "a#b", "(2)", "a,b", "it's", "a&b;c|d", "[x]", "$HOME", "${b}", "\\\\${b}", "{x}", "a:b", " sp ",
         "mü 数据", "back\\slash", "end\\", 'say "x"', "*?", "~`!", "%41", "a\nb", "null", "1e3", "-dash"]  # fmt: skip
PARSER = OverridesParser.create()


def read_back(text):
    """As hydra reads an override and OmegaConf resolves it, by itself, in a list and inside of another value."""
    value = PARSER.parse_override(f"k={hydra_value(text)}").value()
    [listed] = PARSER.parse_override(f"k={hydra_value([text])}").value()
    config = OmegaConf.create({"k": value, "l": [listed], "m": "${k}/x"})
    return config.k, config.l[0], config.m


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("a\\'\"${}[]()=#,:&~!*? \t\nü1.e@/"), max_size=12))
def test_any_text_is_read_back(text):
    assert read_back(text) == (text, text, f"{text}/x")


@pytest.mark.parametrize("text", [*NAMES, "true", "NULL", "nan", "-inf", "1_000", "1.5", ".5", "0x1f", "a.b", "."])
def test_names_are_read_back(text):
    assert read_back(text) == (text, text, f"{text}/x")


@pytest.mark.parametrize("name", ["run=1", "a#b", "(2), [x]", "it's ${b}", "end\\", "mü:数据"])
def test_a_recipe_composes_in_a_folder_of_any_name(name, tmp_path, monkeypatch):
    shutil.copytree(ROOT, tmp_path / name / "recipes")
    monkeypatch.setenv("SPO_RECIPES_DIR", str(tmp_path / name / "recipes"))
    composed = find_recipe("ablations/token_measure").compose()
    assert composed.problems == []
    assert composed.config.recipes_dir == str(tmp_path / name / "recipes")
    assert composed.config.spo.advantage.measure == "token"


def test_the_command_names_the_folder_twice_in_quotes():
    recipe = Recipe(Path("/it's/a=b"), "x/y")
    assert recipe.command(["k=1"], "python") == [
        "python", "-m", "verl.trainer.main_ppo", "--config-dir", "/it's/a=b/x", "--config-name", "y",
        "hydra.searchpath=['file:///it\\'s/a=b']", "++recipes_dir='/it\\'s/a=b'", "k=1",
    ]  # fmt: skip


STAND_IN = """#!/bin/sh
for argument in "$@"; do printf '%s\\0' "$argument"; done
"""


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "path") for name in NAMES),
        *((name, way) for name in ("a b", "it's=$1", "-dash") for way in ("link", "folder link", "relative", "CDPATH")),
    ],
)
def test_the_script_passes_its_folder_and_arguments_on(name, way, tmp_path):
    recipes = tmp_path / name / "recipes"
    (recipes / "mine").mkdir(parents=True)
    (recipes / "mine" / "one.yaml").write_text("defaults: []\n")
    script = Path(shutil.copy(ROOT / "run.sh", recipes / "run.sh"))
    called, expected, cwd = script, recipes, Path("/")
    if way == "link":
        (tmp_path / "bin").mkdir()
        called = tmp_path / "bin" / "start"
        called.symlink_to(script)
    elif way == "folder link":
        (tmp_path / "other").symlink_to(recipes)
        called, expected = tmp_path / "other" / "run.sh", tmp_path / "other"
    elif way in ("relative", "CDPATH"):
        called, cwd = Path("recipes") / "run.sh", recipes.parent
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), **({"CDPATH": str(tmp_path)} if way == "CDPATH" else {})}
    done = subprocess.run(["bash", called, "mine/one", "a='b c'", ""], env=environment, cwd=cwd, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = [os.fsdecode(part) for part in done.stdout.split(b"\0")[:-1]]
    assert found == ["-m", "spo_verl.launching.run_recipe", str(expected), "mine/one", "a='b c'", ""]


def test_what_the_script_runs_becomes_verls_command(tmp_path):
    """The module itself, with verl's trainer replaced by a module that prints its arguments."""
    package = tmp_path / "verl" / "trainer"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "main_ppo.py").write_text("import sys\nprint(sys.argv[1:])\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT.parent}", "VERL_PLATFORM": ""}
    root = tmp_path / "a=b"
    (root / "x").mkdir(parents=True)
    command = [sys.executable, "-m", "spo_verl.launching.run_recipe", str(root), "x/y", "k=1"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"error: there is no file {root}/x/y.yaml: check the path\n"
    (root / "x" / "y.yaml").write_text("")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == str(Recipe(root, "x/y").command(["k=1"], "")[3:]), done.stderr
