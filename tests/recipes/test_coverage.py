"""docs/coverage.md is what its command writes; other tests hold what it says of all recipes."""

import json
import os
import re

import pytest

from benchmarks import coverage
from tests.docs.pages import DOCS, table_rows
from tests.recipes.helpers import RECIPES

pytestmark = pytest.mark.long

PAGE = (DOCS / "coverage.md").read_text()
COLUMNS = ("recipe", "rehearsed with dp: s, GiB")


def test_the_page_has_a_row_for_every_recipe_and_is_what_the_command_writes():
    assert coverage.recipes() == list(RECIPES)
    assert coverage.rewritten(PAGE, coverage.recipes(), {}) == PAGE
    for recipe, rehearsed in table_rows(PAGE, *COLUMNS):
        assert rehearsed == "not run" or re.fullmatch(r"\d+, \d+\.\d", rehearsed), recipe


def test_the_recipe_of_the_default_rehearsal_is_rehearsed():
    assert dict(table_rows(PAGE, *COLUMNS))["gsm8k_qwen3_0_6b/spo"] != "not run"


def test_the_newest_rehearsal_that_passed_fills_its_row_and_leaves_the_others(tmp_path):
    passed = {"passed": True, "recipe": "a/b", "device": "cpu", "engine": "fsdp2", "seconds": 90.4, "peak_gib": 6.04}
    others = [
        {"seconds": 200.0},
        {},
        {"passed": False, "seconds": 1.0},
        {"engine": "megatron", "seconds": 2.0},
        {"device": "gpu", "seconds": 3.0},
    ]
    for age, other in enumerate(others):
        file = tmp_path / str(age) / "rehearsal.json"
        file.parent.mkdir()
        file.write_text(json.dumps(passed | other))
        os.utime(file, (age, age))
    cells = coverage.measured([tmp_path])
    assert cells == {"a/b": "90, 6.0"}
    page = f"before\n\n{coverage.HEADER}| a/b | not run |\n| gone/x | 1, 1.0 |\n| kept/x | 2, 2.0 |\n\nafter\n"
    assert coverage.rewritten(page, ["a/b", "kept/x", "new/x"], cells) == (
        f"before\n\n{coverage.HEADER}| a/b | 90, 6.0 |\n| kept/x | 2, 2.0 |\n| new/x | not run |\n\nafter\n"
    )
