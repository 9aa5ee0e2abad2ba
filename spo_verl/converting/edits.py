"""Decisions written into a script: a value where it is, its variable if nothing else uses it, lines removed."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from spo_verl.converting.command_arguments import Arguments, Override
from spo_verl.converting.reader import line_of
from spo_verl.converting.rules import ESTIMATOR_KEY, KeyChange
from spo_verl.converting.values import COMPUTED, Field, Value, Via, cut
from spo_verl.errors import SpoConfigError

_PLAIN_REFERENCE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
_LONGEST_LINE = 100


@dataclass(frozen=True)
class Edit:
    """``script[start:end]`` becomes ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class _ThroughVariable:
    """A value of one variable: where its text is assigned, and how the reference would be edited instead."""

    via: tuple[Via, ...]
    assigned: Edit
    in_place: Edit


class Editor:
    """Collects the edits of all commands of a script, and applies them at once."""

    def __init__(self, script: str, looping: Collection[str] = ()) -> None:
        """
        Args:
            script: its text.
            looping: variables with several values, whose assignment is not edited.
        """
        self.script = script
        self._looping = looping
        self._edits: set[Edit] = set()
        self._removed: set[tuple[int, int]] = set()
        self._through: list[_ThroughVariable] = []

    def write(self, arguments: Arguments, changes: Sequence[KeyChange], repeats: int) -> None:
        """Take over the decisions about one command.

        Raises:
            SpoConfigError: a value is written in a way that cannot be edited.
        """
        by_key: dict[str, list[Override]] = defaultdict(list)
        for one in arguments.overrides:
            by_key[one.key].append(one)
        added = [
            f"{'+' if change.key == 'spo' else ''}{change.key}={change.after}"
            for change in changes
            if change.action == "add"
        ]
        for change in changes:
            written = by_key.get(change.key, [])
            if change.action == "drop":
                for one in written:
                    self._remove(one)
            elif change.action in ("set", "scale") and written:
                # hydra takes the last; an earlier estimator is changed too, so that the script names one method
                for one in written if change.key == ESTIMATOR_KEY else written[-1:]:
                    self._set(one, change, repeats)
            elif change.action == "set":
                added.insert(0 if change.key == ESTIMATOR_KEY else len(added), f"{change.key}={change.after}")
        if added:
            place = by_key[ESTIMATOR_KEY][-1].field if by_key.get(ESTIMATOR_KEY) else arguments.before
            self._insert(place, added)

    def result(self) -> str:
        """The edited script."""
        edits = set(self._edits)
        groups: dict[tuple[int, int], list[_ThroughVariable]] = defaultdict(list)
        for one in self._through:
            groups[one.assigned.start, one.assigned.end].append(one)
        for group in groups.values():
            edits |= {group[0].assigned} if self._only_theirs(group) else {one.in_place for one in group}
        edits |= self._removals()
        ordered = sorted(edits, key=lambda edit: (edit.start, edit.end))
        for edit, following in itertools.pairwise(ordered):
            if following.start < edit.end or (edit.start, edit.end) == (following.start, following.end):
                raise self._by_hand(edit.start, "several commands need different values of it")
        text = self.script
        for edit in reversed(ordered):
            text = text[: edit.start] + edit.text + text[edit.end :]
        return text

    # ---------------------------------------------------------------- one value

    def _set(self, override: Override, change: KeyChange, repeats: int) -> None:
        assert change.after is not None
        value = override.value
        if re.fullmatch(r"(['\"]).*\1", override.text, re.DOTALL):  # hydra's own quotes stay
            value = cut(value, 1, len(override.text) - 1)
        inner = [self._own(piece.via, override) for piece in value]
        outer = {via[-1] if via else None for via in inner}
        if len(outer) == 1 and (reference := next(iter(outer))) is not None:
            in_place = Edit(reference.start, reference.end, self._multiplied(reference, change, repeats))
            piece = value[0]
            if len(value) == 1 and piece.start >= 0 and piece.known and reference.name != COMPUTED:
                begin, end = piece.start, piece.start + len(piece.text)
                default = any(via.start <= begin < via.end for via in inner[0])
                if all(via.name != COMPUTED for via in inner[0]) and not (default and change.action == "set"):
                    self._through.append(_ThroughVariable(inner[0], Edit(begin, end, change.after), in_place))
                    return
            self._edits.add(in_place)
            return
        begin, end = self._written(value, override, inner)
        if re.search(r"[\"'`\s]", self.script[begin:end]):
            raise self._by_hand(begin, f"set {change.key}={change.after} there by hand, then convert again")
        self._edits.add(Edit(begin, end, change.after))

    def _multiplied(self, reference: Via, change: KeyChange, repeats: int) -> str:
        """The text that replaces a reference where a number is needed; a product keeps the variable in use."""
        written = self.script[reference.start : reference.end]
        if change.action != "scale":
            return str(change.after)
        plain = _PLAIN_REFERENCE.fullmatch(written)
        if plain:
            return f"$(({plain[1]} * {repeats}))"
        if written.startswith("$((") and written.endswith("))"):
            return f"$(( ({written[3:-2].strip()}) * {repeats} ))"
        if written.startswith("${"):
            return f"$(({written} * {repeats}))"
        return str(change.after)

    def _own(self, via: tuple[Via, ...], override: Override) -> tuple[Via, ...]:
        """The variables of a value alone, without those that carried the whole override."""
        carrier = override.carrier
        if carrier and via[len(via) - len(carrier) :] != carrier:
            raise self._by_hand(via[-1].start if via else 0, f"write {override.key} as one word, then convert again")
        return via[: len(via) - len(carrier)]

    def _written(self, value: Value, override: Override, inner: Iterable[tuple[Via, ...]]) -> tuple[int, int]:
        """From where to where a value is written, in the word or the text that holds the override."""
        begins, ends = [], []
        for piece, via in zip(value, inner, strict=True):
            if not via and piece.start < 0:
                raise SpoConfigError(
                    f"{override.key}={override.text} comes from outside the script and has to change: leave it out of "
                    "the call, or write it into the script"
                )
            begins.append(via[-1].start if via else piece.start)
            ends.append(via[-1].end if via else piece.start + len(piece.text))
        return min(begins), max(ends)

    def _only_theirs(self, group: Sequence[_ThroughVariable]) -> bool:
        """Whether a variable serves only values that become the same, so that its assignment can be edited."""
        if len({one.assigned for one in group}) > 1:
            return False
        theirs = {via.start for one in group for via in one.via}
        names = {via.name for one in group for via in one.via}
        if not names.isdisjoint(self._looping):
            return False
        return all(self._references(name) <= theirs for name in names)

    def _references(self, name: str) -> set[int]:
        """Offsets at which a variable is used, comments aside; in arithmetic also without the dollar sign."""
        found = {one.start() for one in re.finditer(rf"\$\{{?[#!]?{re.escape(name)}\b", self.script)}
        for inner in re.finditer(r"\(\(([^\n]{0,500}?)\)\)", self.script):
            for one in re.finditer(rf"(?<![\w$]){re.escape(name)}\b", inner[1]):
                offset = inner.start(1) + one.start()
                found.add(offset - 2 if self.script[offset - 2 : offset] == "${" else offset)
        return {offset for offset in found if not self._in_comment(offset)}

    def _in_comment(self, offset: int) -> bool:
        begin = self.script.rfind("\n", 0, offset) + 1
        return re.match(r"\s*#|[^\"']*\s#", self.script[begin:offset]) is not None

    # ---------------------------------------------------------------- whole words

    def _span(self, field: Field) -> tuple[int, int]:
        """Where a whole word is written: as a word of its own, or inside the text of a variable."""
        if field.home is not None:
            return field.home
        carrier = field.value[0].via
        inner = [piece.via[: len(piece.via) - len(carrier)] for piece in field.value]
        begins = [via[-1].start if via else piece.start for piece, via in zip(field.value, inner, strict=True)]
        ends = [
            via[-1].end if via else piece.start + len(piece.text) for piece, via in zip(field.value, inner, strict=True)
        ]
        begin, end = min(begins), max(ends)
        if begin < 0 or re.search(r"\s", self.script[begin:end]):
            key = field.text.partition("=")[0]
            raise self._by_hand(max(begin, 0), f"{key} has to change: write it into the script as a word of its own")
        return begin, end

    def _remove(self, override: Override) -> None:
        self._removed.add(self._span(override.field))

    def _insert(self, place: Field, words: Sequence[str]) -> None:
        begin, end = self._span(place)
        line = self.script.rfind("\n", 0, begin) + 1
        indent = re.match(r"[ \t]*", self.script[line:begin])
        assert indent is not None
        rest = re.match(r"[ \t]*(\\?)\n", self.script[end:])
        broken = f" \\\n{indent[0] or '    '}" if rest and rest[1] else " "
        text, width = "", end - line
        for word in words:
            separator = " " if width + 1 + len(word) <= _LONGEST_LINE else broken
            text += separator + word
            width = width + 1 + len(word) if separator == " " else len(indent[0]) + len(word)
        self._edits.add(Edit(end, end, text))

    def _removals(self) -> set[Edit]:
        """Words removed: a line that holds nothing else goes whole, with the continuation that led to it."""
        edits: set[Edit] = set()
        lines: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for begin, end in self._removed:
            lines[self.script.rfind("\n", 0, begin) + 1].append((begin, end))
        whole: dict[int, int] = {}
        for line, spans in lines.items():
            stop = self.script.find("\n", line)
            stop = len(self.script) if stop < 0 else stop
            rest, at = "", line
            for begin, end in sorted(spans):
                rest += self.script[at:begin]
                at = end
            rest += self.script[at:stop] if at <= stop else "more"
            if re.fullmatch(r"\s*\\?\s*(#.*)?", rest):
                whole[line] = min(stop + 1, len(self.script))
            else:
                edits |= {self._inline(begin, end, line) for begin, end in spans}
        for line, stop in whole.items():
            edits.add(Edit(line, stop, ""))
            if not self.script[line:stop].rstrip().endswith("\\"):
                edits |= self._unlinked(line, whole)
        return edits

    def _unlinked(self, line: int, whole: dict[int, int]) -> set[Edit]:
        """The continuation of the nearest line above that stays, where the last line of a command goes."""
        while line > 0:
            above = self.script.rfind("\n", 0, line - 1) + 1
            if above not in whole:
                found = re.search(r"[ \t]*\\[ \t]*$", self.script[above : line - 1])
                return {Edit(above + found.start(), above + found.end(), "")} if found else set()
            line = above
        return set()

    def _inline(self, begin: int, end: int, line: int) -> Edit:
        before = re.search(r"[ \t]+$", self.script[line:begin])
        if before and before.start() > 0:
            return Edit(begin - len(before[0]), end, "")
        after = re.match(r"[ \t]*", self.script[end:])
        assert after is not None
        return Edit(begin, end + after.end(), "")

    def _by_hand(self, offset: int, what: str) -> SpoConfigError:
        return SpoConfigError(f"line {line_of(self.script, offset)} cannot be edited: {what}")
