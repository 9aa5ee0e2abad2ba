"""Every message that docs/troubleshooting.md quotes is one that the code writes."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, REPOSITORY

PAGE = DOCS / "troubleshooting.md"
OF_VERL = {
    "Unknown advantage estimator simply: ...": "trainer/ppo/core_algos.py",
    "Sync replay buffer selected terminal groups with no": "trainer/ppo/v1/replay_buffer.py",
}
"""Messages of verl itself, and their files."""
MESSAGE = re.compile(r"^- \*\*(.+?)\*\*", re.MULTILINE)
GAP = "\0"
"""Where a message has something that differs."""


def texts_of(source: str) -> list[str]:
    """Every text of a module; in an f-string each field is a gap."""
    found, inner = [], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
            inner.update(id(part) for part in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append(node.value)
    return found


@cache
def texts() -> list[str]:
    return [text for file in (REPOSITORY / "spo_verl").rglob("*.py") for text in texts_of(file.read_text())]


def pattern(quoted: str) -> re.Pattern[str]:
    """What a quoted message is in the code; ``...`` stands for at least one gap."""
    return re.compile(f"[^{GAP}]*{GAP}.*?".join(re.escape(part) for part in quoted.split("...")), re.DOTALL)


def quoted() -> list[str]:
    return MESSAGE.findall(PAGE.read_text())


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_exists(message: str) -> None:
    if message in OF_VERL:
        [verl] = find_spec("verl").submodule_search_locations
        assert message.removesuffix(" ...") in (Path(verl) / OF_VERL[message]).read_text()
    else:
        assert any(pattern(message).search(text) for text in texts()), f"no text of spo_verl has {message!r}"


def test_the_check_finds_what_is_not_there() -> None:
    assert len(quoted()) >= 15
    source = 'raise Error(f"{folder} holds {n} parts of " f"step {step}")'
    [text] = [text for text in texts_of(source) if "parts" in text]
    assert pattern("holds ... parts of step").search(text)
    assert not pattern("holds ... pieces").search(text)
    assert not pattern("holds parts").search(text)
    assert not pattern("parts ... of").search(text)
