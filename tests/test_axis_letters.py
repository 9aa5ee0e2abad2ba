"""Letters of axes: every ``name_X`` of the package is in the glossary, and every letter of the glossary is used.

A letter has one meaning in the whole package, so the glossary says in which rooms it occurs: elsewhere it would mean
something else. Prompts, entries of a batch and of a flat list occur in any.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spo_verl"
GLOSSARY = PACKAGE.parent / "docs" / "glossary.md"

AXES = re.compile(r"_?[a-z]\w*_(?P<axes>[A-Z0-9]{1,3})")
"""Names that are arrays; constants are capitals throughout."""
NO_AXES = {"memory_limit_MB"}
"""Names of others that look the same: of a service's request."""
ENTRY = re.compile(r"^- `_(?P<letter>[A-Z])` \((?P<rooms>[^)]+)\): \w", re.MULTILINE)
SHAPE = re.compile(
    r"(?P<names>(?:`*\w+`*, )*`*\w+_(?P<axes>[A-Z]+)`*)(?: \||:)[^\n(]{0,12}\((?P<shape>[A-Z](?:, [A-Z])*),?\)"
)
"""``name_X: (X,)`` in the arguments of a docstring, or a row of a table in one."""


def axes_of(name: str) -> str:
    """The letters of a name, without lengths such as the 2 of ``word_P2``; empty where it names no axes."""
    found = AXES.fullmatch(name)
    return "" if found is None or name in NO_AXES else re.sub(r"\d", "", found["axes"])


def names_of(source: str) -> Iterator[str]:
    """Every identifier: variables, arguments, attributes, keywords."""
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def docstrings_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def used_letters() -> dict[str, dict[str, set[str]]]:
    """Letter -> room -> names."""
    used: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in PACKAGE.rglob("*.py"):
        for name in names_of(path.read_text()):
            for letter in axes_of(name):
                used[letter][room_of(path)].add(name)
    return {letter: dict(rooms) for letter, rooms in used.items()}


def rooms_of_glossary() -> dict[str, set[str] | None]:
    """Letter -> rooms; None for any."""
    entries = ENTRY.findall(GLOSSARY.read_text())
    letters = [letter for letter, _ in entries]
    assert len(letters) == len(set(letters)), "a letter has two entries"
    return {letter: None if rooms == "any" else set(re.findall(r"`(\w+)`", rooms)) for letter, rooms in entries}


def test_the_letters_of_the_code_are_those_of_the_glossary_and_where_it_says():
    used, explained = used_letters(), rooms_of_glossary()
    assert set(used) == set(explained), {letter: used.get(letter) for letter in set(used) ^ set(explained)}
    for letter, rooms in used.items():
        assert explained[letter] in (None, set(rooms)), (letter, rooms)


def test_shapes_in_docstrings_are_those_of_the_names():
    stated = [
        (path.name, name, found["shape"])
        for path in PACKAGE.rglob("*.py")
        for docstring in docstrings_of(path.read_text())
        for found in SHAPE.finditer(docstring)
        for name in re.findall(r"\w+", found["names"])
        if axes_of(name)
    ]
    assert len(stated) > 50
    assert [one for one in stated if ", ".join(axes_of(one[1])) != one[2]] == []


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("alpha_P", "P"), ("_index_Q", "Q"), ("log_prob_now_BT", "BT"), ("word_P2", "P"), ("ids_1T", "T"),
        ("ROWS_OF_N", ""), ("_RIGHTS_OF_ABI", ""), ("memory_limit_MB", ""), ("wrong_Pk", ""), ("N_eff", ""),
    ],
)  # fmt: skip
def test_axes_of_names(name, axes):
    assert axes_of(name) == axes


def test_shapes_are_found():
    text = (
        "x_B: (B,) int.\nlog_a_BT, log_b_BT: (B, T) logs\n| ``token_N`` | (N,) | int32 |\nslot_P: int64 (S,), no\nrest"
    )
    found = [(match["names"], match["shape"]) for match in SHAPE.finditer(text)]
    assert found == [("x_B", "B"), ("log_a_BT, log_b_BT", "B, T"), ("``token_N``", "N"), ("slot_P", "S")]
