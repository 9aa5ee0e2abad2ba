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
COLUMNS = ("recipe", *coverage.COLUMNS)


def test_the_page_has_a_row_for_every_recipe_and_is_what_the_command_writes():
    assert coverage.recipes() == list(RECIPES)
    assert coverage.rewritten(PAGE, coverage.recipes(), {}) == PAGE
    for recipe, *cells in table_rows(PAGE, *COLUMNS):
        for cell in cells:
            assert cell == "not run" or re.fullmatch(r"\d+, \d+\.\d", cell), recipe


def test_the_recipe_of_the_default_rehearsal_is_rehearsed():
    [dp] = [cells[1] for cells in table_rows(PAGE, *COLUMNS) if cells[0] == "gsm8k_qwen3_0_6b/spo"]
    assert dp != "not run"


def test_the_newest_rehearsal_that_passed_fills_its_row_and_leaves_the_others(tmp_path):
    passed = {"passed": True, "recipe": "a/b", "device": "cpu", "engine": "fsdp2", "seconds": 90.4, "peak_gib": 6.04}
    others = [
        {"seconds": 200.0},
        {},
        {"passed": False, "seconds": 1.0},
        {"engine": "megatron", "ranks": 2, "seconds": 2.0},
        {"ranks": 3, "seconds": 4.0},
        {"device": "gpu", "seconds": 3.0},
    ]
    for age, other in enumerate(others):
        file = tmp_path / str(age) / "rehearsal.json"
        file.parent.mkdir()
        file.write_text(json.dumps(passed | other))
        os.utime(file, (age, age))
    cells = coverage.measured([tmp_path])
    assert cells == {("a/b", "dp"): "90, 6.0", ("a/b", "megatron, 2 ranks"): "2, 6.0"}
    row = "| a/b | not run | 3, 3.0 | not run | 1, 1.0 |\n"
    before = row + "| gone/x | 1, 1.0 | a | b | c |\n| kept/x | 2, 2.0 | d | e | f |\n"
    page = f"before\n\n{coverage.HEADER}{before}\nafter\n"
    assert coverage.rewritten(page, ["a/b", "kept/x", "new/x"], cells) == (
        f"before\n\n{coverage.HEADER}| a/b | 90, 6.0 | 3, 3.0 | not run | 2, 6.0 |\n| kept/x | 2, 2.0 | d | e | f |\n"
        "| new/x | not run | not run | not run | not run |\n\nafter\n"
    )
