"""docs/coverage.md has every recipe and engine, with cells that mean something; other tests hold what they say."""

import re

from tests.docs.pages import DOCS, table_rows
from tests.recipes.helpers import ENGINES, RECIPES, values

COLUMNS = ("recipe", "engine", "mode", "composed", "validated", "rehearsed", "trained")


def test_every_recipe_and_engine_has_its_row():
    rows = table_rows((DOCS / "coverage.md").read_text(), *COLUMNS)
    assert [(recipe, engine) for recipe, engine, *_ in rows] == [
        (name, engine) for name in RECIPES for engine in ENGINES
    ]
    for recipe, engine, mode, composed, validated, rehearsed, trained in rows:
        assert mode == values(recipe)["trainer.v1.trainer_mode"]
        assert (composed, validated) == ("yes", "yes")  # test_compose.py does both for every row
        assert trained == "no"
        if engine == "megatron":
            assert rehearsed == "stops before the launch"  # test_rehearse.py
        else:
            assert rehearsed == "not run" or re.fullmatch(r"\d+ s, \d+\.\d GiB", rehearsed), recipe


def test_the_recipe_of_the_default_rehearsal_is_rehearsed():
    rows = table_rows((DOCS / "coverage.md").read_text(), *COLUMNS)
    assert next(row[5] for row in rows if row[:2] == ["gsm8k_qwen3_0_6b/spo", "dp"]) != "not run"
