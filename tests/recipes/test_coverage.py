"""docs/coverage.md has every recipe, with cells that mean something; other tests hold what it says of all of them."""

import re

import pytest

from tests.docs.pages import DOCS, table_rows
from tests.recipes.helpers import RECIPES, values

pytestmark = pytest.mark.long

COLUMNS = ("recipe", "mode", "rehearsed with dp")


def test_every_recipe_has_its_row():
    rows = table_rows((DOCS / "coverage.md").read_text(), *COLUMNS)
    assert [recipe for recipe, *_ in rows] == list(RECIPES)
    for recipe, mode, rehearsed in rows:
        assert mode == values(recipe)["trainer.v1.trainer_mode"]
        assert rehearsed == "not run" or re.fullmatch(r"\d+ s, \d+\.\d GiB", rehearsed), recipe


def test_the_recipe_of_the_default_rehearsal_is_rehearsed():
    rows = table_rows((DOCS / "coverage.md").read_text(), *COLUMNS)
    assert next(row[2] for row in rows if row[0] == "gsm8k_qwen3_0_6b/spo") != "not run"
