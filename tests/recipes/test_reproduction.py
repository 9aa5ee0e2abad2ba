"""The parity table against the recipes; commands in the pages; nothing in the result tables that was not run."""

import re
import shlex

import pytest
import yaml

from tests.docs.pages import DOCS, links, table_rows
from tests.recipes.helpers import RECIPES, REPOSITORY, ROOT, values

PAGE = DOCS / "reproduction.md"
COLUMNS = ("what", "paper", "script", "recipe", "key", "value", "file")
PAGES = [*DOCS.glob("*.md"), *ROOT.rglob("README.md")]


def parity():
    return [dict(zip(COLUMNS, row, strict=True)) for row in table_rows(PAGE.read_text(), *COLUMNS)]


def shown(value):
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def test_the_table_has_every_value_of_the_paper():
    rows = parity()
    assert len(rows) >= 45
    assert not [row for row in rows if row["recipe"] not in RECIPES]


@pytest.mark.parametrize("row", parity(), ids=lambda row: row["what"])
def test_the_recipe_has_the_value_of_the_table(row, monkeypatch):
    monkeypatch.delenv("SPO_DATA_DIR", raising=False)
    key, file = row["key"].strip("`"), REPOSITORY / row["file"]
    if file.name == "agents.yaml":
        assert str(yaml.safe_load(file.read_text())[0][key]) == row["value"]
        return
    assert shown(values(row["recipe"])[key]) == row["value"]
    assert re.search(rf"^\s*{key.rpartition('.')[2]}:", file.read_text(), re.MULTILINE), f"{file} does not set {key}"


def launches():
    """Launch lines of the pages and of the recipes' headers: where, and the words behind the launcher."""
    files = [*PAGES, *ROOT.rglob("*.yaml")]
    for file in files:
        text = file.read_text().replace("\\\n", " ")
        for line in re.findall(r"recipes/run\.sh (\w+/[^\n`|)]+)", text):
            words = shlex.split(line.strip(), comments=True)
            if words and "NAME" not in words[0] and "<" not in words[0]:
                yield f"{file.relative_to(REPOSITORY)}: {' '.join(words)}", words


@pytest.mark.parametrize("words", dict(launches()).values(), ids=dict(launches()).keys())
def test_every_launch_line_names_a_recipe_and_keys_that_it_has(words):
    assert words[0] in RECIPES
    known = values(words[0])
    for key in (word.partition("=")[0] for word in words[1:]):
        assert key == "model_engine" or key in known, key


def test_result_cells_hold_no_number_of_ours():
    tables = [
        table_rows(PAGE.read_text(), "", "AIME 24", "AIME 25", "BeyondAIME", "BRUMO 25", "HMMT 25", "average"),
        table_rows(PAGE.read_text(), "", "k = 8", "k = 16", "k = 32", "filled by"),
        table_rows(PAGE.read_text(), "", "here", "filled by"),
    ]
    for rows in tables:
        ours = [cells for name, *cells in rows if not name.startswith("paper")]
        assert ours
        for cells in ours:
            assert set(cells) - {cell for cell in cells if "recipes/run.sh" in cell or "commands of" in cell} == {
                "not run"
            }


def test_each_experiment_has_a_page_that_the_index_leads_to():
    listed = set(links((ROOT / "README.md").read_text()))
    for folder in {name.split("/")[0] for name in RECIPES} | {"cluster"}:
        assert (ROOT / folder / "README.md").is_file()
        assert f"{folder}/README.md" in listed
