"""Metadata is in pyproject.toml; here is what it cannot say: the recipes of the checkout go into the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path(__file__).resolve().parent / "recipes"


class BuildWithRecipes(build_py):
    """Also puts ``recipes/`` into the built package as ``spo_verl/recipes``; an editable install reads the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "spo_verl" / "recipes"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(RECIPES, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))


setup(cmdclass={"build_py": BuildWithRecipes})
