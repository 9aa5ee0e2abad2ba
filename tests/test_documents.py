"""Documents stay true: settings, names of code, length of the README. Commands, links, Python in pages: tests/docs."""

import re
from pathlib import Path

from spo_verl.config import known_keys

REPOSITORY = Path(__file__).parents[1]


def test_the_settings_page_lists_every_setting():
    page = (REPOSITORY / "docs" / "settings.md").read_text()
    assert [key for key in known_keys() if f"\n- `{key}=" not in page] == []


def test_the_readme_stays_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 115


def test_code_named_in_the_algorithm_page_exists():
    import spo_verl.core as core
    from spo_verl.tracker import Tracker

    text = (REPOSITORY / "docs" / "algorithm.md").read_text()
    names = re.findall(r"`core\.(\w+)", text)
    assert len(names) > 5
    assert [name for name in names if not hasattr(core, name)] == []
    assert [name for name in re.findall(r"`Tracker\.(\w+)", text) if not hasattr(Tracker, name)] == []
    for path in re.findall(r"`((?:training|tracker|data)/\w+\.py)`", text):
        assert (REPOSITORY / "spo_verl" / path).exists(), path
