"""One name of verl that the plugin builds on; the lists are in ``training/seams.py`` and ``agent/seams.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Seam:
    """One name that the plugin builds on.

    Attributes:
        module: where it is imported from.
        name: dotted name inside the module.
        use: ``override`` (a method that the SPO trainer replaces and calls through ``super``), ``wrap`` (a name
            the plugin extends in place), ``read`` (called or read as it is).
        signature: parameters as ``inspect.signature`` shows them without annotations; empty for what is no function.
    """

    module: str
    name: str
    use: Literal["override", "wrap", "read"]
    signature: str = ""

    @property
    def target(self) -> str:
        return f"{self.module}:{self.name}"
