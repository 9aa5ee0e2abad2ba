"""A reader of shell scripts in the form of verl's examples: words, quotes, variables, arrays, ``if``, ``case``, loops.

Nothing is run. What is read keeps its place in the script, so that a value can be edited where it is written.
"""

from __future__ import annotations

import re

from spo_verl.converting.syntax import (
    Arithmetic,
    Assignment,
    Block,
    Case,
    Command,
    Document,
    Function,
    Group,
    If,
    Literal,
    Loop,
    Part,
    Reference,
    Simple,
    Step,
    Substitution,
    Test,
    Word,
)
from spo_verl.errors import SpoConfigError

MOST_LEVELS = 60
"""Commands in commands, and expansions in expansions: more than scripts have, less than Python's stack holds."""

DECLARING = frozenset({"export", "declare", "local", "readonly", "typeset"})
_BLANK = " \t"
_ENDS_WORD = " \t\n;&|<>()"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPECIAL = re.compile(r"[0-9@*#?$!-]")
_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\[[^\]\n]*\])?(\+?)=")
_FUNCTION = re.compile(r"([A-Za-z_][A-Za-z0-9_:.-]*)[ \t]*\([ \t]*\)")
_OPERATOR = re.compile(r":?[-=+?]|##?|%%?|//?|\^\^?|,,?|:|@")
_REDIRECTION = re.compile(r"(?:[0-9]+|\{[A-Za-z_]\w*\})?(?:<<<|<<-?|<>|<&|<(?!\()|>>|>\||>&|>(?!\()|&>>?)")
_CLOSERS = frozenset({"then", "elif", "else", "fi", "do", "done", "esac", "}"})


def line_of(script: str, offset: int) -> int:
    """The number of the line that an offset is in, from 1."""
    return script.count("\n", 0, max(offset, 0)) + 1


class Reader:
    """Reads ``script[start:end]``; offsets are those of the whole script."""

    def __init__(self, script: str, start: int = 0, end: int | None = None) -> None:
        self.script = script
        self.at = start
        self.end = len(script) if end is None else end
        self._documents: list[tuple[str, bool, Simple]] = []
        self._levels = 0

    def read(self) -> Block:
        """The whole script.

        Raises:
            SpoConfigError: it is no shell script, with the line.
        """
        block = self._block()
        if self.at < self.end:
            raise self._error(f"{self.script[self.at : self.at + 10].split(chr(10))[0]!r} is unexpected")
        return block

    def read_word(self) -> Word:
        """One word, as in an assignment."""
        return self._word()

    # ---------------------------------------------------------------- blocks

    def _block(self, *, until: frozenset[str] = frozenset(), closing: str = "") -> Block:
        """Commands up to a reserved word of ``until``, or up to ``closing``; neither is consumed."""
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise self._error(f"commands are nested deeper than {MOST_LEVELS} levels")
        steps: list[Step] = []
        connector = ""
        while True:
            self._blanks(lines=True)
            if self.at >= self.end or (closing and self.script.startswith(closing, self.at)):
                break
            word = self._reserved()
            if word in until:
                break
            if word in _CLOSERS or self.script[self.at] in ")":
                raise self._error(f"{word or self.script[self.at]!r} closes nothing")
            negated = False
            while word in ("!", "time"):
                negated ^= word == "!"
                self.at += len(word)
                self._blanks()
                word = self._reserved()
            before = self.at
            steps.append(Step(connector, negated, self._command()))
            self._blanks()
            connector = ""
            for operator in ("&&", "||", "|&", "|", ";", "&"):
                if closing and self.script.startswith(closing, self.at):
                    break
                if self.script.startswith(operator, self.at):
                    self.at += len(operator)
                    connector = operator if operator in ("&&", "||", "|") else "|" if operator == "|&" else ""
                    break
            else:
                if self.at == before:
                    raise self._error(f"{self.script[self.at : self.at + 1]!r} is unexpected")
        self._levels -= 1
        return tuple(steps)

    def _reserved(self) -> str:
        """The unquoted word that begins here, not consumed."""
        found = re.compile(r"[A-Za-z]+(?![\w=./$\"'+\[-])|[{}](?=[\s;)]|$)|\[\[(?=\s)|!(?=\s)").match(
            self.script, self.at, self.end
        )
        return found[0] if found else ""

    def _expect(self, word: str) -> None:
        self._blanks(lines=True)
        if not self.script.startswith(word, self.at, self.end):
            raise self._error(f"{word!r} is missing")
        self.at += len(word)

    def _command(self) -> Command:
        word = self._reserved()
        start = self.at
        command: Command
        if self.script.startswith("((", self.at, self.end):
            text = self._balanced("((", "))")
            command = Test((), text)
        elif self.script.startswith("(", self.at, self.end):
            self.at += 1
            command = Group(self._block(closing=")"), subshell=True)
            self._expect(")")
        elif word == "{":
            self.at += 1
            command = Group(self._block(until=frozenset({"}"})), subshell=False)
            self._expect("}")
        elif word == "[[":
            command = self._test()
        elif word == "if":
            command = self._if()
        elif word == "case":
            command = self._case()
        elif word in ("for", "select", "while", "until"):
            command = self._loop(word)
        elif word == "function" or _FUNCTION.match(self.script, self.at, self.end):
            command = self._function()
        else:
            return self._simple(start)
        self._redirections(Simple(start=start))
        return command

    def _if(self) -> If:
        branches: list[tuple[Block, Block]] = []
        self.at += len("if")
        while True:
            condition = self._block(until=frozenset({"then"}))
            self._expect("then")
            branches.append((condition, self._block(until=frozenset({"elif", "else", "fi"}))))
            word = self._closing_word()
            if word == "else":
                branches.append(((), self._block(until=frozenset({"fi"}))))
                self._expect("fi")
                return If(tuple(branches))
            if word == "fi":
                return If(tuple(branches))

    def _closing_word(self) -> str:
        word = self._reserved()
        if not word:
            raise self._error("'fi' is missing")
        self.at += len(word)
        return word

    def _case(self) -> Case:
        self.at += len("case")
        self._blanks(lines=True)
        subject = self._word()
        self._expect("in")
        branches: list[tuple[tuple[Word, ...], Block]] = []
        while True:
            self._blanks(lines=True)
            if self._reserved() == "esac":
                self.at += len("esac")
                return Case(subject, tuple(branches))
            if self.script.startswith("(", self.at, self.end):
                self.at += 1
            patterns = []
            while True:
                self._blanks()
                patterns.append(self._word())
                self._blanks()
                if self.script.startswith("|", self.at, self.end):
                    self.at += 1
                    continue
                self._expect(")")
                break
            body = self._branch_body()
            branches.append((tuple(patterns), body))

    def _branch_body(self) -> Block:
        """The commands of a ``case`` branch, up to ``;;`` (consumed) or ``esac`` (not consumed)."""
        body = self._block(until=frozenset({"esac"}), closing=";;")
        for separator in (";;&", ";;"):
            if self.script.startswith(separator, self.at, self.end):
                self.at += len(separator)
                break
        return body

    def _loop(self, word: str) -> Loop:
        self.at += len(word)
        self._blanks(lines=True)
        name: str | None = None
        words: tuple[Word, ...] | None = None
        condition: Block = ()
        if word in ("for", "select"):
            if self.script.startswith("((", self.at, self.end):
                self._balanced("((", "))")
            else:
                found = _NAME.match(self.script, self.at, self.end)
                if not found:
                    raise self._error(f"{word!r} needs a variable")
                name = found[0]
                self.at = found.end()
                self._blanks(lines=True)
                if self._reserved() == "in":
                    self.at += len("in")
                    listed = []
                    while True:
                        self._blanks()
                        if self.at >= self.end or self.script[self.at] in "\n;":
                            break
                        before = self.at
                        listed.append(self._word())
                        if self.at == before:
                            raise self._error(
                                f"{self.script[self.at : self.at + 1]!r} is unexpected in the words of a loop"
                            )
                    words = tuple(listed)
            self._blanks(lines=True)
            if self.script.startswith(";", self.at, self.end):
                self.at += 1
        else:
            condition = self._block(until=frozenset({"do"}))
            if word == "until":
                condition = (Step("", True, Group(condition, subshell=False)),)
        self._expect("do")
        body = self._block(until=frozenset({"done"}))
        self._expect("done")
        return Loop(name, words, condition, body)

    def _function(self) -> Function:
        if self._reserved() == "function":
            self.at += len("function")
            self._blanks()
        found = re.compile(r"([A-Za-z_][A-Za-z0-9_:.-]*)(?:[ \t]*\([ \t]*\))?").match(self.script, self.at, self.end)
        if not found:
            raise self._error("a function needs a name")
        self.at = found.end()
        self._blanks(lines=True)
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise self._error(f"commands are nested deeper than {MOST_LEVELS} levels")
        body = self._command()
        self._levels -= 1
        return Function(found[1], (Step("", False, body),))

    def _test(self) -> Test:
        self.at += 2
        words: list[Word] = []
        while True:
            self._blanks(lines=True)
            if self.at >= self.end:
                raise self._error("']]' is missing")
            if re.compile(r"\]\](?=[\s;&|)]|$)").match(self.script, self.at, self.end):
                self.at += 2
                return Test(tuple(words))
            for operator in ("&&", "||", "(", ")", "<", ">"):
                if self.script.startswith(operator, self.at, self.end):
                    words.append(Word((Literal(operator, self.at),), self.at, self.at + len(operator)))
                    self.at += len(operator)
                    break
            else:
                if words and words[-1].plain == "=~":
                    words.append(self._pattern())
                else:
                    before = self.at
                    words.append(self._word())
                    if self.at == before:
                        raise self._error(f"{self.script[self.at : self.at + 1]!r} is unexpected in '[['")

    def _pattern(self) -> Word:
        """A regular expression after ``=~``: parentheses and bars belong to it. It is not evaluated."""
        found = re.compile(r"\S+").match(self.script, self.at, self.end)
        assert found is not None
        self.at = found.end()
        return Word((Substitution(found[0], found.start(), found.end()),), found.start(), found.end())

    # ---------------------------------------------------------------- simple commands

    def _simple(self, start: int) -> Simple:
        command = Simple(start=start)
        while True:
            self._blanks()
            if self.at >= self.end or self._redirections(command):
                if self.at >= self.end:
                    return command
                continue
            character = self.script[self.at]
            if character in "\n;&|)":
                return command
            declaring = bool(command.words) and command.words[0].plain in DECLARING
            assigned = _ASSIGNED.match(self.script, self.at, self.end)
            if assigned and (declaring or not command.words):
                command.assignments.append(self._assignment(assigned))
                continue
            if character == "(":
                raise self._error("'(' is unexpected")
            command.words.append(self._word())

    def _assignment(self, found: re.Match[str]) -> Assignment:
        self.at = found.end()
        value: Word | tuple[Word, ...]
        if self.script.startswith("(", self.at, self.end):
            self.at += 1
            words: list[Word] = []
            while True:
                self._blanks(lines=True)
                if self.at >= self.end:
                    raise self._error(f"the array {found[1]} is not closed")
                if self.script[self.at] == ")":
                    self.at += 1
                    break
                before = self.at
                words.append(self._word())
                if self.at == before:
                    raise self._error(f"{self.script[self.at : self.at + 1]!r} is unexpected in the array {found[1]}")
            value = tuple(words)
        else:
            value = self._word()
        return Assignment(found[1], value, bool(found[3]), found[2] and found[2][1:-1])

    def _redirections(self, command: Simple) -> bool:
        """Skip redirections; note here-documents, whose text begins on the next line."""
        some = False
        while True:
            self._blanks()
            found = _REDIRECTION.match(self.script, self.at, self.end)
            if not found:
                return some
            some = True
            self.at = found.end()
            self._blanks()
            before = self.at
            target = self._word()
            if self.at == before:
                raise self._error(f"{found[0]!r} needs a file")
            operator = found[0].lstrip("0123456789")
            if operator in ("<<", "<<-"):
                text = "".join(part.text for part in target.parts if isinstance(part, Literal))
                self._documents.append((text, operator == "<<-", command))

    def _documents_here(self) -> None:
        """At the beginning of a line: read the text of the here-documents that the line before announced."""
        for mark, tabs, command in self._documents:
            begin = self.at
            while True:
                if self.at >= self.end:
                    raise self._error(f"the here-document is not closed by {mark!r}")
                stop = self.script.find("\n", self.at, self.end)
                stop = self.end if stop < 0 else stop
                line = self.script[self.at : stop]
                if (line.lstrip("\t") if tabs else line) == mark:
                    command.documents.append(Document(begin, self.at))
                    self.at = min(stop + 1, self.end)
                    break
                self.at = stop + 1
        self._documents.clear()

    # ---------------------------------------------------------------- words

    def _blanks(self, *, lines: bool = False) -> None:
        """Skip white space, continuations and comments; line ends and empty commands too with ``lines``."""
        while self.at < self.end:
            character = self.script[self.at]
            if character in _BLANK:
                self.at += 1
            elif self.script.startswith("\\\n", self.at, self.end):
                self.at += 2
            elif character == "#" and (self.at == 0 or self.script[self.at - 1] in _ENDS_WORD):
                stop = self.script.find("\n", self.at, self.end)
                self.at = self.end if stop < 0 else stop
            elif lines and character == "\n":
                self.at += 1
                if self._documents:
                    self._documents_here()
            else:
                return

    def _word(self) -> Word:
        start = self.at
        parts = self._parts(_ENDS_WORD, quoted=False)
        return Word(tuple(parts), start, self.at)

    def _parts(self, stops: str, *, quoted: bool) -> list[Part]:
        """Parts up to one of ``stops``, unquoted; inside double quotes up to the closing one. Not consumed."""
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise self._error(f"expansions are nested deeper than {MOST_LEVELS} levels")
        parts: list[Part] = []
        while self.at < self.end and self.script[self.at] not in stops:
            character = self.script[self.at]
            if character == "\\":
                self._escape(parts, quoted)
            elif character == "'" and not quoted:
                parts.append(self._single(self.at + 1))
            elif character == '"' and not quoted:
                parts += self._double()
            elif character == "$":
                self._dollar(parts, quoted)
            elif character == "`":
                parts.append(self._backquoted(quoted))
            else:
                stop = self.at + 1
                while stop < self.end and self.script[stop] not in "\\'\"$`" + stops:
                    stop += 1
                parts.append(Literal(self.script[self.at : stop], self.at, quoted))
                self.at = stop
        if (
            self.at < self.end
            and not quoted
            and self.script[self.at] in "<>"
            and self.script.startswith("(", self.at + 1)
        ):
            start = self.at
            self.at += 1
            parts.append(Substitution(self._balanced("(", ")"), start, self.at))
        self._levels -= 1
        return parts

    def _escape(self, parts: list[Part], quoted: bool) -> None:
        following = self.script[self.at + 1 : min(self.at + 2, self.end)]
        if following == "\n":
            self.at += 2
        elif quoted and following not in ("$", "`", '"', "\\"):
            parts.append(Literal("\\", self.at, True))
            self.at += 1
        elif not following:
            self.at += 1
        else:
            parts.append(Literal(following, self.at + 1, True))
            self.at += 2

    def _single(self, start: int) -> Literal:
        stop = self.script.find("'", start, self.end)
        if stop < 0:
            raise self._error("a single quote is not closed")
        self.at = stop + 1
        return Literal(self.script[start:stop], start, True)

    def _double(self) -> list[Part]:
        begin = self.at
        self.at += 1
        parts = self._parts('"', quoted=True)
        if self.at >= self.end:
            self.at = begin
            raise self._error("a double quote is not closed")
        self.at += 1
        return parts or [Literal("", self.at - 1, True)]

    def _backquoted(self, quoted: bool) -> Substitution:
        start = self.at
        stop = start + 1
        while stop < self.end and self.script[stop] != "`":
            stop += 2 if self.script[stop] == "\\" else 1
        if stop >= self.end:
            raise self._error("a backquote is not closed")
        self.at = stop + 1
        return Substitution(self.script[start + 1 : stop], start, self.at, quoted)

    def _dollar(self, parts: list[Part], quoted: bool) -> None:
        start = self.at
        if self.script.startswith("$((", start, self.end):
            self.at += 1
            text = self._balanced("((", "))")
            parts.append(Arithmetic(text, start, self.at, quoted))
        elif self.script.startswith("$(", start, self.end):
            self.at += 1
            parts.append(Substitution(self._balanced("(", ")"), start, self.at, quoted))
        elif self.script.startswith("${", start, self.end):
            parts.append(self._braced(quoted))
        elif self.script.startswith("$'", start, self.end) and not quoted:
            stop = start + 2
            while stop < self.end and self.script[stop] != "'":
                stop += 2 if self.script[stop] == "\\" else 1
            if stop >= self.end:
                raise self._error("a single quote is not closed")
            self.at = stop + 1
            parts.append(Literal(self.script[start + 2 : stop], start + 2, True))
        elif self.script.startswith('$"', start, self.end) and not quoted:
            self.at += 1
        else:
            found = _NAME.match(self.script, start + 1, self.end) or _SPECIAL.match(self.script, start + 1, self.end)
            if found:
                self.at = found.end()
                parts.append(Reference(found[0], None, "", (), start, self.at, quoted))
            else:
                parts.append(Literal("$", start, quoted))
                self.at += 1

    def _braced(self, quoted: bool) -> Reference:
        start = self.at
        self.at += 2
        before = self.script[self.at : self.at + 1]
        operator = ""
        if before in ("#", "!") and not self.script.startswith("}", self.at + 1):
            operator = "len" if before == "#" else "indirect"
            self.at += 1
        found = _NAME.match(self.script, self.at, self.end) or re.compile(r"\d+|[@*#?$!-]").match(
            self.script, self.at, self.end
        )
        if not found:
            raise self._error("'${' needs a variable")
        name, index = found[0], None
        self.at = found.end()
        if self.script.startswith("[", self.at, self.end):
            stop = self.script.find("]", self.at, self.end)
            if stop < 0:
                raise self._error("a bracket is not closed")
            index = self.script[self.at + 1 : stop]
            self.at = stop + 1
        operand: list[Part] = []
        if not self.script.startswith("}", self.at, self.end):
            more = _OPERATOR.match(self.script, self.at, self.end)
            if not more:
                raise self._error(f"'${{{name}' is not closed")
            operator = operator or more[0]
            self.at = more.end()
            operand = self._operand(quoted)
        if not self.script.startswith("}", self.at, self.end):
            raise self._error(f"'${{{name}' is not closed")
        self.at += 1
        return Reference(name, index, operator, tuple(operand), start, self.at, quoted)

    def _operand(self, quoted: bool) -> list[Part]:
        """What follows an operator, up to the closing brace; quotes count also inside double quotes."""
        parts: list[Part] = []
        while True:
            parts += self._parts('}"' if quoted else "}", quoted=quoted)
            if quoted and self.script.startswith('"', self.at, self.end):
                parts += self._double()
                continue
            return parts

    def _balanced(self, opening: str, closing: str) -> str:
        """The text between parentheses, which are consumed; quotes in it are respected."""
        start = self.at
        self.at += len(opening)
        begin, depth = self.at, len(opening)
        while self.at < self.end:
            character = self.script[self.at]
            if character == "\\":
                self.at += 1
            elif character == "'" or character == '"':
                self.at = self._closing_quote(character)
            elif character == "(":
                depth += 1
            elif character == ")":
                depth -= 1
                if depth == 0:
                    self.at += 1
                    return self.script[begin : self.at - len(closing)]
            self.at += 1
        self.at = start
        raise self._error(f"{opening!r} is not closed")

    def _closing_quote(self, quote: str) -> int:
        at = self.at + 1
        while at < self.end and self.script[at] != quote:
            at += 2 if quote == '"' and self.script[at] == "\\" else 1
        if at >= self.end:
            raise self._error("a quote is not closed")
        return at

    def _error(self, what: str) -> SpoConfigError:
        return SpoConfigError(
            f"line {line_of(self.script, min(self.at, self.end))}: {what}; is this a shell script that runs?"
        )
