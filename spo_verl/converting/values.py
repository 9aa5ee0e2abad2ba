"""Text with its origin: the characters of the script that a word of a command comes from, and the variables between."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Via:
    """A variable that a text came through: its name, and where in the script it is referred to."""

    name: str
    start: int
    end: int


COMPUTED = ""
"""The name in a :class:`Via` of arithmetic and substitutions, which are no variables."""


@dataclass(frozen=True)
class TextPiece:
    """A text of one origin.

    Attributes:
        text: what it is; where that is not known, how it is written in the script.
        start: its offset in the script, or -1 where it is not in the script.
        via: the variables that it came through, the innermost first.
        known: whether the text is what a shell would make of it.
        unset: it is a variable that has no value in the script.
    """

    text: str
    start: int
    via: tuple[Via, ...] = ()
    known: bool = True
    unset: bool = False

    def through(self, via: Via) -> TextPiece:
        return replace(self, via=(*self.via, via))

    def cut(self, begin: int, end: int) -> TextPiece:
        """The characters from ``begin`` to ``end``."""
        if (begin, end) == (0, len(self.text)):
            return self
        return replace(self, text=self.text[begin:end], start=self.start + begin if self.start >= 0 else -1)


Value = tuple[TextPiece, ...]


def text_of(value: Value) -> str:
    return "".join(piece.text for piece in value)


def is_known(value: Value) -> bool:
    return all(piece.known for piece in value)


def cut(value: Value, begin: int, end: int | None = None) -> Value:
    """The characters of a value from ``begin`` to ``end``."""
    pieces, at = [], 0
    end = len(text_of(value)) if end is None else end
    for piece in value:
        low, high = max(begin - at, 0), min(end - at, len(piece.text))
        if low < high:
            pieces.append(piece.cut(low, high))
        at += len(piece.text)
    return tuple(pieces)


@dataclass(frozen=True)
class Field:
    """A word of a command after expansion.

    Attributes:
        value: its pieces.
        home: where its first character is written as a word: in the command, in an array; None inside a longer text.
        call: the word of the command that it came from.
    """

    value: Value
    home: tuple[int, int] | None
    call: tuple[int, int]

    @property
    def text(self) -> str:
        return text_of(self.value)
