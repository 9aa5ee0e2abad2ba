"""docs/coverage.md has every recipe, with cells that mean something; other tests hold what it says of all of them."""

import re

import pytest

from tests.docs.pages import DOCS, table_rows
from tests.recipes.helpers import RECIPES

pytestmark = pytest.mark.long

COLUMNS = ("recipe", "rehearsed with dp: s, GiB")


def test_every_recipe_has_its_row():
    rows = table_rows((DOCS / "coverage.md").read_text(), *COLUMNS)
    assert [recipe for recipe, *_ in rows] == list(RECIPES)
    for recipe, rehearsed in rows:
        assert rehearsed == "not run" or re.fullmatch(r"\d+, \d+\.\d", rehearsed), recipe


def test_the_recipe_of_the_default_rehearsal_is_rehearsed():
    rows = table_rows((DOCS / "coverage.md").read_text(), *COLUMNS)
    assert next(row[1] for row in rows if row[0] == "gsm8k_qwen3_0_6b/spo") != "not run"
