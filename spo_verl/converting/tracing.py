"""Follows a script as far as the arguments of verl's command need it. Nothing is run, and the machine is not read.

A variable that the script does not set has no value, as in a shell without it; :class:`ScriptTracer` takes values for
those. What only a machine can answer (``$(...)``, ``[ -f FILE ]``) stays unknown: as a text it is kept as written, as
a condition it counts as true.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from spo_verl.converting import arithmetic
from spo_verl.converting.reader import DECLARING, Reader, line_of
from spo_verl.converting.syntax import (
    Arithmetic,
    Assignment,
    Block,
    Case,
    Command,
    Function,
    Group,
    If,
    Literal,
    Loop,
    Reference,
    Simple,
    Step,
    Substitution,
    Test,
    Word,
)
from spo_verl.converting.values import COMPUTED, Field, TextPiece, Value, Via, cut, is_known, text_of
from spo_verl.errors import SpoConfigError

MODULE = "verl.trainer.main_ppo"
_PATH = re.compile(r"(?:.*/)?verl/trainer/main_ppo\.py")
_OTHER = re.compile(r"(?:recipe|verl|verl_recipe|examples|tests)\.[\w.]*(?:main|trainer|train)\w*")
_OTHER_PATH = re.compile(r".*/?main_\w+\.py")
_STRAY = re.compile(r"[+~]*[A-Za-z_]\w*(?:\.\w+)+=")
_TEXTS = frozenset({"echo", "printf", "grep", "pgrep", "pkill", "log"})
MOST_STEPS = 20_000
LONGEST = 200_000
MOST_CALLS = 20
_MODULE_OPTIONS = ("-m", "--module")
_QUOTED = re.compile(r"[\w.=-]*([\"'])(.*)\1", re.DOTALL)
_ASSIGNING = {
    "let": re.compile(r"\b([A-Za-z_]\w*)\s*(?:\+\+|--|(?:[-+*/%&|^]|<<|>>)?=(?!=))"),
    "eval": re.compile(r"\b([A-Za-z_]\w*)\+?="),
    "read": re.compile(r"(?<!\S)([A-Za-z_]\w*)(?!\S)"),
    "mapfile": re.compile(r"(?<!\S)([A-Za-z_]\w*)(?!\S)"),
    "readarray": re.compile(r"(?<!\S)([A-Za-z_]\w*)(?!\S)"),
    "getopts": re.compile(r"(?<!\S)([A-Za-z_]\w*)(?!\S)"),
    "printf": re.compile(r"-v\s+([A-Za-z_]\w*)"),
}
"""Builtins that set variables, and how their arguments give the names."""
_SPACE = re.compile(r"[ \t\n]+")
_NAME = re.compile(r"[A-Za-z_]\w*")
_ENTRY = re.compile(r"\[([^\]]+)\]=")
_STEPS = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_]\w*)\s*(?:(?P<after>\+\+|--)|(?P<operator>[-+*/%]?)=(?!=)(?P<right>.+))"
    r"|(?P<before>\+\+|--)\s*(?P<other>[A-Za-z_]\w*))\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Launch:
    """A command that starts ``verl.trainer.main_ppo``.

    Attributes:
        module: the word that names it.
        arguments: the words after it.
        offset: where the command begins.
    """

    module: Field
    arguments: tuple[Field, ...]
    offset: int

    @property
    def origin(self) -> list[tuple[str, int]]:
        """Its words and where they are written, whatever variables they came through."""
        return [(piece.text, piece.start) for one in (self.module, *self.arguments) for piece in one.value]


@dataclass
class ScriptTracer:
    """One reading of one script.

    Attributes:
        script: its text.
        outside: variables that are set before it begins.
        arguments: its positional parameters.
        folder: what ``$(pwd)`` gives.
        launches: what was found.
        looping: variables of loops with several passes that start verl.
        others: other trainers of verl that are started, with their lines.
        notes: what could not be followed, as sentences.
    """

    script: str
    outside: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    folder: str = ""
    launches: list[Launch] = field(default_factory=list)
    others: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._scalars: dict[str, Value] = {name: (TextPiece(text, -1),) for name, text in self.outside.items()}
        self._arrays: dict[str, tuple[Field, ...]] = {}
        self._maps: dict[str, dict[str, Value]] = {}
        self._functions: dict[str, Block] = {}
        self._given = tuple(Field((TextPiece(text, -1),), None, (0, 0)) for text in self.arguments)
        self.looping: set[str] = set()
        self._steps = 0
        self._calls = 0
        self._exit: int | None = None
        self._started = 0
        self._loops = 0
        self._leaving = ""  # break, continue or return, until the loops or the function have ended
        self._levels = 0  # of loops that a break or continue still has to end

    def read(self) -> None:
        """Follow the script.

        Raises:
            SpoConfigError: it cannot be read, or is larger than what scripts are.
        """
        try:
            self._block(Reader(self.script).read())
        except RecursionError:
            raise SpoConfigError("the script is nested too deep to be read") from None

    @property
    def exit_line(self) -> int | None:
        """The line of the ``exit`` that ended it."""
        return None if self._exit is None else line_of(self.script, self._exit)

    # ---------------------------------------------------------------- control

    def _block(self, block: Block) -> bool | None:
        status: bool | None = True
        for step in block:
            if self._exit is not None or self._leaving:
                return status
            if step.connector == "&&" and status is False:
                continue
            if step.connector == "||" and status is not False:
                self._skipped((step,))
                continue
            status = self._step(step)
        return status

    def _step(self, step: Step) -> bool | None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise SpoConfigError(f"the script runs more than {MOST_STEPS} commands: give the command itself")
        status = self._command(step.command)
        return status if status is None or not step.negated else not status

    def _command(self, command: Command) -> bool | None:
        if isinstance(command, Simple):
            return self._simple(command)
        if isinstance(command, Test):
            return self._test(command)
        if isinstance(command, If):
            return self._if(command)
        if isinstance(command, Case):
            return self._case(command)
        if isinstance(command, Loop):
            return self._loop(command)
        if isinstance(command, Function):
            self._functions[command.name] = command.body
            return True
        return self._group(command)

    def _group(self, group: Group) -> bool | None:
        if not group.subshell:
            return self._block(group.body)
        scalars, arrays = dict(self._scalars), dict(self._arrays)
        maps = {name: dict(entries) for name, entries in self._maps.items()}
        status = self._block(group.body)
        self._scalars, self._arrays, self._maps = scalars, arrays, maps
        self._exit, self._leaving = None, ""
        return status

    def _if(self, command: If) -> bool | None:
        for number, (condition, body) in enumerate(command.branches):
            holds = self._block(condition) if condition else True
            if holds is False:
                self._skipped(body)
                continue
            if holds is None and _matters(body, self.script):
                offset = _first_offset(condition)
                self._note(f"line {line_of(self.script, offset)}: only the machine knows this condition; taken as true")
            status = self._block(body)
            if holds is None:
                self._stay()
            for _, other in command.branches[number + 1 :]:
                self._skipped(other)
            return status
        return True

    def _case(self, command: Case) -> bool | None:
        subject = self._text(command.subject, unset="")
        taken = False
        status: bool | None = True
        for patterns, body in command.branches:
            if not taken and (
                subject is None or any(_matches(subject, self._text(one, unset="") or "") for one in patterns)
            ):
                taken = True
                if subject is None and _matters(body, self.script):
                    line = line_of(self.script, command.subject.start)
                    self._note(f"line {line}: only the machine knows this case; the first branch is taken")
                status = self._block(body)
                if subject is None:
                    self._stay()
            else:
                self._skipped(body)
        return status

    def _stay(self) -> None:
        """A check of the machine that ends the script or a function need not be passed here."""
        self._exit = None
        if self._leaving != "break":
            self._leaving = ""

    def _loop(self, command: Loop) -> bool | None:
        if command.name is not None:
            fields = [one for word in command.words or () for one in self._expand(word)]
            if command.words is None:
                fields = list(self._given)
            if not fields:
                return True
            before = self._started
            for one in fields:
                self._scalars[command.name] = one.value
                if not self._pass(command.body) or self._started > before:
                    break
            if len(fields) > 1 and self._started > before:
                self.looping.add(command.name)
                line = line_of(self.script, command.words[0].start if command.words else 0)
                self._note(f"line {line}: a loop; its first pass with a command ({command.name}={one.text}) decides")
            return None
        if command.condition and self._block(command.condition) is False:
            self._skipped(command.body)
            return True
        started, counters, more = self._started, _names_in(command.condition, self.script), True
        while more:  # once, and again while it takes the script's arguments, or changes what its condition reads
            left, read = len(self._given), self._read(counters)
            more = self._pass(command.body)
            changed = [name for name in counters if read[name] != self._read(counters)[name]]
            more = more and (0 < len(self._given) < left or bool(changed))
            more = more and bool(command.condition) and self._block(command.condition) is True
            if more and changed and self._started > started:
                self.looping.update(changed)
                line = line_of(self.script, _first_offset(command.condition))
                self._note(f"line {line}: a loop; its first pass with a command decides")
                break
        return None

    def _read(self, names: Iterable[str]) -> dict[str, str]:
        """The texts of variables that are known."""
        values = {name: self._scalars.get(name, ()) for name in names}
        return {name: text_of(value) if is_known(value) else "" for name, value in values.items()}

    def _pass(self, body: Block) -> bool:
        """One pass of a loop; whether another may follow."""
        self._loops += 1
        self._block(body)
        self._loops -= 1
        left = self._leaving
        if left in ("break", "continue"):
            self._levels -= 1
            if self._levels:  # of a loop further out
                return False
            self._leaving = ""
        return self._exit is None and left in ("", "continue")

    def _skipped(self, block: Block) -> None:
        """A branch that is not taken: say so where it would matter."""
        offset = next((one.start for one in _simple_commands(block) if _names_method(one, self.script)), None)
        if offset is not None:
            self._note(
                f"line {line_of(self.script, offset)}: this branch is not taken with the script's values and is left "
                "as it is (--env NAME=VALUE takes another)"
            )

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # ---------------------------------------------------------------- commands

    def _simple(self, command: Simple) -> bool | None:
        declaring = bool(command.words) and command.words[0].plain in DECLARING
        if declaring:
            self._declare(command)
        if declaring or not command.words:
            for one in command.assignments:
                self._assign(one)
        if declaring:
            return True
        fields = [one for word in command.words for one in self._expand(word)]
        for document in command.documents:
            program = fields[0].text.rpartition("/")[2] if fields else ""
            if "main_ppo" in self.script[document.start : document.end] and not program.startswith("python"):
                self._block(Reader(self.script, document.start, document.end).read())
        if not fields:
            return True
        name = fields[0].text
        if name in ("[", "test"):
            arguments = [self._text(word, unset="") for word in command.words[1:]]
            return _tested(arguments if name == "test" else arguments[:-1])
        if name in ("true", ":"):
            return True
        if name == "false":
            return False
        if name == "exit":
            self._exit = command.start
            return True
        if (name in ("break", "continue") and self._loops) or (name == "return" and self._calls):
            self._leaving = name
            code = fields[1].text if len(fields) > 1 else ""
            number = int(code) if re.fullmatch(r"[0-9]{1,3}", code) else None
            self._levels = min(number or 1, self._loops)
            return None if number is None else number == 0 or name != "return"
        if name == "unset":
            for field_ in fields[1:]:
                self._set(field_.text, None)
            return True
        if name == "shift":
            count = fields[1].text if len(fields) > 1 else "1"
            if not re.fullmatch(r"[0-9]{1,6}", count) or int(count) > len(self._given):
                return False
            self._given = self._given[int(count) :]
            return True
        if name == "set":
            texts = [one.text for one in fields]
            if "--" in texts:
                self._given = tuple(fields[texts.index("--") + 1 :])
            return True
        if name == "getopts" and not self._given:
            return False
        if name == "let" and len(fields) == 2 and self._stepped(fields[1].text):
            return True
        if name in _ASSIGNING:
            self._forget(_ASSIGNING[name], " ".join(one.text for one in fields[1:]))
        if name in ("source", ".") and len(fields) > 1:
            self._note(
                f"line {line_of(self.script, command.start)}: {fields[1].text} is not read (--env gives what it sets)"
            )
        if name in self._functions:
            before = len(self.launches)
            status = self._call(name, fields[1:])
            if len(self.launches) > before:
                return status
        self._launched(command, fields)
        return None

    def _forget(self, pattern: re.Pattern[str], text: str) -> None:
        """Variables that a command sets in a way that is not followed: what they held before is not their value."""
        for found in pattern.finditer(text):
            self._set(found[1], (TextPiece(f"${found[1]}", -1, known=False),))

    def _call(self, name: str, arguments: Sequence[Field]) -> bool | None:
        if self._calls >= MOST_CALLS:
            return None
        given, self._given = self._given, tuple(arguments)
        self._calls += 1
        status = self._block(self._functions[name])
        self._leaving = ""
        self._calls -= 1
        self._given = given
        return status

    def _launched(self, command: Simple, fields: Sequence[Field]) -> None:
        texts = [one.text for one in fields]
        for number, text in enumerate(texts):
            if (text == MODULE and number and texts[number - 1] in _MODULE_OPTIONS) or _PATH.fullmatch(text):
                self._started += 1
                launch = Launch(fields[number], tuple(fields[number + 1 :]), command.start)
                if all(launch.origin != other.origin for other in self.launches):
                    self.launches.append(launch)
                return
        for number, text in enumerate(texts):
            is_module = bool(number) and texts[number - 1] in _MODULE_OPTIONS and _OTHER.fullmatch(text)
            if is_module or (_OTHER_PATH.fullmatch(text) and number and "python" in texts[number - 1]):
                self.others.append((text, line_of(self.script, command.start)))
                return
        if _STRAY.match(texts[0]):
            self._note(
                f"line {line_of(self.script, command.start)}: {texts[0]} belongs to no command; the line before it "
                "ends in a comment, or in blanks after its backslash"
            )
        if texts[0].rpartition("/")[2] in _TEXTS:
            return
        for word, text in ((word, self._text(word) or "") for word in command.words):
            if MODULE in text and _SPACE.search(text):
                self._inner(word)

    def _inner(self, word: Word) -> None:
        """A command inside a quoted word, such as that of ``bash -c``, or in a variable that is one word here."""
        found = _QUOTED.fullmatch(self.script, word.start, word.end)
        if found and found[1] not in found[2] and not re.search(r"\\[^\n]", found[2]) and MODULE in found[2]:
            self._block(Reader(self.script, found.start(2), found.end(2)).read())
            return
        parts = tuple(replace(part, quoted=False) for part in word.parts if isinstance(part, Reference))
        fields = self._expand(Word(parts, word.start, word.end))
        if len(parts) != len(word.parts) or not fields:
            raise SpoConfigError(
                f"line {line_of(self.script, word.start)}: the command of verl is inside a text that another program "
                "reads; give `spo-verl convert` that command itself"
            )
        self._launched(Simple(start=word.start), fields)

    # ---------------------------------------------------------------- variables

    def _set(self, name: str, value: Value | None) -> None:
        """Give a variable a text, or none; what was an array is one no more."""
        self._arrays.pop(name, None)
        self._maps.pop(name, None)
        self._scalars.pop(name, None)
        if value is not None:
            self._scalars[name] = value

    def _declare(self, command: Simple) -> None:
        """``declare -A NAME``: an associative array, empty unless it is one already."""
        words = [word.plain or "" for word in command.words[1:]]
        if any(word.startswith("-") and "A" in word for word in words):
            for name in (*filter(_NAME.fullmatch, words), *(one.name for one in command.assignments)):
                if name not in self._maps:
                    self._set(name, None)
                    self._maps[name] = {}

    def _fill(self, one: Assignment) -> None:
        """``NAME=([key]=value ...)`` or ``NAME[key]=value`` of an associative array."""
        entries = self._maps[one.name]
        if not isinstance(one.value, tuple):
            key = self._key(one.index or "")
            if key is None:
                self._set(one.name, (TextPiece(f"${one.name}", -1, known=False),))
            else:
                entries[key] = (*(entries.get(key, ()) if one.appends else ()), *self._value(one.value))
            return
        if not one.appends:
            entries.clear()
        for word in one.value:
            value = self._value(word)
            found = _ENTRY.match(text_of(value))
            if found is None or not is_known(cut(value, 0, found.end())):
                raise SpoConfigError(
                    f"line {line_of(self.script, word.start)}: entries of an associative array are read as "
                    "[key]=value, with a key that the script knows; give the command itself"
                )
            entries[found[1]] = cut(value, found.end())

    def _key(self, index: str) -> str | None:
        """The key in brackets after the name of an associative array; None where it is not known."""
        try:
            return self._text(Reader(index if index[:1] in ("'", '"') else f'"{index}"').read_word(), unset="")
        except SpoConfigError:
            return None

    def _assign(self, one: Assignment) -> None:
        if one.name in self._maps and (one.index is not None or isinstance(one.value, tuple)):
            self._fill(one)
            return
        if isinstance(one.value, tuple):
            fields = tuple(item for word in one.value for item in self._expand(word))
            old = self._arrays.get(one.name, ()) if one.appends else ()
            if len(old) + len(fields) > MOST_STEPS:
                raise SpoConfigError(f"the array {one.name} grows beyond {MOST_STEPS} words: give the command itself")
            if one.appends and not old and one.name in self._scalars:
                old = (Field(self._scalars[one.name], None, (0, 0)),)
            self._arrays[one.name] = (*old, *fields)
            self._scalars.pop(one.name, None)
            return
        value = self._value(one.value)
        if one.index is not None:
            value = tuple(TextPiece(piece.text, -1, piece.via, known=False) for piece in value)
        if one.appends:
            value = (*self._scalars.get(one.name, ()), *value)
        if sum(len(piece.text) for piece in value) > LONGEST:
            raise SpoConfigError(f"the variable {one.name} grows beyond {LONGEST} characters: give the command itself")
        self._set(one.name, value)

    def _value(self, word: Word) -> Value:
        """A word as one text, as in an assignment."""
        return tuple(piece for item in self._fields(word, split=False) for piece in item.value)

    def _text(self, word: Word, *, unset: str | None = None) -> str | None:
        """A word as one text; None where it is not known. ``unset`` is taken for variables without a value."""
        pieces = [TextPiece(unset, -1) if piece.unset and unset is not None else piece for piece in self._value(word)]
        return text_of(tuple(pieces)) if is_known(tuple(pieces)) else None

    def _expand(self, word: Word) -> list[Field]:
        return self._fields(word, split=True)

    def _fields(self, word: Word, *, split: bool) -> list[Field]:
        """What a word becomes: one field, none or several. ``home`` of a field of an array is its element."""
        call = (word.start, word.end)
        done: list[Field] = []
        pieces: list[TextPiece] = []
        home: tuple[int, int] | None = None
        begun = False

        def finish() -> None:
            nonlocal begun, home
            if begun:
                own = call if not pieces or not pieces[0].via else home
                done.append(Field(tuple(pieces), own, call))
            pieces.clear()
            begun, home = False, None

        def add_split(value: Value) -> None:
            nonlocal begun
            text = "".join(one.text if one.known else "x" * len(one.text) for one in value)  # unknown text stays whole
            at = 0
            for space in _SPACE.finditer(text):
                if space.start() > at:
                    pieces.extend(cut(value, at, space.start()))
                    begun = True
                finish()
                at = space.end()
            if at < len(text):
                pieces.extend(cut(value, at))
                begun = True

        for part in word.parts:
            several = self._several(part)
            if several is not None:
                starred = isinstance(part, Reference) and "*" in (part.name, part.index)
                one_text = not split or (part.quoted and starred)
                for number, item in enumerate(several):
                    if number and not one_text:
                        finish()
                    elif number:  # a shell puts blanks between
                        pieces.append(TextPiece(" ", -1))
                    if split and not part.quoted:
                        whole = not any(_SPACE.search(piece.text) for piece in item.value if piece.known)
                        home = item.home if whole and not pieces else home
                        add_split(item.value)
                        continue
                    if not pieces:
                        home = item.home
                    pieces += item.value
                    begun = True
                begun = begun or (part.quoted and one_text)
                continue
            value = self._part(part)
            if part.quoted or not split or isinstance(part, Literal):
                pieces += value
                begun = begun or part.quoted or bool(value)
                continue
            add_split(value)
        finish()
        if not split and not done:
            return [Field((), call, call)]
        if sum(len(piece.text) for item in done for piece in item.value) > LONGEST:
            raise SpoConfigError(f"a word grows beyond {LONGEST} characters: give the command itself")
        return done

    def _several(self, part: object) -> list[Field] | None:
        """The fields of ``"$@"``, ``"${NAME[@]}"`` and ``"${!NAME[@]}"``; None for another part."""
        if isinstance(part, Reference) and part.operator == "indirect" and part.index in ("@", "*"):
            keys = self._in_order(part) if part.name in self._maps else range(len(self._arrays.get(part.name, ())))
            computed = (Via(COMPUTED, part.start, part.end),)
            return [Field((TextPiece(str(key), -1, computed),), None, (part.start, part.end)) for key in keys]
        if not isinstance(part, Reference) or part.operator not in ("", ":-", "-", ":+", "+", ":"):
            return None
        if part.name in ("@", "*"):
            fields: tuple[Field, ...] | None = self._given
            if part.operator == ":":
                first = text_of(tuple(piece for one in part.operand for piece in self._part(one)))
                if not re.fullmatch(r"[1-9]\d{0,3}", first):
                    return None
                fields = self._given[int(first) - 1 :]
        elif part.index in ("@", "*") and part.name in self._maps:
            fields = tuple(Field(value, None, (0, 0)) for value in self._in_order(part).values())
        elif part.index in ("@", "*"):
            fields = self._arrays.get(part.name)
            if fields is None and part.name in self._scalars:
                fields = (Field(self._scalars[part.name], None, (0, 0)),)
        else:
            return None
        via = Via(part.name, part.start, part.end)
        if part.operator in (":+", "+"):
            if not fields:
                return []
            return [
                Field(tuple(piece.through(via) for piece in one.value), one.home, one.call)
                for one in self._expand(Word(part.operand, part.start, part.end))
            ]
        if not fields and part.operator in (":-", "-"):
            value = tuple(piece.through(via) for one in part.operand for piece in self._part(one))
            return [Field(value, None, (part.start, part.end))] if value else []
        return [Field(tuple(piece.through(via) for piece in one.value), one.home, one.call) for one in fields or ()]

    def _in_order(self, part: Reference) -> dict[str, Value]:
        """The entries of an associative array of which there is no more than one: bash has an order of its own."""
        entries = self._maps[part.name]
        if len(entries) > 1:
            raise SpoConfigError(
                f"line {line_of(self.script, part.start)}: bash goes through the associative array {part.name} in an "
                "order of its own; write the keys out, in the order that is meant"
            )
        return entries

    def _part(self, part: object) -> Value:
        if isinstance(part, Literal):
            return (TextPiece(part.text, part.start),) if part.text else ()
        if isinstance(part, Arithmetic):
            return (self._arithmetic(part),)
        if isinstance(part, Substitution):
            via = Via(COMPUTED, part.start, part.end)
            if part.text.strip() == "pwd" and self.folder:
                return (TextPiece(self.folder, -1, (via,)),)
            return (TextPiece(self.script[part.start : part.end], part.start, (via,), known=False),)
        assert isinstance(part, Reference)
        via = Via(part.name, part.start, part.end)
        return tuple(piece.through(via) for piece in self._reference(part) if piece.text)

    def _stepped(self, text: str) -> int | None:
        """The value of ``NAME++``, ``NAME += ...`` and the like, which are carried out; None for another expression."""
        found = _STEPS.fullmatch(text)
        if found is None:
            return None
        name, sign = found["name"] or found["other"], found["after"] or found["before"]
        old = self._named(name)
        right = f"{name} {sign[0]} 1" if sign else found["right"]
        new = self._number(f"{name} {found['operator']} ({right})" if found["operator"] else right)
        if new is None:
            return None
        self._set(name, (TextPiece(str(new), -1),))
        return old if found["after"] else new

    def _arithmetic(self, part: Arithmetic) -> TextPiece:
        via = Via(COMPUTED, part.start, part.end)
        number = self._number(part.text)
        if number is None:
            self._forget(_ASSIGNING["let"], part.text)
            return TextPiece(self.script[part.start : part.end], part.start, (via,), known=False)
        return TextPiece(str(number), -1, (via,))

    def _number(self, text: str) -> int | None:
        inner = re.sub(r"\$\{([A-Za-z_]\w*)\}|\$([A-Za-z_]\w*)", r" \1\2 ", text)
        if "$" in inner:  # ${X:-1} and the like
            try:
                inner = self._text(Reader(f'"{text}"').read_word()) or ""
            except SpoConfigError:
                return None
        return arithmetic.evaluate(inner, self._named)

    def _named(self, name: str, level: int = 0) -> int | None:
        value = self._scalars.get(name)
        if value is None or not is_known(value) or level > MOST_CALLS:
            return None
        text = text_of(value).strip()
        if re.fullmatch(r"-?\d{1,18}", text):
            return arithmetic.evaluate(text, lambda _: None)  # 010 is eight
        return self._named(text, level + 1) if re.fullmatch(r"[A-Za-z_]\w*", text) else None

    def _stored(self, part: Reference) -> Value | None:
        """What a variable holds; None where it is not set."""
        if part.name.isdigit():
            number = int(part.name) - 1
            return self._given[number].value if 0 <= number < len(self._given) else None
        if part.name == "#":
            return (TextPiece(str(len(self._given)), -1),)
        if part.name in self._maps:
            key = self._key(part.index) if part.index is not None else "0"
            if key is None:
                return (TextPiece(self.script[part.start : part.end], part.start, known=False),)
            return self._maps[part.name].get(key)
        if part.name in self._arrays:
            fields = self._arrays[part.name]
            index = self._number(part.index) if part.index is not None else 0
            if index is None:
                return (TextPiece(self.script[part.start : part.end], part.start, known=False),)
            return fields[index].value if -len(fields) <= index < len(fields) else None
        if part.index not in (None, "0"):
            return None
        return self._scalars.get(part.name)

    def _reference(self, part: Reference) -> Value:
        operator = part.operator
        unknown = (TextPiece(self.script[part.start : part.end], part.start, known=False),)
        if operator == "len":
            if part.index in ("@", "*"):
                held = self._maps.get(part.name, self._arrays.get(part.name, ()))
                return (TextPiece(str(len(held)), -1),)
            stored = self._stored(part)
            return (TextPiece(str(len(text_of(stored or ()))), -1),) if is_known(stored or ()) else unknown
        stored = self._stored(part)
        if operator == "indirect":
            name = text_of(stored or ())
            return self._scalars.get(name, unknown)
        operand = tuple(piece for one in part.operand for piece in self._part(one))
        if operator in (":-", "-", ":=", "="):
            filled = stored is not None and not (operator[0] == ":" and not text_of(stored))
            value = stored if filled and stored is not None else operand
            if not filled and operator[-1] == "=":
                self._scalars[part.name] = value
            return value
        if operator in (":+", "+"):
            filled = stored is not None and not (operator[0] == ":" and not text_of(stored))
            return operand if filled else ()
        if stored is None:
            return (TextPiece(self.script[part.start : part.end], part.start, known=False, unset=True),)
        if operator in ("", ":?", "?", "@"):
            return stored
        changed = _changed(text_of(stored), operator, text_of(operand))
        if changed is None or not is_known(stored) or not is_known(operand):
            return unknown
        return (TextPiece(changed, -1),)

    def _test(self, command: Test) -> bool | None:
        if command.arithmetic is not None:
            stepped = self._stepped(command.arithmetic)
            if stepped is not None:
                return bool(stepped)
            self._forget(_ASSIGNING["let"], command.arithmetic)
            number = self._number(command.arithmetic)
            return None if number is None else bool(number)
        return _tested([self._text(word, unset="") for word in command.words])


# -------------------------------------------------------------------- texts and conditions


def _changed(text: str, operator: str, operand: str) -> str | None:
    """``${NAME#pattern}`` and its relatives on a text; None for what is not evaluated."""
    if operator in ("#", "##", "%", "%%"):
        ends = range(len(text) + 1)
        if len(text) > 2000:
            return None
        if operator[0] == "#":
            hits = [end for end in ends if fnmatch.fnmatchcase(text[:end], operand)]
            return text if not hits else text[hits[-1] if operator == "##" else hits[0] :]
        hits = [end for end in ends if fnmatch.fnmatchcase(text[end:], operand)]
        return text if not hits else text[: hits[0] if operator == "%%" else hits[-1]]
    if operator in ("/", "//"):
        pattern, _, new = operand.partition("/")
        if not pattern or re.search(r"[*?\[]", pattern) or len(text) * max(len(new), 1) > LONGEST * 100:
            return None
        return text.replace(pattern, new, -1 if operator == "//" else 1)
    if operator in ("^^", ",,"):
        return text.upper() if operator == "^^" else text.lower()
    if operator == ":":
        begin, _, length = operand.partition(":")
        if re.fullmatch(r" ?-?\d{1,6}", begin) and re.fullmatch(r"\d{0,6}", length):
            rest = text[int(begin) :]
            return rest[: int(length)] if length else rest
    return None


def _matches(text: str, pattern: str) -> bool:
    return len(text) <= 2000 and len(pattern) <= 200 and fnmatch.fnmatchcase(text, pattern)


def _tested(words: Sequence[str | None]) -> bool | None:
    """The value of ``test``'s arguments; None where only the machine knows."""
    return _or(list(words))


def _or(words: list[str | None]) -> bool | None:
    for operator, decisive in (("||", True), ("-o", True), ("&&", False), ("-a", False)):
        if operator in words and words[0] != operator:
            at = words.index(operator)
            one, other = _or(words[:at]), _or(words[at + 1 :])
            if decisive in (one, other):
                return decisive
            return None if one is None or other is None else not decisive
    if words and words[0] == "!" and len(words) > 1:
        inner = _or(words[1:])
        return None if inner is None else not inner
    if len(words) >= 2 and words[0] == "(" and words[-1] == ")":
        return _or(words[1:-1])
    return _primary(words)


def _primary(words: list[str | None]) -> bool | None:
    if len(words) == 1:
        return None if words[0] is None else bool(words[0])
    if len(words) == 2 and words[0] in ("-z", "-n", "-v"):
        if words[1] is None or words[0] == "-v":
            return None
        return bool(words[1]) == (words[0] == "-n")
    if len(words) != 3 or words[0] is None or words[2] is None:
        return None
    one, operator, other = words[0], words[1], words[2]
    if operator in ("=", "=="):
        return _matches(one, other)
    if operator == "!=":
        return not _matches(one, other)
    numbers = {"-eq": "==", "-ne": "!=", "-lt": "<", "-le": "<=", "-gt": ">", "-ge": ">="}
    if operator in numbers and re.fullmatch(r"\s*-?\d{1,18}\s*", one) and re.fullmatch(r"\s*-?\d{1,18}\s*", other):
        found = arithmetic.evaluate(f"{int(one)} {numbers[operator]} {int(other)}", lambda _: None)
        return None if found is None else bool(found)
    return None


# -------------------------------------------------------------------- looking into blocks


def _blocks(command: Command) -> list[Block]:
    if isinstance(command, If):
        return [block for pair in command.branches for block in pair]
    if isinstance(command, Case):
        return [block for _, block in command.branches]
    if isinstance(command, Loop):
        return [command.condition, command.body]
    if isinstance(command, (Function, Group)):
        return [command.body]
    return []


def _simple_commands(block: Block) -> list[Simple]:
    found: list[Simple] = []
    for step in block:
        if isinstance(step.command, Simple):
            found.append(step.command)
        for inner in _blocks(step.command):
            found += _simple_commands(inner)
    return found


def _names_method(command: Simple, script: str) -> bool:
    """Whether a command starts verl, or sets what decides about its method."""
    words = [*command.words]
    for one in command.assignments:
        words += one.value if isinstance(one.value, tuple) else (one.value,)
    return any(
        re.search(r"main_ppo|adv_estimator|rollout\.n=|train_batch_size", script[w.start : w.end]) for w in words
    )


def _names_in(block: Block, script: str) -> set[str]:
    """Names of variables that the commands of a condition may read."""
    texts = [script[word.start : word.end] for one in _simple_commands(block) for word in one.words]
    for step in block:
        inner = step.command
        while isinstance(inner, Group) and len(inner.body) == 1:
            inner = inner.body[0].command
        if isinstance(inner, Test):
            texts += [inner.arithmetic or "", *(script[word.start : word.end] for word in inner.words)]
    return set(re.findall(r"[A-Za-z_]\w*", " ".join(texts)))


def _matters(block: Block, script: str) -> bool:
    return any(one.assignments or _names_method(one, script) for one in _simple_commands(block))


def _first_offset(block: Block) -> int:
    commands = _simple_commands(block)
    if commands:
        return commands[0].start
    first = block[0].command if block else None
    return first.words[0].start if isinstance(first, Test) and first.words else 0
