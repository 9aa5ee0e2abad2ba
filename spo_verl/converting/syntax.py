"""What a shell script is made of, as :mod:`spo_verl.converting.reader` reads it; offsets count its characters."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Literal:
    """Text that is in the script as it is: ``script[start : start + len(text)] == text``."""

    text: str
    start: int
    quoted: bool = False


@dataclass(frozen=True)
class Reference:
    """``$NAME`` or ``${NAME...}``.

    Attributes:
        name: of the variable, or of a parameter such as ``1`` or ``@``.
        index: what is in brackets after it; None without brackets.
        operator: what follows, such as ``:-``; empty where nothing does. ``len`` is ``${#NAME}``.
        operand: parts of the text after the operator.
        start: offset of the dollar sign.
        end: offset after the reference.
    """

    name: str
    index: str | None
    operator: str
    operand: tuple[Part, ...]
    start: int
    end: int
    quoted: bool = False


@dataclass(frozen=True)
class Arithmetic:
    """``$((...))``; ``text`` is what is between."""

    text: str
    start: int
    end: int
    quoted: bool = False


@dataclass(frozen=True)
class Substitution:
    """``$(...)``, backquotes or ``<(...)``: never run."""

    text: str
    start: int
    end: int
    quoted: bool = False


Part = Literal | Reference | Arithmetic | Substitution


@dataclass(frozen=True)
class Word:
    """One word. ``plain`` is its text if nothing in it is quoted or expanded."""

    parts: tuple[Part, ...]
    start: int
    end: int

    @property
    def plain(self) -> str | None:
        if any(not isinstance(part, Literal) or part.quoted for part in self.parts):
            return None
        return "".join(part.text for part in self.parts if isinstance(part, Literal))


@dataclass(frozen=True)
class Assignment:
    """``NAME=value``, ``NAME+=value`` or ``NAME=(...)``; ``index`` is what is in brackets after the name."""

    name: str
    value: Word | tuple[Word, ...]
    appends: bool
    index: str | None


@dataclass(frozen=True)
class Document:
    """A here-document's text, with its offsets."""

    start: int
    end: int


@dataclass
class Simple:
    """A command of words, with assignments before it (or as arguments of ``export`` and the like)."""

    assignments: list[Assignment] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    start: int = 0


@dataclass(frozen=True)
class Test:
    """``[[ ... ]]`` or ``((...))``."""

    words: tuple[Word, ...]
    arithmetic: str | None = None


@dataclass(frozen=True)
class If:
    """``if``: pairs of condition and body; the last condition is empty for ``else``."""

    branches: tuple[tuple[Block, Block], ...]


@dataclass(frozen=True)
class Case:
    subject: Word
    branches: tuple[tuple[tuple[Word, ...], Block], ...]


@dataclass(frozen=True)
class Loop:
    """``for`` (with a name), ``while`` and ``until``."""

    name: str | None
    words: tuple[Word, ...] | None
    condition: Block
    body: Block


@dataclass(frozen=True)
class Function:
    name: str
    body: Block


@dataclass(frozen=True)
class Group:
    """``{ ...; }`` or ``( ... )``."""

    body: Block
    subshell: bool


Command = Simple | Test | If | Case | Loop | Function | Group


@dataclass(frozen=True)
class Step:
    """A command with what precedes it: nothing, ``&&``, ``||`` or ``|``; ``negated`` by ``!``."""

    connector: str
    negated: bool
    command: Command


Block = tuple[Step, ...]
