"""One rule for each forgetting mode, in one module; nothing else in the tracker asks which mode it is."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import spo_verl.tracker
from spo_verl.config import ForgettingMode
from spo_verl.tracker import TrackerSettings
from spo_verl.tracker.forgetting_rules import RULES, forgetting

ROOM = Path(spo_verl.tracker.__file__).parent
WHO_MAY_ASK = {"forgetting_rules.py", "settings.py"}


def who_asks(source):
    """Lines of code that read ``forgetting_mode``, or compare something with the name of a mode."""
    modes = set(get_args(ForgettingMode))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "forgetting_mode":
            yield node.lineno
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            listed = [part for side in sides for part in getattr(side, "elts", [side])]
            if any(isinstance(part, ast.Constant) and part.value in modes for part in listed):
                yield node.lineno


def test_every_mode_has_one_rule():
    assert set(RULES) == set(get_args(ForgettingMode))
    assert len(set(RULES.values())) == len(RULES)
    for mode, rule in RULES.items():
        assert type(forgetting(TrackerSettings(forgetting_mode=mode))) is rule


@pytest.mark.parametrize("path", sorted(ROOM.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOM)))
def test_nobody_else_branches_on_the_mode(path):
    if path.name not in WHO_MAY_ASK:
        assert list(who_asks(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("if settings.forgetting_mode == mode: pass", [1]),
        ("x = 1\nif mode in ('kl', 'drift'): pass", [2]),
        ("if 'version' != now: pass", [1]),
        ("if row['version'] < 0: pass", []),
        ("x = clock.get('version', 0)\n'''forgetting_mode=drift'''", []),
    ],
)
def test_who_asks_is_found(source, found):
    assert sorted(set(who_asks(source))) == found
