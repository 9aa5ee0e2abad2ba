"""The table of settings is read from the dataclasses, and the page in docs lists them."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from spo_verl.cli.settings import markdown_page
from spo_verl.cli.settings_table import Setting, attribute_docstrings, settings_of
from spo_verl.config import SpoConfig, known_keys
from tests.cli.helpers import run, run_json

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


@dataclass(frozen=True)
class Inner:
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A share,
    over two lines."""
    shares: dict[str, Annotated[float, Field(ge=0)]] | None = None
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Outer:
    mode: Literal["fast", "slow"]
    """Which way; one | two."""
    limit: Annotated[int, Field(lt=5)] | None = None
    either: int | str = 3
    on: Annotated[bool | None, "not a limit"] = True
    inner: Inner = field(default_factory=Inner)


def test_every_kind_of_field_becomes_a_row():
    assert list(settings_of(Outer, "top")) == [
        Setting("top.mode", "str", "required", "fast, slow", "Which way; one | two."),
        Setting("top.limit", "int or null", "null", "< 5", ""),
        Setting("top.either", "int or str", "3", "", ""),
        Setting("top.on", "bool or null", "true", "", ""),
        Setting("top.inner.share", "float", "0.5", "(0, 1]", "A share, over two lines."),
        Setting("top.inner.shares", "dict[str, float] or null", "null", "each >= 0", ""),
        Setting("top.inner.names", "tuple[str, ...]", '["a", "b"]', "", ""),
    ]


def test_the_table_has_exactly_the_settings_that_the_configuration_accepts():
    rows = {setting.name: setting for setting in settings_of(SpoConfig)}
    assert list(rows) == list(known_keys())
    # Three by hand, from config.py: Share is [0, 1], Retention (0, 1], and a Literal shows its choices.
    gamma, rho, mode = rows["spo.sampling.gamma"], rows["spo.forgetting.rho_min"], rows["spo.forgetting.mode"]
    assert (gamma.type, gamma.default, gamma.values) == ("float", "0.0", "[0, 1]")
    assert (rho.type, rho.default, rho.values) == ("float", "0.875", "(0, 1]")
    assert mode.default == "kl"
    assert {"kl", "constant"} <= set(mode.values.split(", "))
    assert rows["spo.forgetting.half_life"].meaning.startswith("D_half")


def test_every_setting_says_what_it_means():
    assert [setting.name for setting in settings_of(SpoConfig) if not setting.meaning] == []


def test_docstrings_of_attributes_only():
    assert attribute_docstrings(Inner) == {"share": "A share, over two lines."}


def test_an_entry_of_the_page_has_the_default_the_range_and_a_type_that_the_default_does_not_show():
    entries = [line for line in markdown_page(list(settings_of(Outer))).splitlines() if line.startswith("- ")]
    assert entries[0] == "- `spo.mode=required` (fast, slow): Which way; one | two."
    assert entries[1] == "- `spo.limit=null` (int, < 5): "
    assert entries[3] == "- `spo.on=true` (or null): "
    assert entries[4] == "- `spo.inner.share=0.5` ((0, 1]): A share, over two lines."


def test_the_page_in_docs_is_up_to_date():
    printed = run("settings", "--markdown").stdout
    assert PAGE.read_text() == printed, "write it again: spo-verl settings --markdown > docs/settings.md"


@pytest.mark.parametrize("key", ["spo.seed", "spo.sampling.epsilon"])
def test_the_verb_shows_them(key):
    assert key in run("settings").stdout
    assert key in {entry["name"] for entry in run_json("settings")}


@pytest.mark.parametrize("width", [60, 200])
def test_no_word_is_lost_at_any_width(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    printed = run("settings").stdout
    words = set(printed.split())
    for entry in run_json("settings"):
        for text in entry.values():
            assert set(text.replace("``", "").split()) <= words
    assert all(len(line) <= width for line in printed.splitlines())
