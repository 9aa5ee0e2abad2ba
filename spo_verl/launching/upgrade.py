"""``python -m spo_verl.launching.upgrade [--verl FOLDER] [--json]``: what another verl would move under the plugin.

Looks up every name of verl that the plugin builds on, with its signature, in the installed verl or in that of a folder:
an unpacked wheel, a checkout, a ``site-packages``. With ``VERL_PLATFORM=cpu`` the workarounds of the CPU platform too.
The plugin is not loaded. Exit status: 0, nothing moved; 1, something did; 2, there is no verl to look at.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spo_verl.agent.seams import SEAMS as AGENT_SEAMS
from spo_verl.conf import chosen_platform
from spo_verl.training.seams import SEAMS as TRAINING_SEAMS
from spo_verl.training.seams import differences

ROOMS = {"spo_verl/training": TRAINING_SEAMS, "spo_verl/agent": AGENT_SEAMS}
"""Room of this package -> names of verl that it builds on."""


@dataclass(frozen=True)
class Moved:
    """A module or a name that is not as the plugin expects it.

    Attributes:
        room: folder or file of this package that builds on it.
        module: module of verl, or the name of a workaround.
        names: what is missed in it: all names, where the module is gone.
        what: what is different.
        elsewhere: modules of that verl that define the name instead.
    """

    room: str
    module: str
    names: tuple[str, ...]
    what: str
    elsewhere: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = ":" + self.names[0] if len(self.names) == 1 else ""
        count = f"; {len(self.names)} names of it are used" if len(self.names) > 1 else ""
        other = f"; there is one in {', '.join(self.elsewhere)}" if self.elsewhere else ""
        return f"{self.room}: {self.module}{names} {self.what}{count}{other}"


def moved_names() -> Iterator[Moved]:
    """Yield what the verl that is imported here has elsewhere, otherwise or not at all."""
    found = [(room, *difference) for room, seams in ROOMS.items() for difference in differences(seams)]
    absent = {seam.name.split(".")[0] for _, seam, differs, _ in found if differs != "signature"}
    places = _definitions(absent)
    lost: dict[tuple[str, str, str], list[str]] = {}
    for room, seam, differs, what in found:
        if differs == "module":
            lost.setdefault((room, seam.module, what), []).append(seam.name)
        else:
            outer = seam.name.split(".")[0]
            others = [place for place in places.get(outer, ()) if place != seam.module] if differs == "name" else []
            yield Moved(room, seam.module, (seam.name,), what, tuple(others))
    for (room, module, what), names in lost.items():
        outer_names = {name.split(".")[0] for name in names}
        others = sorted({place for name in outer_names for place in places.get(name, ())})
        yield Moved(room, module, tuple(names), what, tuple(others))


def _definitions(names: set[str]) -> dict[str, list[str]]:
    """Modules of verl that define a class or function of this name; files are read, not imported."""
    places: dict[str, list[str]] = {}
    if not names:
        return places
    folder = Path(str(importlib.import_module("verl").__file__)).parent
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        if any(f" {name}" in text for name in names):
            module = ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
            for node in _statements(text):
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in names:
                    places.setdefault(node.name, []).append(module)
    return places


def _statements(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except SyntaxError:  # of a later Python, which cannot import it here either
        return []


def moved_workarounds() -> Iterator[Moved]:
    """Yield the workarounds of the CPU platform that do not fit that verl."""
    from spo_verl.cpu import unfit_workarounds

    for name, what in unfit_workarounds():
        yield Moved("spo_verl/cpu", name, (), what)


def main(arguments: list[str] | None = None) -> int:
    """Look and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m spo_verl.launching.upgrade", description=str(__doc__))
    parser.add_argument("--verl", metavar="FOLDER", help="folder that holds verl/; default: the installed verl")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    chosen = parser.parse_args(arguments)
    on_cpu = chosen_platform() == "cpu"
    # Neither this plugin nor its platform: what they change would be taken for verl's.
    os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "none"
    os.environ.pop("VERL_PLATFORM", None)
    if chosen.verl is not None:
        folder = Path(chosen.verl).resolve()
        if not (folder / "verl" / "__init__.py").is_file():
            return _no_verl(f"{folder} has no verl/__init__.py: give the folder that holds verl's package.")
        sys.path.insert(0, str(folder))
    with contextlib.redirect_stdout(sys.stderr):  # what modules print while they are imported
        try:
            verl = importlib.import_module("verl")
        except Exception as error:  # noqa: BLE001 - another version may raise anything; it is the answer
            return _no_verl(f"verl cannot be imported ({type(error).__name__}: {error}); install what it needs.")
        found = [*moved_names(), *(moved_workarounds() if on_cpu else ())]
    version, place = str(getattr(verl, "__version__", "of unknown version")), str(Path(str(verl.__file__)).parent)
    print(as_json(found, version, place) if chosen.json else as_text(found, version, place))
    return 1 if found else 0


def as_text(found: Sequence[Moved], version: str, folder: str) -> str:
    """One line for the verl that was looked at, and one for each difference."""
    names = sum(map(len, ROOMS.values()))
    lines = [f"  {one}" for one in found] or ["  nothing moved"]
    return "\n".join([f"verl {version} in {folder}: {names} names looked up", *lines])


def as_json(found: Sequence[Moved], version: str, folder: str) -> str:
    """The same as one JSON document."""
    return json.dumps({"version": version, "folder": folder, "moved": [asdict(one) for one in found]})


def _no_verl(why: str) -> int:
    print(f"spo_verl: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
