"""Who imports whom in a package, read from the syntax trees, and what of it a floor plan forbids.

A plan lists floors, the lowest first. A floor has one or more rooms: a folder (``spo_verl/core/``) or a file
(``spo_verl/errors.py``). A file belongs to the room with the longest name that contains it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import table_rows

HEADER = ("floor", "what it holds", "large libraries")

Plan = Sequence[Sequence[str]]
"""Rooms by floor, the lowest floor first."""


@dataclass(frozen=True)
class Import:
    """One import statement of one file.

    Attributes:
        importer: path of the file, from the folder that holds the package.
        line: line of the statement.
        imported: path of the imported file; a dotted name for a module of another package.
    """

    importer: str
    line: int
    imported: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@dataclass(frozen=True)
class Package:
    """A package and all of its imports, those inside functions and under ``TYPE_CHECKING`` too.

    Attributes:
        files: paths of its files, from the folder that holds the package.
        inner: imports of one file by another.
        outer: imports of modules of other packages.
    """

    files: tuple[str, ...]
    inner: tuple[Import, ...]
    outer: tuple[Import, ...]


def read_package(folder: Path) -> Package:
    """Read the imports of every Python file below a package's folder."""
    paths = {path.relative_to(folder.parent).as_posix(): path for path in sorted(folder.rglob("*.py"))}
    file_of = {_module(name): name for name in paths}
    inner, outer = [], []
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            for module in _imported(node, name, file_of):
                if module in file_of:
                    inner.append(Import(name, node.lineno, file_of[module]))
                elif module.partition(".")[0] == folder.name:
                    raise ValueError(f"{name}:{node.lineno} imports {module}, which is not there")
                else:
                    outer.append(Import(name, node.lineno, module))
    return Package(tuple(paths), tuple(one for one in inner if one.importer != one.imported), tuple(outer))


def read_plan(text: str) -> Plan:
    """The floors of the table under "Floor plan" in a page; it lists the lowest floor first, rooms in backticks."""
    return [re.findall(r"`([^`]+)`", rooms) for rooms, *_ in plan_rows(text)]


def plan_rows(text: str) -> list[list[str]]:
    """The cells of that table."""
    return table_rows(text.partition("\n## Floor plan\n")[2].partition("\n## ")[0], *HEADER)


def violations(package: Package, plan: Plan) -> list[str]:
    """All that the plan forbids, one sentence each."""
    rooms = {(room_of(one.importer, plan), room_of(one.imported, plan)) for one in package.inner}
    files = {
        (one.importer, one.imported) for one in package.inner if not (is_face(one.importer) or is_face(one.imported))
    }
    return [
        *misplaced(package.files, plan),
        *upward(package.inner, plan),
        *(f"rooms import each other: {', '.join(circle)}" for circle in circles(rooms)),
        *(f"files import each other: {', '.join(circle)}" for circle in circles(files)),
    ]


def misplaced(files: Iterable[str], plan: Plan) -> list[str]:
    """Files without a room, rooms without a file, and rooms that stand twice in the plan."""
    rooms = [room for floor in plan for room in floor]
    room_of_file = {file: room_of(file, plan) for file in files}
    return [
        *(f"{file} belongs to no room" for file, room in room_of_file.items() if room is None),
        *(f"the room {room} holds no file" for room in rooms if room not in room_of_file.values()),
        *(f"the room {room} is in the plan twice" for room in sorted(set(rooms)) if rooms.count(room) > 1),
    ]


def upward(imports: Iterable[Import], plan: Plan) -> list[str]:
    """Imports of a file on a higher floor."""
    floor_of: dict[str | None, int] = {room: number for number, floor in enumerate(plan) for room in floor}
    found = []
    for one in imports:
        below, above = room_of(one.importer, plan), room_of(one.imported, plan)
        if below in floor_of and above in floor_of and floor_of[above] > floor_of[below]:
            found.append(f"{one}, which is on a higher floor")
    return found


def circles(arrows: Iterable[tuple[str | None, str | None]]) -> list[list[str]]:
    """Names that reach each other along arrows, in sorted groups (Tarjan's strongly connected components)."""
    following: dict[str, set[str]] = {}
    for start, end in arrows:
        if start is not None and end is not None and start != end:
            following.setdefault(start, set()).add(end)
            following.setdefault(end, set())
    return sorted(sorted(group) for group in _Tarjan(following).groups if len(group) > 1)


def room_of(file: str, plan: Plan) -> str | None:
    """The room with the longest name that contains a file; None where there is none."""
    rooms = (room for floor in plan for room in floor)
    holding = (room for room in rooms if file == room or (room.endswith("/") and file.startswith(room)))
    return max(holding, key=len, default=None)


def is_face(file: str) -> bool:
    """Whether a file is a package's ``__init__``, which gathers names from files that may import the package."""
    return file.endswith("/__init__.py")


class _Tarjan:
    def __init__(self, following: Mapping[str, set[str]]) -> None:
        self.following = following
        self.index: dict[str, int] = {}
        self.lowest: dict[str, int] = {}
        self.stack: list[str] = []
        self.groups: list[list[str]] = []
        for name in sorted(following):
            if name not in self.index:
                self._visit(name)

    def _visit(self, name: str) -> None:
        self.index[name] = self.lowest[name] = len(self.index)
        self.stack.append(name)
        for other in sorted(self.following[name]):
            if other not in self.index:
                self._visit(other)
                self.lowest[name] = min(self.lowest[name], self.lowest[other])
            elif other in self.stack:
                self.lowest[name] = min(self.lowest[name], self.index[other])
        if self.lowest[name] == self.index[name]:
            at = self.stack.index(name)
            self.groups.append(self.stack[at:])
            del self.stack[at:]


def _module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(node: ast.AST, file: str, known: Iterable[str]) -> Iterator[str]:
    """The modules that a statement imports: of ``from a import b`` it is ``a.b`` where that is a module, else ``a``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        # One level up is the file's own folder, for a face as for another file.
        above = file.split("/")[: -node.level] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
