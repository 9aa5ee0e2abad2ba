"""From what a program did to the text that the model reads: pure functions on text and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

from spo_verl.agent.interpreter import ProgramResult

Keep = Literal["head", "tail", "both"]

SILENT = "(The program printed nothing.)"
CHARACTERS_PER_TOKEN = 32
"""Text further than this many characters per allowed token from the kept ends is cut without being tokenized."""


def describe(result: ProgramResult) -> str:
    """What the model reads: stdout, stderr, and how the program ended where stderr does not say it.

    Half a surrogate pair, which a server's JSON may hold and no tokenizer takes, is shown as Python escapes it.
    """
    texts = (result.stdout, result.stderr, result.note)
    parts = [text.encode(errors="backslashreplace").decode().rstrip("\n") for text in texts]
    return "\n".join(part for part in parts if part.strip()) or SILENT


def defuse(text: str, markup: Iterable[str]) -> str:
    """``text`` in which no special token and no tag of the conversation is left: a space breaks each.

    A program may print ``<|im_end|>`` or ``</interpreter>``; tokenized as it is, that would end the message. Between
    two characters at most one space is added, however many entries meet there, so the text at most doubles. (Entries
    with spaces in them may cost one more for each of these.) An entry of blanks, or of one character with blanks
    around it, means nothing to a conversation and is left.
    """
    items = _smallest(tuple(markup))
    while True:
        # A break may make another entry ("a b" of "ab"), so until nothing is found.
        found = sorted((place for item in items for place in _places(text, item)), reverse=True)
        if not found:
            return text
        parts: list[str] = []
        end = last = len(text) + 1  # place of the break that was made last, to the right of all that follow
        for begin, stop in found:
            if not begin < last < stop:
                last = begin + 1
                parts.append(text[last:end])
                end = last
        text = " ".join([text[:end], *reversed(parts)])


@lru_cache(maxsize=16)
def _smallest(markup: tuple[str, ...]) -> tuple[str, ...]:
    """The entries that a break can take apart, without those that hold another and are broken with it."""
    items = {item for item in markup if len(item.strip(" ")) > 1 and not item.isspace()}
    return tuple(item for item in items if not any(other in item for other in items if other != item))


def _places(text: str, item: str) -> Iterator[tuple[int, int]]:
    """Begin and end of every occurrence of an entry, overlapping ones included, without the blanks around it."""
    core = item.strip(" ")
    lead = item.index(core)
    found = text.find(item)
    while found >= 0:
        yield found + lead, found + lead + len(core)
        found = text.find(item, found + 1)


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
