"""From what a program did to the text that the model reads: pure functions on text and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from spo_verl.agent.interpreter import ProgramResult

Keep = Literal["head", "tail", "both"]

SILENT = "(The program printed nothing.)"
CHARACTERS_PER_TOKEN = 32
"""Text further than this many characters per allowed token from the kept ends is cut without being tokenized."""


def describe(result: ProgramResult) -> str:
    """What the model is told: stdout, stderr, and how the program ended where stderr does not say it."""
    parts = [part.rstrip("\n") for part in (result.stdout, result.stderr, result.note)]
    return "\n".join(part for part in parts if part.strip()) or SILENT


def defuse(text: str, markup: Iterable[str]) -> str:
    """``text`` in which no special token and no tag of the conversation is left: a space breaks each.

    A program may print ``<|im_end|>`` or ``</interpreter>``; tokenized as it is, that would end the message.
    """
    # A break may leave another entry behind ("</code>" in "<</code>code>"); entries get shorter runs, so it ends.
    for _ in range(3):
        found = [item for item in markup if len(item) > 1 and item in text]
        if not found:
            break
        for item in sorted(found, key=len, reverse=True):
            text = text.replace(item, f"{item[0]} {item[1:]}")
    return text


def clip(
    text: str,
    limit: int,
    keep: Keep,
    encode: Callable[[str], list[int]],
    decode: Callable[[Sequence[int]], str],
) -> tuple[str, bool]:
    """``text`` in at most ``limit`` tokens, a marker with the number of cut characters included.

    Returns:
        The text, and whether anything was cut.
    """
    reach = limit * CHARACTERS_PER_TOKEN
    if len(text) <= 2 * reach and len(encode(text)) <= limit:
        return text, False
    head_ids = encode(text[:reach])
    tail_ids = encode(text[-reach:])
    room = limit - len(encode(_marker(len(text))))
    while room > 0:
        head, tail = _shares(room, keep)
        # Half a character at a cut decodes to U+FFFD.
        first = decode(head_ids[:head]).rstrip("�")
        last = decode(tail_ids[len(tail_ids) - tail :]).lstrip("�")
        shorter = f"{first}{_marker(len(text) - len(first) - len(last))}{last}"
        excess = len(encode(shorter)) - limit
        if excess <= 0:
            return shorter, True
        room -= excess
    return "", True


def _marker(characters: int) -> str:
    return f"\n[... {characters} characters cut ...]\n"


def _shares(room: int, keep: Keep) -> tuple[int, int]:
    if keep == "head":
        return room, 0
    if keep == "tail":
        return 0, room
    return room - room // 2, room // 2
