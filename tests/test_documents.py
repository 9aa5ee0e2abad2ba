"""Documents stay true: settings in the README, names of code. Commands, links and Python in pages: tests/docs."""

import re
from pathlib import Path

from spo_verl.config import known_keys

REPOSITORY = Path(__file__).parents[1]


def test_the_readme_lists_every_setting():
    readme = (REPOSITORY / "README.md").read_text()
    for key in known_keys():
        if key != "spo.preset":
            section, _, name = key.rpartition(".")
            assert f"`{key}`" in readme or re.search(rf"`{section}\.\w+`, `\.{name}`", readme), key


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
